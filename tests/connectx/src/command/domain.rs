// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Domains and doorbell pages: PD, transport domain, XRCD, UAR.

use std::collections::BTreeSet;

use firmware_cmds::{Pdn, Tdn, Uar, Xrcdn};
use serde::Serialize;

use super::{put_word, word, CmdResult, CmdStatus, Command};
use crate::caps::{LOG_MAX_PD, LOG_MAX_TD, LOG_MAX_XRCD};
use crate::device::Device;
use crate::inspect::show;
use crate::numbers::Numbers;
use crate::qp::context as qpc;
use crate::srq::SrqKind;

/// Protection, transport and XRC domains: numbers without further state.
#[derive(Debug, Serialize)]
pub struct Domains {
    /// Protection domains.
    #[serde(rename = "pd", serialize_with = "show::debug")]
    pub pds: BTreeSet<Pdn>,
    /// Transport domains.
    #[serde(rename = "td", serialize_with = "show::debug")]
    pub tds: BTreeSet<Tdn>,
    /// XRC domains.
    #[serde(rename = "xrcd", serialize_with = "show::debug")]
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
            pd_numbers: Numbers::below(1, LOG_MAX_PD),
            td_numbers: Numbers::below(1, LOG_MAX_TD),
            xrcd_numbers: Numbers::below(1, LOG_MAX_XRCD),
        }
    }
}

macro_rules! alloc_dealloc {
    ($alloc:ident, $dealloc:ident, $handle:ident, $user:ident, |$dev:ident| $set:expr,
     $numbers:expr) => {
        fn $alloc($dev: &mut Device, _: &[u8], output: &mut [u8]) -> CmdResult {
            let set = &$set;
            let number = $numbers
                .take(|n| set.contains(&$handle::truncate(n)))
                .ok_or(CmdStatus::NoRes)?;
            $set.insert($handle::truncate(number));
            put_word(output, 8, number);
            Ok(())
        }

        fn $dealloc($dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
            let number = $handle::truncate(word(input, 8));
            if !$set.contains(&number) {
                return Err(CmdStatus::BadRes.into());
            }
            if let Some(user) = $user($dev, number) {
                let kind = stringify!($handle);
                $dev.journal
                    .note(format_args!("{kind} {number} is still used by {user}"));
                return Err(CmdStatus::ResBusy.into());
            }
            $set.remove(&number);
            Ok(())
        }
    };
}

alloc_dealloc!(
    alloc_pd,
    dealloc_pd,
    Pdn,
    pd_user,
    |dev| dev.domains.pds,
    dev.domains.pd_numbers
);
alloc_dealloc!(
    alloc_td,
    dealloc_td,
    Tdn,
    td_user,
    |dev| dev.domains.tds,
    dev.domains.td_numbers
);
alloc_dealloc!(
    alloc_xrcd,
    dealloc_xrcd,
    Xrcdn,
    xrcd_user,
    |dev| dev.domains.xrcds,
    dev.domains.xrcd_numbers
);
/// The page is one to which no queue is left from its last owner.
fn alloc_uar(dev: &mut Device, _: &[u8], output: &mut [u8]) -> CmdResult {
    let (pages, cqs, qps) = (&dev.uars.pages, &dev.cqs.queues, &dev.qps);
    let used = |n| {
        let uar = Uar::truncate(n);
        pages.contains(&uar)
            || cqs.values().any(|cq| cq.uar == uar)
            || qps
                .iter()
                .any(|qp| Uar::truncate(qp.context.get(qpc::UAR_PAGE)) == uar)
    };
    let number = dev.uars.numbers.take(used).ok_or(CmdStatus::NoRes)?;
    dev.uars.pages.insert(Uar::truncate(number));
    put_word(output, 8, number);
    Ok(())
}

/// The page of EQs is in use. CQs and QPs may stay without their page, and can then not be
/// rung: libmlx5 gives back its page when a context is closed, whatever objects the user
/// left to the kernel, and the driver does not try again (`mlx5_ib/main.c:mlx5_ib_mmap_free`).
fn dealloc_uar(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let uar = Uar::truncate(word(input, 8));
    if !dev.uars.pages.contains(&uar) {
        return Err(CmdStatus::BadRes.into());
    }
    let mut eqs = dev.events.queues.iter();
    if let Some((eqn, _)) = eqs.find(|(_, eq)| eq.uar == uar) {
        dev.journal
            .note(format_args!("UAR {uar} is still used by EQ {eqn}"));
        return Err(CmdStatus::ResBusy.into());
    }
    dev.uars.pages.remove(&uar);
    dev.uars.forget_halves(uar);
    Ok(())
}

/// An object that belongs to a protection domain. An MKey that is free does not: the driver
/// keeps such MKeys for later, whatever domain they were in.
fn pd_user(dev: &Device, pd: Pdn) -> Option<String> {
    let mut qps = dev.qps.iter();
    let mut srqs = dev.srqs.queues.iter();
    let mut mkeys = dev.mkeys.iter();
    let qp = qps.find(|qp| Pdn::truncate(qp.context.get(qpc::PD)) == pd);
    let srq = srqs.find(|(_, srq)| srq.pd == pd);
    let mkey = mkeys.find(|(_, mkey)| !mkey.mkc.free && mkey.mkc.pd == pd);
    qp.map(|qp| format!("QP {}", qp.qpn))
        .or_else(|| srq.map(|(srqn, _)| format!("SRQ {srqn}")))
        .or_else(|| mkey.map(|(index, _)| format!("the MKey of index {index:#x}")))
}

/// Nothing that the model has refers to a transport domain.
fn td_user(_: &Device, _: Tdn) -> Option<&'static str> {
    None
}

fn xrcd_user(dev: &Device, xrcd: Xrcdn) -> Option<String> {
    let mut qps = dev.qps.iter();
    let mut srqs = dev.srqs.queues.iter();
    let qp = qps.find(|qp| qp.xrcd() == Some(xrcd));
    let srq =
        srqs.find(|(_, srq)| matches!(srq.kind, SrqKind::Xrc { xrcd: own, .. } if own == xrcd));
    qp.map(|qp| format!("QP {}", qp.qpn))
        .or_else(|| srq.map(|(srqn, _)| format!("SRQ {srqn}")))
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
