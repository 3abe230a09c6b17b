//! What the calls of [`ClaimStore`](super::ClaimStore) take and return.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::VmLock;
use crate::base::{MacAddress, NicKey, Owner, PciAddress, Position, RootName, WantedVf};
use crate::config::VfMap;
use crate::sysfs::Sysfs;

/// What backs claims: what libvirt reports of all running domains of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backing {
    /// All PCI devices in the XML of domains, with the domain. Not only VFs that this driver plugged.
    pub devices: BTreeMap<PciAddress, Owner>,
    /// The NIC that each of these devices is for, if this driver plugged it.
    pub nics: BTreeMap<PciAddress, NicKey>,
    /// The NICs that should have a VF and have none. A claim for such a NIC is backed, so that a VF that is being
    /// plugged or unplugged stays the VM's.
    pub wanting: Vec<(Owner, NicKey)>,
    /// The domains whose XML or metadata can't be read. Their claims are backed. It is not known which devices they
    /// have, but libvirt gives no device that is in use to another domain.
    pub unreadable: Vec<Owner>,
}

impl Backing {
    /// The domain that has this VF.
    pub fn user(&self, vf: PciAddress) -> Option<&Owner> {
        self.devices.get(&vf)
    }

    /// Whether a claim is backed. A VF that a domain has can only be claimed by that domain.
    pub fn backs(&self, claim: &Claim) -> bool {
        match self.user(claim.vf) {
            Some(user) => user.is(&claim.owner),
            None => {
                self.wanting.iter().any(|(who, nic)| who.is(&claim.owner) && claim.is_for(nic))
                    || self.unreadable.iter().any(|who| who.is(&claim.owner))
            }
        }
    }
}

/// A request for VFs for a VM: one for each NIC, or none at all.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest<'a> {
    /// The VM that the VFs are for.
    pub owner: &'a Owner,
    /// The lock of this VM. The action that holds it becomes the holder of the claims.
    pub lock: &'a VmLock,
    /// One VF for each NIC, in the VM's order.
    pub vfs: &'a [WantedVf],
    /// The maps of the roots of these VFs, and all other maps that may list the same VFs.
    pub maps: &'a [VfMap],
    /// What the kernel reports of PCI functions. An address that is not a VF is never claimed.
    pub sysfs: &'a Sysfs,
    /// VFs that must not be claimed, because libvirt refused them.
    pub refused: &'a [PciAddress],
}

/// The claim of a VM on a VF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The root whose map lists the VF.
    pub root: RootName,
    /// The VF's address on the host's PCI bus.
    pub vf: PciAddress,
    /// The VM that has the VF.
    pub owner: Owner,
    /// The position of the NIC that the VF is for. `None` for a domain that was found with the VF, and in a claim of an
    /// older version, which knew NICs by their MAC.
    pub position: Option<Position>,
    /// The MAC of that NIC; `None` for a domain that was found with the VF.
    pub mac: Option<MacAddress>,
    /// The number of the claim's file when it was last read. It changes when the map is reordered.
    pub index: Option<usize>,
}

impl Claim {
    /// A claim on `vf` for this NIC.
    pub fn new(owner: Owner, root: RootName, vf: PciAddress, nic: NicKey) -> Self {
        Self { root, vf, owner, position: Some(nic.position), mac: Some(nic.mac), index: None }
    }

    /// Whether the claim is for this NIC of its VM. A claim without a position is for any NIC with its MAC.
    pub fn is_for(&self, nic: &NicKey) -> bool {
        self.mac == Some(nic.mac) && self.position.is_none_or(|position| position == nic.position)
    }
}

/// A VM that claims VFs, and what its claims say about an action that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The VM.
    pub owner: Owner,
    /// The VM's claims.
    pub claims: Vec<Claim>,
    /// The file that an action is saving the VM into, or was saving it into when it died.
    pub image: Option<PathBuf>,
    /// Whether an action that holds a claim of the VM may still work.
    pub held: bool,
    /// Whether the claims were written since the host was booted.
    pub this_boot: bool,
}

/// What [`ClaimStore::recover`](super::ClaimStore::recover) repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimRepair {
    /// A stale claim was removed.
    Freed(Claim),
    /// A VF that a domain had without a claim is claimed now.
    Adopted(Claim),
    /// A file was renamed to the place of its VF in a map that was changed.
    Moved(Claim),
}

impl ClaimRepair {
    /// The claim that was repaired.
    pub fn claim(&self) -> &Claim {
        match self {
            Self::Freed(claim) | Self::Adopted(claim) | Self::Moved(claim) => claim,
        }
    }

    /// The repair in one word, for a log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Freed(_) => "freed",
            Self::Adopted(_) => "adopted",
            Self::Moved(_) => "moved",
        }
    }
}
