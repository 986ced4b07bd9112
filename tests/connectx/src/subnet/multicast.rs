// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Which QPs listen to which multicast group (ATTACH_TO_MCG).

use std::collections::{BTreeMap, BTreeSet};

use firmware_cmds::Qpn;
use serde::Serialize;

use super::Gid;
use crate::inspect::show;

/// The destination QP of a multicast packet (IBTA 10.5.2).
pub const MULTICAST_QPN: u32 = 0xff_ffff;

/// The QPs that are attached to groups.
#[derive(Debug, Default, Serialize)]
pub struct Attachments {
    #[serde(serialize_with = "show::debug")]
    by_group: BTreeMap<Gid, BTreeSet<Qpn>>,
}

impl Attachments {
    /// Has a QP listen to a group; once is enough.
    pub fn attach(&mut self, mgid: Gid, qpn: Qpn) {
        self.by_group.entry(mgid).or_default().insert(qpn);
    }

    /// Ends that; `false` if the QP did not listen.
    pub fn detach(&mut self, mgid: Gid, qpn: Qpn) -> bool {
        let Some(qpns) = self.by_group.get_mut(&mgid) else {
            return false;
        };
        let found = qpns.remove(&qpn);
        if qpns.is_empty() {
            self.by_group.remove(&mgid);
        }
        found
    }

    /// Whether a QP listens to any group.
    #[must_use]
    pub fn is_attached(&self, qpn: Qpn) -> bool {
        self.by_group.values().any(|qpns| qpns.contains(&qpn))
    }

    /// The QPs that listen to a group.
    #[must_use]
    pub fn listeners(&self, mgid: &Gid) -> Vec<Qpn> {
        let qpns = self.by_group.get(mgid).into_iter().flatten();
        qpns.copied().collect()
    }

    /// How many QPs listen to a group.
    #[must_use]
    pub fn len(&self, mgid: &Gid) -> usize {
        self.by_group.get(mgid).map_or(0, BTreeSet::len)
    }
}
