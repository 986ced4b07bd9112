// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory windows and indirect keys: UMRs on a user's QP, as libmlx5 posts them.

use firmware_cmds::mkey::{QueryMkeyIn, QueryMkeyOut};
use firmware_cmds::umr::{MkeyMask, UmrCtrlSeg, UmrFlags};
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{
    Access, AccessMode, Iova, Klm, Mkc, Mkey, MkeyVariant, MttAccess, PageFault, Pdn, Qpn, Scheme,
    Stride, StrideBlock, Wire,
};

use crate::rig::{data, emit, raddr, Rig, TestMr, TestQp};

const RW: MttAccess = MttAccess::READ_WRITE;
const VA: u64 = 0x7f00_0000_1000;
const LOCAL: u64 = 0x7e00_0000_0000;

const SUCCESS: (u8, u8) = (0, 0);
const BIND_ERROR: (u8, u8) = (0xd, 6);
const BAD_WQE: (u8, u8) = (0xd, 2);
const LOCAL_PROT: (u8, u8) = (0xd, 4);
const FLUSHED: (u8, u8) = (0xd, 5);
const REMOTE_ACCESS: (u8, u8) = (0xd, 0x13);

/// Every right of a peer.
const REMOTE: Access = Access {
    atomic: true,
    remote_write: true,
    remote_read: true,
    local_write: false,
    local_read: true,
};

/// What a window is bound to.
#[derive(Clone, Copy)]
struct Binding {
    /// The window's key before.
    old: Mkey,
    /// Its variant afterwards.
    variant: u8,
    /// To one QP, and only if it is free.
    type2: bool,
    /// The key of the region.
    region: Mkey,
    va: u64,
    /// Bytes; 0 frees the window.
    len: u64,
    access: Access,
}

impl Binding {
    fn new(window: Mkey, mr: &TestMr, type2: bool) -> Self {
        Self {
            old: window,
            variant: window.variant().get().wrapping_add(1),
            type2,
            region: mr.key,
            va: mr.va,
            len: 0x2000,
            access: REMOTE,
        }
    }

    fn key(&self) -> Mkey {
        Mkey::from_parts(self.old.index(), MkeyVariant::new(self.variant))
    }

    /// The WQE behind its control segment (libmlx5 `qp.c:set_bind_wr`).
    fn body(&self, qpn: u32) -> Vec<u8> {
        let mut flags = UmrFlags::new()
            .with_translation_offset_en(true)
            .with_inline(true);
        let mut mask = MkeyMask::new()
            .with_free(true)
            .with_key(true)
            .with_qpn(self.type2);
        let bound = self.len > 0;
        if bound {
            flags = flags.with_check_not_free(self.type2);
            mask = mask
                .with_len(true)
                .with_start_addr(true)
                .with_lw(true)
                .with_rr(true)
                .with_rw(true)
                .with_a(true);
        } else {
            flags = flags.with_check_qpn(self.type2);
        }
        let umr = UmrCtrlSeg {
            flags,
            xlt_octowords: if bound { 4 } else { 0 },
            mkey_mask: mask,
            ..UmrCtrlSeg::default()
        };
        let mkc = Mkc {
            free: !bound,
            access: Access {
                local_read: false,
                ..self.access
            },
            qpn: if self.type2 && bound {
                Qpn::truncate(qpn)
            } else {
                Qpn::ANY
            },
            variant: MkeyVariant::new(self.variant),
            start_addr: Iova::new(if bound { self.va } else { 0 }),
            len: self.len,
            ..Mkc::default()
        };
        let klm = Klm {
            bcount: u32::try_from(self.len).unwrap(),
            key: self.region,
            va: Iova::new(self.va),
        };
        let mut body = emit(&umr, UmrCtrlSeg::LEN);
        body.extend(emit(&mkc, Mkc::LEN));
        if bound {
            body.extend(emit(&klm, 64));
        }
        body
    }
}

/// Makes a free window as `mlx5_ib/mr.c:mlx5_ib_alloc_mw` does.
fn window(rig: &mut Rig, type2: bool) -> Mkey {
    let mkc = Mkc {
        access: Access {
            local_read: true,
            ..Access::default()
        },
        en_rinval: type2,
        variant: MkeyVariant::new(0),
        translations_octword_size: 4,
        ..rig.mkc(AccessMode::Klms)
    };
    rig.create_mkey(&mkc, &[])
}

/// A region without rights for peers.
fn region(rig: &mut Rig) -> TestMr {
    let mr = rig.mr(VA, 4, RW);
    let mkey = rig.device.mkeys.get_mut(mr.key.index().get()).unwrap();
    mkey.mkc.access = Access {
        local_read: true,
        local_write: true,
        ..Access::default()
    };
    mr
}

fn bind(rig: &mut Rig, qp: &mut TestQp, binding: &Binding) -> Vec<(u8, u8)> {
    let body = binding.body(qp.qpn);
    rig.post(qp, WqeOpcode::UMR, binding.old.get(), &body);
    ends(rig)
}

/// (opcode, syndrome) of what completes.
fn ends(rig: &mut Rig) -> Vec<(u8, u8)> {
    let done = rig.run();
    done.iter().map(|c| (c.opcode, c.syndrome)).collect()
}

/// QUERY_MKEY as Linux asks it, with room for four entries.
fn query(rig: &mut Rig, key: Mkey) -> (QueryMkeyOut, Vec<Klm>) {
    let query = QueryMkeyIn {
        mkey_index: key.index(),
        ..QueryMkeyIn::default()
    };
    let out = rig.command(&emit(&query, QueryMkeyIn::LEN), QueryMkeyOut::LEN + 64);
    let (key, list) = QueryMkeyOut::parse_prefix(&out).unwrap();
    let entries = list
        .chunks(Klm::LEN)
        .map(|entry| Klm::parse(entry).unwrap());
    (key, entries.collect())
}

/// Takes a key back (`IBV_WR_LOCAL_INV`).
fn invalidate(rig: &mut Rig, qp: &mut TestQp, key: Mkey) -> Vec<(u8, u8)> {
    let nothing = Binding {
        old: key,
        variant: 0,
        type2: true,
        region: Mkey::new(0),
        va: 0,
        len: 0,
        access: Access::default(),
    };
    bind(rig, qp, &nothing)
}

/// An RDMA operation of 64 bytes on `va` behind `key`, and how it ends.
fn rdma(rig: &mut Rig, qp: &mut TestQp, op: WqeOpcode, key: Mkey, va: u64) -> (u8, u8) {
    let local = rig.mr(LOCAL, 1, RW);
    let mut body = raddr(key, va);
    body.extend(data(local.key, LOCAL, 64));
    rig.fill(local.iova, 64, 3);
    rig.post(qp, op, 0, &body);
    ends(rig)[0]
}

fn write(rig: &mut Rig, qp: &mut TestQp, key: Mkey, va: u64) -> (u8, u8) {
    rdma(rig, qp, WqeOpcode::RDMA_WRITE, key, va)
}

#[test]
fn a_window_of_type_1_opens_to_a_peer_what_its_region_does_not() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, mut b) = rig.rc_pair();
    let (mw, mr) = (window(&mut rig, false), region(&mut rig));
    let first = Binding::new(mw, &mr, false);
    assert_eq!(bind(&mut rig, &mut b, &first), [SUCCESS]);
    assert_eq!(write(&mut rig, &mut a, first.key(), VA + 0x100), SUCCESS);
    let bytes = rig.fill(0, 64, 3);
    assert_eq!(rig.peek(mr.iova + 0x100, 64), bytes);
    let read = rdma(&mut rig, &mut a, WqeOpcode::RDMA_READ, first.key(), VA);
    assert_eq!(read, SUCCESS);
    // Bound anew it has another key, and the old one is void.
    let second = Binding {
        old: first.key(),
        variant: 9,
        ..first
    };
    assert_eq!(bind(&mut rig, &mut b, &second), [SUCCESS]);
    assert_eq!(write(&mut rig, &mut a, second.key(), VA), SUCCESS);
    let (mut c, _d) = rig.rc_pair();
    assert_eq!(write(&mut rig, &mut c, first.key(), VA), REMOTE_ACCESS);
    let none = Binding {
        old: second.key(),
        len: 0,
        ..second
    };
    assert_eq!(bind(&mut rig, &mut b, &none), [SUCCESS]);
    assert_eq!(write(&mut rig, &mut a, second.key(), VA), REMOTE_ACCESS);
    assert_eq!(rig.device.counters.user_umr_wqes, 3);
    assert!(rig.violations().is_empty());
}

/// A driver asks what a window refers to when a page behind it is missing.
#[test]
fn the_entries_of_a_window_are_told_and_those_of_a_region_are_not() {
    let mut rig = Rig::new(Scheme::Transport);
    let (_a, mut b) = rig.rc_pair();
    let (mw, mr) = (window(&mut rig, false), region(&mut rig));
    let binding = Binding {
        va: VA + 0x64,
        ..Binding::new(mw, &mr, false)
    };
    assert_eq!(bind(&mut rig, &mut b, &binding), [SUCCESS]);
    let (key, list) = query(&mut rig, binding.key());
    assert_eq!(key.mkc.start_addr, Iova::new(VA + 0x64));
    let klm = Klm {
        bcount: 0x2000,
        key: mr.key,
        va: Iova::new(VA + 0x64),
    };
    let none = Klm::default();
    assert_eq!(list, [klm, none, none, none]);
    assert_eq!(query(&mut rig, mr.key).1, [none; 4]);
    assert!(rig.violations().is_empty());
}

#[test]
fn a_window_of_type_2_belongs_to_the_qp_that_bound_it() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, mut b) = rig.rc_pair();
    let (mut c, mut d) = rig.rc_pair();
    let (mw, mr) = (window(&mut rig, true), region(&mut rig));
    let first = Binding::new(mw, &mr, true);
    assert_eq!(bind(&mut rig, &mut b, &first), [SUCCESS]);
    assert_eq!(write(&mut rig, &mut a, first.key(), VA), SUCCESS);
    assert_eq!(write(&mut rig, &mut c, first.key(), VA), REMOTE_ACCESS);
    // Another QP cannot take it back.
    rig.reset(&mut d);
    rig.connect(d.qpn, c.qpn);
    assert_eq!(invalidate(&mut rig, &mut d, first.key()), [BIND_ERROR]);
    assert_eq!(write(&mut rig, &mut a, first.key(), VA), SUCCESS);
    assert_eq!(invalidate(&mut rig, &mut b, first.key()), [SUCCESS]);
    let second = Binding {
        variant: 7,
        ..first
    };
    assert_eq!(bind(&mut rig, &mut b, &second), [SUCCESS]);
    assert_eq!(write(&mut rig, &mut a, second.key(), VA), SUCCESS);
    // It is bound, and must be invalidated first; what was posted behind is flushed.
    let third = Binding {
        variant: 8,
        ..second
    };
    let body = third.body(b.qpn);
    rig.post(&mut b, WqeOpcode::UMR, mw.get(), &body);
    rig.post(&mut b, WqeOpcode::NOP, 0, &[]);
    assert_eq!(ends(&mut rig), [BIND_ERROR, FLUSHED]);
    assert!(rig.violations().is_empty());
}

#[test]
fn a_peer_takes_a_window_of_type_2_back_and_none_of_type_1() {
    for type2 in [true, false] {
        let mut rig = Rig::new(Scheme::Memory);
        let (mut a, mut b) = rig.rc_pair();
        let (mw, mr) = (window(&mut rig, type2), region(&mut rig));
        let binding = Binding::new(mw, &mr, type2);
        assert_eq!(bind(&mut rig, &mut b, &binding), [SUCCESS]);
        rig.post_recv(&mut b, &[]);
        rig.post(&mut a, WqeOpcode::SEND_INVAL, binding.key().get(), &[]);
        let done = rig.run();
        if !type2 {
            let ends: Vec<_> = done.iter().map(|c| (c.opcode, c.syndrome)).collect();
            assert!(ends.contains(&REMOTE_ACCESS), "{done:?}");
            assert!(ends.contains(&(0xe, 2)), "{done:?}");
            continue;
        }
        let receive = done.iter().find(|c| c.opcode == 4).unwrap();
        assert_eq!(receive.immediate, binding.key().get());
        assert_eq!(write(&mut rig, &mut a, binding.key(), VA), REMOTE_ACCESS);
        assert!(rig.violations().is_empty());
    }
}

#[test]
fn what_a_user_must_not_bind() {
    type Spoil = fn(&mut Rig, &mut Binding, &mut Vec<u8>);
    let cases: &[(&str, Spoil, (u8, u8))] = &[
        (
            "unknown MKey",
            |_, binding, _| binding.old = Mkey::new(0x00ab_cd00),
            BIND_ERROR,
        ),
        (
            "protection domain mismatch",
            |rig, binding, _| {
                let mkey = rig.device.mkeys.get_mut(binding.old.index().get());
                mkey.unwrap().mkc.pd = Pdn::truncate(0x1234);
            },
            BIND_ERROR,
        ),
        (
            "refers to no others",
            |_, binding, _| binding.old = binding.region,
            BIND_ERROR,
        ),
        (
            "not enabled",
            |rig, binding, _| {
                let mkey = rig.device.mkeys.get_mut(binding.old.index().get());
                mkey.unwrap().mkc.umr_en = false;
            },
            BIND_ERROR,
        ),
        // The domain of a key is not the user's to choose.
        (
            "unknown mask bits",
            |_, _, body| body[15] |= 0x80,
            BIND_ERROR,
        ),
        ("unknown flags", |_, _, body| body[0] |= 4, BAD_WQE),
        (
            "beyond the translation table",
            |_, _, body| body[7] = 4,
            BIND_ERROR,
        ),
        ("unaligned", |_, _, body| body[5] = 3, BIND_ERROR),
        // More inline entries than there are bytes.
        ("malformed", |_, _, body| body[5] = 8, BAD_WQE),
    ];
    for (why, spoil, expected) in cases {
        let mut rig = Rig::new(Scheme::Memory);
        let (_a, mut b) = rig.rc_pair();
        let (mw, mr) = (window(&mut rig, true), region(&mut rig));
        let mut binding = Binding::new(mw, &mr, true);
        let mut body = binding.body(b.qpn);
        spoil(&mut rig, &mut binding, &mut body);
        rig.post(&mut b, WqeOpcode::UMR, binding.old.get(), &body);
        rig.post(&mut b, WqeOpcode::NOP, 0, &[]);
        assert_eq!(ends(&mut rig), [*expected, FLUSHED], "{why}");
        let journal = rig.journal.lock().unwrap().join("\n");
        assert!(journal.contains(why), "{why}: {journal}");
        assert_eq!(rig.device.counters.user_umr_errors, 1);
        assert!(rig.violations().is_empty());
        let untouched = rig.device.mkeys.get(mw.index().get()).unwrap();
        assert!(untouched.mkc.free, "{why}");
    }
}

#[test]
fn datagram_qps_bind_nothing() {
    let mut rig = Rig::new(Scheme::Memory);
    let mut ud = rig.create_qp(2);
    rig.connect(ud.qpn, 0);
    let (mw, mr) = (window(&mut rig, false), region(&mut rig));
    let binding = Binding::new(mw, &mr, false);
    assert_eq!(bind(&mut rig, &mut ud, &binding), [BAD_WQE]);
}

#[test]
fn accesses_find_what_a_binding_must_not_have() {
    // More than the region has; a write where the region is read-only; a region of another
    // domain; one that is gone.
    type Spoil = fn(&mut Rig, &TestMr, &mut Binding);
    let cases: &[(Spoil, u64)] = &[
        (|_, _, binding| binding.len = 0x5000, VA + 0x4000),
        (
            |rig, mr, _| {
                let mkey = rig.device.mkeys.get_mut(mr.key.index().get());
                mkey.unwrap().mkc.access.local_write = false;
            },
            VA,
        ),
        (
            |rig, mr, _| {
                let mkey = rig.device.mkeys.get_mut(mr.key.index().get());
                mkey.unwrap().mkc.pd = Pdn::truncate(0x1234);
            },
            VA,
        ),
        (|_, _, binding| binding.region = Mkey::new(0x00ab_cd00), VA),
        // What the window itself does not allow.
        (|_, _, binding| binding.access.remote_write = false, VA),
        (|_, _, binding| binding.len = 0x1000, VA + 0xfff),
    ];
    for (n, (spoil, va)) in cases.iter().enumerate() {
        let mut rig = Rig::new(Scheme::Memory);
        let (mut a, mut b) = rig.rc_pair();
        let (mw, mr) = (window(&mut rig, false), region(&mut rig));
        let mut binding = Binding::new(mw, &mr, false);
        spoil(&mut rig, &mr, &mut binding);
        assert_eq!(bind(&mut rig, &mut b, &binding), [SUCCESS], "{n}");
        assert_eq!(
            write(&mut rig, &mut a, binding.key(), *va),
            REMOTE_ACCESS,
            "{n}"
        );
        assert!(rig.violations().is_empty());
    }
}

#[test]
fn a_fault_below_a_window_names_the_region_or_the_window() {
    for scheme in [Scheme::Memory, Scheme::Transport] {
        let mut rig = Rig::new(scheme);
        let (mut a, mut b) = rig.rc_pair();
        let (mw, mr) = (window(&mut rig, false), region(&mut rig));
        let binding = Binding::new(mw, &mr, false);
        assert_eq!(bind(&mut rig, &mut b, &binding), [SUCCESS]);
        rig.set_mtts(mr.key, 0, &[firmware_cmds::Mtt::NOT_PRESENT; 8]);
        let local = rig.mr(LOCAL, 1, RW);
        let mut body = raddr(binding.key(), VA + 0x10);
        body.extend(data(local.key, LOCAL, 64));
        rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
        assert_eq!(ends(&mut rig), []);
        let fault = rig.fault();
        match fault {
            PageFault::Memory(memory) => {
                assert_eq!((memory.mkey, memory.va.get()), (mr.key, VA));
            }
            PageFault::Rdma(rdma) => {
                assert_eq!((rdma.r_key, rdma.rdma_va.get()), (binding.key(), VA + 0x10));
            }
            PageFault::Wqe(_) => panic!("{fault:?}"),
        }
        let pages: Vec<_> = (0..8)
            .map(|n| crate::rig::mtt(mr.iova + (n % 4) * 4096, RW))
            .collect();
        rig.set_mtts(mr.key, 0, &pages);
        assert_eq!(rig.resume(&fault, false)[0].syndrome, 0);
    }
}

/// Lays out an indirect key (libmlx5 `qp.c:mlx5_send_wr_mkey_configure` and its setters).
fn configure(rig: &mut Rig, qp: &mut TestQp, key: Mkey, len: u64, list: &[u8]) -> Vec<(u8, u8)> {
    let mut list = list.to_vec();
    list.resize(list.len().next_multiple_of(64), 0);
    let umr = UmrCtrlSeg {
        flags: UmrFlags::new().with_inline(true),
        xlt_octowords: u16::try_from(list.len() / 16).unwrap(),
        mkey_mask: MkeyMask::new()
            .with_free(true)
            .with_key(true)
            .with_len(true)
            .with_lw(true)
            .with_rr(true)
            .with_rw(true)
            .with_a(true),
        ..UmrCtrlSeg::default()
    };
    let mkc = Mkc {
        access: Access {
            local_write: true,
            ..Access::default()
        },
        qpn: Qpn::ANY,
        len,
        ..Mkc::default()
    };
    let mut body = emit(&umr, UmrCtrlSeg::LEN);
    body.extend(emit(&mkc, Mkc::LEN));
    body.extend(list);
    rig.post(qp, WqeOpcode::UMR, key.get(), &body);
    ends(rig)
}

/// Sends `len` bytes from behind one key to behind another.
fn send(rig: &mut Rig, a: &mut TestQp, b: &mut TestQp, keys: [Mkey; 2], len: usize) -> (u8, u8) {
    rig.post_recv(b, &[(keys[1], 0, len)]);
    rig.post(a, WqeOpcode::SEND, 0, &data(keys[0], 0, len));
    let done = rig.run();
    let sent = done.iter().find(|c| c.qpn == a.qpn).unwrap();
    (sent.opcode, sent.syndrome)
}

#[test]
fn a_key_over_a_list_gathers_and_scatters() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, mut b) = rig.rc_pair();
    let (from, to) = (rig.mr(VA, 1, RW), rig.mr(VA, 1, RW));
    let keys = [window(&mut rig, false), window(&mut rig, false)];
    for (key, mr) in keys.into_iter().zip([from, to]) {
        let list: Vec<u8> = [0, 64]
            .into_iter()
            .flat_map(|at| {
                let klm = Klm {
                    bcount: 8,
                    key: mr.key,
                    va: Iova::new(VA + at),
                };
                emit(&klm, Klm::LEN)
            })
            .collect();
        assert_eq!(configure(&mut rig, &mut a, key, 16, &list), [SUCCESS]);
    }
    let bytes = rig.fill(from.iova, 128, 5);
    assert_eq!(send(&mut rig, &mut a, &mut b, keys, 16), SUCCESS);
    assert_eq!(rig.peek(to.iova, 8), bytes[..8]);
    assert_eq!(rig.peek(to.iova + 8, 56), [0; 56]);
    assert_eq!(rig.peek(to.iova + 64, 8), bytes[64..72]);
    assert_eq!(rig.peek(to.iova + 72, 8), [0; 8]);
    // Beyond the key.
    assert_eq!(send(&mut rig, &mut a, &mut b, keys, 17), LOCAL_PROT);
    assert!(rig.violations().is_empty());
}

#[test]
fn a_key_over_a_strided_block_goes_through_its_entries_again_and_again() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, mut b) = rig.rc_pair();
    let (from, to) = (rig.mr(VA, 1, RW), rig.mr(VA, 1, RW));
    let (strided, flat) = (window(&mut rig, false), window(&mut rig, false));
    let block = StrideBlock {
        bcount_per_cycle: 12,
        repeat_count: 3,
        num_entries: 2,
    };
    let mut list = emit(&block, StrideBlock::LEN);
    for (at, bcount, stride) in [(0, 8, 10), (64, 4, 16)] {
        let entry = Stride {
            stride,
            bcount,
            key: from.key,
            va: Iova::new(VA + at),
        };
        list.extend(emit(&entry, Stride::LEN));
    }
    assert_eq!(configure(&mut rig, &mut a, strided, 36, &list), [SUCCESS]);
    let whole = Klm {
        bcount: 36,
        key: to.key,
        va: Iova::new(VA),
    };
    let whole = emit(&whole, Klm::LEN);
    assert_eq!(configure(&mut rig, &mut a, flat, 36, &whole), [SUCCESS]);
    let bytes = rig.fill(from.iova, 128, 5);
    assert_eq!(send(&mut rig, &mut a, &mut b, [strided, flat], 36), SUCCESS);
    let expected: Vec<u8> = (0..3)
        .flat_map(|n| {
            let (first, second) = (n * 10, 64 + n * 16);
            [&bytes[first..first + 8], &bytes[second..second + 4]].concat()
        })
        .collect();
    assert_eq!(rig.peek(to.iova, 36), expected);
    assert!(rig.violations().is_empty());
}
