// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! PCI configuration space of the function (`mlx5_core/main.c:mlx5_pci_init`,
//! `mlx5_core/pci_irq.c`).
//!
//! QEMU emulates the MSI-X table and decides where BARs lie; what is written here is
//! kept so that it reads back.

/// Bytes of PCI Express configuration space.
pub const CONFIG_SIZE: usize = 4096;
/// Bytes of BAR 2, which holds the MSI-X table.
pub const BAR2_SIZE: u64 = 0x1000;
/// MSI-X vectors: those of 64 event queues.
pub const VECTORS: u16 = 64;

const VENDOR_MELLANOX: u16 = 0x15b3;
const DEVICE_CONNECTX7: u16 = 0x1021;
const SUBSYSTEM: u16 = 0x0001;
const CLASS_INFINIBAND: u16 = 0x0207;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CLASS: usize = 0x0a;
const BAR0: usize = 0x10;
const BAR2: usize = 0x18;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const PCIE: usize = 0x40;
const MSIX: usize = 0x80;
const PM: usize = 0x90;

const COMMAND_WRITABLE: u16 = 0x0547;
const STATUS_CAP_LIST: u16 = 1 << 4;
/// 64-bit, prefetchable.
const BAR_FLAGS: u32 = 0xc;
const PBA_OFFSET: u32 = 0x800;
const MSIX_BAR: u32 = 2;
const MSIX_CONTROL_WRITABLE: u16 = 0xc000;
/// Device Capabilities: 512-byte payload, role-based errors, function-level reset.
const DEVICE_CAPABILITIES: u32 = 1 << 28 | 1 << 15 | 2;
const DEVICE_CONTROL: usize = PCIE + 8;
const DEVICE_CONTROL_WRITABLE: u16 = 0x7fff;
const DEVICE_CONTROL_FLR: u16 = 1 << 15;
/// Code of 32 GT/s, a ConnectX-7's speed, in Link Capabilities, Status and Control 2.
const SPEED: u16 = 5;
/// Link: x16 at 32 GT/s, what it can and what it does.
const LINK: u16 = 16 << 4 | SPEED;
/// Link Capabilities 2: every speed up to that, a bit each from bit 1 on.
const SPEEDS: u32 = ((1 << SPEED) - 1) << 1;

/// What a write asks of the device beyond keeping the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigEffect {
    /// Nothing.
    None,
    /// A function-level reset.
    Reset,
}

/// Configuration space.
#[derive(Clone, Debug)]
pub struct Config {
    bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl Config {
    /// Configuration space after power-on, for a BAR 0 of `bar0_size` bytes.
    #[must_use]
    pub fn new(bar0_size: u64) -> Self {
        let mut config = Self {
            bytes: vec![0; CONFIG_SIZE],
            writable: vec![0; CONFIG_SIZE],
        };
        config.put16(0x00, VENDOR_MELLANOX, 0);
        config.put16(0x02, DEVICE_CONNECTX7, 0);
        config.put16(COMMAND, 0, COMMAND_WRITABLE);
        config.put16(STATUS, STATUS_CAP_LIST, 0);
        config.put16(CLASS, CLASS_INFINIBAND, 0);
        config.put_bar(BAR0, bar0_size);
        config.put_bar(BAR2, BAR2_SIZE);
        config.put16(0x2c, VENDOR_MELLANOX, 0);
        config.put16(0x2e, SUBSYSTEM, 0);
        config.bytes[CAPABILITIES] = 0x40;
        config.writable[INTERRUPT_LINE] = 0xff;

        // PCI Express, version 2, endpoint.
        config.put16(PCIE, 0x8010, 0);
        config.put16(PCIE + 2, 2, 0);
        config.put32(PCIE + 4, DEVICE_CAPABILITIES, 0);
        config.put16(DEVICE_CONTROL, 0x2010, DEVICE_CONTROL_WRITABLE);
        config.put32(PCIE + 12, u32::from(LINK), 0);
        config.put16(PCIE + 16, 0, 0x01fb);
        config.put16(PCIE + 18, LINK, 0);
        config.put16(PCIE + 40, 0, 0x041f);
        config.put32(PCIE + 44, SPEEDS, 0);
        config.put16(PCIE + 48, SPEED, 0);

        config.put16(MSIX, 0x9011, 0);
        config.put16(MSIX + 2, VECTORS - 1, MSIX_CONTROL_WRITABLE);
        config.put32(MSIX + 4, MSIX_BAR, 0);
        config.put32(MSIX + 8, PBA_OFFSET | MSIX_BAR, 0);

        // Power management, version 3, no wake-up.
        config.put16(PM, 0x0001, 0);
        config.put16(PM + 2, 3, 0);
        config.put16(PM + 4, 1 << 3, 0x0003);
        config
    }

    fn put16(&mut self, at: usize, value: u16, writable: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        self.writable[at..at + 2].copy_from_slice(&writable.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32, writable: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.writable[at..at + 4].copy_from_slice(&writable.to_le_bytes());
    }

    fn put_bar(&mut self, at: usize, size: u64) {
        self.put32(at, BAR_FLAGS, 0);
        self.put32(at + 4, 0, 0);
        let mask = !(size - 1);
        self.writable[at..at + 8].copy_from_slice(&mask.to_le_bytes());
    }

    /// Reads; what lies beyond the end reads as all ones, as on the bus.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self
                .bytes
                .get(start.saturating_add(i))
                .copied()
                .unwrap_or(0xff);
        }
    }

    /// Writes what is writable.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> ConfigEffect {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut effect = ConfigEffect::None;
        for (i, &byte) in data.iter().enumerate() {
            let at = start.saturating_add(i);
            let (Some(kept), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else {
                break;
            };
            *kept = *kept & !mask | byte & mask;
            let [_, flr] = DEVICE_CONTROL_FLR.to_le_bytes();
            if at == DEVICE_CONTROL + 1 && byte & flr != 0 {
                effect = ConfigEffect::Reset;
            }
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read32(config: &Config, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        config.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn identity_is_read_only_and_bars_have_their_size() {
        let mut config = Config::new(32 << 20);
        assert_eq!(config.write(0, &[0; 4]), ConfigEffect::None);
        assert_eq!(read32(&config, 0), 0x1021_15b3);
        config.write(0x10, &[0xff; 8]);
        assert_eq!(read32(&config, 0x10), 0xfe00_000c);
        assert_eq!(read32(&config, 0x14), 0xffff_ffff);
        assert_eq!(read32(&config, 4094) >> 16, 0xffff);
    }

    #[test]
    fn capabilities_form_a_list() {
        let config = Config::new(32 << 20);
        let mut at = read32(&config, 0x34) & 0xff;
        let mut ids = Vec::new();
        while at != 0 {
            let header = read32(&config, u64::from(at));
            ids.push(header & 0xff);
            at = header >> 8 & 0xff;
        }
        assert_eq!(ids, [0x10, 0x11, 0x01]);
    }

    /// As `drivers/pci/pci.c:pcie_get_speed_cap`, `pcie_get_width_cap` and
    /// `__pcie_print_link_status` read it.
    #[test]
    fn the_link_is_as_fast_as_it_can() {
        let config = Config::new(32 << 20);
        let [capabilities, status] = [0x4c, 0x50].map(|at| read32(&config, at));
        let link = capabilities & 0x3ff;
        assert_eq!(link, 16 << 4 | 5);
        assert_eq!(status >> 16 & 0x3ff, link);
        let speeds = read32(&config, 0x6c) >> 1 & 0x7f;
        assert_eq!(speeds.trailing_ones(), link & 0xf);
        assert_eq!(speeds.count_ones(), link & 0xf);
        assert_eq!(read32(&config, 0x70) & 0xf, link & 0xf);
    }

    #[test]
    fn function_level_reset() {
        let mut config = Config::new(32 << 20);
        assert_eq!(config.write(0x48, &[0, 0x80]), ConfigEffect::Reset);
        assert_eq!(read32(&config, 0x48) & 0x8000, 0);
    }
}
