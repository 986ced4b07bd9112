// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the device reports: the entries of the CQ and the EQ.

use connectx::GuestMemory;
use firmware_cmds::{DmaAddr, PageFault, Wire};

use super::{words, Completion, Rig, LOG_ENTRIES};

impl Rig {
    /// What completed since the last look.
    pub(crate) fn poll_cq(&mut self) -> Vec<Completion> {
        let mut found = Vec::new();
        loop {
            let index = self.cq.consumer;
            let at = self.cq.base + u64::from(index % (1 << LOG_ENTRIES)) * 64;
            let mut cqe = [0; 64];
            self.mem.read(DmaAddr::new(at), &mut cqe).unwrap();
            let owner = u32::from(cqe[0x3f] & 1);
            if cqe[0x3f] >> 4 == 0xf || owner != index >> LOG_ENTRIES & 1 {
                return found;
            }
            self.cq.consumer += 1;
            let record = self.cq.consumer.to_be_bytes();
            self.mem.write(DmaAddr::new(self.cq.dbr), &record).unwrap();
            let opcode = cqe[0x3f] >> 4;
            let error = matches!(opcode, 0xd | 0xe);
            found.push(Completion {
                opcode,
                send_opcode: cqe[0x38],
                qpn: words(&cqe, 0x38) & 0xff_ffff,
                immediate: words(&cqe, 0x24),
                byte_count: words(&cqe, 0x2c),
                counter: u16::from_be_bytes([cqe[0x3c], cqe[0x3d]]),
                syndrome: if error { cqe[0x37] } else { 0 },
            });
        }
    }

    /// Every event since the last call.
    pub(crate) fn events(&mut self) -> Vec<firmware_cmds::Eqe> {
        let mut found = Vec::new();
        loop {
            let index = self.eq.consumer;
            let at = self.eq.base + u64::from(index % (1 << LOG_ENTRIES)) * 64;
            let mut bytes = [0; 64];
            self.mem.read(DmaAddr::new(at), &mut bytes).unwrap();
            let eqe = firmware_cmds::Eqe::parse(&bytes).unwrap();
            if u32::from(eqe.owner) != index >> LOG_ENTRIES & 1 {
                return found;
            }
            self.eq.consumer += 1;
            let doorbell = self.eqn << 24 | self.eq.consumer & 0xff_ffff;
            let uar = u64::from(self.uar) * 4096;
            self.device
                .mmio_write(self.now, uar + 0x40, &doorbell.to_be_bytes());
            found.push(eqe);
        }
    }

    /// Every page fault since the last look at the events; there must be no other event.
    pub(crate) fn faults(&mut self) -> Vec<PageFault> {
        self.events()
            .iter()
            .map(|eqe| PageFault::from_eqe(eqe).unwrap())
            .collect()
    }

    /// The only page fault since the last look at the events.
    pub(crate) fn fault(&mut self) -> PageFault {
        let faults = self.faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0]
    }
}
