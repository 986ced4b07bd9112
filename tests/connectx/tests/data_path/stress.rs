// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Traffic while pages come and go, from one seed. An "operating system" of a few lines
//! moves pages between frames and swap the way a driver must: the UMR that takes a
//! translation back completes before the frame is unmapped. An access through a stale
//! translation is then a violation, and the bytes of every page are compared with what
//! the operations should have left in it.

use std::collections::VecDeque;

use connectx::{GuestMemory, Scheme};
use firmware_cmds::umr::{MkeyMask, UmrFlags};
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{AccessMode, DmaAddr, Mkc, Mkey, Mtt, MttAccess, PageFault};

use crate::rig::{data, mtt, raddr, Rig, TestQp};

const VA: u64 = 0x7f12_3456_7000;
const PAGE: usize = 4096;
/// Pages of the MR: for each pair of QPs a source and a destination.
const PAGES: usize = 64;
const PART: usize = 16;
const PAIRS: usize = PAGES / (2 * PART);
/// Frames, at these IOVAs; more than pages, so that a frame rests before it is reused.
const FRAMES: u64 = 200;
const FRAME_BASE: u64 = 0x1_0000_0000;

struct Rng(u64);

impl Rng {
    /// A number below `n` (xorshift64*).
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % n
    }
}

/// Where a page is.
enum Place {
    Swap(Vec<u8>),
    Frame { iova: u64, access: MttAccess },
}

/// An operation under way: bytes of the MR from `from` to `to`.
#[derive(Clone, Copy)]
struct Copy {
    from: usize,
    to: usize,
    len: usize,
    read: bool,
}

struct World {
    rig: Rig,
    rng: Rng,
    key: Mkey,
    places: Vec<Place>,
    free: VecDeque<u64>,
    pairs: Vec<(TestQp, TestQp, Option<Copy>)>,
    expected: Vec<u8>,
    faults: Vec<PageFault>,
    done: usize,
    /// Leave the translations of this page when it is taken away: the bug to be caught.
    forget: Option<usize>,
}

impl World {
    fn new(scheme: Scheme, seed: u64) -> Self {
        let mut rig = Rig::new(scheme);
        let pairs = (0..PAIRS)
            .map(|_| {
                let (a, b) = rig.rc_pair();
                (a, b, None)
            })
            .collect();
        let mut mkc = rig.mkc(AccessMode::Mtt);
        mkc.translations_octword_size = u32::try_from(PAGES / 2).unwrap();
        let key = rig.create_mkey(&mkc, &[]);
        mkc.free = false;
        mkc.start_addr = firmware_cmds::Iova::new(VA);
        mkc.len = u64::try_from(PAGES * PAGE).unwrap();
        let mask = MkeyMask::new()
            .with_free(true)
            .with_len(true)
            .with_start_addr(true);
        rig.umr_ok(key, UmrFlags::new(), mask, &mkc, 0, &[]);
        let mut world = Self {
            rig,
            rng: Rng(seed * 2 + 1),
            key,
            places: Vec::new(),
            free: (0..FRAMES).map(|n| FRAME_BASE + n * 4096).collect(),
            pairs,
            expected: Vec::new(),
            faults: Vec::new(),
            done: 0,
            forget: None,
        };
        for _ in 0..PAGES {
            let bytes: Vec<u8> = (0..PAGE)
                .map(|_| u8::try_from(world.rng.below(256)).unwrap())
                .collect();
            world.expected.extend(&bytes);
            world.places.push(Place::Swap(bytes));
        }
        world
    }

    /// Writes the MTTs of the groups of 8 that hold `pages`.
    fn publish(&mut self, pages: std::ops::Range<usize>) {
        let first = pages.start & !7;
        let last = pages.end.next_multiple_of(8).min(PAGES);
        let list: Vec<Mtt> = (first..last)
            .map(|page| match self.places[page] {
                Place::Swap(_) => Mtt::NOT_PRESENT,
                Place::Frame { iova, access } => mtt(iova, access),
            })
            .collect();
        let flags = UmrFlags::new().with_check_free(true);
        let first = u64::try_from(first).unwrap();
        let none = MkeyMask::new();
        self.rig
            .post_umr(self.key, flags, none, &Mkc::default(), first, &list);
        self.settle();
    }

    fn page_in(&mut self, pages: std::ops::Range<usize>, access: MttAccess) {
        for page in pages.clone() {
            match &mut self.places[page] {
                Place::Frame { access: have, .. } => have.write |= access.write,
                Place::Swap(bytes) => {
                    let iova = self.free.pop_front().unwrap();
                    self.rig.mem.map(DmaAddr::new(iova), 4096);
                    self.rig.mem.write(DmaAddr::new(iova), bytes).unwrap();
                    self.places[page] = Place::Frame { iova, access };
                }
            }
        }
        self.publish(pages);
    }

    /// Takes pages away: the translations first, then the frames.
    fn page_out(&mut self, pages: std::ops::Range<usize>) {
        let mut frames = Vec::new();
        for page in pages.clone() {
            if let Place::Frame { iova, .. } = self.places[page] {
                if self.forget != Some(page) {
                    self.places[page] = Place::Swap(Vec::new());
                }
                frames.push((page, iova));
            }
        }
        if frames.is_empty() {
            return;
        }
        self.publish(pages);
        for (page, iova) in frames {
            let bytes = self.rig.peek(iova, PAGE);
            self.rig.mem.unmap(DmaAddr::new(iova), 4096);
            self.places[page] = Place::Swap(bytes);
            self.free.push_back(iova);
        }
    }

    fn post(&mut self, pair: usize) {
        let len = 1 + self.rng.below(PART * PAGE / 2);
        let base = pair * 2 * PART * PAGE;
        let mut at = |part: usize| base + part * PART * PAGE + self.rng.below(PART * PAGE - len);
        let (source, destination) = (at(0), at(1));
        let read = self.rng.below(2) == 0;
        let (from, to) = if read {
            (destination, source)
        } else {
            (source, destination)
        };
        let va = |at: usize| VA + u64::try_from(at).unwrap();
        let mut body = raddr(self.key, va(destination));
        body.extend(data(self.key, va(source), len));
        let opcode = if read {
            WqeOpcode::RDMA_READ
        } else {
            WqeOpcode::RDMA_WRITE
        };
        let (a, _, copy) = &mut self.pairs[pair];
        *copy = Some(Copy {
            from,
            to,
            len,
            read,
        });
        self.rig.post(a, opcode, 0, &body);
    }

    /// Lets the device work and takes note of what it reports.
    fn settle(&mut self) {
        for completion in self.rig.run() {
            if completion.send_opcode == 0x25 {
                continue;
            }
            let pair = self
                .pairs
                .iter_mut()
                .find(|(a, _, _)| a.qpn == completion.qpn);
            let copy = pair.unwrap().2.take().unwrap();
            if completion.syndrome != 0 {
                assert!(self.forget.is_some(), "{completion:?}");
                continue;
            }
            let bytes = self.expected[copy.from..copy.from + copy.len].to_vec();
            self.expected[copy.to..copy.to + copy.len].copy_from_slice(&bytes);
            self.done += 1;
        }
        let faults = self.rig.faults();
        self.faults.extend(faults);
    }

    /// Serves one fault as the driver does: whatever it names, or sometimes only a part.
    fn serve(&mut self) {
        let index = self.rng.below(self.faults.len());
        let fault = self.faults.swap_remove(index);
        let (va, len, write) = match fault {
            PageFault::Memory(fault) => {
                assert_eq!(fault.mkey, self.key);
                (fault.va.get(), fault.demand_bytes(), true)
            }
            PageFault::Rdma(fault) => {
                assert_eq!(fault.r_key, self.key);
                let len = u64::from(fault.rdma_op_len);
                (fault.rdma_va.get(), len, fault.fault_type.is_write())
            }
            PageFault::Wqe(fault) => {
                let qpn = fault.wq_number.get();
                let pair = self.pairs.iter().find(|(a, _, _)| a.qpn == qpn).unwrap();
                let copy = pair.2.unwrap();
                let local = if copy.read { copy.to } else { copy.from };
                let len = u64::try_from(copy.len).unwrap();
                (VA + u64::try_from(local).unwrap(), len, copy.read)
            }
        };
        let first = usize::try_from((va - VA) / 4096).unwrap();
        let end = usize::try_from((va - VA + len).div_ceil(4096)).unwrap();
        assert!(
            first < end && end <= PAGES,
            "{fault:?} is past the MR's end"
        );
        let take = 1 + self.rng.below(end - first);
        let access = MttAccess { read: true, write };
        self.page_in(first..first + take, access);
        self.rig.command(&fault.resume(false).to_bytes(), 16);
        self.settle();
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.below(8) {
                0..3 => {
                    let pair = self.rng.below(PAIRS);
                    if self.pairs[pair].2.is_none() {
                        self.post(pair);
                        self.settle();
                    }
                }
                3 => {
                    let first = self.rng.below(PAGES);
                    let end = (first + 1 + self.rng.below(12)).min(PAGES);
                    self.page_out(first..end);
                }
                _ if !self.faults.is_empty() => self.serve(),
                _ => {}
            }
        }
        while !self.faults.is_empty() {
            self.serve();
        }
        assert!(self.pairs.iter().all(|(_, _, copy)| copy.is_none()));
        assert!(self.rig.device.faults.is_empty());
    }

    fn verify(&mut self) {
        self.page_out(0..PAGES);
        for (page, place) in self.places.iter().enumerate() {
            let Place::Swap(bytes) = place else {
                panic!("page {page} is still there");
            };
            assert_eq!(
                bytes[..],
                self.expected[page * PAGE..(page + 1) * PAGE],
                "page {page}"
            );
        }
    }
}

#[test]
fn bytes_survive_paging() {
    for scheme in [Scheme::Memory, Scheme::Transport] {
        for seed in 1..=5 {
            let mut world = World::new(scheme, seed);
            world.run(1500);
            world.verify();
            let violations = world.rig.violations();
            assert!(violations.is_empty(), "seed {seed}: {violations:?}");
            let counters = world.rig.device.counters;
            let faults = counters.faults_memory + counters.faults_rdma;
            assert!(
                faults > 100 && world.done > 40,
                "seed {seed}: {faults} faults, {} done",
                world.done
            );
            assert_eq!(counters.resumes_unknown + counters.resumes_error, 0);
        }
    }
}

#[test]
fn one_zap_left_out_is_seen() {
    let mut world = World::new(Scheme::Memory, 99);
    world.forget = Some(3);
    world.page_in(0..PAGES, MttAccess::READ_WRITE);
    world.page_out(0..8);
    let copy = |page: usize| page * PAGE;
    let mut body = raddr(world.key, VA + u64::try_from(copy(PART)).unwrap());
    body.extend(data(world.key, VA + u64::try_from(copy(3)).unwrap(), 64));
    let (a, _, under_way) = &mut world.pairs[0];
    *under_way = Some(Copy {
        from: copy(3),
        to: copy(PART),
        len: 64,
        read: false,
    });
    world.rig.post(a, WqeOpcode::RDMA_WRITE, 0, &body);
    world.settle();
    let violations = world.rig.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains("taken back"), "{violations:?}");
}
