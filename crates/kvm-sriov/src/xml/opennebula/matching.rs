//! Which NIC of OpenNebula's is which NIC of the domain.

use super::{VmNic, nic_alias};
use crate::base::RootName;
use crate::xml::{LiveInterface, NicPlace, WantedNic};

impl WantedNic {
    /// The NIC that OpenNebula describes, at this place in the VM.
    pub(crate) fn described(nic: &VmNic, root: RootName, place: &NicPlace) -> Self {
        Self {
            guest: place.guest,
            boot_order: nic.boot_order,
            vlan: nic.vlan,
            nic_id: nic.id,
            ..Self::new(nic.mac, root, place.position)
        }
    }

    /// Whether it is this NIC of OpenNebula's: by NIC_ID and MAC, or by root and MAC where one has no NIC_ID. In both cases
    /// another NIC may have the same MAC; where NIC_IDs are unknown, the same root, too.
    pub(crate) fn is(&self, nic: &VmNic) -> bool {
        let same_root = || match nic.root() {
            Some(root) => root.is_ok_and(|root| root == self.root),
            None => nic.bridge.is_none(),
        };
        self.mac == nic.mac
            && match (self.nic_id, nic.id) {
                (Some(mine), Some(its)) => mine == its,
                _ => same_root(),
            }
    }
}

impl LiveInterface {
    /// Whether it is this NIC beyond doubt: it has the alias that we give the NIC, or its device on the host. Another NIC may
    /// have the same MAC and be on the same bridge.
    pub(crate) fn is(&self, nic: &VmNic) -> bool {
        let has_alias = || nic.id.is_some() && self.alias.as_deref() == Some(nic_alias(nic).as_str());
        let has_target = || nic.target.is_some() && self.target == nic.target;
        self.mac == nic.mac && !self.is_ours() && (has_alias() || has_target())
    }

    /// Whether it is this NIC on the bridge that OpenNebula names: where the name is `sriov_<root>`, one that the stock driver
    /// plugged in.
    pub(crate) fn is_on_bridge_of(&self, nic: &VmNic) -> bool {
        self.mac == nic.mac && !self.is_ours() && self.bridge.is_some() && self.bridge == nic.bridge
    }
}
