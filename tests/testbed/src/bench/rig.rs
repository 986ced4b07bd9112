// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The hardware that lines run on.

use crate::testbed::Options;
use crate::vm::{Hardware, Iommu, Scheme};

/// The hardware of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rig {
    /// One processor whose time is its instructions, and the plugin that counts them.
    Counted {
        /// Whether an IOMMU is in front of the device.
        iommu: bool,
        /// The device's page-fault scheme.
        scheme: Scheme,
    },
    /// Two processors in real time.
    Real,
}

/// An IOMMU and the memory scheme, counted.
pub(crate) const COUNTED: Rig = Rig::Counted {
    iommu: true,
    scheme: Scheme::Memory,
};

impl Rig {
    /// Every rig, the shortest boot last.
    pub(crate) const ALL: [Self; 5] = [
        COUNTED,
        Self::Counted {
            iommu: false,
            scheme: Scheme::Memory,
        },
        Self::Counted {
            iommu: true,
            scheme: Scheme::Transport,
        },
        Self::Counted {
            iommu: false,
            scheme: Scheme::Transport,
        },
        Self::Real,
    ];

    /// In a few letters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Counted { iommu, scheme } => match (iommu, scheme) {
                (true, Scheme::Memory) => "memory",
                (true, Scheme::Transport) => "transport",
                (false, Scheme::Memory) => "memory, no IOMMU",
                (false, Scheme::Transport) => "transport, no IOMMU",
            },
            Self::Real => "real time",
        }
    }

    /// Whether instructions are counted on it.
    pub(crate) fn counted(self) -> bool {
        matches!(self, Self::Counted { .. })
    }

    /// The machine, but for the plugin.
    pub(crate) fn options(self, ours: bool) -> Options {
        let hardware = Hardware {
            memory: 4096,
            ..Hardware::default()
        };
        let options = Options {
            ours,
            ..Options::default()
        };
        match self {
            Self::Counted { iommu, scheme } => Options {
                scheme,
                hardware: Hardware {
                    cpus: Some(1),
                    icount: Some(0),
                    iommu: if iommu {
                        Iommu::IntelStrict
                    } else {
                        Iommu::None
                    },
                    // The profiles' addresses are those of the symbols.
                    append: vec!["nokaslr".to_owned()],
                    ..hardware
                },
                ..options
            },
            Self::Real => Options {
                hardware,
                ..options
            },
        }
    }
}
