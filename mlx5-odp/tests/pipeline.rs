// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From an event's bytes to its resume, on the model: each sub-type, each kind of error.

mod model;

use firmware_cmds::page_fault::{DemandPages, FaultType};
use firmware_cmds::resume::FaultToken;
use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{
    Eqe, EventType, Iova, MemoryFault, MemoryToken, Mkey, MttAccess, PageFault, PageFaultError,
    RdmaFault, TransportToken, WqNumber, WqeFault, WqeFaultKind,
};
use mlx5_odp::{
    serve, FaultError, NoWqe, PageIndex, PageRun, Pressure, Report, Unsupported, TRIES, WINDOW,
};

use model::driver::ModelQueue;
use model::{Model, Protection};

const KEY: Mkey = Mkey::new(0x1200);
const PAGE: u64 = 4096;
/// Where the MR begins: page number 0x100, and to the device another address.
const ADDRESS: u64 = 0x10_0000;
const IOVA: u64 = 0x7000_0000;

/// 64 pages, all writable, registered.
fn model() -> Model {
    let model = Model::new();
    model.world().mmap(0x100, 64, Protection::Write);
    model.register(KEY, IOVA, ADDRESS, 64 * PAGE, true);
    model
}

/// Sends a fault through the bytes of its event.
fn fault(model: &Model, fault: PageFault) {
    let event = fault.to_eqe(true);
    serve(model, PageFault::from_eqe(&event));
}

fn memory(at: u64, pages: u32) -> MemoryFault {
    MemoryFault {
        last: true,
        token: MemoryToken::truncate(0xabcd_1234_5678),
        mkey: KEY,
        va: Iova::new(at),
        demand_pages: DemandPages::truncate(pages),
        pre_demand_pages: 0,
        post_demand_pages: 0,
    }
}

fn rdma(at: u64, bytes: u32, write: bool) -> RdmaFault {
    RdmaFault {
        fault_type: FaultType::rdma(write),
        token: TransportToken::truncate(0x77),
        r_key: KEY,
        rdma_va: Iova::new(at),
        rdma_op_len: bytes,
        packet_length: 1024,
        bytes_committed: 0,
    }
}

fn wqe(kind: WqeFaultKind) -> WqeFault {
    WqeFault {
        kind,
        wq_number: WqNumber::truncate(0x42),
        wqe_index: 1,
        bytes_committed: 0,
        packet_length: 0,
        token: TransportToken::truncate(0x99),
    }
}

/// The accesses resumed so far: false for those that failed.
fn resumed(model: &Model) -> Vec<bool> {
    let world = model.world();
    world.resumes.iter().map(|resume| !resume.error).collect()
}

/// What the device may do with each page from `first` on.
fn table(model: &Model, first: u64, count: u64) -> Vec<MttAccess> {
    let world = model.world();
    (first..first + count)
        .map(|page| {
            let entry = world.tables.get(&(KEY.get(), PageIndex(page)));
            entry.map_or(MttAccess::NONE, |(_, access)| *access)
        })
        .collect()
}

/// `ctrl [av | xrc] [raddr [atomic]] data...` at block 1.
fn send_wqe(opcode: u8, head: &[u8], segments: &[(u32, u32, u64)]) -> Vec<u8> {
    let ds = 1 + head.len() / 16 + segments.len();
    let mut bytes = vec![0xa5; 64];
    bytes.extend([0, 0, 1, opcode, 0, 0, 0x42, u8::try_from(ds).unwrap()]);
    bytes.extend([0; 8]);
    bytes.extend(head);
    bytes.extend(segments.iter().flat_map(data_segment));
    bytes.resize(bytes.len().next_multiple_of(64), 0xa5);
    bytes
}

fn data_segment((count, key, addr): &(u32, u32, u64)) -> Vec<u8> {
    [
        &count.to_be_bytes()[..],
        &key.to_be_bytes(),
        &addr.to_be_bytes(),
    ]
    .concat()
}

fn with_queue(mut model: Model, queue: ModelQueue) -> Model {
    model.queues.insert(0x42, queue);
    model
}

// --- Memory scheme -------------------------------------------------------------

#[test]
fn memory_fault_publishes_and_resumes() {
    let model = model();
    fault(&model, PageFault::Memory(memory(IOVA + 8 * PAGE, 2)));

    assert_eq!(resumed(&model), [true]);
    let token = MemoryToken::truncate(0xabcd_1234_5678);
    assert_eq!(model.world().resumes[0].fault, FaultToken::Memory(token));
    assert_eq!(
        table(&model, 7, 4),
        [
            MttAccess::NONE,
            MttAccess::READ_WRITE,
            MttAccess::READ_WRITE,
            MttAccess::NONE
        ]
    );
    let mut world = model.world();
    let mr = world.mr(KEY);
    assert_eq!((mr.faults, mr.faults_handled, mr.mapped), (2, 1, 2));
}

#[test]
fn memory_window_is_clamped_to_the_region() {
    let model = model();
    let mut event = memory(IOVA + PAGE, 1);
    event.pre_demand_pages = 5;
    event.post_demand_pages = 200;
    fault(&model, PageFault::Memory(event));

    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.world().mr(KEY).mapped, 64);
}

#[test]
fn memory_window_that_fails_leaves_the_demand() {
    let model = model();
    model.world().mmap(0x103, 1, Protection::None);
    let mut event = memory(IOVA + 4 * PAGE, 1);
    event.pre_demand_pages = 2;
    event.post_demand_pages = 2;
    fault(&model, PageFault::Memory(event));

    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.world().mr(KEY).mapped, 1);
    assert_eq!(table(&model, 4, 1), [MttAccess::READ_WRITE]);
}

#[test]
fn memory_demand_beyond_the_region_fails() {
    let model = model();
    fault(&model, PageFault::Memory(memory(IOVA + 64 * PAGE, 1)));
    fault(&model, PageFault::Memory(memory(IOVA - PAGE, 1)));
    fault(&model, PageFault::Memory(memory(u64::MAX - PAGE + 1, 1)));
    fault(&model, PageFault::Memory(memory(IOVA, 0)));

    assert_eq!(resumed(&model), [false; 4]);
    assert_eq!(model.world().mr(KEY).mapped, 0);
}

#[test]
fn memory_event_that_is_not_the_last_is_not_resumed() {
    let model = model();
    let mut event = memory(IOVA, 1);
    event.last = false;
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), []);
    assert_eq!(table(&model, 0, 1), [MttAccess::READ_WRITE]);

    // But it is if it fails.
    event.va = Iova::new(IOVA + 64 * PAGE);
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), [false]);
}

#[test]
fn memory_fault_on_an_unknown_or_stale_key_fails() {
    let model = model();
    for key in [0x9900, KEY.get() + 1] {
        let mut event = memory(IOVA, 1);
        event.mkey = Mkey::new(key);
        fault(&model, PageFault::Memory(event));
    }
    assert_eq!(resumed(&model), [false, false]);
}

#[test]
fn memory_fault_on_read_only_memory_is_readable() {
    let model = model();
    model.world().mmap(0x102, 2, Protection::Read);
    fault(&model, PageFault::Memory(memory(IOVA + PAGE, 4)));

    assert_eq!(resumed(&model), [true]);
    // Each page gets what its mapping allows.
    let (rw, ro) = (MttAccess::READ_WRITE, MttAccess::READ);
    assert_eq!(table(&model, 1, 4), [rw, ro, ro, rw]);
}

#[test]
fn memory_write_to_read_only_memory_ends_in_an_error() {
    let model = model();
    model.world().mmap(0x102, 1, Protection::Read);
    // The device wants to write and cannot; it does not know better than to fault again.
    let mut tries = 0;
    while resumed(&model).last() != Some(&false) {
        fault(&model, PageFault::Memory(memory(IOVA + 2 * PAGE, 1)));
        model.world().clock += 50;
        tries += 1;
        assert!(tries < 100, "for ever");
    }
    assert!(
        tries > 16,
        "{tries} faults may still be those of other readers"
    );
}

#[test]
fn memory_write_with_a_window_ends_in_an_error_too() {
    let model = model();
    model.world().mmap(0x102, 4, Protection::Read);
    let mut event = memory(IOVA + 3 * PAGE, 1);
    event.pre_demand_pages = 1;
    event.post_demand_pages = 1;
    let mut tries = 0;
    while resumed(&model).last() != Some(&false) {
        fault(&model, PageFault::Memory(event));
        model.world().clock += 50;
        tries += 1;
        assert!(tries < 100, "for ever");
    }
}

#[test]
fn memory_reads_of_one_read_only_page_by_many_queues_all_succeed() {
    let model = model();
    model.world().mmap(0x102, 1, Protection::Read);
    for _ in 0..500 {
        // Raised before the first was served, and served in a burst.
        fault(&model, PageFault::Memory(memory(IOVA + 2 * PAGE, 1)));
        model.world().clock += 1;
    }
    assert_eq!(resumed(&model), [true; 500]);
}

/// A page that was taken away and given back is no page that the device cannot go on with.
#[test]
fn memory_reads_between_invalidations_all_succeed() {
    let model = model();
    model.world().mmap(0x102, 1, Protection::Read);
    for _ in 0..4 {
        for _ in 0..40 {
            fault(&model, PageFault::Memory(memory(IOVA + 2 * PAGE, 1)));
        }
        let page = PageRun::new(PageIndex(2), PageIndex(3));
        model.take_away(KEY, page, |world| world.free(0x102));
        model.world().clock += 2000;
    }
    assert_eq!(resumed(&model), [true; 160]);
}

/// Whatever happens around it: no frame is mapped that was not found, and nobody dies of it.
#[test]
fn a_range_among_invalidations_comes_in_whole() {
    let model = Model::new();
    // Not aligned to anything but pages.
    let (first, pages) = (0x1f7, WINDOW + 40);
    model.world().mmap(first, pages, Protection::Write);
    model.register(KEY, IOVA, first * PAGE, pages * PAGE, true);
    // An invalidation of something else comes before every range fault.
    model.world().trouble.restless = true;
    let count = u32::try_from(pages).unwrap();
    fault(&model, PageFault::Memory(memory(IOVA, count)));

    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.world().mr(KEY).mapped, i64::try_from(pages).unwrap());
    model.deregister(KEY);
}

#[test]
fn long_ranges_take_several_windows() {
    let model = Model::new();
    let pages = 2 * WINDOW + 10;
    model.world().mmap(0x100, pages, Protection::Write);
    model.register(KEY, IOVA, ADDRESS, pages * PAGE, true);
    let count = u32::try_from(pages).unwrap();
    fault(&model, PageFault::Memory(memory(IOVA, count)));

    assert_eq!(resumed(&model), [true]);
    let mut world = model.world();
    assert_eq!(world.updates, 3);
    assert_eq!(world.mr(KEY).faults, pages);
    assert_eq!(world.mr(KEY).faults_handled, 1);
}

// --- Pressure --------------------------------------------------------------------

#[test]
fn pressure_is_retried() {
    for why in [Pressure::Race, Pressure::Memory] {
        let model = model();
        let tries = usize::try_from(TRIES).unwrap();
        model.world().trouble.faults = vec![FaultError::Again(why); tries - 1].into();
        fault(&model, PageFault::Memory(memory(IOVA, 1)));

        assert_eq!(resumed(&model), [true]);
        assert_eq!(table(&model, 0, 1), [MttAccess::READ_WRITE]);
        assert_eq!(model.world().backoffs, TRIES - 1);
        assert_eq!(model.world().gave_back, 0);
    }
}

#[test]
fn pressure_that_lasts_goes_back_to_the_device() {
    for (why, tries) in [
        (Pressure::Race, TRIES),
        // The mirror has waited for long already.
        (Pressure::Held, 1),
        (Pressure::Memory, TRIES),
    ] {
        for event in [
            PageFault::Memory(memory(IOVA, 1)),
            PageFault::Rdma(rdma(IOVA, 100, true)),
        ] {
            let model = model();
            model.world().trouble.faults = vec![FaultError::Again(why); 1000].into();
            fault(&model, event);

            // The access has not failed, nor has it got its page: it will fault again.
            assert_eq!(resumed(&model), [true]);
            assert_eq!(table(&model, 0, 1), [MttAccess::NONE]);
            assert_eq!(model.world().gave_back, 1);
            let asked = 1000 - model.world().trouble.faults.len();
            assert_eq!(u32::try_from(asked).unwrap(), tries, "bounded");
        }
    }
}

#[test]
fn an_update_is_retried_for_memory_and_fails_for_the_device() {
    let model = model();
    model.world().trouble.publishes = [
        FaultError::Again(Pressure::Memory),
        FaultError::Again(Pressure::Race),
    ]
    .into();
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    model.world().trouble.publishes = [FaultError::Device].into();
    fault(&model, PageFault::Memory(memory(IOVA + PAGE, 1)));

    assert_eq!(resumed(&model), [true, false]);
    assert_eq!(model.world().reports, [Report::Update(KEY)]);
    // Counted once although tried three times.
    assert_eq!(model.world().mr(KEY).mapped, 2);
}

// --- Remote accesses -----------------------------------------------------------------

#[test]
fn rdma_fault_asks_for_what_the_event_says() {
    let model = model();
    fault(&model, PageFault::Rdma(rdma(IOVA + 100, 5000, false)));
    assert_eq!(model.world().writes_asked, 0, "a READ must not break COW");
    assert_eq!(
        table(&model, 0, 3),
        [MttAccess::READ, MttAccess::READ, MttAccess::NONE]
    );

    fault(&model, PageFault::Rdma(rdma(IOVA + 100, 100, true)));
    assert_eq!(
        table(&model, 0, 2),
        [MttAccess::READ_WRITE, MttAccess::READ]
    );
    assert_eq!(resumed(&model), [true, true]);
    assert_eq!(
        model.world().resumes[0].fault,
        FaultToken::Transport {
            fault_type: FaultType::rdma(false),
            wq_number: WqNumber::truncate(0x77),
            token: TransportToken::truncate(0x77),
        }
    );
}

#[test]
fn rdma_read_of_read_only_memory_succeeds_and_write_fails() {
    let model = model();
    model.world().mmap(0x100, 64, Protection::Read);
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, false)));
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, true)));
    assert_eq!(resumed(&model), [true, false]);
}

#[test]
fn rdma_write_through_a_read_only_region_fails() {
    let model = Model::new();
    model.world().mmap(0x100, 4, Protection::Write);
    model.register(KEY, IOVA, ADDRESS, 4 * PAGE, false);
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, true)));
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, false)));
    assert_eq!(resumed(&model), [false, true]);
}

#[test]
fn rdma_fault_whose_event_lies_about_writing_gets_on() {
    let model = model();
    let mut tries = 0;
    while table(&model, 0, 1) != [MttAccess::READ_WRITE] {
        fault(&model, PageFault::Rdma(rdma(IOVA, 100, false)));
        model.world().clock += 100;
        tries += 1;
        assert!(tries < 100, "for ever");
    }
    assert!(resumed(&model).iter().all(|ok| *ok));
}

#[test]
fn rdma_fault_skips_what_is_committed() {
    let model = model();
    let mut event = rdma(IOVA, u32::try_from(4 * PAGE).unwrap(), true);
    event.bytes_committed = u32::try_from(3 * PAGE).unwrap();
    fault(&model, PageFault::Rdma(event));
    assert_eq!(model.world().mr(KEY).mapped, 1);
    assert_eq!(table(&model, 3, 1), [MttAccess::READ_WRITE]);
}

#[test]
fn rdma_fault_of_unknown_length_takes_the_packet_and_prefetches() {
    let model = model();
    let mut event = rdma(IOVA, 0, true);
    event.bytes_committed = u32::try_from(8 * PAGE).unwrap();
    fault(&model, PageFault::Rdma(event));

    assert_eq!(resumed(&model), [true]);
    let mut world = model.world();
    assert_eq!(world.mr(KEY).faults, 1);
    assert_eq!(world.mr(KEY).prefetched, 8);
    assert_eq!(world.mr(KEY).mapped, 8);
}

#[test]
fn rdma_prefetch_that_fails_harms_nobody() {
    let model = model();
    let mut event = rdma(IOVA + 60 * PAGE, 0, true);
    event.bytes_committed = u32::try_from(3 * PAGE).unwrap();
    fault(&model, PageFault::Rdma(event));
    assert_eq!(resumed(&model), [true], "3 pages from the last lie outside");
    assert_eq!(model.world().mr(KEY).prefetched, 0);
}

#[test]
fn rdma_fault_outside_the_region_fails() {
    let model = model();
    fault(&model, PageFault::Rdma(rdma(IOVA + 63 * PAGE, 4097, true)));
    fault(&model, PageFault::Rdma(rdma(IOVA - 1, 1, true)));
    fault(&model, PageFault::Rdma(rdma(u64::MAX, 2, true)));
    assert_eq!(resumed(&model), [false; 3]);
}

#[test]
fn rdma_fault_on_a_key_without_pages_of_ours_goes_on() {
    let model = model();
    let mut event = rdma(IOVA, 1, true);
    event.r_key = Mkey::new(0x9900);
    fault(&model, PageFault::Rdma(event));
    event.r_key = Mkey::new(KEY.get() + 1);
    fault(&model, PageFault::Rdma(event));
    assert_eq!(resumed(&model), [true, false]);
}

#[test]
fn invalid_memory_fails() {
    let model = model();
    model.world().mmap(0x101, 1, Protection::None);
    fault(&model, PageFault::Rdma(rdma(IOVA, 8192, false)));
    fault(&model, PageFault::Memory(memory(IOVA + PAGE, 1)));
    assert_eq!(resumed(&model), [false, false]);
}

// --- WQEs ----------------------------------------------------------------------------------

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
    let r = MttAccess::READ;
    assert_eq!(table(&model, 0, 3), [r, r, MttAccess::NONE]);
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
        assert_eq!(model.world().mr(KEY).mapped, 1, "{transport:?} {opcode:#x}");
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
    assert_eq!(table(&model, 0, 1), [MttAccess::READ_WRITE]);
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
    let (none, r) = (MttAccess::NONE, MttAccess::READ);
    assert_eq!(table(&model, 0, 3), [none, r, r]);
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
    assert_eq!(model.world().mr(KEY).mapped, 1);
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
    assert_eq!(
        table(&model, 0, 2),
        [MttAccess::READ_WRITE, MttAccess::NONE]
    );
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
    model.unsupported.insert(0x3300, Unsupported::IndirectKey);
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SharedReceive)));
    let mut event = rdma(IOVA, 1, false);
    event.r_key = Mkey::new(0x3300);
    fault(&model, PageFault::Rdma(event));

    assert_eq!(resumed(&model), [false, false]);
    assert_eq!(
        model.world().reports,
        [
            Report::Unsupported(Unsupported::SharedReceiveQueue),
            Report::Unsupported(Unsupported::IndirectKey)
        ]
    );
}

// --- Malformed events -----------------------------------------------------------------------

#[test]
fn malformed_events_are_answered_where_that_is_possible() {
    let model = model();
    // A WQE's fault of a type that only remote accesses have.
    let mut data = [0u8; 28];
    data[12..16].copy_from_slice(&0x99u32.to_be_bytes());
    data[24..28].copy_from_slice(&0x0500_0042u32.to_be_bytes());
    let event = Eqe::new(EventType::PAGE_FAULT, 0, &data, true).unwrap();
    serve(&model, PageFault::from_eqe(&event));
    assert_eq!(model.world().resumes[0].fault.get(), 0x99);

    // An unknown sub-type says nothing, not even what is stalled.
    let event = Eqe::new(EventType::PAGE_FAULT, 9, &[0xff; 28], true).unwrap();
    serve(&model, PageFault::from_eqe(&event));

    assert_eq!(resumed(&model), [false]);
    assert!(matches!(
        model.world().reports[..],
        [
            Report::Event(PageFaultError::WqeType { .. }),
            Report::Event(PageFaultError::SubType(9))
        ]
    ));
}

#[test]
fn any_event_is_answered_at_most_once() {
    let mut random = model::schedule::Random::new(7);
    for round in 0..20_000 {
        let model = model();
        let mut data = [0u8; 28];
        for byte in &mut data {
            *byte = u8::try_from(random.below(256)).unwrap();
        }
        let sub_type = u8::try_from(random.below(4)).unwrap();
        let event = Eqe::new(EventType::PAGE_FAULT, sub_type, &data, true).unwrap();
        let decoded = PageFault::from_eqe(&event);
        serve(&model, decoded);
        let owed = match decoded {
            // There is no queue: only of shared ones it is known without looking.
            Ok(PageFault::Wqe(fault)) => fault.kind == WqeFaultKind::SharedReceive,
            Ok(_) => true,
            Err(error) => error.fault_token().is_some(),
        };
        let last = !matches!(decoded, Ok(PageFault::Memory(fault)) if !fault.last);
        let got = resumed(&model).len();
        assert!(
            got == usize::from(owed) || (got == 0 && !last),
            "round {round}"
        );
    }
}

#[test]
fn a_lost_stall_fails_its_access() {
    let model = model();
    let token = memory(IOVA, 1).fault_token();
    drop(mlx5_odp::Stall::new(&model, token));
    assert_eq!(resumed(&model), [false]);
}

// --- Neighbours ---------------------------------------------------------------------------

#[test]
fn updates_keep_neighbours_and_count_pages_once() {
    let model = model();
    for page in [3, 5, 3, 4, 5] {
        fault(&model, PageFault::Memory(memory(IOVA + page * PAGE, 1)));
    }
    assert_eq!(model.world().mr(KEY).mapped, 3);
    let rw = MttAccess::READ_WRITE;
    assert_eq!(
        table(&model, 2, 5),
        [MttAccess::NONE, rw, rw, rw, MttAccess::NONE]
    );

    // Page 4 goes; its neighbours in the block stay translated.
    let run = PageRun::new(PageIndex(4), PageIndex(5));
    model.take_away(KEY, run, |world| world.free(0x104));
    assert_eq!(table(&model, 3, 3), [rw, MttAccess::NONE, rw]);
    model.deregister(KEY);
}
