// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Domains and doorbell pages: PD, transport domain, XRCD, UAR.

use std::collections::BTreeSet;

use super::{put_word, word, CmdResult, CmdStatus, Command};
use crate::device::Device;
use crate::ids::{Numbers, Pdn, Tdn, Uar, Xrcdn};

/// Protection, transport and XRC domains: numbers without further state.
#[derive(Debug)]
pub struct Domains {
    /// Protection domains.
    pub pds: BTreeSet<Pdn>,
    /// Transport domains.
    pub tds: BTreeSet<Tdn>,
    /// XRC domains.
    pub xrcds: BTreeSet<Xrcdn>,
    pd_numbers: Numbers,
    td_numbers: Numbers,
    xrcd_numbers: Numbers,
}

impl Default for Domains {
    fn default() -> Self {
        Self {
            pds: BTreeSet::new(),
            tds: BTreeSet::new(),
            xrcds: BTreeSet::new(),
            pd_numbers: Numbers::new(1, (1 << 18) - 1),
            td_numbers: Numbers::new(1, (1 << 16) - 1),
            xrcd_numbers: Numbers::new(1, (1 << 16) - 1),
        }
    }
}

macro_rules! alloc_dealloc {
    ($alloc:ident, $dealloc:ident, $handle:ident, |$dev:ident| $set:expr, $numbers:expr) => {
        fn $alloc($dev: &mut Device, _: &[u8], output: &mut [u8]) -> CmdResult {
            let set = &$set;
            let number = $numbers
                .take(|n| set.contains(&$handle(n)))
                .ok_or(CmdStatus::NoResources)?;
            $set.insert($handle(number));
            put_word(output, 8, number);
            Ok(())
        }

        fn $dealloc($dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
            let number = $handle(word(input, 8) & 0xff_ffff);
            if $set.remove(&number) {
                Ok(())
            } else {
                Err(CmdStatus::BadRes.into())
            }
        }
    };
}

alloc_dealloc!(
    alloc_pd,
    dealloc_pd,
    Pdn,
    |dev| dev.domains.pds,
    dev.domains.pd_numbers
);
alloc_dealloc!(
    alloc_td,
    dealloc_td,
    Tdn,
    |dev| dev.domains.tds,
    dev.domains.td_numbers
);
alloc_dealloc!(
    alloc_xrcd,
    dealloc_xrcd,
    Xrcdn,
    |dev| dev.domains.xrcds,
    dev.domains.xrcd_numbers
);
alloc_dealloc!(
    alloc_uar,
    remove_uar,
    Uar,
    |dev| dev.uars.pages,
    dev.uars.numbers
);

fn dealloc_uar(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    remove_uar(dev, input, output)?;
    dev.uars.forget_halves(Uar(word(input, 8) & 0xff_ffff));
    Ok(())
}

const fn simple(opcode: u16, name: &'static str, run: super::Handler) -> Command {
    Command::new(opcode, name, 16, 16, run)
}

pub(super) const COMMANDS: &[Command] = &[
    simple(0x800, "ALLOC_PD", alloc_pd),
    simple(0x801, "DEALLOC_PD", dealloc_pd),
    simple(0x802, "ALLOC_UAR", alloc_uar),
    simple(0x803, "DEALLOC_UAR", dealloc_uar),
    simple(0x80e, "ALLOC_XRCD", alloc_xrcd),
    simple(0x80f, "DEALLOC_XRCD", dealloc_xrcd),
    simple(0x816, "ALLOC_TRANSPORT_DOMAIN", alloc_td),
    simple(0x817, "DEALLOC_TRANSPORT_DOMAIN", dealloc_td),
];
