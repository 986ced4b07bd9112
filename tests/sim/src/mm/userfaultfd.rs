// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Pages that a userfaultfd has to fill.

use crate::memory::{Area, Bytes, Kind, Protection, Pte, EDGE};
use crate::task::Thread;

impl Thread<'_> {
    /// A userfaultfd fills the first page that waits for it; false if none does.
    pub(crate) fn fill_missing(&self) -> bool {
        let sim = self.sim;
        let Some(page) = self.memory(|memory| memory.missing.first().copied()) else {
            return false;
        };
        self.step();
        // UFFDIO_COPY.
        self.memory(|memory| {
            memory.missing.retain(|other| *other != page);
            let Some(area) = memory
                .page(page)
                .map(|page| (page.area, page.pte, page.cache))
            else {
                return;
            };
            if let (
                Area {
                    mapped: true,
                    kind: Kind::Anonymous,
                    ..
                },
                Pte::None,
                _,
            ) = area
            {
                let mut bytes: Bytes = [0; 2 * EDGE];
                bytes[EDGE] = 0x75;
                let new = memory.new_frame(bytes);
                memory.frames[new].dirty = true;
                if let Some(page) = memory.page_mut(page) {
                    let write = page.area.protection == Protection::Write;
                    page.pte = Pte::Present {
                        frame: new,
                        write,
                        order: 0,
                    };
                }
                memory.set_shadow(page, bytes);
            } else if let Some(page) = memory.page_mut(page) {
                page.area.uffd = false;
            }
        });
        sim.tasks.wake(sim.resolved);
        true
    }
}
