// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! UMR: changes an MKey's context and translation entries from a work queue.
//!
//! The driver's UMR QP may do so to every key. A user's QP binds memory windows with it, takes
//! bindings back and lays out indirect keys (libmlx5 `qp.c:set_bind_wr`,
//! `mlx5_send_wr_mkey_configure`): on keys of its own domain, and only on those that refer to other
//! keys. MTTs are bus addresses, which a user must not choose. What a binding refers to is looked
//! at by the accesses through it and not before, so that a window larger than its region is
//! bound, and what lies beyond the region cannot be accessed.
//!
//! A UMR takes effect within one step of the device, and so does every access (see
//! [`crate::transport::mover`]): when it completes, nothing is under way that used the
//! old translation, and nothing will.

use std::borrow::Cow;
use std::fmt;

use firmware_cmds::umr::{MkeyMask, UmrWqe, UmrXlt, UMR_ALIGN};
use firmware_cmds::wqe::{DataSeg, SendTransport, SendWqe};
use firmware_cmds::{AccessMode, LogPageSize, Mkc, Pdn, Qpn};

use crate::completion::syndrome;
use crate::device::Device;
use crate::guest::to_u64;
use crate::mkey::{Access, MKey, Target, WalkError};
use crate::rules::points::UmrKind;
use crate::transport::{Failure, Op, Outcome};

/// Fields of an MKey that a UMR may change. Of those that `MLX5_MKEY_MASK_*` names, the
/// capabilities offer no signatures (EN_SIGERR, BSF_EN) and no relaxed ordering.
const SUPPORTED_MASK: MkeyMask = MkeyMask::new()
    .with_len(true)
    .with_page_size(true)
    .with_page_size_5(true)
    .with_start_addr(true)
    .with_pd(true)
    .with_en_rinval(true)
    .with_key(true)
    .with_qpn(true)
    .with_lr(true)
    .with_lw(true)
    .with_rr(true)
    .with_rw(true)
    .with_a(true)
    .with_small_fence(true)
    .with_free(true);

/// What a user's QP may change of it: not the domain.
const USER_MASK: MkeyMask = SUPPORTED_MASK.with_pd(false);

/// Flags of the UMR control segment without a meaning.
const UNKNOWN_FLAGS: u8 = 0x07;

/// Who posted a UMR.
#[derive(Clone, Copy, Debug)]
struct By {
    /// On this QP.
    qpn: Qpn,
    /// A user, in this domain; otherwise the driver, on its QP for that.
    user: Option<Pdn>,
}

/// What is wrong with a UMR.
#[derive(Debug)]
enum Refused {
    Malformed,
    UnknownMkey,
    Domain,
    Direct,
    Variant,
    NotEnabled,
    Free,
    NotFree,
    OtherQp,
    UnknownFlags(u8),
    UnknownMask(u64),
    Unaligned,
    BeyondTable,
    List(WalkError),
    Dma(crate::guest::DmaError),
}

impl Refused {
    /// The key is not there to be changed: destroyed, used again for another, or revoked.
    fn is_about_the_key(&self) -> bool {
        matches!(self, Self::UnknownMkey | Self::Variant | Self::Free)
    }

    /// Syndrome of the completion. To a user all but a WQE that makes no sense is a binding that
    /// failed.
    fn syndrome(&self, by: By) -> u8 {
        match self {
            Self::Malformed | Self::UnknownFlags(_) => syndrome::LOCAL_QP_OP,
            Self::List(_) | Self::Dma(_) if by.user.is_some() => syndrome::LOCAL_PROT,
            _ if by.user.is_some() || self.is_about_the_key() => syndrome::MW_BIND,
            _ => syndrome::LOCAL_QP_OP,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("malformed"),
            Self::UnknownMkey => f.write_str("unknown MKey"),
            Self::Domain => f.write_str("protection domain mismatch"),
            Self::Direct => f.write_str("the MKey refers to no others"),
            Self::Variant => f.write_str("MKey variant mismatch"),
            Self::NotEnabled => f.write_str("UMR is not enabled for the MKey"),
            Self::Free => f.write_str("the MKey is free"),
            Self::NotFree => f.write_str("the MKey is not free"),
            Self::OtherQp => f.write_str("the MKey belongs to another QP"),
            Self::UnknownFlags(bits) => write!(f, "unknown flags {bits:#x}"),
            Self::UnknownMask(bits) => write!(f, "unknown mask bits {bits:#x}"),
            Self::Unaligned => f.write_str("offset or length of the list is unaligned"),
            Self::BeyondTable => f.write_str("beyond the translation table"),
            Self::List(error) => write!(f, "translation list: {error:?}"),
            Self::Dma(error) => write!(f, "translation list: {error}"),
        }
    }
}

impl Device {
    /// Executes a UMR WQE.
    pub(crate) fn umr(&mut self, qpn: Qpn, op: &Op) -> Outcome {
        let Some(qp) = self.qps.get(qpn) else {
            return Outcome::Forgotten;
        };
        if qp.st.is_datagram() {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP));
        }
        let by = By { qpn, user: qp.pd() };
        if by.user.is_some() {
            self.counters.user_umr_wqes += 1;
        } else {
            self.counters.umr_wqes += 1;
        }
        if let Err(refused) = self.execute_umr(by, op) {
            return self.refuse_umr(by, op, &refused);
        }
        Outcome::Done
    }

    fn refuse_umr(&mut self, by: By, op: &Op, refused: &Refused) -> Outcome {
        let (key, qpn) = (op.request.ctrl.mkey(), by.qpn);
        let line = format!("UMR of MKey {key} on QP {qpn}: {refused}");
        if by.user.is_some() {
            self.journal.note(format_args!("{line}"));
            self.counters.user_umr_errors += 1;
        } else {
            self.violation(format_args!("{line}"));
            self.counters.umr_bind_errors += u64::from(refused.is_about_the_key());
        }
        Outcome::Failed(Failure::local(refused.syndrome(by)))
    }

    /// What a UMR changes, for the rules; `None` if it makes no sense.
    pub(crate) fn umr_kind(&self, op: &Op) -> Option<UmrKind> {
        let wqe = parse(op).ok()?;
        if wqe.umr.mkey_mask.free() {
            return Some(if wqe.mkc.free {
                UmrKind::Revoke
            } else {
                UmrKind::Enable
            });
        }
        let driver = By {
            qpn: wqe.ctrl.qpn,
            user: None,
        };
        let list = self.list(driver, &wqe).ok()?;
        if list.is_empty() {
            return Some(UmrKind::Modify);
        }
        let mkey = self.mkeys.get(wqe.ctrl.mkey().index().get())?;
        let brings = list.iter().any(|&byte| byte != 0);
        let zap = !brings && mkey.xlt.holds(wqe.umr.xlt_offset().get(), list.len());
        Some(if zap { UmrKind::Zap } else { UmrKind::Map })
    }

    /// The translation list of a UMR.
    fn list<'a>(&self, by: By, wqe: &UmrWqe<'a>) -> Result<Cow<'a, [u8]>, Refused> {
        Ok(match wqe.xlt {
            UmrXlt::None => Cow::Borrowed(&[]),
            UmrXlt::Inline(list) => Cow::Borrowed(list),
            UmrXlt::Data(data) => Cow::Owned(self.fetch_list(by, &data, wqe.umr.xlt_bytes())?),
        })
    }

    /// Checks everything first: a UMR that is refused changes nothing.
    fn execute_umr(&mut self, by: By, op: &Op) -> Result<(), Refused> {
        let wqe = parse(op)?;
        let key = wqe.ctrl.mkey();
        let mkey = self
            .mkeys
            .get(key.index().get())
            .ok_or(Refused::UnknownMkey)?;
        check(&wqe, mkey, by)?;
        let list = self.list(by, &wqe)?;
        let offset = wqe.umr.xlt_offset();
        let align = to_u64(UMR_ALIGN);
        if list.len() % UMR_ALIGN != 0 || offset.bytes() % align != 0 {
            return Err(Refused::Unaligned);
        }
        let mut mkc = mkey.mkc;
        apply(&mut mkc, &wqe);
        if !mkey.xlt.takes(offset.get(), list.len()) || mkey.too_short_for(&mkc) {
            return Err(Refused::BeyondTable);
        }
        let Some(mkey) = self.mkeys.get_mut(key.index().get()) else {
            return Err(Refused::UnknownMkey);
        };
        mkey.mkc = mkc;
        if !list.is_empty() {
            let changed = mkey.xlt.write(offset.get(), &list);
            self.counters.umr_xlt_updates += 1;
            if mkc.access_mode == AccessMode::Mtt {
                self.counters.mtts_set += changed.set;
                self.counters.mtts_cleared += changed.cleared;
            }
        }
        self.journal.trace(format_args!(
            "umr mkey={key} flags={:?} mask={:#x} xlt {} octowords at {}",
            wqe.umr.flags,
            wqe.umr.mkey_mask.get(),
            wqe.umr.xlt_octowords,
            offset.get()
        ));
        Ok(())
    }

    /// Reads a translation list from memory. That of a user must be there: a page fault on it is
    /// an error of protection.
    fn fetch_list(&self, by: By, data: &DataSeg, len: usize) -> Result<Vec<u8>, Refused> {
        if data.byte_count.bytes() < to_u64(len) {
            return Err(Refused::Malformed);
        }
        let target = Target {
            key: data.lkey,
            va: data.addr.get(),
            len: to_u64(len),
            access: Access::LocalRead,
            pd: by.user,
            qpn: by.user.map(|_| by.qpn),
        };
        let mut extents = Vec::new();
        self.mkeys
            .resolve(&target, target.len, &mut extents)
            .map_err(Refused::List)?;
        let mut list = vec![0; len];
        let mut at = 0;
        for extent in extents {
            let end = at + usize::try_from(extent.len).unwrap_or(usize::MAX);
            self.mem
                .read(extent.iova, &mut list[at..end])
                .map_err(Refused::Dma)?;
            at = end;
        }
        Ok(list)
    }
}

fn parse(op: &Op) -> Result<UmrWqe<'_>, Refused> {
    SendWqe::parse(&op.request.bytes, SendTransport::Connected)
        .and_then(|wqe| UmrWqe::parse(&wqe))
        .map_err(|_| Refused::Malformed)
}

/// What a UMR must respect of its MKey, the translation table aside.
fn check(wqe: &UmrWqe<'_>, mkey: &MKey, by: By) -> Result<(), Refused> {
    let (flags, mask) = (wqe.umr.flags, wqe.umr.mkey_mask);
    let supported = match by.user {
        None => SUPPORTED_MASK,
        Some(_) => USER_MASK,
    };
    let unknown_flags = flags.into_bits() & UNKNOWN_FLAGS;
    let unknown_mask = mask.get() & !supported.get();
    let indirect = matches!(mkey.mkc.access_mode, AccessMode::Klms | AccessMode::Ksm);
    if unknown_flags != 0 {
        Err(Refused::UnknownFlags(unknown_flags))
    } else if by.user.is_some_and(|pd| pd != mkey.mkc.pd) {
        Err(Refused::Domain)
    } else if by.user.is_some() && !indirect {
        Err(Refused::Direct)
    } else if unknown_mask != 0 {
        Err(Refused::UnknownMask(unknown_mask))
    } else if mkey.mkc.variant != wqe.ctrl.mkey().variant() && !mask.key() {
        Err(Refused::Variant)
    } else if !mkey.mkc.umr_en {
        Err(Refused::NotEnabled)
    } else if flags.check_free() && mkey.mkc.free {
        Err(Refused::Free)
    } else if flags.check_not_free() && !mkey.mkc.free {
        Err(Refused::NotFree)
    } else if flags.check_qpn() && !mkey.belongs_to(Some(by.qpn)) {
        Err(Refused::OtherQp)
    } else {
        Ok(())
    }
}

/// Takes the fields that the mask names.
fn apply(mkc: &mut Mkc, wqe: &UmrWqe<'_>) {
    let mask = wqe.umr.mkey_mask;
    let new = &wqe.mkc;
    if mask.len() {
        mkc.len = new.len;
        mkc.length64 = new.length64;
    }
    let mut log = mkc.log_page_size.get();
    if mask.page_size() {
        log = log & 0x20 | new.log_page_size.get() & 0x1f;
    }
    if mask.page_size_5() {
        log = log & 0x1f | new.log_page_size.get() & 0x20;
    }
    mkc.log_page_size = LogPageSize::truncate(log);
    if mask.start_addr() {
        mkc.start_addr = new.start_addr;
    }
    if mask.pd() {
        mkc.pd = new.pd;
    }
    if mask.en_rinval() {
        mkc.en_rinval = new.en_rinval;
    }
    if mask.key() {
        mkc.variant = new.variant;
    }
    if mask.qpn() {
        mkc.qpn = new.qpn;
    }
    if mask.lr() {
        mkc.access.local_read = new.access.local_read;
    }
    if mask.lw() {
        mkc.access.local_write = new.access.local_write;
    }
    if mask.rr() {
        mkc.access.remote_read = new.access.remote_read;
    }
    if mask.rw() {
        mkc.access.remote_write = new.access.remote_write;
    }
    if mask.a() {
        mkc.access.atomic = new.access.atomic;
    }
    if mask.small_fence() {
        mkc.small_fence_on_rdma_read_response = new.small_fence_on_rdma_read_response;
    }
    if mask.free() {
        mkc.free = new.free;
    }
}
