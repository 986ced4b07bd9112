// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory of the current process, and HMM.

use core::ops::Range;

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};
use kernel_ext::{
    bindings,
    hmm::{
        range_fault,
        Pfn,
        Request, //
    },
};

use crate::{
    check,
    notifier, //
};

/// Anonymous memory of the current process.
pub(crate) struct Mapping(Range<usize>);

impl Mapping {
    pub(crate) fn new(pages: usize, writable: bool) -> Result<Self> {
        let protection = match writable {
            true => bindings::PROT_READ | bindings::PROT_WRITE,
            false => bindings::PROT_READ,
        };
        let flags = bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS;
        // SAFETY: No file, and no address that is in use.
        let start = unsafe {
            bindings::vm_mmap(
                core::ptr::null_mut(),
                0,
                pages * PAGE_SIZE,
                protection as usize,
                flags as usize,
                0,
            )
        };
        // The kernel's IS_ERR_VALUE.
        if start >= usize::MAX - 4095 {
            return Err(ENOMEM);
        }
        Ok(Self(start..start + pages * PAGE_SIZE))
    }

    pub(crate) fn span(&self) -> Range<usize> {
        self.0.clone()
    }

    pub(crate) fn pages(&self, pages: Range<usize>) -> Range<usize> {
        self.0.start + pages.start * PAGE_SIZE..self.0.start + pages.end * PAGE_SIZE
    }

    /// Unmaps some of it, which invalidates.
    pub(crate) fn unmap(&self, pages: Range<usize>) -> Result {
        let span = self.pages(pages);
        // SAFETY: Memory of this mapping, which nobody uses.
        kernel::error::to_result(unsafe { bindings::vm_munmap(span.start, span.len()) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: As in `unmap`; what is not mapped any more does no harm.
        unsafe { bindings::vm_munmap(self.0.start, self.0.len()) };
    }
}

pub(crate) fn found() -> Result {
    let memory = Mapping::new(4, true)?;
    let registration = notifier::recorder(memory.span())?;
    let notifier = registration.notifier();
    let current = kernel::current!();
    let mm = current.mm().ok_or(EINVAL)?;
    let mut pfns = [Pfn::EMPTY; 4];

    // Nothing is there, and nothing is faulted in.
    let seen = range_fault(notifier, mm, &memory.span(), Request::Snapshot, &mut pfns)?;
    check!(pfns.iter().all(|pfn| !pfn.has(Pfn::VALID)));
    check!(!registration.data().is_stale(notifier, seen));

    let two = memory.pages(1..3);
    let seen = range_fault(notifier, mm, &two, Request::Write, &mut pfns[1..3])?;
    check!(pfns[1].has(Pfn::VALID | Pfn::WRITE) && pfns[2].has(Pfn::VALID | Pfn::WRITE));
    check!(!pfns[1].has(Pfn::DMA_MAPPED) && pfns[1].phys() != pfns[2].phys());
    check!(pfns[0] == Pfn::EMPTY || !pfns[0].has(Pfn::VALID));
    check!(!registration.data().is_stale(notifier, seen));

    memory.unmap(1..2)?;
    check!(registration.data().is_stale(notifier, seen));
    Ok(())
}

pub(crate) fn errors() -> Result {
    let memory = Mapping::new(4, false)?;
    let registration = notifier::recorder(memory.pages(0..3))?;
    let notifier = registration.notifier();
    let current = kernel::current!();
    let mm = current.mm().ok_or(EINVAL)?;
    let mut pfns = [Pfn::EMPTY; 4];
    let mut fault = |span: &Range<usize>, request, pages: usize| {
        range_fault(notifier, mm, span, request, &mut pfns[..pages]).err()
    };

    let one = memory.pages(0..1);
    check!(fault(&one, Request::Read, 1).is_none());
    check!(fault(&one, Request::Write, 1) == Some(EPERM));
    // Of another length, not of whole pages, beyond what is subscribed to.
    check!(fault(&one, Request::Read, 2) == Some(EINVAL));
    check!(fault(&(one.start..one.end + 1), Request::Read, 1) == Some(EINVAL));
    check!(fault(&memory.pages(2..4), Request::Read, 2) == Some(EINVAL));
    check!(fault(&memory.pages(3..4), Request::Read, 1) == Some(EINVAL));
    // A hole.
    memory.unmap(1..2)?;
    check!(fault(&memory.pages(0..3), Request::Read, 3) == Some(EFAULT));
    check!(fault(&memory.pages(0..3), Request::Snapshot, 3).is_none());
    Ok(())
}
