//! Who has a VF: a VM and one of its NICs.

use super::{DomainName, DomainUuid, MacAddress, Position, RootName};

/// A VM that has VFs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The name of its domain.
    pub vm: DomainName,
    /// The UUID of its domain, if known (OpenNebula writes it from 6.0 on).
    pub uuid: Option<DomainUuid>,
}

impl Owner {
    /// Whether both are the same VM: by UUID, or by name if one of them has no UUID.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self.vm == other.vm,
        }
    }
}

/// Identifies a NIC of a VM in a claim. The MAC alone is not enough: OpenNebula may give two NICs of a VM the same MAC,
/// when two networks lease the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NicKey {
    /// The number of the NIC among the SR-IOV NICs of the VM, unique in the VM.
    pub position: Position,
    /// OpenNebula's MAC. Claims of older versions name only this.
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
