// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! When UMRs may name an MKey: until it is revoked, whatever fails.

use std::cell::{Cell, RefCell};

use mlx5_odp::key::{self, Gate, Umr, UmrError};
use mlx5_odp::{xlt, Key};

/// A key on which no UMR is posted.
struct Script {
    gate: RefCell<Gate>,
    revokes: Cell<u32>,
    fails: Cell<bool>,
}

impl Script {
    fn new(gate: Gate) -> Self {
        Self {
            gate: RefCell::new(gate),
            revokes: Cell::new(0),
            fails: Cell::new(false),
        }
    }

    fn state(&self) -> Gate {
        *self.gate.borrow()
    }
}

enum NoUmr {}

impl Umr for NoUmr {
    fn mtts(&mut self) -> &mut [[u8; xlt::MTT_LEN]] {
        match *self {}
    }

    fn is_last(&self) -> bool {
        match *self {}
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Failed;

impl Key for Script {
    type Umr = NoUmr;
    type Error = Failed;

    fn umr(&self) -> Option<NoUmr> {
        None
    }

    fn put(&self, umr: NoUmr) {
        match umr {}
    }

    fn gate<R>(&self, mut f: impl FnMut(&mut Gate) -> Option<R>) -> R {
        f(&mut self.gate.borrow_mut()).expect("it would wait for ever")
    }

    fn post(&self, umr: &mut NoUmr, _: usize, _: usize, _: bool) -> Result<(), Failed> {
        match *umr {}
    }

    fn wait(&self, umr: &NoUmr) -> Result<(), UmrError> {
        match *umr {}
    }

    fn revoke_mkey(&self) -> Result<(), Failed> {
        assert_eq!(
            self.state(),
            Gate::Revoking,
            "a UMR could be posted behind it"
        );
        self.revokes.set(self.revokes.get() + 1);
        match self.fails.get() {
            true => Err(Failed),
            false => Ok(()),
        }
    }
}

#[test]
fn a_key_is_revoked_once() {
    let key = Script::new(Gate::Gone);
    key::open(&key);
    assert_eq!(key.state(), Gate::Open);
    assert_eq!(key::revoke(&key), Ok(()));
    assert_eq!((key.state(), key.revokes.get()), (Gate::Gone, 1));
    assert_eq!(key::revoke(&key), Ok(()));
    key::close(&key);
    assert_eq!((key.state(), key.revokes.get()), (Gate::Gone, 1));
    // Whether or not it can be destroyed.
    for destroyed in [false, true] {
        key::closed(&key, destroyed);
        assert_eq!(key.state(), Gate::Gone);
    }
}

#[test]
fn a_key_that_cannot_be_revoked_is_as_before() {
    let key = Script::new(Gate::Open);
    key.fails.set(true);
    assert_eq!(key::revoke(&key), Err(Failed));
    assert_eq!(key.state(), Gate::Open);
    assert_eq!(key::revoke(&key), Err(Failed));
    assert_eq!(key.revokes.get(), 2);
}

/// No UMR may name it while the command that destroys it is under way.
#[test]
fn a_key_that_cannot_be_revoked_is_closed_until_it_is_destroyed() {
    for (destroyed, after) in [(true, Gate::Gone), (false, Gate::Open)] {
        let key = Script::new(Gate::Open);
        key.fails.set(true);
        key::close(&key);
        assert_eq!(key.state(), Gate::Revoking);
        key::closed(&key, destroyed);
        assert_eq!(key.state(), after);
    }
}
