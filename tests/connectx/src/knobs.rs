// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Knobs: how to make the device slow or faulty on purpose.

use serde::Serialize;

/// How page faults are reported (`MLX5_CAP_ODP_SCHEME`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub enum Scheme {
    /// By MKey and address: one event format, the one the driver prefers.
    #[default]
    Memory,
    /// By work queue entry, or by remote address for RDMA.
    Transport,
}

impl Scheme {
    /// Parses the name used on the command line and the control socket.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "memory" => Some(Self::Memory),
            "transport" => Some(Self::Transport),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Transport => "transport",
        }
    }
}

macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// All knobs; zero means off.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
        pub struct Knobs {
            /// The scheme that the next ENABLE_HCA takes.
            pub scheme: Scheme,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Knobs {
            /// Every number with its name.
            #[must_use]
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            /// Sets one number; `false` if there is no such knob.
            pub fn set(&mut self, name: &str, value: u64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => return false,
                }
                true
            }
        }
    };
}

knobs! {
    /// Milliseconds by which a UMR takes effect, and completes, late.
    umr_delay_ms,
    /// Fail this many UMR WQEs from now on with an error completion.
    umr_fail_count,
    /// Execute this many UMR WQEs from now on without ever completing them.
    umr_drop_count,
    /// Milliseconds between a command's doorbell and its execution.
    command_delay_ms,
    /// Restricts `command_delay_ms`, `command_fail_count` and `command_drop_count` to
    /// this opcode; 0 means any.
    command_opcode,
    /// Fail this many commands from now on with `command_fail_status`.
    command_fail_count,
    /// Status of failed commands; 0 means INTERNAL_ERR.
    command_fail_status,
    /// Swallow this many commands from now on: they never complete.
    command_drop_count,
    /// Milliseconds by which events are held back.
    eqe_delay_ms,
    /// Restricts `eqe_delay_ms` and `eqe_drop_count` to this event type; 0 means any
    /// but completions.
    eqe_type,
    /// Swallow this many events from now on.
    eqe_drop_count,
}

/// Counts a knob down by one; `false` if it was 0.
pub fn spend(count: &mut u64) -> bool {
    if *count == 0 {
        return false;
    }
    *count -= 1;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_by_name() {
        let mut knobs = Knobs::default();
        assert!(knobs.set("umr_delay_ms", 1500));
        assert_eq!(knobs.umr_delay_ms, 1500);
        assert!(!knobs.set("umr_delay", 1));
        assert_eq!(Scheme::parse("transport"), Some(Scheme::Transport));
        assert_eq!(Scheme::parse("Transport"), None);
    }

    #[test]
    fn spend_counts_down() {
        let mut count = 1;
        assert!(spend(&mut count));
        assert!(!spend(&mut count));
    }
}
