// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The translation table (XLT) as a UMR carries it.
//!
//! A UMR writes MTTs in blocks of [`UMR_BLOCK`], so every update and every zap covers neighbours
//! that nobody asked for. Here they keep what the driver last told the device: an entry is the
//! page's state and nothing else, however often and for whatever reason it is written.

use firmware_cmds::{DmaAddr, Mtt, MttAccess};

use crate::{Access, PageIndex, PageState};

/// MTTs in the unit in which a UMR writes: 64 bytes (`MLX5_UMR_MTT_NUM_ENTRIES_ALIGNMENT`).
pub const UMR_BLOCK: u64 = 8;

/// The pages of a locked region, as the table shows them.
pub trait Table {
    /// The state of a page.
    fn state(&self, page: PageIndex) -> PageState;

    /// The bus address of a page that is [`PageState::Mapped`].
    fn dma_addr(&self, page: PageIndex) -> Option<DmaAddr>;
}

/// The MTT of `page`, from its state and nothing else: the same however often and for whatever
/// reason it is written.
///
/// The C leaves entries of absent pages alone, and since `umr.c` reuses its buffer for tables of
/// more than 512 MiB, absent pages there inherit the translations of other pages.
pub fn entry(table: &impl Table, page: PageIndex) -> Mtt {
    let access = match table.state(page) {
        PageState::Mapped(Access::Read) => MttAccess::READ,
        PageState::Mapped(Access::Write) => MttAccess::READ_WRITE,
        PageState::Absent | PageState::Present | PageState::Leaving | PageState::Stuck => {
            return Mtt::NOT_PRESENT
        }
    };
    table
        .dma_addr(page)
        .and_then(|addr| Mtt::new(addr, access).ok())
        .unwrap_or(Mtt::NOT_PRESENT)
}
