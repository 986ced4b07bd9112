// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! User contexts and umems (`mlx5_ib/devx.c`).

use firmware_cmds::{DmaAddr, MttAccess};

use super::{put_word, word, CmdError, CmdResult, CmdStatus, Command};
use crate::buffer::QueueBuffer;
use crate::device::Device;
use crate::ifc::{create_uctx_in, create_uctx_out, destroy_uctx_in};
use crate::uctx::{Object, Uid};
use crate::umem::Umem;

/// Page list of CREATE_UMEM.
const PAGES: usize = 0x30;

/// Whoever has a context has no other rights by it: those that `cap` asks for are not offered
/// (`uctx_cap`).
fn create_uctx(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    if create_uctx_in::CAP.is_set(input) {
        return Err(CmdStatus::BadParam.into());
    }
    let uid = dev.uctxs.create().ok_or(CmdStatus::NoRes)?;
    create_uctx_out::UID.set(output, u64::from(uid.get()));
    Ok(())
}

fn destroy_uctx(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let uid = u16::try_from(destroy_uctx_in::UID.get(input)).map_err(|_| CmdStatus::BadParam)?;
    let uid = Uid::from(uid);
    if let Some((object, number)) = dev.uctxs.object_of(uid) {
        dev.journal.note(format_args!(
            "user context {:#x} still has {object:?} {number:#x}",
            uid.get()
        ));
        return Err(CmdStatus::ResBusy.into());
    }
    if dev.uctxs.remove(uid) {
        Ok(())
    } else {
        Err(CmdStatus::BadRes.into())
    }
}

fn create_umem(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let umem = Umem::new(input, &input[PAGES..])?;
    let id = dev.umems.insert(umem).ok_or(CmdStatus::NoRes)?;
    put_word(output, 8, id);
    Ok(())
}

fn destroy_umem(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let id = word(input, 8) & 0xff_ffff;
    if let Some(user) = umem_user(dev, id) {
        dev.journal
            .note(format_args!("umem {id:#x} is still used by {user}"));
        return Err(CmdStatus::ResBusy.into());
    }
    match dev.umems.remove(id) {
        Some(_) => Ok(()),
        None => Err(CmdStatus::BadRes.into()),
    }
}

/// An object whose memory a umem is.
fn umem_user(dev: &Device, id: u32) -> Option<String> {
    let mut cqs = dev.cqs.queues.iter();
    let mut qps = dev.qps.iter();
    let mut srqs = dev.srqs.queues.iter();
    let mut mkeys = dev.mkeys.iter();
    let cq = cqs.find(|(_, cq)| cq.umems.contains(&id));
    let qp = qps.find(|qp| qp.umems.contains(&id));
    let srq = srqs.find(|(_, srq)| srq.umems.contains(&id));
    let mkey = mkeys.find(|(_, mkey)| mkey.umem == Some(id));
    cq.map(|(cqn, _)| format!("CQ {cqn}"))
        .or_else(|| qp.map(|qp| format!("QP {}", qp.qpn)))
        .or_else(|| srq.map(|(srqn, _)| format!("SRQ {srqn}")))
        .or_else(|| mkey.map(|(index, _)| format!("the MKey of index {index:#x}")))
}

/// Where a command says that a queue or a doorbell record is: in a umem, if it names one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The umem.
    pub(super) umem: Option<u32>,
    /// Byte in the umem; for a doorbell record without one the address.
    pub(super) at: u64,
}

impl Place {
    /// What a command's three fields say.
    pub(super) fn new(valid: bool, umem: u32, at: u64) -> Self {
        Self {
            umem: valid.then_some(umem),
            at,
        }
    }
}

impl Device {
    /// The umem with this number, if the sender of the command may use it.
    ///
    /// # Errors
    ///
    /// BAD_RES if there is none.
    pub(super) fn umem(&self, id: u32) -> Result<&Umem, CmdError> {
        let umem = self.umems.get(id);
        umem.filter(|_| self.uctxs.allow(Object::Umem, id))
            .ok_or(CmdError::new(CmdStatus::BadRes))
    }

    /// The doorbell record that a command names.
    ///
    /// # Errors
    ///
    /// BAD_RES if the umem is not there, BAD_PARAM if the record is not in it.
    pub(super) fn record(&self, place: Place) -> Result<DmaAddr, CmdError> {
        match place.umem {
            Some(id) => self.umem(id)?.record(place.at),
            None => Ok(DmaAddr::new(place.at)),
        }
    }

    /// The queue of `len` bytes that a command names: in a umem, or in the pages that `listed`
    /// finds.
    ///
    /// # Errors
    ///
    /// BAD_RES if the umem is not there, BAD_PARAM if it is too short or must not be accessed
    /// like this; those of `listed`.
    pub(super) fn queue(
        &self,
        place: Place,
        len: u64,
        needed: MttAccess,
        listed: impl FnOnce() -> Result<QueueBuffer, CmdError>,
    ) -> Result<QueueBuffer, CmdError> {
        match place.umem {
            Some(id) => self.umem(id)?.queue(place.at, len, needed),
            None => listed(),
        }
    }
}

/// The umems of several places.
pub(super) fn umems(places: &[Place]) -> Vec<u32> {
    places.iter().filter_map(|place| place.umem).collect()
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(0xa04, "CREATE_UCTX", 0x14, 16, create_uctx),
    Command::new(0xa06, "DESTROY_UCTX", 16, 16, destroy_uctx),
    Command::new(0xa08, "CREATE_UMEM", PAGES, 16, create_umem),
    Command::new(0xa0a, "DESTROY_UMEM", 16, 16, destroy_umem),
];
