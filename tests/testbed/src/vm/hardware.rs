// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The guest's hardware, and how QEMU and the kernel are told of it.

use std::fs;
use std::path::PathBuf;

use anyhow::{bail, Context, Result};

/// MiB that no guest boots without, and that hugepages have to leave over.
const LEAST_MEMORY: u32 = 512;

/// MiB of memory, unless said.
const MEMORY: u32 = 2048;

/// Processors, unless said.
const CPUS: u32 = 2;

/// MiB of a huge page.
const HUGEPAGE: u64 = 2;

/// `COMMAND_LINE_SIZE` of x86 (kernel, `arch/x86/include/asm/setup.h`), less the final 0.
const COMMAND_LINE: usize = 2047;

/// The hardware of a guest.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Hardware")]
pub(crate) struct Hardware {
    /// Memory, such as 8G or 1536M.
    #[arg(long, value_name = "SIZE", value_parser = mebibytes, default_value = "2G")]
    pub(crate) memory: u32,

    /// Processors [default: 2; with --icount 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: Option<u32>,

    /// Huge pages of 2 MiB that the kernel sets aside at boot; /dev/hugepages has them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) hugepages: u32,

    /// The IOMMU in front of the device, and how the kernel uses it.
    #[arg(long, value_name = "KIND", value_enum, default_value = "intel-strict")]
    pub(crate) iommu: Iommu,

    /// Arguments for the kernel, after ours; may be given several times.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub(crate) append: Vec<String>,

    /// Guest time is 2^SHIFT ns for each instruction, and real time where the guest is idle:
    /// all processors in one thread, for measurements.
    #[arg(long, value_name = "SHIFT", value_parser = clap::value_parser!(u8).range(0..=10))]
    pub(crate) icount: Option<u8>,

    /// A TCG plugin for QEMU.
    #[arg(long, value_name = "FILE[,OPT=VALUE...]", value_parser = Plugin::parse)]
    pub(crate) qemu_plugin: Option<Plugin>,
}

/// What stands between the device and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Iommu {
    /// VT-d, flushed at once: the device learns of every DMA unmap.
    IntelStrict,
    /// VT-d, flushed when the kernel has gathered some: late, and many at a time.
    IntelLazy,
    /// VT-d that translates nothing: the device sees all of memory.
    Passthrough,
    /// AMD-Vi, flushed at once.
    Amd,
    /// None: the device sees all of memory.
    None,
}

/// A plugin for QEMU's TCG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plugin {
    /// The shared object.
    pub(crate) file: PathBuf,
    /// What it takes: nothing, or `,OPT=VALUE...`.
    pub(crate) options: String,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            memory: MEMORY,
            cpus: None,
            hugepages: 0,
            iommu: Iommu::IntelStrict,
            append: Vec::new(),
            icount: None,
            qemu_plugin: None,
        }
    }
}

impl Hardware {
    /// The number of processors.
    fn processors(&self) -> u32 {
        self.cpus.unwrap_or(match self.icount {
            Some(_) => 1,
            None => CPUS,
        })
    }

    /// Fails, in one line, on what this host or a kernel cannot give.
    pub(crate) fn check(&self) -> Result<()> {
        let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        self.fits(available(&meminfo)?)
    }

    /// The same for a host with `available` MiB to spare.
    fn fits(&self, available: u64) -> Result<()> {
        let memory = u64::from(self.memory);
        if memory > available {
            bail!(
                "--memory: the guest's {memory} MiB are more than the {available} MiB that this \
                 host has to spare"
            );
        }
        let pages = HUGEPAGE * u64::from(self.hugepages);
        if pages + u64::from(LEAST_MEMORY) > memory {
            bail!(
                "--hugepages: {pages} MiB of huge pages leave less than {LEAST_MEMORY} of the \
                 guest's {memory} MiB (--memory gives it more)"
            );
        }
        let line = self.kernel_line(false);
        if line.len() > COMMAND_LINE {
            bail!(
                "--append: the kernel's command line is {} bytes long, and it takes {COMMAND_LINE}",
                line.len()
            );
        }
        Ok(())
    }

    /// What QEMU is told, before any device but the IOMMU.
    pub(super) fn qemu(&self) -> Vec<String> {
        let memory = self.memory;
        let mut args = Vec::new();
        let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
        // hpet=off: a kernel once hung as it set that timer up, on a busy host.
        add("-machine", "q35,memory-backend=mem,hpet=off".to_owned());
        match self.icount {
            Some(shift) => {
                add("-accel", "tcg,thread=single".to_owned());
                // With sleep=off an idle guest jumps to its next timer while the device, a
                // process of its own, still works: the guest would run timers only.
                add("-icount", format!("shift={shift},sleep=on"));
            }
            None => add("-accel", "tcg".to_owned()),
        }
        add("-cpu", "max,la57=off".to_owned());
        add("-smp", self.processors().to_string());
        add("-m", format!("{memory}M"));
        // The device maps it: hence shared, and a file.
        add(
            "-object",
            format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
        );
        if let Some(device) = self.iommu.device() {
            add("-device", device.to_owned());
        }
        if let Some(plugin) = &self.qemu_plugin {
            // A comma in a path is doubled for QEMU.
            let file = plugin.file.to_string_lossy().replace(',', ",,");
            add("-plugin", format!("{file}{}", plugin.options));
        }
        args
    }

    /// The kernel's command line; an oops ends the run unless it is to keep going.
    pub(super) fn kernel_line(&self, keep_going: bool) -> String {
        // no_timer_check: on a busy host the emulated timer may miss the kernel's test of it.
        let mut words = vec![
            "console=ttyS0 loglevel=7 panic=-1 mitigations=off random.trust_cpu=on no_timer_check"
                .to_owned(),
            if keep_going { "" } else { "oops=panic" }.to_owned(),
            self.iommu.kernel_args().to_owned(),
        ];
        if self.hugepages > 0 {
            words.push(format!("hugepagesz=2M hugepages={}", self.hugepages));
        }
        words.extend(self.append.iter().cloned());
        words.retain(|word| !word.is_empty());
        words.join(" ")
    }
}

impl Iommu {
    /// QEMU's device, before those that it serves.
    fn device(self) -> Option<&'static str> {
        match self {
            // caching-mode: QEMU tells the device what the kernel maps and unmaps.
            Self::IntelStrict | Self::IntelLazy | Self::Passthrough => {
                Some("intel-iommu,caching-mode=on,intremap=off")
            }
            Self::Amd => Some("amd-iommu,dma-remap=on"),
            Self::None => None,
        }
    }

    /// What the kernel has to be told.
    fn kernel_args(self) -> &'static str {
        match self {
            Self::IntelStrict => "intel_iommu=on iommu.strict=1",
            Self::IntelLazy => "intel_iommu=on iommu.strict=0",
            Self::Passthrough => "intel_iommu=on iommu=pt",
            // In use wherever there is one.
            Self::Amd => "iommu.strict=1",
            Self::None => "",
        }
    }
}

impl Plugin {
    /// `FILE[,OPT=VALUE...]`. The options follow the first comma.
    fn parse(text: &str) -> Result<Self, String> {
        let end = text.find(',').unwrap_or(text.len());
        let (file, options) = text.split_at(end);
        // QEMU would look for a bare name where libraries are.
        let file = fs::canonicalize(file).map_err(|error| format!("{file}: {error}"))?;
        if !file.is_file() {
            return Err(format!("{} is no file", file.display()));
        }
        Ok(Self {
            file,
            options: options.to_owned(),
        })
    }
}

/// MiB of `8G`, `8GiB`, `1536M` or `1536MiB`.
fn mebibytes(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "G" | "GiB" => 1024,
        "M" | "MiB" => 1,
        _ => return Err("a number and G or M, such as 8G or 1536M".to_owned()),
    };
    let number: u32 = digits.parse().map_err(|error| format!("{error}"))?;
    let size = number.checked_mul(unit).ok_or("more than 4 PiB")?;
    if size < LEAST_MEMORY {
        return Err(format!("a guest needs {LEAST_MEMORY}M"));
    }
    Ok(size)
}

/// MiB that a host with this `/proc/meminfo` has to spare.
fn available(meminfo: &str) -> Result<u64> {
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .context("/proc/meminfo: no MemAvailable")?
        .parse()
        .context("/proc/meminfo: MemAvailable")?;
    Ok(kib / 1024)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// As `cargo xtask vm` takes them.
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        hardware: Hardware,
    }

    fn parse(args: &str) -> Result<Hardware, clap::Error> {
        let words = ["vm"].into_iter().chain(args.split_whitespace());
        Ok(Line::try_parse_from(words)?.hardware)
    }

    /// What follows each `option`.
    fn values<'a>(args: &'a [String], option: &str) -> Vec<&'a str> {
        args.windows(2)
            .filter(|pair| pair[0] == option)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    #[test]
    fn nothing_said_is_the_default() {
        let said = parse("").unwrap();
        let default = Hardware::default();
        assert_eq!(said.qemu(), default.qemu());
        assert_eq!(said.kernel_line(false), default.kernel_line(false));
        let args = default.qemu();
        assert_eq!(values(&args, "-smp"), ["2"]);
        assert_eq!(values(&args, "-m"), ["2048M"]);
        assert_eq!(values(&args, "-accel"), ["tcg"]);
        assert!(values(&args, "-icount").is_empty());
        assert!(default
            .kernel_line(false)
            .ends_with(" oops=panic intel_iommu=on iommu.strict=1"));
        assert!(!default.kernel_line(true).contains("oops"));
    }

    #[test]
    fn sizes_have_a_unit() {
        for (text, size) in [
            ("8G", 8192),
            ("2GiB", 2048),
            ("512M", 512),
            ("1536MiB", 1536),
        ] {
            assert_eq!(mebibytes(text), Ok(size), "{text}");
        }
        for text in [
            "", "G", "8", "8g", "8 G", "-8G", "8T", "1.5G", "511M", "0G", "4194304G",
        ] {
            assert!(mebibytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_option_reaches_qemu_or_the_kernel() {
        let hardware = parse(
            "--memory 8G --cpus 4 --hugepages 512 --append nokaslr --append swiotlb=force \
             --iommu none",
        )
        .unwrap();
        let args = hardware.qemu();
        assert_eq!(values(&args, "-smp"), ["4"]);
        assert_eq!(values(&args, "-m"), ["8192M"]);
        assert_eq!(
            values(&args, "-object"),
            ["memory-backend-memfd,id=mem,size=8192M,share=on"]
        );
        assert!(values(&args, "-device").is_empty());
        assert!(hardware
            .kernel_line(false)
            .ends_with("oops=panic hugepagesz=2M hugepages=512 nokaslr swiotlb=force"));
    }

    #[test]
    fn iommus_differ() {
        let kinds: Vec<_> = ["intel-strict", "intel-lazy", "passthrough", "amd", "none"]
            .iter()
            .map(|kind| parse(&format!("--iommu {kind}")).unwrap())
            .map(|hardware| {
                let device = values(&hardware.qemu(), "-device").join(" ");
                (device, hardware.kernel_line(false))
            })
            .collect();
        for (index, kind) in kinds.iter().enumerate() {
            assert!(!kinds[..index].contains(kind), "{kind:?}");
        }
        assert!(kinds[3].0.starts_with("amd-iommu"));
        assert!(parse("--iommu intel").is_err());
    }

    #[test]
    fn instructions_are_counted_on_one_processor() {
        let args = parse("--icount 0").unwrap().qemu();
        assert_eq!(values(&args, "-icount"), ["shift=0,sleep=on"]);
        assert_eq!(values(&args, "-accel"), ["tcg,thread=single"]);
        assert_eq!(values(&args, "-smp"), ["1"]);
        let two = parse("--icount 0 --cpus 2").unwrap().qemu();
        assert_eq!(values(&two, "-smp"), ["2"]);
        assert!(parse("--icount 11").is_err());
    }

    #[test]
    fn a_plugin_is_a_file_and_its_options() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().canonicalize().unwrap().join("insn.so");
        fs::write(&file, "").unwrap();
        let name = file.to_str().unwrap();
        let args = parse(&format!("--qemu-plugin {name},out=x,a=b"))
            .unwrap()
            .qemu();
        assert_eq!(values(&args, "-plugin"), [format!("{name},out=x,a=b")]);
        let missing = parse(&format!("--qemu-plugin {name}.not,out=x")).unwrap_err();
        assert!(missing.to_string().contains("insn.so.not: No such file"));
    }

    #[test]
    fn what_cannot_be_given_is_one_line() {
        let meminfo = "MemTotal:  9 kB\nMemAvailable:    4194304 kB\nBuffers: 1 kB\n";
        assert_eq!(available(meminfo).unwrap(), 4096);
        assert!(available("MemTotal: 9 kB\n").is_err());
        let refused = |args: &str| {
            let text = parse(args).unwrap().fits(4096).unwrap_err().to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            text
        };
        parse("--memory 4G --hugepages 1792")
            .unwrap()
            .fits(4096)
            .unwrap();
        assert!(refused("--memory 4097M").starts_with("--memory: the guest's 4097 MiB"));
        assert!(refused("--memory 4G --hugepages 1793").starts_with("--hugepages: 3586 MiB"));
        let long = format!("--append {}", "x".repeat(COMMAND_LINE));
        assert!(refused(&long).starts_with("--append: "));
    }
}
