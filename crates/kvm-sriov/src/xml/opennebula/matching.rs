//! Matches NICs of OpenNebula's description with NICs and interfaces of a domain. A VM may have several NICs with the
//! same MAC, even on the same bridge.

use super::{VmNic, nic_alias};
use crate::base::{NicMode, RootName};
use crate::xml::{LiveInterface, NicPlace, WantedNic};

impl WantedNic {
    /// A NIC that OpenNebula describes, at this place in the VM.
    pub(crate) fn described(nic: &VmNic, root: RootName, mode: NicMode, place: &NicPlace) -> Self {
        Self {
            mode,
            guest: place.guest,
            boot_order: nic.boot_order,
            vlan: nic.vlan,
            nic_id: nic.id,
            ..Self::new(nic.mac, root, place.position)
        }
    }

    /// Whether this is the NIC that OpenNebula describes: by MAC and NIC_ID, or by MAC and root if one of the two has
    /// no NIC_ID. Without NIC_IDs another NIC may match as well.
    pub(crate) fn is_described_by(&self, nic: &VmNic) -> bool {
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
    /// Whether this interface certainly belongs to the NIC: it has the NIC's MAC, and the alias that the driver gives
    /// the NIC or the NIC's device on the host.
    pub(crate) fn belongs_to(&self, nic: &VmNic) -> bool {
        let has_alias = || nic.id.is_some() && self.alias.as_deref() == Some(nic_alias(nic).as_str());
        let has_target = || nic.target.is_some() && self.target == nic.target;
        self.mac == nic.mac && !self.is_ours() && (has_alias() || has_target())
    }

    /// Whether this interface has the NIC's MAC and bridge. On a bridge `sriov_<root>` it is then one that the stock
    /// driver plugged.
    pub(crate) fn is_on_bridge_of(&self, nic: &VmNic) -> bool {
        self.mac == nic.mac && !self.is_ours() && self.bridge.is_some() && self.bridge == nic.bridge
    }
}
