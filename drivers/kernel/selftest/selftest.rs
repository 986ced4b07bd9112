// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Tests of what is in this folder, on the kernel itself: a module that runs them when it is
//! loaded, on the memory of the process that loads it, and refuses to load if one fails.
//!
//! Mapping for DMA is tried with the first PCI device of Mellanox, by the paths that the
//! machine has; without such a device it is left out, which is said.

mod dma;
mod memory;
mod notifier;

use core::sync::atomic::{
    AtomicUsize,
    Ordering, //
};

use kernel::{
    impl_has_work, new_work,
    prelude::*,
    sync::Arc,
    workqueue::{
        Work,
        WorkItem, //
    },
};
use kernel_ext::{
    mempool::Mempool,
    pid::Pid,
    workqueue::{
        Flag,
        OwnedQueue, //
    },
};

module! {
    type: Selftest,
    name: "kernel_ext_test",
    authors: ["mlx5-odp"],
    description: "Tests of kernel abstractions",
    license: "Dual BSD/GPL",
}

/// Returns from a test if something is not so, and says where.
macro_rules! check {
    ($what:expr) => {
        if !$what {
            kernel::pr_err!("{}:{}: not so: {}\n", file!(), line!(), stringify!($what));
            return Err(kernel::prelude::EINVAL);
        }
    };
}
use check;

struct Selftest;

impl kernel::Module for Selftest {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let mut failed = 0;
        let mut report = |name: &str, result: Result| match result {
            Ok(()) => pr_info!("{name}: ok\n"),
            Err(error) => {
                pr_err!("{name}: FAILED: {error:?}\n");
                failed += 1;
            }
        };
        report("notifier, one pass", notifier::one_pass());
        report("notifier, two passes", notifier::two_passes());
        report(
            "notifier, two invalidations between passes",
            notifier::overlap(),
        );
        report("notifier, what is refused", notifier::refused());
        report("hmm, what is found", memory::found());
        report("hmm, errors", memory::errors());
        report("pid", pid());
        report("mempool", mempool());
        report("workqueue", workqueue());
        report("dma, virtual", dma::virtual_path());
        match dma::PciDevice::first() {
            Some(device) => {
                report(device.path_name(), dma::native_path(&device));
                if device.has_iommu() {
                    report("dma, list", dma::list_path(&device));
                    report("dma, stretch", dma::stretch(&device));
                }
            }
            None => pr_info!("dma: left out, there is no device\n"),
        }
        match failed {
            0 => Ok(Self),
            _ => Err(EINVAL),
        }
    }
}

fn pid() -> Result {
    let pid = Pid::current_tgid().ok_or(EINVAL)?;
    let task = pid.task().ok_or(ESRCH)?;
    check!(task.pid() == kernel::current!().group_leader().pid());
    check!(!pid.as_raw().is_null());
    Ok(())
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

struct Counted(usize);

impl Drop for Counted {
    fn drop(&mut self) {
        DROPPED.fetch_add(self.0, Ordering::Relaxed);
    }
}

fn mempool() -> Result {
    check!(Mempool::<Counted>::new(0).err() == Some(EINVAL));
    let pool = Mempool::new(2)?;
    // Memory that nothing was written to is given back as it is.
    drop(pool.try_alloc().ok_or(ENOMEM)?);
    let one = pool.alloc().write(Counted(1));
    let mut two = pool.try_alloc().ok_or(ENOMEM)?.write(Counted(2));
    two.0 = 20;
    check!(one.0 == 1 && DROPPED.load(Ordering::Relaxed) == 0);
    drop(one);
    check!(DROPPED.load(Ordering::Relaxed) == 1);
    drop(two);
    check!(DROPPED.load(Ordering::Relaxed) == 21);
    Ok(())
}

static RAN: AtomicUsize = AtomicUsize::new(0);

#[pin_data]
struct Item {
    value: usize,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Item { self.work }
}

impl WorkItem for Item {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        RAN.fetch_add(this.value, Ordering::Relaxed);
    }
}

fn workqueue() -> Result {
    let enqueue = |queue: &OwnedQueue, value| -> Result {
        let item = Arc::pin_init(
            pin_init!(Item {
                value,
                work <- new_work!("selftest"),
            }),
            GFP_KERNEL,
        )?;
        queue.enqueue(item).map_err(|_| EBUSY)
    };
    let queue = OwnedQueue::new(c"selftest", Flag::Unbound | Flag::HighPriority, 2)?;
    for value in 1..=8 {
        enqueue(&queue, value)?;
    }
    queue.drain();
    check!(RAN.load(Ordering::Relaxed) == 36);
    enqueue(&queue, 100)?;
    // The drop waits.
    drop(queue);
    check!(RAN.load(Ordering::Relaxed) == 136);
    Ok(())
}
