// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Interval notifiers.

use core::{
    ops,
    ptr, //
};

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};
use kernel_ext::{
    bindings,
    mmu_notifier::{
        Event,
        FirstPass,
        IntervalNotifier,
        NewSequence,
        Operations,
        Range,
        Registration,
        Sequence,
        TwoPass,
        TwoPassOperations, //
    },
};

use crate::{
    check,
    memory::Mapping, //
};

/// What callbacks were called for, outliving them.
#[pin_data]
pub(crate) struct Log {
    #[pin]
    seen: Mutex<KVec<(&'static str, Event, ops::Range<usize>)>>,
}

impl Log {
    fn new() -> Result<Arc<Self>> {
        let log = pin_init!(Self {
            seen <- new_mutex!(KVec::new()),
        });
        Arc::pin_init(log, GFP_KERNEL)
    }

    fn len(&self) -> usize {
        self.seen.lock().len()
    }

    fn names(&self) -> Result<KVec<&'static str>> {
        let mut names = KVec::new();
        for (name, _, _) in self.seen.lock().iter() {
            names.push(*name, GFP_KERNEL)?;
        }
        Ok(names)
    }
}

/// Notes what it is called for.
pub(crate) struct Recorder(Arc<Log>);

impl Recorder {
    pub(crate) fn is_stale(&self, notifier: &IntervalNotifier, sequence: Sequence) -> bool {
        let _lock = self.0.seen.lock();
        notifier.read_retry(sequence)
    }
}

impl Operations for Recorder {
    fn invalidate(&self, range: &Range, sequence: NewSequence<'_>) -> bool {
        if !range.is_blockable() {
            return false;
        }
        let mut seen = self.0.seen.lock();
        sequence.set(&seen);
        seen.push(("only", range.event(), range.span()), GFP_KERNEL)
            .is_ok()
    }
}

/// Recording invalidations of `span` in the current process.
pub(crate) fn recorder(span: ops::Range<usize>) -> Result<Pin<KBox<Registration<Recorder>>>> {
    let current = kernel::current!();
    let mm = current.mm().ok_or(EINVAL)?;
    KBox::pin_init(
        Registration::new(mm, span, Recorder(Log::new()?)),
        GFP_KERNEL,
    )
}

pub(crate) fn one_pass() -> Result {
    let memory = Mapping::new(8, true)?;
    let log = Log::new()?;
    let current = kernel::current!();
    let mm = current.mm().ok_or(EINVAL)?;
    let recorder = Recorder(log.clone());
    // All but the last two pages.
    let span = memory.pages(0..6);
    let registration: Pin<KBox<Registration<Recorder>>> =
        KBox::pin_init(Registration::new(mm, span.clone(), recorder), GFP_KERNEL)?;
    let notifier = registration.notifier();
    check!(notifier.span() == (span.start..=span.end - 1) && notifier.is_in(mm));

    let sequence = notifier.read_begin();
    check!(!registration.data().is_stale(notifier, sequence));
    // Elsewhere.
    memory.unmap(7..8)?;
    check!(log.len() == 0 && !registration.data().is_stale(notifier, sequence));

    memory.unmap(2..3)?;
    check!(registration.data().is_stale(notifier, sequence));
    {
        let seen = log.seen.lock();
        let (_, event, unmapped) = seen.first().ok_or(EINVAL)?;
        check!(seen.len() == 1 && *event == Event::UNMAP && *unmapped == memory.pages(2..3));
    }
    let sequence = notifier.read_begin();
    check!(!registration.data().is_stale(notifier, sequence));

    drop(registration);
    memory.unmap(3..4)?;
    check!(log.len() == 1);
    Ok(())
}

/// Notes its passes.
struct Passes(Arc<Log>, bool);

impl TwoPassOperations for Passes {
    type Pending = ops::Range<usize>;

    fn invalidate_start(
        &self,
        range: &Range,
        sequence: NewSequence<'_>,
    ) -> FirstPass<Self::Pending> {
        if !range.is_blockable() {
            return FirstPass::WouldBlock;
        }
        let mut seen = self.0.seen.lock();
        sequence.set(&seen);
        let name = if self.1 { "start" } else { "whole" };
        if seen
            .push((name, range.event(), range.span()), GFP_KERNEL)
            .is_err()
        {
            return FirstPass::WouldBlock;
        }
        match self.1 {
            true => FirstPass::Pending(range.span()),
            false => FirstPass::Done,
        }
    }

    fn invalidate_finish(&self, pending: Self::Pending) {
        let _ = (self.0.seen.lock()).push(("finish", Event::UNMAP, pending), GFP_KERNEL);
    }
}

type TwoPasses = Pin<KBox<Registration<Passes, TwoPass>>>;

fn two_pass(span: ops::Range<usize>, log: &Arc<Log>, pends: bool) -> Result<TwoPasses> {
    let current = kernel::current!();
    let mm = current.mm().ok_or(EINVAL)?;
    let passes = Passes(log.clone(), pends);
    KBox::pin_init(Registration::new(mm, span, passes), GFP_KERNEL)
}

pub(crate) fn two_passes() -> Result {
    let memory = Mapping::new(4, true)?;
    let log = Log::new()?;
    let (_one, _two) = (
        two_pass(memory.span(), &log, true)?,
        two_pass(memory.pages(0..2), &log, true)?,
    );
    let _whole = two_pass(memory.pages(0..3), &log, false)?;
    memory.unmap(1..2)?;
    let names = log.names()?;
    check!(names.len() == 5);
    // The first pass comes for all of them before the second for any.
    check!(names[..3].iter().all(|name| *name != "finish"));
    check!(names[3..].iter().all(|name| *name == "finish"));
    check!(log
        .seen
        .lock()
        .iter()
        .all(|(_, _, span)| *span == memory.pages(1..2)));

    // What is between the passes is free again after them.
    memory.unmap(3..4)?;
    check!(log.names()?[5..] == ["start", "finish"]);
    Ok(())
}

/// Calls the callbacks as two invalidations do that are under way at a time.
pub(crate) fn overlap() -> Result {
    let memory = Mapping::new(2, true)?;
    let log = Log::new()?;
    let registration = two_pass(memory.span(), &log, true)?;
    let notifier = registration.notifier().as_raw();
    // SAFETY: The notifier is subscribed, so that its table is valid.
    let ops = unsafe { &*(*notifier).ops };
    let (Some(start), Some(finish)) = (ops.invalidate_start, ops.invalidate_finish) else {
        return Err(EINVAL);
    };
    let range = |pages: ops::Range<usize>, flags| {
        let span = memory.pages(pages);
        bindings::mmu_notifier_range {
            start: span.start,
            end: span.end,
            flags,
            ..pin_init::zeroed()
        }
    };
    let call = |range: &bindings::mmu_notifier_range| {
        let mut finish = ptr::null_mut();
        // SAFETY: As the kernel calls it; what is odd is a sequence.
        let done = unsafe { start(notifier, range, 1, &mut finish) };
        (done, finish)
    };

    let blockable = bindings::MMU_NOTIFIER_RANGE_BLOCKABLE;
    let (done, first) = call(&range(0..1, blockable));
    check!(done && !first.is_null());
    let (done, second) = call(&range(1..2, blockable));
    check!(done && second.is_null());
    check!(log.names()?[..] == ["start", "start", "finish"]);
    check!(log.seen.lock()[2].2 == memory.pages(1..2));
    // SAFETY: As the kernel calls it, with what the first pass has handed out.
    unsafe {
        (*first).notifier = notifier;
        finish(first);
    }
    check!(log.names()?[..] == ["start", "start", "finish", "finish"]);
    check!(log.seen.lock()[3].2 == memory.pages(0..1));

    // Where it may not sleep it refuses, and leaves nothing pending.
    let (done, none) = call(&range(0..1, 0));
    check!(!done && none.is_null() && log.len() == 4);
    Ok(())
}

pub(crate) fn refused() -> Result {
    let memory = Mapping::new(1, true)?;
    let start = memory.span().start;
    check!(recorder(start..start).err() == Some(EOVERFLOW));
    let (end, start) = (memory.span().start, memory.span().end);
    check!(recorder(start..end).err() == Some(EOVERFLOW));
    Ok(())
}
