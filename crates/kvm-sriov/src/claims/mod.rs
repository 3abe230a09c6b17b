//! Claims: which VM has which VF, in files that outlive a process and that every process of the host shares.
//!
//! `<state>/<root>/<index>` exists exactly while that VF is in use; docs/reference/state.md describes the files. A claim
//! that neither a running domain nor a living process backs is stale, and whoever looks next removes it.
//!
//! * `store` - [`ClaimStore`]: claims are made, released and repaired under one lock, held for milliseconds
//! * `entries` - what lies in the state directory
//! * `lock` - [`VmLock`]: one action at a time for a VM; wishes to end it
//! * `record` - what a file says; `process` - who wrote it; `safe` - files that nobody else can have put there
//! * `shared` - file systems that other hosts may have mounted, too

mod entries;
mod lock;
mod process;
mod record;
mod safe;
mod shared;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

pub use entries::Entry;
pub(crate) use lock::this_is_program;
pub use lock::{Holder, VmLock};
pub use process::Process;
pub use store::ClaimStore;

use crate::base::{DomainName, MacAddress, NicKey, Owner, PciAddress, Position, RootName, WantedVf};
use crate::config::{AlsoListed, NoVfs, VfMap};
use crate::sysfs::{NoVf, Sysfs};

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
pub struct Request<'a> {
    /// Who asks.
    pub owner: &'a Owner,
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
pub enum Repair {
    /// A claim without a domain or a living process is gone.
    Freed(Claim),
    /// A VF that a domain has without a claim got one.
    Adopted(Claim),
    /// A file has the place of its VF in a map that was changed.
    Moved(Claim),
}

impl Repair {
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

/// A failure around claims. Whatever the call had written is gone again, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The state directory, or one in it, could be somebody else's trap.
    #[error("{} {what}; {advice}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        advice: String,
    },
    /// The state directory is on a file system that other hosts may have mounted, too: they would free each other's claims.
    #[error(
        "{} is on {kind}, which other hosts may share, and hosts must not free each other's VFs: set VF_STATE_DIR in kvmrc to a directory of this host alone, such as /var/lib/kvm-sriov", path.display()
    )]
    Shared {
        /// The directory.
        path: PathBuf,
        /// The file system.
        kind: String,
    },
    /// A file in the place of a claim says something else.
    #[error("{} can't be read as a claim ({why}): its VF counts as used; look at it, then remove it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// In the place of a claim is one that another host made.
    #[error(
        "{} is a claim of {vm} on another host (machine-id {host}): give each host a state directory of its own (VF_STATE_DIR in kvmrc), then remove the file", path.display()
    )]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// Whose claim it is.
        vm: DomainName,
        /// The other host.
        host: String,
    },
    /// A file can't be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// "read", "write" ...
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another action of the VM runs, and did not end in time.
    #[error("{vm} is busy: {holder}")]
    Busy {
        /// The VM.
        vm: DomainName,
        /// Who holds its lock.
        holder: Holder,
    },
    /// The claims' lock was not free in time, although nobody should hold it for long.
    #[error("the lock {} is held by another process for {seconds} s", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// There is no free VF.
    #[error("no free VF on {root} for {vm}: {}", Spent { total: *total, users, no_vfs })]
    Exhausted {
        /// The root.
        root: RootName,
        /// Who asked.
        vm: DomainName,
        /// How many VFs its map has.
        total: usize,
        /// How many of them each has.
        users: BTreeMap<String, usize>,
        /// What else its map lists.
        no_vfs: Vec<(PciAddress, NoVf)>,
    },
    /// The request names a root without its map.
    #[error("the request for a VF of {root} came without its map")]
    NoMap {
        /// The root.
        root: RootName,
    },
}

/// Why a map has nothing to give.
struct Spent<'a> {
    total: usize,
    users: &'a BTreeMap<String, usize>,
    no_vfs: &'a [(PciAddress, NoVf)],
}

impl fmt::Display for Spent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total == 0 {
            return write!(f, "its map lists no VF of this host: {}", NoVfs(self.no_vfs));
        }
        let users: Vec<String> = self.users.iter().map(|(user, count)| format!("{user}: {count}")).collect();
        write!(f, "all {} in use ({}){}", self.total, users.join(", "), AlsoListed(self.no_vfs))
    }
}

impl ClaimError {
    /// For `map_err`: a failure to `verb` the file at `path`.
    fn file(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }
}
