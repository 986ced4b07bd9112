// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport scheme's local accesses.

use firmware_cmds::resume::FaultToken;
use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{PageFault, TransportToken, WqNumber, WqeFaultKind};
use hmm_abi::WINDOW_PAGES;
use mlx5_odp::{NoWqe, Report, Unsupported};

use super::model::queue::ModelQueue;
use super::*;

#[test]
fn send_gathers_reading() {
    let segments = [
        (100, KEY.get(), IOVA + 4090),
        (10, KEY.get(), IOVA + 9 * PAGE),
    ];
    let queue = ModelQueue {
        send: send_wqe(0x0a, &[], &segments),
        ..Default::default()
    };
    let model = with_queue(model(), queue);
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));

    assert_eq!(resumed(&model), [true]);
    let r = R;
    assert_eq!(table(&model, 0, 3), [r, r, NONE]);
    assert_eq!(table(&model, 9, 1), [r]);
    assert_eq!(model.world().writes_asked, 0);
    assert_eq!(
        model.world().resumes[0].fault,
        FaultToken::Transport {
            fault_type: WqeFaultKind::SendOrWrite.fault_type(),
            wq_number: WqNumber::truncate(0x42),
            token: TransportToken::truncate(0x99),
        }
    );
}

#[test]
fn each_transport_and_opcode_is_skipped_to_its_data() {
    let segments = [(10, KEY.get(), IOVA)];
    let short_av = [0u8; 16];
    let mut long_av = [0u8; 48];
    long_av[8] = 0x80;
    let cases: [(SendTransport, u8, usize, &[u8]); 8] = [
        (SendTransport::Connected, 0x0a, 0, &[]),
        (SendTransport::Connected, 0x08, 16, &[]),
        (SendTransport::Connected, 0x10, 16, &[]),
        (SendTransport::Connected, 0x11, 32, &[]),
        (SendTransport::Connected, 0x12, 32, &[]),
        (SendTransport::XrcInitiator, 0x0a, 16, &[]),
        (SendTransport::Datagram, 0x0a, 0, &short_av),
        (SendTransport::Datagram, 0x0a, 0, &long_av),
    ];
    for (transport, opcode, zeros, av) in cases {
        let head = [av, &vec![0; zeros]].concat();
        let queue = ModelQueue {
            transport: Some(transport),
            send: send_wqe(opcode, &head, &segments),
            ..Default::default()
        };
        let model = with_queue(model(), queue);
        fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));
        assert_eq!(resumed(&model), [true], "{transport:?} {opcode:#x}");
        assert_eq!(model.mapped(KEY), 1, "{transport:?} {opcode:#x}");
    }
}

#[test]
fn read_and_atomic_scatter_writing() {
    let queue = ModelQueue {
        send: send_wqe(0x10, &[0; 16], &[(10, KEY.get(), IOVA)]),
        ..Default::default()
    };
    let model = with_queue(model(), queue);
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::ReadOrAtomic)));
    assert_eq!(table(&model, 0, 1), [RW]);
}

#[test]
fn committed_bytes_pass_over_segments() {
    let segments = [
        (4096, KEY.get(), IOVA),
        (4096, KEY.get(), IOVA + PAGE),
        (4096, KEY.get(), IOVA + 2 * PAGE),
    ];
    let queue = ModelQueue {
        send: send_wqe(0x0a, &[], &segments),
        ..Default::default()
    };
    let model = with_queue(model(), queue);
    let mut event = wqe(WqeFaultKind::SendOrWrite);
    event.bytes_committed = 4096 + 10;
    fault(&model, PageFault::Wqe(event));
    let (none, r) = (NONE, R);
    assert_eq!(table(&model, 0, 3), [none, r, r]);
}

/// Inline data is part of the message, and of what is committed, but no memory.
#[test]
fn inline_data_is_passed_over() {
    let inline = [&(0x8000_0000_u32 | 20).to_be_bytes()[..], &[1; 28]].concat();
    let last = data_segment(&(4096, KEY.get(), IOVA + PAGE));
    let first = data_segment(&(4096, KEY.get(), IOVA));
    let body = [first, inline, last].concat();
    let model_with = || {
        let queue = ModelQueue {
            send: send_wqe(0x0a, &body, &[]),
            ..Default::default()
        };
        with_queue(model(), queue)
    };
    for (committed, pages) in [
        (0, [R, R]),
        (4095, [R, R]),
        (4096, [NONE, R]),
        (4116, [NONE, R]),
    ] {
        let model = model_with();
        let mut event = wqe(WqeFaultKind::SendOrWrite);
        event.bytes_committed = committed;
        fault(&model, PageFault::Wqe(event));
        assert_eq!(resumed(&model), [true], "{committed}");
        assert_eq!(table(&model, 0, 2), pages, "{committed}");
    }
    // All but the last byte.
    let model = model_with();
    let mut event = wqe(WqeFaultKind::SendOrWrite);
    event.bytes_committed = 4096 + 20 + 4095;
    fault(&model, PageFault::Wqe(event));
    assert_eq!(table(&model, 0, 3), [NONE, R, NONE]);
}

/// A segment of length 0 stands for 2 GiB, which is more than this region has.
#[test]
fn a_segment_without_a_length_is_as_long_as_can_be() {
    let queue = ModelQueue {
        send: send_wqe(0x0a, &[], &[(0, KEY.get(), IOVA)]),
        receive: data_segment(&(0, KEY.get(), IOVA)),
        ..Default::default()
    };
    for kind in [WqeFaultKind::SendOrWrite, WqeFaultKind::Receive] {
        let model = with_queue(model(), queue.clone());
        let mut event = wqe(kind);
        fault(&model, PageFault::Wqe(event));
        assert_eq!(resumed(&model), [false]);
        assert_eq!(model.mapped(KEY), 0);
        // Its last byte is not there either.
        event.bytes_committed = u32::MAX >> 1;
        fault(&model, PageFault::Wqe(event));
        assert_eq!(resumed(&model), [false; 2]);
    }
}

/// Each region is brought in by its own right; only what is written to needs one to write.
#[test]
fn a_list_over_regions_of_different_rights() {
    const READ_ONLY: Mkey = Mkey::new(0x1300);
    let both = [(10, KEY.get(), IOVA), (10, READ_ONLY.get(), 0)];
    let turned = [both[1], both[0]];
    for (segments, kind, ok) in [
        (both, WqeFaultKind::SendOrWrite, true),
        (turned, WqeFaultKind::SendOrWrite, true),
        (both, WqeFaultKind::ReadOrAtomic, false),
        (turned, WqeFaultKind::ReadOrAtomic, false),
    ] {
        let (opcode, head) = match kind {
            WqeFaultKind::SendOrWrite => (0x0a, vec![]),
            _ => (0x10, vec![0; 16]),
        };
        let queue = ModelQueue {
            send: send_wqe(opcode, &head, &segments),
            ..Default::default()
        };
        let model = with_queue(model(), queue);
        (model.world().memory).mmap(0x300..0x301, Protection::Read);
        model.register(READ_ONLY, 0, 0x30_0000, 4096, false);
        fault(&model, PageFault::Wqe(wqe(kind)));
        assert_eq!(resumed(&model), [ok], "{kind:?} {segments:?}");
        assert_eq!(model.mapped(READ_ONLY), usize::from(ok));
    }
}

#[test]
fn pinned_segments_count_as_present() {
    let segments = [(10, 0x9900, 0x1234), (10, KEY.get(), IOVA)];
    let queue = ModelQueue {
        send: send_wqe(0x0a, &[], &segments),
        ..Default::default()
    };
    let model = with_queue(model(), queue);
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.mapped(KEY), 1);
}

#[test]
fn receive_scatters_up_to_the_end_of_its_list() {
    let list = [
        (100, KEY.get(), IOVA),
        (0, 0x100, 0),
        // What follows the end is of an earlier WQE.
        (100, KEY.get(), IOVA + PAGE),
    ];
    let queue = ModelQueue {
        receive: list.iter().flat_map(data_segment).collect(),
        ..Default::default()
    };
    let model = with_queue(model(), queue);
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::Receive)));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(table(&model, 0, 2), [RW, NONE]);
}

/// On a shared queue behind the link to the next WQE, which may look like a segment.
#[test]
fn shared_receive_scatters_behind_its_link() {
    let link = data_segment(&(100, KEY.get(), IOVA + 5 * PAGE));
    let list = [(100, KEY.get(), IOVA), (100, KEY.get(), IOVA + PAGE)];
    let queue = ModelQueue {
        transport: None,
        receive: [link, list.iter().flat_map(data_segment).collect()].concat(),
        ..Default::default()
    };
    let model = with_queue(model(), queue.clone());
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SharedReceive)));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(table(&model, 0, 2), [RW, RW]);
    assert_eq!(table(&model, 5, 1), [NONE]);

    // A link that is cut short, and one that leads to no segment.
    for len in [10, 16] {
        let mut queue = queue.clone();
        queue.receive.truncate(len);
        let model = with_queue(model_of(1), queue);
        fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SharedReceive)));
        assert_eq!(resumed(&model), [false], "{len}");
    }
}

#[test]
fn wqe_that_cannot_be_served_fails_once() {
    let good = ModelQueue {
        send: send_wqe(0x0a, &[], &[(10, KEY.get(), IOVA)]),
        receive: data_segment(&(10, KEY.get(), IOVA)),
        ..Default::default()
    };
    let no_transport = ModelQueue {
        transport: None,
        ..good.clone()
    };
    let signature = ModelQueue {
        signature: true,
        ..good.clone()
    };
    let unreadable = ModelQueue {
        error: Some(NoWqe::Unreadable),
        ..good.clone()
    };
    let opcode = ModelQueue {
        send: send_wqe(0x3f, &[], &[(10, KEY.get(), IOVA)]),
        ..good.clone()
    };
    let empty = ModelQueue {
        send: send_wqe(0x0a, &[], &[]),
        ..good.clone()
    };
    let truncated = ModelQueue {
        send: good.send[..80].to_vec(),
        ..good.clone()
    };
    let send = WqeFaultKind::SendOrWrite;
    for (queue, kind, reports) in [
        (no_transport, send, 1),
        (signature, WqeFaultKind::Receive, 1),
        (unreadable, send, 0),
        (opcode, send, 1),
        (empty, send, 0),
        (truncated, send, 1),
    ] {
        let model = with_queue(model(), queue);
        fault(&model, PageFault::Wqe(wqe(kind)));
        assert_eq!(resumed(&model), [false]);
        assert_eq!(model.world().reports.len(), reports);
    }
}

#[test]
fn wqe_without_memory_to_read_it_goes_back_to_the_device() {
    let queue = ModelQueue {
        error: Some(NoWqe::Memory),
        ..Default::default()
    };
    let model = with_queue(model(), queue);
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));
    assert_eq!(resumed(&model), [true]);
}

#[test]
fn wqe_of_a_queue_that_is_gone_is_not_answered() {
    let model = model();
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));
    // As in the C: the number may be another queue's.
    assert_eq!(resumed(&model), [false; 0]);
}

#[test]
fn a_queue_is_held_until_its_fault_is_answered() {
    let queue = ModelQueue {
        error: Some(NoWqe::Unreadable),
        ..ModelQueue::default()
    };
    let model = with_queue(model(), queue);
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));
    assert_eq!(resumed(&model), [false]);
    let world = model.world();
    assert_eq!((world.queues_held, world.queues_held_at_resume), (0, 1));
}

#[test]
fn what_is_not_there_yet_fails_with_a_report() {
    let mut model = model();
    model.unsupported.insert(0x3300, Unsupported::RegionKind);
    let mut event = rdma(IOVA, 1, false);
    event.r_key = Mkey::new(0x3300);
    fault(&model, PageFault::Rdma(event));

    assert_eq!(resumed(&model), [false]);
    assert_eq!(
        model.world().reports,
        [Report::Unsupported(Unsupported::RegionKind)]
    );
}

/// What is missing of a list explains the fault, wherever it is; what is there is not to be
/// written.
#[test]
fn a_send_that_faults_elsewhere_does_not_want_to_write() {
    let pages = [0, WINDOW_PAGES + 9];
    let segments = pages.map(|page| (10, KEY.get(), iova(page)));
    let queue = ModelQueue {
        send: send_wqe(0x0a, &[], &segments),
        ..Default::default()
    };
    for protection in [Protection::Read, Protection::Write] {
        let model = with_queue(model_of(2 * WINDOW_PAGES), queue.clone());
        protect(&model, 0..2 * WINDOW_PAGES, protection);
        for missing in pages {
            fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));
            assert!(pages.iter().all(|&page| table(&model, page, 1) == [R]));
            drop_pages(&model, missing..missing + 1);
        }
        fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SendOrWrite)));
        assert_eq!(resumed(&model), [true; 3]);
        assert_eq!(model.world().writes_asked, 0);
    }
}
