// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Handles and addresses: one type for each kind of number that crosses the firmware interface.

/// Defines an unsigned number of fewer bits than its storage.
macro_rules! bounded {
    ($(#[$meta:meta])* $name:ident($int:ty), $bits:literal bits) => {
        $(#[$meta])*
        ///
        /// # Invariants
        ///
        #[doc = concat!("The value fits in ", stringify!($bits), " bits.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($int);

        impl $name {
            /// Largest value.
            pub const MAX: Self = Self(<$int>::MAX >> (<$int>::BITS - $bits));

            /// Makes a value; `None` if `value` has too many bits.
            pub const fn new(value: $int) -> Option<Self> {
                if value <= Self::MAX.0 {
                    // INVARIANT: just compared with the maximum.
                    Some(Self(value))
                } else {
                    None
                }
            }

            /// Keeps the low bits of `value`, as the kernel's `MLX5_SET` does.
            pub const fn truncate(value: $int) -> Self {
                // INVARIANT: the mask is the maximum.
                Self(value & Self::MAX.0)
            }

            /// The number itself.
            pub const fn get(self) -> $int {
                // The mask changes nothing; it shows the invariant to the compiler, which then
                // drops the range checks of the layouts' setters.
                self.0 & Self::MAX.0
            }
        }

        $crate::handle::number_traits!($name($int));
    };
    // One that is a field of a word.
    ($(#[$meta:meta])* $name:ident($int:ty), $bits:literal bits of a word) => {
        $crate::handle::bounded!($(#[$meta])* $name($int), $bits bits);

        impl $name {
            /// For `bitfield`, which hands in no more bits than the field has.
            pub(crate) const fn from_bits(bits: $int) -> Self {
                Self::truncate(bits)
            }

            /// For `bitfield`.
            pub(crate) const fn into_bits(self) -> $int {
                self.get()
            }
        }
    };
}

/// Defines a number of which every bit pattern is a value.
macro_rules! full {
    ($(#[$meta:meta])* $name:ident($int:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($int);

        impl $name {
            /// Wraps the number.
            pub const fn new(value: $int) -> Self {
                Self(value)
            }

            /// The number itself.
            pub const fn get(self) -> $int {
                self.0
            }
        }

        $crate::handle::number_traits!($name($int));
    };
    // One that is a field of a word.
    ($(#[$meta:meta])* $name:ident($int:ty) of a word) => {
        full!($(#[$meta])* $name($int));

        impl $name {
            /// For `bitfield`.
            pub(crate) const fn from_bits(bits: $int) -> Self {
                Self(bits)
            }

            /// For `bitfield`.
            pub(crate) const fn into_bits(self) -> $int {
                self.0
            }
        }
    };
}

/// What both kinds of number have in common.
macro_rules! number_traits {
    ($name:ident($int:ty)) => {
        impl From<$name> for $int {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl core::fmt::LowerHex for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

pub(crate) use {bounded, number_traits};

full! {
    /// Memory key as WQEs, events and translation entries carry it: index and variant.
    Mkey(u32)
}

bounded! {
    /// Index of an MKey, what commands name it by: bits 31:8 of the key.
    MkeyIndex(u32), 24 bits of a word
}

full! {
    /// Bits 7:0 of an MKey. Its owner may pick them anew when it makes the key valid again.
    MkeyVariant(u8) of a word
}

impl Mkey {
    /// Ends a receive WQE's scatter list on a device that names no other key for this
    /// (kernel: `MLX5_TERMINATE_SCATTER_LIST_LKEY`).
    pub const TERMINATE_SCATTER_LIST: Self = Self(0x100);

    /// The key of `index` and `variant` (kernel: `mlx5_idx_to_mkey`).
    pub const fn from_parts(index: MkeyIndex, variant: MkeyVariant) -> Self {
        // CAST: widens; a const fn cannot call `u32::from`.
        Self(index.0 << 8 | variant.0 as u32)
    }

    /// Index of the MKey (kernel: `mlx5_mkey_to_idx`).
    pub const fn index(self) -> MkeyIndex {
        MkeyIndex::truncate(self.0 >> 8)
    }

    /// Variant of the MKey (kernel: `mlx5_mkey_variant`).
    pub const fn variant(self) -> MkeyVariant {
        MkeyVariant(self.0.to_be_bytes()[3])
    }
}

bounded! {
    /// Queue pair number.
    Qpn(u32), 24 bits of a word
}

impl Qpn {
    /// In an MKey: any queue pair may use it.
    pub const ANY: Self = Self::MAX;
}

bounded! {
    /// Shared receive queue number. Receive memory pools and XRC SRQs are numbered in this space
    /// too, as the driver keeps all of them in one table (kernel: `mlx5_ib/srq_cmd.c`).
    Srqn(u32), 24 bits of a word
}

bounded! {
    /// Completion queue number.
    Cqn(u32), 24 bits
}

bounded! {
    /// Number of the work queue that a page fault stalled: a [`Qpn`] or an [`Srqn`], as the
    /// fault's type says.
    WqNumber(u32), 24 bits of a word
}

impl From<Qpn> for WqNumber {
    fn from(qpn: Qpn) -> Self {
        Self(qpn.0)
    }
}

impl From<Srqn> for WqNumber {
    fn from(srqn: Srqn) -> Self {
        Self(srqn.0)
    }
}

impl From<WqNumber> for Qpn {
    fn from(wq: WqNumber) -> Self {
        Self(wq.0)
    }
}

bounded! {
    /// Protection domain number.
    Pdn(u32), 24 bits of a word
}

bounded! {
    /// Transport domain number.
    Tdn(u32), 24 bits
}

bounded! {
    /// XRC domain number.
    Xrcdn(u32), 24 bits
}

full! {
    /// Event queue number.
    Eqn(u8)
}

bounded! {
    /// User access region: index of a 4 KiB page of doorbells in BAR 0.
    Uar(u32), 24 bits
}

bounded! {
    /// What identifies a stalled access in the transport page-fault scheme.
    TransportToken(u32), 24 bits of a word
}

bounded! {
    /// What identifies a stalled access in the memory page-fault scheme.
    MemoryToken(u64), 48 bits
}

impl From<TransportToken> for MemoryToken {
    fn from(token: TransportToken) -> Self {
        Self(u64::from(token.0))
    }
}

full! {
    /// Address in the space of an MKey.
    Iova(u64)
}

impl Iova {
    /// The address `bytes` further; `None` beyond the end of the address space.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }
}

full! {
    /// Address on the bus, what the device puts into a DMA request.
    DmaAddr(u64)
}
