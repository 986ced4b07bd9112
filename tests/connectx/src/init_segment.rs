// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The init segment: registers at the start of BAR 0 (`struct mlx5_init_seg` in
//! `include/linux/mlx5/device.h`).

use std::collections::BTreeSet;

use firmware_cmds::DmaAddr;
use serde::Serialize;

use crate::command;
use crate::device::Device;
use crate::inspect::show;

/// Bytes of BAR 0 before the first doorbell page.
pub const SIZE: u64 = 0x1_0000;

const FW_REV: u64 = 0x000;
const CMDIF_REV_FW_SUB: u64 = 0x004;
const CMDQ_ADDR_H: u64 = 0x010;
const CMDQ_ADDR_L_SZ: u64 = 0x014;
const CMD_DBELL: u64 = 0x018;
const INITIALIZING: u64 = 0x1fc;
const HEALTH_BUFFER: u64 = 0x200;
const FW_VER: u64 = 0x230;
const HEALTH_BUFFER_END: u64 = 0x240;
const CMD_EXEC_TO: u64 = 0xff8;
const CMD_Q_INIT_TO: u64 = 0xffc;
const INTERNAL_TIMER_H: u64 = 0x1000;
const INTERNAL_TIMER_L: u64 = 0x1004;
const HEALTH_COUNTER: u64 = 0x1010;
const REAL_TIME_H: u64 = 0x1040;
const REAL_TIME_L: u64 = 0x1044;
const CLEAR_INTX: u64 = 0x200c;

/// Firmware 28.43, sub-minor 1014: one that ConnectX-7 had.
const FW_MAJOR: u32 = 28;
const FW_MINOR: u32 = 43;
const FW_SUBMINOR: u32 = 1014;
/// The only command interface revision the driver speaks (`mlx5_core/cmd.c`).
const CMDIF_REV: u32 = 5;
/// `nic_interface`, bits 10:8 of CMDQ_ADDR_L_SZ. The driver writes 0, the full driver,
/// with the queue's address.
const NIC_INTERFACE_SHIFT: u32 = 8;
/// Value of `nic_interface` from a reset until then. A driver that was bound meanwhile
/// sees it in its health poll, which sets the function up again
/// (`mlx5_core/health.c:mlx5_health_check_fatal_sensors`).
const NIC_DISABLED: u32 = 1;

/// Ticks of the clock from one value of HEALTH_COUNTER to the next: a tenth of a second.
const HEALTH_TICK: u64 = 100_000_000;

/// Registers that keep a value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct InitSegment {
    queue_high: u32,
    /// Address of the command queue once the driver wrote its low half.
    #[serde(serialize_with = "show::debug")]
    pub queue: Option<DmaAddr>,
    nic_interface: u32,
    /// The function was reset while a driver used it. Until the driver sets up a command
    /// queue again it cannot know, and what it rings for means nothing.
    pub(crate) driver_is_stale: bool,
    /// Registers that do not exist and were read.
    unknown_reads: BTreeSet<u64>,
}

impl Default for InitSegment {
    fn default() -> Self {
        Self {
            queue_high: 0,
            queue: None,
            nic_interface: NIC_DISABLED,
            driver_is_stale: false,
            unknown_reads: BTreeSet::new(),
        }
    }
}

impl InitSegment {
    /// The registers after a function-level reset.
    pub(crate) fn after_reset(&self) -> Self {
        Self {
            driver_is_stale: self.driver_is_stale || self.queue.is_some(),
            ..Self::default()
        }
    }

    /// The register at `offset`, a multiple of 4; `None` if there is none.
    fn register(&self, timer: u64, offset: u64) -> Option<u32> {
        Some(match offset {
            FW_REV => FW_MINOR << 16 | FW_MAJOR,
            CMDIF_REV_FW_SUB => CMDIF_REV << 16 | FW_SUBMINOR,
            CMDQ_ADDR_H => self.queue_high,
            CMDQ_ADDR_L_SZ => {
                self.nic_interface << NIC_INTERFACE_SHIFT
                    | u32::from(command::LOG_SLOTS) << 4
                    | u32::from(command::LOG_STRIDE)
            }
            FW_VER => FW_MAJOR << 24 | FW_MINOR << 16 | FW_SUBMINOR,
            INTERNAL_TIMER_H => low32(timer >> 32),
            INTERNAL_TIMER_L => low32(timer),
            // Must differ between two polls, which are 2 s apart (`mlx5_core/health.c`).
            HEALTH_COUNTER => low32(timer / HEALTH_TICK) & 0xff_ffff,
            // Nothing goes on, nothing is wrong, timeouts are the driver's own.
            CMD_DBELL
            | INITIALIZING
            | HEALTH_BUFFER..HEALTH_BUFFER_END
            | CMD_EXEC_TO
            | CMD_Q_INIT_TO
            | REAL_TIME_H
            | REAL_TIME_L
            | CLEAR_INTX => 0,
            _ => return None,
        })
    }
}

fn low32(value: u64) -> u32 {
    let [_, _, _, _, a, b, c, d] = value.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

impl Device {
    /// The free-running clock in ticks of `device_frequency_khz`: nanoseconds as the owner
    /// of the device tells the time. Registers and CQEs show it, and `mlx5_ib` maps the
    /// registers' page to users (`MLX5_IB_MMAP_CORE_CLOCK`).
    pub(crate) fn timer(&self) -> u64 {
        u64::try_from(self.now.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Reads registers; accesses may have any length and alignment.
    pub(crate) fn init_segment_read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let [a, b, c, d] = self.register(at & !3).to_be_bytes();
            *byte = match at % 4 {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            };
        }
    }

    fn register(&mut self, offset: u64) -> u32 {
        let timer = self.timer();
        self.init.register(timer, offset).unwrap_or_else(|| {
            if self.init.unknown_reads.insert(offset) {
                self.journal.note(format_args!(
                    "read at {offset:#x} of the init segment: no such register"
                ));
            }
            0
        })
    }

    pub(crate) fn init_segment_write(&mut self, offset: u64, data: &[u8]) {
        let &[a, b, c, d] = data else {
            self.violation(format_args!(
                "write of {} bytes at {offset:#x} of the init segment",
                data.len()
            ));
            return;
        };
        let value = u32::from_be_bytes([a, b, c, d]);
        match offset {
            CMDQ_ADDR_H => self.init.queue_high = value,
            CMDQ_ADDR_L_SZ => {
                // The driver disables the interface by writing to bits 10:8 alone.
                self.init.nic_interface = value >> NIC_INTERFACE_SHIFT & 7;
                let address = u64::from(self.init.queue_high) << 32 | u64::from(value & !0xfff);
                if address != 0 {
                    self.init.queue = Some(DmaAddr::new(address));
                    self.init.driver_is_stale = false;
                }
            }
            CMD_DBELL => {
                self.journal
                    .trace(format_args!("doorbell commands {value:#x}"));
                self.command_doorbell(value);
            }
            CLEAR_INTX => {}
            _ => self.violation(format_args!(
                "write of {value:#010x} at {offset:#x} of the init segment: no such register"
            )),
        }
    }
}
