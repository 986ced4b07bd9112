// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Umems: memory of a user that takes the place of page lists and addresses in its commands
//! (`mlx5_ib/devx.c:devx_umem_reg_cmd_alloc`).

use std::collections::BTreeMap;

use firmware_cmds::{DmaAddr, Mtt, MttAccess, Wire};
use serde::Serialize;

use crate::buffer::QueueBuffer;
use crate::caps::LOG_MAX_UMEM;
use crate::command::{CmdError, CmdStatus};
use crate::guest::offset;
use crate::ifc::create_umem_in as ifc;
use crate::inspect::show;
use crate::numbers::Numbers;

/// The most that one umem may have, in bytes.
const MAX_BYTES: u64 = 1 << 40;

/// Memory of a user: pages of equal size, the first used from an offset on.
#[derive(Clone, Debug, Serialize)]
pub struct Umem {
    #[serde(serialize_with = "show::debug")]
    pages: Vec<Mtt>,
    log_page: u32,
    offset: u64,
}

impl Umem {
    /// The umem that CREATE_UMEM describes; the list of its pages follows in `list`.
    ///
    /// # Errors
    ///
    /// BAD_PARAM if sizes are absurd, BAD_INPUT_LEN if the list is too short.
    pub fn new(input: &[u8], list: &[u8]) -> Result<Self, CmdError> {
        let log_page = ifc::LOG_PAGE_SIZE.get32(input) + 12;
        let offset = ifc::PAGE_OFFSET.get(input);
        let count = ifc::NUM_OF_MTT.get(input);
        if count == 0 || count > MAX_BYTES >> log_page || offset >> log_page != 0 {
            return Err(CmdStatus::BadParam.into());
        }
        let count = usize::try_from(count).map_err(|_| CmdStatus::BadParam)?;
        let list = list.get(..count * Mtt::LEN).ok_or(CmdStatus::BadInpLen)?;
        let pages = list
            .chunks_exact(Mtt::LEN)
            .map(Mtt::parse)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CmdStatus::BadParam)?;
        let mask = (1 << log_page) - 1;
        if pages.iter().any(|page| page.addr().get() & mask != 0) {
            return Err(CmdStatus::BadParam.into());
        }
        Ok(Self {
            pages,
            log_page,
            offset,
        })
    }

    /// log2 of the bytes of a page.
    #[must_use]
    pub fn log_page(&self) -> u32 {
        self.log_page
    }

    /// The pages from byte `at` on and where in the first it is. `None` if `len` bytes from there
    /// on are not all in the umem, or not all of the pages may be accessed like this.
    #[must_use]
    pub fn pages(&self, at: u64, len: u64, needed: MttAccess) -> Option<(&[Mtt], u64)> {
        let start = self.offset.checked_add(at)?;
        let end = start.checked_add(len.checked_sub(1)?)?;
        let page = |byte: u64| usize::try_from(byte >> self.log_page).ok();
        let pages = self.pages.get(page(start)?..=page(end)?)?;
        let all = pages.iter().all(|page| {
            let has = page.access();
            (has.read || !needed.read) && (has.write || !needed.write)
        });
        all.then_some((pages, start & ((1 << self.log_page) - 1)))
    }

    /// A queue of `len` bytes from byte `at` on.
    ///
    /// # Errors
    ///
    /// BAD_PARAM as [`Umem::pages`].
    pub fn queue(&self, at: u64, len: u64, needed: MttAccess) -> Result<QueueBuffer, CmdError> {
        if len == 0 {
            return Ok(QueueBuffer::default());
        }
        let (pages, offset) = self.pages(at, len, needed).ok_or(CmdStatus::BadParam)?;
        let pages = pages.iter().map(|page| page.addr()).collect();
        QueueBuffer::over(pages, self.log_page, offset, len)
    }

    /// Where a doorbell record at byte `at` is.
    ///
    /// # Errors
    ///
    /// BAD_PARAM if it is not 8 bytes at a multiple of 8 in the umem.
    pub fn record(&self, at: u64) -> Result<DmaAddr, CmdError> {
        let found = self.pages(at, 8, MttAccess::READ);
        match found.ok_or(CmdStatus::BadParam)? {
            (&[page], within) if within % 8 == 0 => Ok(offset(page.addr(), within)),
            _ => Err(CmdStatus::BadParam.into()),
        }
    }
}

/// All umems.
#[derive(Debug, Serialize)]
pub struct Umems {
    /// By number.
    #[serde(flatten, serialize_with = "show::by_number")]
    by_id: BTreeMap<u32, Umem>,
    numbers: Numbers,
}

impl Default for Umems {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
            numbers: Numbers::below(1, LOG_MAX_UMEM),
        }
    }
}

impl Umems {
    /// Adds a umem and returns its number, `None` if all are in use.
    pub fn insert(&mut self, umem: Umem) -> Option<u32> {
        let by_id = &self.by_id;
        let id = self.numbers.take(|n| by_id.contains_key(&n))?;
        self.by_id.insert(id, umem);
        Some(id)
    }

    /// The umem with this number.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Umem> {
        self.by_id.get(&id)
    }

    /// Removes a umem; `None` if there is none.
    pub fn remove(&mut self, id: u32) -> Option<Umem> {
        self.by_id.remove(&id)
    }

    /// Number of umems.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of 8 KiB, the second read-only, used from byte 0x1800 on.
    fn umem(count: u64) -> Result<Umem, CmdStatus> {
        let mut input = vec![0; 0x30];
        ifc::LOG_PAGE_SIZE.set(&mut input, 1);
        ifc::PAGE_OFFSET.set(&mut input, 0x1800);
        ifc::NUM_OF_MTT.set(&mut input, count);
        let list: Vec<u8> = [0x8003_u64, 0x2001]
            .iter()
            .flat_map(|page| page.to_be_bytes())
            .collect();
        Umem::new(&input, &list).map_err(|error| error.status)
    }

    #[test]
    fn bytes_lie_where_the_list_says() {
        let umem = umem(2).unwrap();
        assert_eq!(umem.record(0), Ok(DmaAddr::new(0x9800)));
        assert_eq!(umem.record(0x800), Ok(DmaAddr::new(0x2000)));
        let refused = Err(CmdError::new(CmdStatus::BadParam));
        for at in [4, 0x7fc, 0x800 + 0x2000, u64::MAX - 7] {
            assert_eq!(umem.record(at), refused, "{at:#x}");
        }
        let both = umem.queue(0x7c0, 0x80, MttAccess::READ).unwrap();
        assert_eq!(both.locate(0), (DmaAddr::new(0x9fc0), 0x40));
        assert_eq!(both.locate(0x40), (DmaAddr::new(0x2000), 0x40));
        // The second page is not for writing.
        assert!(umem.queue(0x7c0, 0x40, MttAccess::READ_WRITE).is_ok());
        assert!(umem.queue(0x7c0, 0x41, MttAccess::READ_WRITE).is_err());
        assert!(umem.queue(0, 0x2801, MttAccess::READ).is_err());
    }

    #[test]
    fn absurd_ones_are_refused() {
        assert_eq!(umem(0).unwrap_err(), CmdStatus::BadParam);
        assert_eq!(umem(3).unwrap_err(), CmdStatus::BadInpLen);
        assert_eq!(umem(u64::MAX).unwrap_err(), CmdStatus::BadParam);
    }
}
