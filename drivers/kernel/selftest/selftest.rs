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
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
    workqueue::{
        Work,
        WorkItem, //
    },
};
use kernel_ext::{
    mempool::{
        Mempool,
        PoolBox, //
    },
    new_with_work,
    pid::Pid,
    workqueue::{
        Flag,
        Job,
        OwnedQueue,
        WithWork, //
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
        report("workqueue, of a pool", pooled_work());
        report("workqueue, of a value", with_work());
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
    // It stays for as long as what came from it.
    let last = pool.alloc().write(Counted(100));
    drop(pool);
    drop(last);
    check!(DROPPED.load(Ordering::Relaxed) == 121);
    Ok(())
}

/// A work item in memory of a pool.
#[pin_data]
struct Pooled {
    counted: Counted,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Pooled { self.work }
}

impl WorkItem for Pooled {
    type Pointer = Pin<PoolBox<Self>>;

    fn run(this: Self::Pointer) {
        RAN.fetch_add(this.counted.0, Ordering::Relaxed);
    }
}

fn pooled_work() -> Result {
    let (ran, dropped) = (RAN.load(Ordering::Relaxed), DROPPED.load(Ordering::Relaxed));
    let pool = Mempool::new(2)?;
    let queue = OwnedQueue::new(c"selftest", Flag::Unbound, 1)?;
    for value in [1, 10] {
        let init = pin_init!(Pooled {
            counted: Counted(value),
            work <- new_work!("selftest"),
        });
        let Ok(item) = pool.try_alloc().ok_or(ENOMEM)?.pin_init(init);
        queue.enqueue(item);
    }
    queue.drain();
    check!(RAN.load(Ordering::Relaxed) == ran + 11);
    check!(DROPPED.load(Ordering::Relaxed) == dropped + 11);
    // All of it is back, or this does not end.
    pool.refill();
    // What could not be made is given back too.
    let init = Err::<Counted, Error>(EBUSY);
    let failing = try_pin_init!(Pooled {
        counted: init?,
        work <- new_work!("selftest"),
    }? Error);
    check!(pool.alloc().pin_init(failing).err() == Some(EBUSY));
    pool.refill();
    Ok(())
}

struct Counter(AtomicUsize);

impl Job for Counter {
    fn run(this: &WithWork<Self>) {
        this.0.fetch_add(1, Ordering::Relaxed);
        RAN.fetch_add(1, Ordering::Relaxed);
    }
}

fn with_work() -> Result {
    let queue = OwnedQueue::new(c"selftest", Flag::Unbound, 1)?;
    let new = || {
        let counter = Ok::<_, Error>(Counter(AtomicUsize::new(0)));
        let counter = new_with_work!(counter, "selftest");
        KBox::pin_init(counter, GFP_KERNEL)
    };
    let counter = new()?;
    for times in 1..4 {
        counter.enqueue(&queue);
        queue.drain();
        check!(counter.0.load(Ordering::Relaxed) == times);
    }
    let enqueue_in = |counter: &WithWork<Counter>, delay| {
        // SAFETY: All of them are dropped before the queue.
        unsafe { counter.enqueue_in(&queue, delay) };
    };
    // In an hour, and then at once after all.
    enqueue_in(&counter, msecs_to_jiffies(3_600_000));
    counter.enqueue(&queue);
    queue.drain();
    check!(counter.0.load(Ordering::Relaxed) == 4);
    // When its time has come.
    enqueue_in(&counter, 1);
    while counter.0.load(Ordering::Relaxed) == 4 {
        fsleep(Delta::from_millis(1));
    }
    // Not once it is stopped.
    enqueue_in(&counter, msecs_to_jiffies(3_600_000));
    counter.stop();
    counter.enqueue(&queue);
    queue.drain();
    check!(counter.0.load(Ordering::Relaxed) == 5);
    // It is not run once it is gone: not this, which is freed at once.
    for delay in 0..100 {
        let counter = new()?;
        enqueue_in(&counter, delay / 50);
        drop(counter);
    }
    queue.drain();
    drop(counter);
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
