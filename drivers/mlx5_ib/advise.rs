// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Prefetch at the user's wish: `ibv_advise_mr`.

use core::{
    ptr,
    ptr::NonNull,
    slice, //
};

use firmware_cmds::Iova;
use kernel::{
    prelude::*,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};
use mlx5_odp::{
    prefetch,
    Advice,
    Found,
    FoundBy,
    NotIn,
    Pressure, //
};

use crate::{
    bindings,
    buffer::BufferMr,
    device::Device,
    eq::Faults,
    region::{
        ImplicitMr,
        Mr, //
    },
};

/// One element of what a user has advised.
struct Piece<'a> {
    found: FoundBy<'a, Device>,
    at: Iova,
    bytes: u64,
}

impl Piece<'_> {
    /// Finds and holds the MR of an element.
    ///
    /// # Errors
    ///
    /// As `odp.c:get_prefetchable_mr`: `ENOENT` if no ODP MR has this key, `EINVAL` for a key of
    /// another kind, `EPERM` if the MR has another PD, or must not be written and the advice is to.
    ///
    /// # Safety
    ///
    /// `pd` is live; the device lives for as long as the MR.
    unsafe fn find(
        pd: *mut bindings::ib_pd,
        sge: &bindings::ib_sge,
        advice: Advice,
    ) -> Result<Self> {
        let mut mr = ptr::null_mut();
        // SAFETY: The PD is live.
        let err = unsafe {
            let write = advice == Advice::Write;
            bindings::mlx5r_odp_get_prefetchable(pd, write, sge.lkey, &mut mr)
        };
        kernel::error::to_result(err)?;
        let mr = NonNull::new(mr).ok_or(ENOENT)?;
        // SAFETY: The call took a reference for us.
        let found = unsafe {
            if bindings::mlx5r_odp_is_dmabuf(mr.as_ptr()) {
                Found::Buffer(BufferMr::adopt(mr))
            } else if bindings::mlx5r_odp_is_implicit(mr.as_ptr()) {
                Found::Implicit(ImplicitMr::adopt(mr))
            } else {
                Found::Region(Mr::adopt(mr))
            }
        };
        Ok(Self {
            found,
            at: Iova::new(sge.addr),
            bytes: sge.length.into(),
        })
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// As `odp.c:pagefault_mr`.
    fn bring_in(&self, advice: Advice, device: &Device) -> Result {
        if let Found::Region(mr) = &self.found {
            if mr.mirror().mm().is_none() {
                return Err(EINVAL);
            }
        }
        prefetch(&self.found, self.at, self.bytes, advice, device).map_err(|why| match why {
            NotIn::Invalid | NotIn::Device => EFAULT,
            NotIn::ReadOnly => EPERM,
            NotIn::Empty => EINVAL,
            NotIn::Busy(Pressure::Memory) => ENOMEM,
            NotIn::Busy(Pressure::Race | Pressure::Held) => EBUSY,
        })
    }
}

/// What is done later, and whose errors nobody learns of.
///
/// # Invariants
///
/// `dev` is live: its removal waits for the MRs to be destroyed, and that for those who hold them.
#[pin_data]
struct Later {
    dev: NonNull<bindings::mlx5_ib_dev>,
    advice: Advice,
    pieces: KVVec<Piece<'static>>,
    #[pin]
    work: Work<Later>,
}

// SAFETY: The C objects may be used by any thread.
unsafe impl Send for Later {}

impl_has_work! {
    impl HasWork<Self> for Later { self.work }
}

impl WorkItem for Later {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        // SAFETY: By the type invariants.
        let device = unsafe { Device::without_event(this.dev) };
        for piece in &this.pieces {
            let _ = piece.bring_in(this.advice, &device);
        }
    }
}

/// What an advice is; `None` for one that there is not.
pub(crate) fn advice(advice: bindings::ib_uverbs_advise_mr_advice) -> Option<Advice> {
    use bindings as b;
    Some(match advice {
        b::ib_uverbs_advise_mr_advice_IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH => Advice::Read,
        b::ib_uverbs_advise_mr_advice_IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_WRITE => Advice::Write,
        b::ib_uverbs_advise_mr_advice_IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT => {
            Advice::Present
        }
        _ => return None,
    })
}

/// Prefetches what the elements say, one after the other, and waits for it.
///
/// # Errors
///
/// Those of [`Piece`], of the first element that has one; what comes before it is done.
///
/// # Safety
///
/// `dev` and its `pd` are live.
pub(crate) unsafe fn now(
    dev: NonNull<bindings::mlx5_ib_dev>,
    pd: *mut bindings::ib_pd,
    advice: Advice,
    sges: &[bindings::ib_sge],
) -> Result {
    // SAFETY: By the safety requirements.
    let device = unsafe { Device::without_event(dev) };
    for sge in sges {
        // SAFETY: As above.
        unsafe { Piece::find(pd, sge, advice) }?.bring_in(advice, &device)?;
    }
    Ok(())
}

/// Has them prefetched.
///
/// # Errors
///
/// Those of [`Piece::find`], `ENOMEM`; then nothing is done.
///
/// # Safety
///
/// As [`now`].
pub(crate) unsafe fn later(
    dev: NonNull<bindings::mlx5_ib_dev>,
    pd: *mut bindings::ib_pd,
    advice: Advice,
    sges: &[bindings::ib_sge],
) -> Result {
    let mut pieces = KVVec::with_capacity(sges.len(), GFP_KERNEL)?;
    for sge in sges {
        // SAFETY: By the safety requirements. The device lives for as long as the MR is held.
        let piece = unsafe { Piece::find(pd, sge, advice) }?;
        pieces.push(piece, GFP_KERNEL)?;
    }
    // INVARIANT: As just said.
    let later = KBox::pin_init(
        pin_init!(Later {
            dev,
            advice,
            pieces,
            work <- new_work!("Later::work"),
        }),
        GFP_KERNEL,
    )?;
    // SAFETY: The device is live, and the page-fault EQ was created, for there is an ODP MR.
    unsafe { Faults::of(dev) }.prefetches().enqueue(later);
    Ok(())
}

/// The elements of a list.
///
/// # Safety
///
/// There are so many, during `'a`.
pub(crate) unsafe fn elements<'a>(
    list: *const bindings::ib_sge,
    count: u32,
) -> &'a [bindings::ib_sge] {
    match list.is_null() {
        true => &[],
        // SAFETY: By the safety requirements. CAST: widens.
        false => unsafe { slice::from_raw_parts(list, count as usize) },
    }
}
