// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A software ConnectX.
//!
//! [`Device`] is the adapter: a state machine without threads, clocks or I/O. Whoever
//! owns it forwards accesses to BAR 0 ([`Device::mmio_read`], [`Device::mmio_write`])
//! and lets it work ([`Device::step`]); it reaches the guest's memory through
//! [`GuestMemory`] and its interrupts through [`Interrupts`]. The program `connectx` is
//! one such owner: a vfio-user server that QEMU attaches to. A test is another, with
//! [`Ram`] for memory.
//!
//! What is modelled is what Linux's `mlx5_core`, `mlx5_ib` and rdma-core's libmlx5 ask
//! of an InfiniBand ConnectX-7 function with On-Demand Paging. Anything else they could
//! ask for is refused with the firmware's error status and one line in the journal.

#![forbid(unsafe_code)]

mod agenda;
pub mod buffer;
pub mod caps;
pub mod command;
pub mod completion;
pub mod control;
pub mod counters;
pub mod device;
pub mod event;
pub mod fault;
pub mod guest;
pub mod ifc;
pub mod init_segment;
pub mod inspect;
pub mod journal;
pub mod mkey;
pub mod numbers;
pub mod order;
pub mod pci;
pub mod qp;
pub mod rules;
pub mod srq;
pub mod subnet;
pub mod transport;
pub mod uar;
pub mod uctx;
pub mod umem;
pub mod umr;
pub mod wqe;

pub use command::{CmdError, CmdStatus};
pub use completion::Cqe;
pub use counters::Counters;
pub use device::{Device, Interrupts};
pub use guest::{DmaError, GuestMemory, Ram};
pub use journal::Journal;
pub use order::Order;
pub use rules::{Rule, Rules};
