// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Which commands a user context may send, and on what.

use super::{word, CmdStatus};
use crate::device::Device;
use crate::uctx::{Object, Uid};

/// Who may send a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The driver only.
    Driver,
    /// The same; the object that it makes is everybody's if it says so.
    DriverCreates(Object),
    /// The same, and then the object is gone.
    DriverDestroys(Object),
    /// Everybody: it names no object.
    Anyone,
    /// Everybody; the object that it makes belongs to the sender.
    Creates(Object),
    /// The owner of the object that it names.
    Uses(Object),
    /// The same, and then the object is gone.
    Destroys(Object),
}

impl Scope {
    fn of(command: &str) -> Self {
        use Object::{Cq, Dct, Eq, Mkey, Pd, Qp, ReservedQpn, Srq, Td, Uar, Umem, Xrcd};
        match command {
            "QUERY_HCA_CAP"
            | "QUERY_ADAPTER"
            | "QUERY_ISSI"
            | "QUERY_HCA_VPORT_CONTEXT"
            | "QUERY_VPORT_COUNTER" => Self::Anyone,
            "CREATE_EQ" => Self::DriverCreates(Eq),
            "DESTROY_EQ" => Self::DriverDestroys(Eq),
            "CREATE_MKEY" => Self::Creates(Mkey),
            "QUERY_MKEY" => Self::Uses(Mkey),
            "DESTROY_MKEY" => Self::Destroys(Mkey),
            "CREATE_CQ" => Self::Creates(Cq),
            "QUERY_CQ" | "MODIFY_CQ" => Self::Uses(Cq),
            "DESTROY_CQ" => Self::Destroys(Cq),
            "CREATE_QP" => Self::Creates(Qp),
            "QUERY_QP" | "RST2INIT_QP" | "INIT2INIT_QP" | "INIT2RTR_QP" | "RTR2RTS_QP"
            | "RTS2RTS_QP" | "SQERR2RTS_QP" | "SQD_RTS_QP" | "2ERR_QP" | "2RST_QP"
            | "ATTACH_TO_MCG" | "DETACH_FROM_MCG" => Self::Uses(Qp),
            "DESTROY_QP" => Self::Destroys(Qp),
            "CREATE_GENERAL_OBJECT" => Self::Creates(ReservedQpn),
            "DESTROY_GENERAL_OBJECT" => Self::Destroys(ReservedQpn),
            "CREATE_DCT" => Self::Creates(Dct),
            "QUERY_DCT" | "DRAIN_DCT" => Self::Uses(Dct),
            "DESTROY_DCT" => Self::Destroys(Dct),
            "CREATE_RMP" | "CREATE_XRC_SRQ" => Self::Creates(Srq),
            "QUERY_RMP" | "MODIFY_RMP" | "QUERY_XRC_SRQ" | "ARM_XRC_SRQ" => Self::Uses(Srq),
            "DESTROY_RMP" | "DESTROY_XRC_SRQ" => Self::Destroys(Srq),
            "ALLOC_PD" => Self::Creates(Pd),
            "DEALLOC_PD" => Self::Destroys(Pd),
            "ALLOC_UAR" => Self::Creates(Uar),
            "DEALLOC_UAR" => Self::Destroys(Uar),
            "ALLOC_XRCD" => Self::Creates(Xrcd),
            "DEALLOC_XRCD" => Self::Destroys(Xrcd),
            "ALLOC_TRANSPORT_DOMAIN" => Self::Creates(Td),
            "DEALLOC_TRANSPORT_DOMAIN" => Self::Destroys(Td),
            "CREATE_UMEM" => Self::Creates(Umem),
            "DESTROY_UMEM" => Self::Destroys(Umem),
            _ => Self::Driver,
        }
    }
}

/// Number of the object that a command names, or was given: bits 23:0 of the third word in all
/// of them.
fn number(bytes: &[u8]) -> u32 {
    word(bytes, 8) & 0xff_ffff
}

impl Device {
    /// Whether somebody may send this command.
    ///
    /// # Errors
    ///
    /// BAD_PARAM if there is no such context, BAD_OP if the command is the driver's, BAD_RES if
    /// the object belongs to somebody else: to a user it is not there.
    pub(super) fn admit(&mut self, name: &str, uid: Uid, input: &[u8]) -> Result<(), CmdStatus> {
        if !uid.is_user() {
            return Ok(());
        }
        if !self.uctxs.contains(uid) {
            self.violation(format_args!(
                "{name} for user context {:#x}, which does not exist",
                uid.get()
            ));
            return Err(CmdStatus::BadParam);
        }
        match Scope::of(name) {
            Scope::Driver | Scope::DriverCreates(_) | Scope::DriverDestroys(_) => {
                Err(CmdStatus::BadOp)
            }
            Scope::Anyone | Scope::Creates(_) => Ok(()),
            Scope::Uses(object) | Scope::Destroys(object) => {
                if self.uctxs.owner(object, number(input)) == uid {
                    Ok(())
                } else {
                    Err(CmdStatus::BadRes)
                }
            }
        }
    }

    /// Keeps in mind whose the object is that a command made or removed.
    pub(super) fn account(&mut self, name: &str, uid: Uid, input: &[u8], output: &[u8]) {
        match Scope::of(name) {
            Scope::Creates(object) | Scope::DriverCreates(object) => {
                self.uctxs.give(object, number(output), uid);
            }
            Scope::Destroys(object) | Scope::DriverDestroys(object) => {
                self.uctxs.forget(object, number(input));
            }
            Scope::Driver | Scope::Anyone | Scope::Uses(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_can_be_removed_and_the_function_is_the_drivers() {
        let scopes: Vec<_> = crate::command::all()
            .map(|command| (command.name, Scope::of(command.name)))
            .collect();
        for (name, scope) in &scopes {
            if let Scope::Creates(object) = scope {
                let gone = Scope::Destroys(*object);
                assert!(scopes.iter().any(|(_, scope)| *scope == gone), "{name}");
            }
        }
        for name in ["SET_HCA_CAP", "PAGE_FAULT_RESUME", "CREATE_UCTX"] {
            assert!(scopes.contains(&(name, Scope::Driver)), "{name}");
        }
        assert!(scopes.iter().filter(|(_, s)| *s != Scope::Driver).count() > 35);
    }
}
