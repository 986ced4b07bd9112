// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A page-fault event: served by a worker, and answered by a command that nobody waits for.

use core::{
    convert::Infallible,
    ptr::NonNull, //
};

use firmware_cmds::{
    cmd::EmptyOut,
    Eqe,
    PageFault,
    PageFaultResume,
    Wire, //
};
use kernel::{
    container_of,
    prelude::*,
    types::Opaque,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use kernel_ext::mempool::PoolBox;
use mlx5_odp::Generation;

use crate::{
    bindings,
    device::Device,
    eq::FaultQueue, //
};

/// An event, dispatched and not answered yet.
///
/// # Invariants
///
/// `queue` outlives the value.
#[pin_data]
pub(crate) struct Event {
    queue: NonNull<FaultQueue>,
    event: mlx5_odp::Event,
    /// Given back to the queue when the event is served.
    generation: Generation,
    #[pin]
    work: Work<Self>,
    /// The command that answers it.
    #[pin]
    answer: Opaque<bindings::mlx5_async_work>,
    #[pin]
    output: Opaque<[u32; EmptyOut::LEN / 4]>,
}

// SAFETY: The queue may be used by any thread.
unsafe impl Send for Event {}

impl_has_work! {
    impl HasWork<Self> for Event { self.work }
}

impl WorkItem for Event {
    type Pointer = Pin<PoolBox<Self>>;

    fn run(this: Self::Pointer) {
        let (fault, number) = (PageFault::from_eqe(&this.event.eqe), this.event.number);
        let device = Device::new(this);
        mlx5_odp::serve(&device, fault, number);
        // Not every event is answered.
        if let Some(this) = device.into_event() {
            this.served();
        }
    }
}

impl Event {
    /// # Safety
    ///
    /// `queue` is valid and outlives the value.
    pub(crate) unsafe fn new(
        queue: NonNull<FaultQueue>,
        event: mlx5_odp::Event,
        generation: Generation,
    ) -> impl PinInit<Self, Infallible> {
        // INVARIANT: By the safety requirements.
        pin_init!(Self {
            queue,
            event,
            generation,
            work <- new_work!("mlx5_ib_page_fault"),
            answer <- Opaque::uninit(),
            output <- Opaque::uninit(),
        })
    }

    fn queue(&self) -> &FaultQueue {
        // SAFETY: By the type invariants.
        unsafe { self.queue.as_ref() }
    }

    /// The device.
    pub(crate) fn dev(&self) -> NonNull<bindings::mlx5_ib_dev> {
        self.queue().dev()
    }

    /// Once for each event.
    fn served(&self) {
        self.queue().served(self.generation);
    }

    fn warn_not_resumed(&self, status: c_int) {
        let what = c"a page fault could not be resumed";
        // SAFETY: The device is live, and `what` a string.
        unsafe {
            bindings::mlx5r_odp_warn(
                self.dev().as_ptr(),
                what.as_char_ptr(),
                status.unsigned_abs(),
            );
        }
    }

    /// Sends the command that answers it. Only without waiting for it is it sent by memory that is
    /// there at once; if it cannot be sent so, it is waited for.
    pub(crate) fn resume(this: Pin<PoolBox<Self>>, command: &PageFaultResume) {
        // Afterwards the event may be gone.
        this.served();
        let mut input = command.to_bytes();
        let answers = this.queue().answers();
        let (context, mdev) = (answers.context.get(), answers.mdev.as_ptr());
        let (work, output) = (this.answer.get(), this.output.get());
        let raw = PoolBox::into_raw(this);
        // CAST: Both are 16.
        let (input_len, output_len) = (input.len() as c_int, EmptyOut::LEN as c_int);
        let input = input.as_mut_ptr().cast();
        // SAFETY: `work` and `output` stay until `Self::answered` is called for them, which happens
        // if this succeeds; the input is copied.
        let status = unsafe {
            bindings::mlx5_cmd_exec_cb(
                context,
                input,
                input_len,
                output.cast(),
                output_len,
                Some(Self::answered),
                work,
            )
        };
        if status == 0 {
            return;
        }
        // SAFETY: It is ours again.
        let this = unsafe { PoolBox::from_raw(raw) };
        // SAFETY: The device is live, and the buffers are valid for these lengths.
        let status =
            unsafe { bindings::mlx5_cmd_exec(mdev, input, input_len, output.cast(), output_len) };
        if status != 0 {
            this.warn_not_resumed(status);
        }
    }

    /// The command is done; possibly in interrupt context.
    unsafe extern "C" fn answered(status: c_int, work: *mut bindings::mlx5_async_work) {
        // SAFETY: The work is that of an event which `Self::resume` has given up.
        let this = unsafe {
            let event: *const Self = container_of!(Opaque::cast_from(work), Self, answer);
            PoolBox::from_raw(event.cast_mut())
        };
        if status != 0 {
            this.warn_not_resumed(status);
        }
    }
}

/// The commands of a device under way that answer events. The drop waits for them.
///
/// # Invariants
///
/// `context` is initialised, for `mdev`, which is live.
#[pin_data(PinnedDrop)]
pub(crate) struct Answers {
    #[pin]
    context: Opaque<bindings::mlx5_async_ctx>,
    mdev: NonNull<bindings::mlx5_core_dev>,
}

impl Answers {
    /// # Safety
    ///
    /// `mdev` is live for as long as the value.
    pub(crate) unsafe fn new(
        mdev: NonNull<bindings::mlx5_core_dev>,
    ) -> impl PinInit<Self, Infallible> {
        // INVARIANT: By the safety requirements.
        pin_init!(Self {
            context <- Opaque::ffi_init(|context| {
                // SAFETY: `context` is valid for writes, and the device is live.
                unsafe { bindings::mlx5_cmd_init_async_ctx(mdev.as_ptr(), context) };
            }),
            mdev,
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Answers {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5_cmd_cleanup_async_ctx(self.context.get()) };
    }
}

const _: () = assert!(Eqe::LEN == bindings::MLX5R_ODP_EQE_SIZE as usize);
const _: () = assert!(PageFaultResume::LEN == bindings::MLX5R_ODP_RESUME_SIZE as usize);
