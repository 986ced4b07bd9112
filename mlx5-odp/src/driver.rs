// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the fault path needs of the driver around it.

use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{Mkey, PageFault, PageFaultError, PageFaultResume, WqeFault};

use crate::bring_in::NotIn;
use crate::buffer::Buffer;
use crate::found::Found;
use crate::implicit::Implicit;
use crate::region::{Pressure, Region};

/// What the device is known to want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// The event says that it reads.
    Read,
    /// The event says that it writes.
    Write,
    /// The event does not say: the memory scheme.
    Unknown,
}

impl Intent {
    /// From an event that says which.
    pub const fn of(write: bool) -> Self {
        if write {
            Self::Write
        } else {
            Self::Read
        }
    }
}

/// Why a key leads to no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRegion {
    /// No ODP key has its index: it is a pinned MR's, or was destroyed meanwhile.
    NotOdp,
    /// The index is in use, with another variant.
    Stale,
    /// It refers to other keys: [`Driver::query`].
    Indirect,
    /// It is of a kind that this driver does not serve.
    Unsupported(Unsupported),
}

/// What is known to exist and not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Of another kind than the driver knows.
    RegionKind,
    /// An access that keys which refer to keys cut into so many pieces.
    Pieces,
    /// Send WQEs of this transport.
    Transport,
    /// Receive WQEs with signatures.
    Signature,
}

/// Something that an administrator may want to know. All of it is in the hands of users and of
/// firmware, so an implementation limits the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The driver lacks something; the access fails.
    Unsupported(Unsupported),
    /// The event cannot be made out.
    Event(PageFaultError),
    /// The WQE cannot be read or made out; the access fails.
    Wqe(firmware_cmds::Error),
    /// What a key refers to cannot be made out; the access fails.
    Key(firmware_cmds::Error),
}

/// A key could not be queried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoQuery {
    /// It was destroyed meanwhile.
    Gone,
    /// No memory for what it refers to.
    Memory,
    /// The device did not say.
    Failed,
}

/// A WQE could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWqe {
    /// No memory to read it into.
    Memory,
    /// It is not there to be read.
    Unreadable,
}

/// A queue pair or a shared receive queue, kept alive by the value.
pub trait Queue {
    /// A WQE's bytes.
    type Wqe: AsRef<[u8]>;

    /// How its send WQEs begin; `None` if that is not known, or it has none.
    fn transport(&self) -> Option<SendTransport>;

    /// Whether receive WQEs start with a signature; those of a shared queue never do.
    fn receive_signature(&self) -> bool;

    /// Reads the send WQE that starts at block `index`, as much of it as its control segment says
    /// or more.
    ///
    /// # Errors
    ///
    /// See [`NoWqe`].
    fn read_send(&self, index: u16) -> Result<Self::Wqe, NoWqe>;

    /// Reads the receive WQE `index`, exactly.
    ///
    /// # Errors
    ///
    /// See [`NoWqe`].
    fn read_receive(&self, index: u16) -> Result<Self::Wqe, NoWqe>;
}

/// What a driver finds by a key.
pub type FoundBy<'a, D> =
    Found<<D as Driver>::Region<'a>, <D as Driver>::Implicit<'a>, <D as Driver>::Buffer<'a>>;

/// The driver of one device.
pub trait Driver {
    /// See [`Driver::region`].
    type Region<'a>: Region
    where
        Self: 'a;
    /// See [`Driver::region`].
    type Implicit<'a>: Implicit
    where
        Self: 'a;
    /// See [`Driver::region`].
    type Buffer<'a>: Buffer
    where
        Self: 'a;
    /// See [`Driver::queue`].
    type Queue<'a>: Queue
    where
        Self: 'a;
    /// See [`Driver::query`].
    type Query: AsRef<[u8]>;

    /// Finds and holds what a key leads to. An implicit MR is found by its own key and, in the memory
    /// scheme, by those of its children and its null key.
    ///
    /// # Errors
    ///
    /// See [`NoRegion`].
    fn region(&self, mkey: Mkey) -> Result<FoundBy<'_, Self>, NoRegion>;

    /// Asks the device what a key refers to: the output of QUERY_MKEY, a
    /// [`QueryMkeyOut`](firmware_cmds::mkey::QueryMkeyOut) with all of the key's entries behind it.
    ///
    /// # Errors
    ///
    /// See [`NoQuery`].
    fn query(&self, mkey: Mkey) -> Result<Self::Query, NoQuery>;

    /// How many keys that refer to keys the device follows on its way to memory.
    fn max_indirection(&self) -> u8;

    /// Finds and holds the queue that a fault stalled: a shared one for
    /// [`SharedReceive`](firmware_cmds::WqeFaultKind::SharedReceive), else a queue pair. `None` if it
    /// is gone.
    fn queue(&self, fault: &WqeFault) -> Option<Self::Queue<'_>>;

    /// The key that ends a receive WQE's scatter list.
    fn end_of_list(&self) -> Mkey;

    /// Sends PAGE_FAULT_RESUME; does not have to wait for it. There is nothing to be done when it
    /// fails: the device is lost, or the queue is gone.
    fn resume(&self, command: &PageFaultResume);

    /// Waits for so many milliseconds, or a little longer.
    fn sleep(&self, milliseconds: u32);

    /// Counts a fault that went back to the device for it to ask again.
    fn gave_back(&self, why: Pressure);

    /// Tells the administrator of an access that fails, whoever's it is: its fault was answered with
    /// error.
    fn refused(&self, fault: &PageFault, why: NotIn);

    /// Tells the administrator.
    fn report(&self, report: Report);
}
