//! Who has a VF: a VM, and one of its NICs.

use super::{DomainName, DomainUuid, MacAddress, Position, RootName};

/// A VM that has VFs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its domain's name.
    pub vm: DomainName,
    /// Its domain's UUID, when it is known (OpenNebula writes it from 6.0 on).
    pub uuid: Option<DomainUuid>,
}

impl Owner {
    /// Whether both are the same VM: by UUID, or by name when one has none.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self.vm == other.vm,
        }
    }
}

/// A NIC of a VM, as claims know it. Two NICs of a VM may have the same MAC: OpenNebula gives the same lease in two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NicKey {
    /// Its place among the SR-IOV NICs of the VM: what tells it from the others.
    pub position: Position,
    /// OpenNebula's MAC: all that an older claim says.
    pub mac: MacAddress,
}

/// A VF that a VM needs: the root it comes from, and the NIC it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedVf {
    /// The root whose map lists it.
    pub root: RootName,
    /// The NIC of the VM.
    pub nic: NicKey,
}
