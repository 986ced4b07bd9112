// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Counters of everything the device does.

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened since the start or the last reset of the counters.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Every counter with its name.
            #[must_use]
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Page faults raised in the memory scheme: the sum of the five that follow.
    faults_memory,
    /// Those on what the requester reads: SEND and RDMA WRITE.
    faults_memory_requester_read,
    /// Those on what the requester writes: the answers of RDMA READ and atomics.
    faults_memory_requester_write,
    /// Those on receive buffers, which are always written.
    faults_memory_receive_write,
    /// Those on what RDMA READ reads at the responder.
    faults_memory_rdma_read,
    /// Those on what RDMA WRITE and atomics write at the responder.
    faults_memory_rdma_write,
    /// Page faults raised in the transport scheme on the initiator's local buffers.
    faults_wqe_requester,
    /// Page faults raised in the transport scheme on receive buffers.
    faults_wqe_responder,
    /// Page faults raised in the transport scheme on the target of RDMA and atomics.
    faults_rdma,
    /// PAGE_FAULT_RESUME commands that let a stalled access retry.
    resumes_ok,
    /// PAGE_FAULT_RESUME commands that failed a stalled access.
    resumes_error,
    /// PAGE_FAULT_RESUME commands for a stall that is gone.
    resumes_unknown,
    /// PAGE_FAULT_RESUME commands that repeat one for a stall of several events.
    resumes_repeated,
    /// UMR WQEs executed on the driver's UMR QP.
    umr_wqes,
    /// UMR WQEs that ended in a bind error: their MKey was destroyed or revoked.
    umr_bind_errors,
    /// UMR WQEs on QPs of users: bindings of memory windows and layouts of indirect MKeys.
    user_umr_wqes,
    /// Those of them that were refused.
    user_umr_errors,
    /// UMR WQEs that wrote translation entries.
    umr_xlt_updates,
    /// Translation entries that a UMR made valid, or gave another valid value.
    mtts_set,
    /// Translation entries that a UMR took back: valid before, not present since.
    mtts_cleared,
    /// Commands executed.
    commands,
    /// Commands with an opcode the device does not have.
    unknown_commands,
    /// Commands that ended with a status other than OK.
    failed_commands,
    /// Event queue entries written.
    eqes,
    /// Events that found their queue full and had to wait.
    eq_full,
    /// Events that were lost because too many waited already.
    eqes_lost,
    /// MSI-X vectors fired.
    interrupts,
    /// Completion queue entries written.
    cqes,
    /// Completion queue entries with an error syndrome, flushes included.
    error_cqes,
    /// Payload bytes read from guest memory.
    bytes_read,
    /// Payload bytes written to guest memory.
    bytes_written,
    /// SEND messages delivered.
    msgs_send,
    /// Requests that the subnet administrator answered.
    sa_requests,
    /// RDMA WRITE messages executed.
    msgs_write,
    /// RDMA READ messages executed.
    msgs_read,
    /// Atomic operations executed.
    msgs_atomic,
    /// Messages refused because no receive WQE was posted, or because of a page fault.
    rnr_naks,
    /// Those of them that were refused because of a page fault.
    rnr_naks_fault,
    /// Times that a requester heard nothing for as long as the ACK timeout.
    ack_timeouts,
    /// Accesses that the rules of an MKey forbid.
    denied_accesses,
    /// Ranges of guest memory mapped for the device.
    dma_maps,
    /// Ranges of guest memory taken back from the device.
    dma_unmaps,
    /// Doorbells of send queues, CQs and EQs, the refused ones included.
    doorbells,
    /// Doorbells, and other writes to doorbell pages, that mean nothing.
    doorbells_refused,
    /// Doorbells that came after a reset, from a driver that did not know of it.
    doorbells_lost,
    /// Times that a rule acted.
    rule_acts,
    /// Commands, work requests, events and completions that a rule held back.
    held,
    /// Most accesses that were stalled on page faults at the same time while a rule held
    /// something back.
    most_stalls_while_held,
    /// Completion queues that overran.
    cq_overruns,
    /// Protocol violations.
    violations,
}

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn names_are_the_fields() {
        let counters = Counters {
            umr_wqes: 3,
            ..Counters::default()
        };
        let all = counters.all();
        assert!(all.contains(&("umr_wqes", 3)));
        assert_eq!(all.iter().map(|(_, n)| n).sum::<u64>(), 3);
    }
}
