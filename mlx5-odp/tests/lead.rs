// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Where the table of an implicit MR's children leads: a block of KSMs at a time, all of them as they
//! are to be, until the device has it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use firmware_cmds::{Ksm, Mkey, Wire};
use mlx5_odp::implicit::{lead, ChildIndex, Children, Layout, Parent};
use mlx5_odp::key::{UmrError, RETRIES};
use mlx5_odp::xlt::{NullKey, KSM_BLOCK, KSM_LEN};

const NULL: Mkey = Mkey::new(0x1100);

/// Children, whose keys follow by index, and whether they are shown.
#[derive(Default)]
struct Shown(BTreeMap<usize, bool>);

impl Children for Shown {
    fn show(&mut self, at: ChildIndex, is_shown: bool) {
        self.0.insert(at.0, is_shown);
    }

    fn shown(&self, at: ChildIndex) -> Option<Mkey> {
        let is_shown = self.0.get(&at.0).copied().unwrap_or_default();
        is_shown.then(|| key_of(at.0))
    }
}

fn key_of(at: usize) -> Mkey {
    Mkey::new(0x2200 + (u32::try_from(at).unwrap() << 8))
}

/// The device's table, as far as UMRs have written it.
#[derive(Default)]
struct Script {
    children: RefCell<Shown>,
    is_locked: Cell<bool>,
    ksms: RefCell<BTreeMap<usize, Mkey>>,
    posts: Cell<u32>,
    /// UMRs that are in use.
    umrs: Cell<u32>,
    cannot_post: Cell<bool>,
    /// What becomes of UMRs, the last one first; then they are done.
    fates: RefCell<Vec<UmrError>>,
    layout: Option<Layout>,
}

impl Script {
    fn new() -> Self {
        Self {
            layout: Layout::of((1 << 47) - 4096, 12),
            ..Self::default()
        }
    }

    fn lead(&self, at: usize, is_shown: bool) -> Result<(), Option<UmrError>> {
        let led = lead(self, ChildIndex(at), is_shown);
        assert_eq!(self.umrs.get(), 0, "a UMR is lost");
        led
    }
}

/// A UMR, and the piece of the table that it was posted for.
struct Umr {
    ksms: [u8; 2 * KSM_BLOCK * KSM_LEN],
    first: usize,
    len: usize,
}

impl AsMut<[u8]> for Umr {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.ksms
    }
}

impl Parent for Script {
    type Children = Shown;
    type Umr = Umr;
    /// Of a UMR; `None` if it was not posted.
    type Error = Option<UmrError>;

    fn layout(&self) -> &Layout {
        self.layout.as_ref().unwrap()
    }

    fn null_key(&self) -> NullKey {
        NullKey::Own(NULL)
    }

    fn children<R>(&self, f: impl FnOnce(&mut Shown) -> R) -> R {
        assert!(!self.is_locked.replace(true));
        let result = f(&mut self.children.borrow_mut());
        self.is_locked.set(false);
        result
    }

    fn umr(&self) -> Umr {
        assert!(!self.is_locked.get(), "it may wait");
        self.umrs.set(self.umrs.get() + 1);
        Umr {
            ksms: [0xff; 2 * KSM_BLOCK * KSM_LEN],
            first: 0,
            len: 0,
        }
    }

    fn put(&self, _: Umr) {
        self.umrs.set(self.umrs.get() - 1);
    }

    fn post(&self, umr: &mut Umr, first: usize, len: usize) -> Result<(), Self::Error> {
        assert!(self.is_locked.get(), "another may come before it");
        if self.cannot_post.get() {
            return Err(None);
        }
        (umr.first, umr.len) = (first, len);
        self.posts.set(self.posts.get() + 1);
        Ok(())
    }

    fn settle(&self, umr: &Umr) -> Result<(), UmrError> {
        assert!(!self.is_locked.get(), "others wait for it");
        if let Some(error) = self.fates.borrow_mut().pop() {
            return Err(error);
        }
        assert_eq!(umr.first % (KSM_BLOCK * KSM_LEN), 0);
        let ksms = umr.ksms[..umr.len].chunks_exact(KSM_LEN);
        for (at, ksm) in (umr.first / KSM_LEN..).zip(ksms) {
            let ksm = Ksm::parse(ksm).unwrap();
            assert_eq!(ksm.va.get(), u64::try_from(at).unwrap() << 30);
            self.ksms.borrow_mut().insert(at, ksm.key);
        }
        Ok(())
    }

    fn error(&self, error: UmrError) -> Self::Error {
        Some(error)
    }
}

#[test]
fn neighbours_stay_as_they_are() {
    let script = Script::new();
    for at in [9, 10, 6] {
        assert_eq!(script.lead(at, true), Ok(()));
    }
    assert_eq!(script.lead(10, false), Ok(()));
    let first = 9 / KSM_BLOCK * KSM_BLOCK;
    let ksms = script.ksms.borrow();
    for at in first..first + KSM_BLOCK {
        let key = if at == 9 { key_of(9) } else { NULL };
        assert_eq!(ksms.get(&at), Some(&key), "{at}");
    }
    assert_eq!(ksms.get(&6), Some(&key_of(6)));
    assert_eq!(script.posts.get(), 4);
}

#[test]
fn what_others_have_flushed_is_posted_again() {
    let script = Script::new();
    script.fates.replace(vec![UmrError::Flushed; 2]);
    assert_eq!(script.lead(9, true), Ok(()));
    assert_eq!(script.posts.get(), 3);
    assert_eq!(script.ksms.borrow().get(&9), Some(&key_of(9)));

    let script = Script::new();
    script.fates.replace(vec![UmrError::Flushed; 99]);
    assert_eq!(script.lead(9, true), Err(Some(UmrError::Flushed)));
    assert_eq!(script.posts.get(), 1 + RETRIES);
}

#[test]
fn what_fails_is_not_tried_again() {
    let script = Script::new();
    script
        .fates
        .replace(vec![UmrError::Failed, UmrError::Flushed]);
    assert_eq!(script.lead(9, true), Err(Some(UmrError::Failed)));
    assert_eq!(script.posts.get(), 2);

    let script = Script::new();
    script.cannot_post.set(true);
    assert_eq!(script.lead(9, true), Err(None));
    assert_eq!(script.posts.get(), 0);
}
