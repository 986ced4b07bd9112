// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Queue pairs, as far as their WQEs are read back.

use firmware_cmds::wqe::SendTransport;
use mlx5_odp::{NoWqe, Queue};

use super::Model;

/// A queue pair.
#[derive(Clone)]
pub(crate) struct ModelQueue {
    pub(crate) transport: Option<SendTransport>,
    pub(crate) signature: bool,
    pub(crate) send: Vec<u8>,
    pub(crate) receive: Vec<u8>,
    pub(crate) error: Option<NoWqe>,
}

impl Default for ModelQueue {
    fn default() -> Self {
        Self {
            transport: Some(SendTransport::Connected),
            signature: false,
            send: Vec::new(),
            receive: Vec::new(),
            error: None,
        }
    }
}

/// A WQE's bytes.
pub(crate) struct Bytes(Vec<u8>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A reference to a queue.
pub(crate) struct HeldQueue<'a> {
    pub(super) model: &'a Model,
    pub(super) queue: &'a ModelQueue,
}

impl Drop for HeldQueue<'_> {
    fn drop(&mut self) {
        self.model.world().queues_held -= 1;
    }
}

impl Queue for HeldQueue<'_> {
    type Wqe = Bytes;

    fn transport(&self) -> Option<SendTransport> {
        self.queue.transport
    }

    fn receive_signature(&self) -> bool {
        self.queue.signature
    }

    fn read_send(&self, index: u16) -> Result<Bytes, NoWqe> {
        match self.queue.error {
            Some(error) => Err(error),
            None => {
                let wqe = self.queue.send.get(usize::from(index) * 64..);
                Ok(Bytes(wqe.ok_or(NoWqe::Unreadable)?.to_vec()))
            }
        }
    }

    fn read_receive(&self, _index: u16) -> Result<Bytes, NoWqe> {
        match self.queue.error {
            Some(error) => Err(error),
            None => Ok(Bytes(self.queue.receive.clone())),
        }
    }
}
