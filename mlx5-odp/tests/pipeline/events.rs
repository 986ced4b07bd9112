// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Events that cannot be made out, and accesses that get lost.

use firmware_cmds::{Eqe, EventType, PageFault, PageFaultError};
use mlx5_odp::{serve, Report};
use proptest::prelude::*;

use super::*;

#[test]
fn malformed_events_are_answered_where_that_is_possible() {
    let model = model();
    // A WQE's fault of a type that only remote accesses have.
    let mut data = [0u8; 28];
    data[12..16].copy_from_slice(&0x99u32.to_be_bytes());
    data[24..28].copy_from_slice(&0x0500_0042u32.to_be_bytes());
    let event = Eqe::new(EventType::PAGE_FAULT, 0, &data, true).unwrap();
    serve(&model, PageFault::from_eqe(&event), 0);
    assert_eq!(model.world().resumes[0].fault.get(), 0x99);

    // An unknown sub-type says nothing, not even what is stalled.
    let event = Eqe::new(EventType::PAGE_FAULT, 9, &[0xff; 28], true).unwrap();
    serve(&model, PageFault::from_eqe(&event), 0);

    assert_eq!(resumed(&model), [false]);
    assert!(matches!(
        model.world().reports[..],
        [
            Report::Event(PageFaultError::WqeType { .. }),
            Report::Event(PageFaultError::SubType(9))
        ]
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn any_event_is_answered_at_most_once(
        data in any::<[u8; 28]>(),
        sub_type in 0..4u8,
        number: u32,
    ) {
        let model = model();
        let event = Eqe::new(EventType::PAGE_FAULT, sub_type, &data, true).unwrap();
        let decoded = PageFault::from_eqe(&event);
        serve(&model, decoded, number);
        let owed = match decoded {
            // There is no queue.
            Ok(PageFault::Wqe(_)) => false,
            Ok(_) => true,
            Err(error) => error.fault_token().is_some(),
        };
        let last = !matches!(decoded, Ok(PageFault::Memory(fault)) if !fault.last);
        let got = resumed(&model).len();
        prop_assert!(got == usize::from(owed) || (got == 0 && !last));
    }
}

#[test]
fn a_lost_stall_fails_its_access() {
    let model = model();
    let token = memory(IOVA, 1).fault_token();
    drop(mlx5_odp::Stall::new(&model, token));
    assert_eq!(resumed(&model), [false]);
}
