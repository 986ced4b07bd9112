// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An access that the device has stalled, and that must be resumed once.

use firmware_cmds::resume::FaultToken;
use firmware_cmds::PageFaultResume;

use crate::driver::Driver;

/// A stalled access. Whoever holds it owes the device an answer, and can give it only once; if it
/// is lost on the way, the access fails instead of hanging its queue.
#[must_use = "the device waits for a resume"]
pub struct Stall<'a, D: Driver> {
    driver: &'a D,
    token: Option<FaultToken>,
}

impl<'a, D: Driver> Stall<'a, D> {
    /// Takes over the access that an event named.
    pub fn new(driver: &'a D, token: FaultToken) -> Self {
        Self {
            driver,
            token: Some(token),
        }
    }

    /// The device may go on, and repeat the access.
    pub fn go_on(mut self) {
        self.send(false);
    }

    /// The access fails.
    pub fn fail(mut self) {
        self.send(true);
    }

    /// Nobody waits: another event of the access follows, which will be resumed, or the access
    /// is gone.
    pub fn forget(mut self) {
        self.token = None;
    }

    fn send(&mut self, error: bool) {
        if let Some(fault) = self.token.take() {
            self.driver.resume(&PageFaultResume { fault, error });
        }
    }
}

impl<D: Driver> Drop for Stall<'_, D> {
    fn drop(&mut self) {
        self.send(true);
    }
}
