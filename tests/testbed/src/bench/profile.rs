// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The instruction profiles of the QEMU plugin (`plugin/insn_profile.c`), read with the
//! guest's symbols.

use std::collections::BTreeMap;

use anyhow::{bail, Context, Result};

/// The module of what is built into the kernel.
const VMLINUX: &str = "vmlinux";

/// From here up addresses are the kernel's.
const KERNEL: u64 = 1 << 63;

/// Functions in which a processor does nothing: the idle loop, and what it calls to stop
/// and restart the tick. Prefixes of names.
const IDLE: [&str; 22] = [
    "acpi_idle",
    "acpi_safe_halt",
    "arch_cpu_idle",
    "call_cpuidle",
    "cpu_idle",
    "cpuidle_",
    "ct_cpuidle_",
    "ct_idle_",
    "ct_kernel_",
    "default_enter_idle",
    "default_idle",
    "do_idle",
    "haltpoll",
    "intel_idle",
    "io_idle",
    "menu_select",
    "native_safe_halt",
    "poll_idle",
    "pv_native_safe_halt",
    "raw_safe_halt",
    "rcu_idle_",
    "tick_nohz_",
];

/// The guest's symbols, by address.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    /// Ascending.
    addresses: Vec<u64>,
    /// Name and module of each.
    names: Vec<(String, String)>,
}

impl Symbols {
    /// Adds a line of `/proc/kallsyms`: `ADDRESS TYPE NAME [MODULE]`. False if it is none.
    pub(crate) fn add(&mut self, line: &str) -> bool {
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next())
        else {
            return false;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else {
            return false;
        };
        let module = words
            .next()
            .map_or(VMLINUX, |module| module.trim_matches(['[', ']']));
        if kind.len() == 1 && address >= KERNEL {
            self.addresses.push(address);
            self.names.push((name.to_owned(), module.to_owned()));
        }
        true
    }

    /// Puts what was added in order. Fails if the kernel did not tell addresses.
    pub(crate) fn sort(&mut self) -> Result<()> {
        if self.addresses.is_empty() {
            bail!("the guest tells no kernel symbols");
        }
        let mut order: Vec<_> = (0..self.addresses.len()).collect();
        order.sort_by_key(|&index| self.addresses[index]);
        self.addresses = order.iter().map(|&index| self.addresses[index]).collect();
        self.names = order
            .iter()
            .map(|&index| std::mem::take(&mut self.names[index]))
            .collect();
        Ok(())
    }

    /// Name and module of the symbol that `address` lies behind.
    fn find(&self, address: u64) -> (&str, &str) {
        let behind = self.addresses.partition_point(|&start| start <= address);
        match behind
            .checked_sub(1)
            .and_then(|index| self.names.get(index))
        {
            Some((name, module)) => (name, module),
            None => ("unknown", VMLINUX),
        }
    }
}

/// Instructions of one section.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Profile {
    /// In user space, of all processes.
    pub(crate) user: u64,
    /// In the idle loop.
    pub(crate) idle: u64,
    /// In the kernel but for the idle loop: kernel threads, system calls, softirq and
    /// interrupts.
    pub(crate) kernel: u64,
    /// `kernel` by module.
    pub(crate) modules: BTreeMap<String, u64>,
    /// `kernel` by symbol and module.
    pub(crate) symbols: BTreeMap<(String, String), u64>,
}

impl Profile {
    /// Reads the plugin's file: a line `ADDRESS COUNT` for each block.
    pub(crate) fn read(text: &str, symbols: &Symbols) -> Result<Self> {
        let mut profile = Self::default();
        for line in text.lines() {
            let (address, count) = parse(line).with_context(|| format!("profile: {line:?}"))?;
            if address < KERNEL {
                profile.user += count;
                continue;
            }
            let (name, module) = symbols.find(address);
            if module == VMLINUX && IDLE.iter().any(|idle| name.starts_with(idle)) {
                profile.idle += count;
                continue;
            }
            profile.kernel += count;
            *profile.modules.entry(module.to_owned()).or_default() += count;
            *profile
                .symbols
                .entry((name.to_owned(), module.to_owned()))
                .or_default() += count;
        }
        Ok(profile)
    }

    /// What ran in `modules`.
    pub(crate) fn in_modules(&self, modules: &[&str]) -> u64 {
        let counts = modules
            .iter()
            .filter_map(|&module| self.modules.get(module));
        counts.sum()
    }
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let (address, count) = line.split_once(' ')?;
    Some((u64::from_str_radix(address, 16).ok()?, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let mut symbols = Symbols::default();
        for line in [
            "ffffffffc0400000 t mlx5_ib_page_fault\t[mlx5_ib]",
            "ffffffff81000000 T _text",
            "ffffffff81000100 t do_idle",
            "ffffffff81000200 T schedule",
            "ffffffffc0300000 T ib_umem_odp_map\t[ib_core]",
            "ffffffffc0300100 t do_idle_not_the_kernels\t[ib_core]",
            "0000000000000000 a fixed_percpu_data",
        ] {
            assert!(symbols.add(line), "{line}");
        }
        symbols.sort().unwrap();
        symbols
    }

    #[test]
    fn an_address_belongs_to_the_symbol_before_it() {
        let symbols = symbols();
        for (address, name) in [
            (0xffff_ffff_8100_0000, "_text"),
            (0xffff_ffff_8100_00ff, "_text"),
            (0xffff_ffff_8100_0100, "do_idle"),
            (0xffff_ffff_8fff_ffff, "schedule"),
            (0xffff_ffff_c040_0004, "mlx5_ib_page_fault"),
            // Below the first: the entry trampoline.
            (0xffff_fe00_0000_0000, "unknown"),
        ] {
            assert_eq!(symbols.find(address).0, name, "{address:#x}");
        }
    }

    #[test]
    fn what_is_no_symbol_is_told() {
        let mut symbols = Symbols::default();
        for line in ["", "sh: not found", "ffffffff81000000 T"] {
            assert!(!symbols.add(line), "{line}");
        }
        // kptr_restrict: every address is 0.
        assert!(symbols.add("0000000000000000 T _text"));
        assert!(symbols.sort().is_err());
    }

    #[test]
    fn user_and_idle_are_apart() {
        let text = "7f0012345678 1000\n\
                    ffffffff81000110 500\n\
                    ffffffff81000210 30\n\
                    ffffffff81000220 3\n\
                    ffffffffc0300000 7\n\
                    ffffffffc0300110 1\n\
                    ffffffffc0400010 5\n";
        let profile = Profile::read(text, &symbols()).unwrap();
        assert_eq!((profile.user, profile.idle), (1000, 500));
        assert_eq!(profile.kernel, 46);
        assert_eq!(profile.in_modules(&["mlx5_ib", "ib_core"]), 13);
        assert_eq!(profile.modules["vmlinux"], 33);
        let schedule = ("schedule".to_owned(), "vmlinux".to_owned());
        assert_eq!(profile.symbols[&schedule], 33);
        assert_eq!(profile.in_modules(&["mlx5_core"]), 0);
    }

    #[test]
    fn a_damaged_profile_is_an_error() {
        for text in ["ffffffff81000000", "xyz 3", "ffffffff81000000 3 4"] {
            assert!(Profile::read(text, &symbols()).is_err(), "{text}");
        }
    }
}
