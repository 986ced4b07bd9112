// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Two connected QPs whose memory is missing.

use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{Mtt, MttAccess, Scheme};

use crate::rig::{data, mtt, raddr, Completion, Rig, TestMr, TestQp};

pub(crate) const RW: MttAccess = MttAccess::READ_WRITE;
pub(crate) const VA: u64 = 0x7f00_0000_1000;
pub(crate) const PAGES: u64 = 16;
pub(crate) const LEN: usize = 0x1_0000;

pub(crate) struct Pair {
    pub(crate) rig: Rig,
    pub(crate) a: TestQp,
    pub(crate) b: TestQp,
    pub(crate) src: TestMr,
    pub(crate) dst: TestMr,
}

/// Two connected QPs, each with 64 KiB; `src` or `dst` is not present.
pub(crate) fn pair(scheme: Scheme, src: bool, dst: bool) -> Pair {
    let mut rig = Rig::new(scheme);
    let (a, b) = rig.rc_pair();
    let access = |present| if present { RW } else { MttAccess::NONE };
    let src = rig.mr(VA, PAGES, access(src));
    let dst = rig.mr(2 * VA, PAGES, access(dst));
    Pair {
        rig,
        a,
        b,
        src,
        dst,
    }
}

pub(crate) fn kinds(done: &[Completion]) -> Vec<(u8, u8)> {
    done.iter().map(|c| (c.opcode, c.syndrome)).collect()
}

/// Makes `count` pages of an MR present, from page `first` (a multiple of 8) on.
pub(crate) fn page_in(rig: &mut Rig, mr: &TestMr, first: u64, count: u64, access: MttAccess) {
    let list: Vec<Mtt> = (first..first + count)
        .map(|page| mtt(mr.iova + page * 4096, access))
        .collect();
    rig.set_mtts(mr.key, first, &list);
}

pub(crate) fn post_rdma(t: &mut Pair, opcode: WqeOpcode) {
    let mut body = raddr(t.dst.key, t.dst.va);
    body.extend(data(t.src.key, t.src.va, LEN));
    t.rig.post(&mut t.a, opcode, 0, &body);
}
