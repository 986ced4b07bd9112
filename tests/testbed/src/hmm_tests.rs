// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `hmm-tests`, the kernel's own tests of HMM, built unmodified from its source package.

use anyhow::Result;
use serde_json::json;

use crate::cache::{Cache, Ready, Recipe};
use crate::chroot::Chroot;
use crate::root::Root;

/// The step, and where the guest has it below `/modules`.
pub(crate) const NAME: &str = "hmm-tests";

/// Runs in the root. The flags are those of the source's own Makefiles
/// (tools/testing/selftests/mm), which look for other tests' libraries too.
const BUILD: &str = r##"
archive=$(ls /usr/src/linux-source-*.tar.xz) top=$(basename "$archive" .tar.xz)
tests=tools/testing/selftests
mkdir /out/source
tar -x -f "$archive" -C /out/source --strip-components=1 --no-same-owner --wildcards \
	"$top/$tests/kselftest*.h" "$top/$tests/mm/*.[ch]" \
	"$top/lib/test_hmm_uapi.h" "$top/mm/gup_test.h"
cd /out/source/$tests/mm
gcc -O2 -Wall -U_FORTIFY_SOURCE -D_GNU_SOURCE= -I /out/source -I .. -o /out/hmm-tests \
	hmm-tests.c vm_util.c hugepage_settings.c -lrt -lpthread -lm
rm -r /out/source
"##;

/// The program, made once for a root.
pub(crate) fn ensure(cache: &Cache, root: &Root) -> Result<Ready> {
    let recipe = Recipe {
        name: NAME,
        title: "the kernel's hmm-tests",
        made_from: json!({ "root": root.id(), "build": BUILD }),
        disk: 64,
        holds: &["hmm-tests"],
    };
    cache.step(&recipe, |dir, log| {
        let chroot = Chroot::new(root.tree()).bind(dir, "/out");
        log.run("building hmm-tests", &mut chroot.shell(BUILD))?;
        Ok(json!({}))
    })
}
