//! What the calls of [`ClaimStore`](super::ClaimStore) take and return.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::VmLock;
use crate::base::{MacAddress, NicKey, Owner, PciAddress, Position, RootName, WantedVf};
use crate::config::VfMap;
use crate::sysfs::Sysfs;

/// What backs claims, by what libvirt says of every running domain of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backing {
    /// Every PCI device that a domain shows, ours or not, with its domain.
    pub devices: BTreeMap<PciAddress, Owner>,
    /// The NICs that those of them that are ours stand for.
    pub nics: BTreeMap<PciAddress, NicKey>,
    /// The NICs that a domain should have a VF for and has none: a VF that is on its way out or in stays the VM's.
    pub wanting: Vec<(Owner, NicKey)>,
    /// The domains whose XML, or what we keep in it, can't be read: what they claim stays theirs. Which devices they have is not
    /// known; libvirt gives nobody a device that is in use.
    pub unreadable: Vec<Owner>,
}

impl Backing {
    /// The domain that shows this VF.
    pub fn user(&self, vf: PciAddress) -> Option<&Owner> {
        self.devices.get(&vf)
    }

    /// Whether this claim is backed. A VF that a domain shows is nobody else's.
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

/// VFs for a VM: one for each NIC, or none at all.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest<'a> {
    /// The VM that the VFs are for.
    pub owner: &'a Owner,
    /// The lock of this VM. The action that holds it becomes the holder of the claims.
    pub lock: &'a VmLock,
    /// One VF for each NIC, in the VM's order.
    pub vfs: &'a [WantedVf],
    /// The map of each of these roots, and every other one whose VFs may be the same.
    pub maps: &'a [VfMap],
    /// What the kernel says of the VFs: an address that is none is given to nobody.
    pub sysfs: &'a Sysfs,
    /// VFs that must not be taken, because libvirt refused them.
    pub refused: &'a [PciAddress],
}

/// A VF that a VM has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The root whose map lists it.
    pub root: RootName,
    /// Where it is on the host's PCI bus.
    pub vf: PciAddress,
    /// Who has it.
    pub owner: Owner,
    /// The position of the NIC it is for. Unknown for a domain that was found with the VF, and in a claim of a version
    /// that knew NICs by their MAC.
    pub position: Option<Position>,
    /// The MAC of that NIC; unknown for a domain that was found with the VF.
    pub mac: Option<MacAddress>,
    /// The number of its file when it was last seen; a map that is reordered gives it another one.
    pub index: Option<usize>,
}

impl Claim {
    /// A claim for this NIC.
    pub fn new(owner: Owner, root: RootName, vf: PciAddress, nic: NicKey) -> Self {
        Self { root, vf, owner, position: Some(nic.position), mac: Some(nic.mac), index: None }
    }

    /// Whether it is for this NIC of its VM. One without a position is for every NIC with its MAC.
    pub fn is_for(&self, nic: &NicKey) -> bool {
        self.mac == Some(nic.mac) && self.position.is_none_or(|position| position == nic.position)
    }
}

/// A VM that claims VFs, and what its claims say of an action on it that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The VM.
    pub owner: Owner,
    /// Its claims.
    pub claims: Vec<Claim>,
    /// The file that an action was saving it into.
    pub image: Option<PathBuf>,
    /// Whether the process of that action still runs.
    pub held: bool,
    /// Whether the claims were written since the host was booted.
    pub this_boot: bool,
}

/// What [`ClaimStore::recover`] put right.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimRepair {
    /// A claim without a domain or a living process is gone.
    Freed(Claim),
    /// A VF that a domain has without a claim got one.
    Adopted(Claim),
    /// A file has the place of its VF in a map that was changed.
    Moved(Claim),
}

impl ClaimRepair {
    /// The claim it was about.
    pub fn claim(&self) -> &Claim {
        match self {
            Self::Freed(claim) | Self::Adopted(claim) | Self::Moved(claim) => claim,
        }
    }

    /// In a word, for a log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Freed(_) => "freed",
            Self::Adopted(_) => "adopted",
            Self::Moved(_) => "moved",
        }
    }
}
