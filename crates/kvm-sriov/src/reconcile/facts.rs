//! What is known of a VM, as far as a repair depends on it.

use std::fmt;
use std::io;
use std::path::Path;

use crate::base::ascending;
use crate::base::{PciAddress, Position};
use crate::claims::Claimant;
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::{DomainRef, JobKind, RunState};
use crate::vm::checkpoint::{self, Image};
use crate::xml::{LiveDomain, Mode, OperationKind, Wanted, WantedNic, alias_of, dummy_alias_of};

/// What is known of a VM: what it wants, what it has, what it claims, and the operation that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who works on it.
    pub busy: Busy,
    /// How its domain runs on this host; `None` when none does.
    pub domain: Option<RunState>,
    /// The operation that was begun and not ended.
    pub operation: Open,
    /// One for each position that is wanted, or that a device with our alias has.
    pub nics: Vec<Nic>,
    /// VFs that it claims and that belong to none of its NICs.
    pub spare: Vec<PciAddress>,
    /// The file that its claims name, unless it is the checkpoint of a restore that is open.
    pub image: Noted,
    /// What is known of the domain on another host.
    pub elsewhere: Elsewhere,
}

/// Who works on a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Busy {
    /// Nobody.
    Nobody,
    /// An action: it holds the VM's lock.
    Locked,
    /// libvirt.
    Job(JobKind),
}

/// The operation that was begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Open {
    /// None.
    Nothing,
    /// The domain was going into a file.
    Save,
    /// The domain came from a file.
    Restore(Checkpoint),
    /// The domain was moving. It looks the same at both ends.
    Migrate {
        /// Whether its CPUs stood when the move began.
        stands: bool,
    },
    /// The guest was asked to release the VFs at these positions, and did not do so in time.
    PendingUnplug(Vec<Position>),
    /// One of a later version.
    Newer,
}

/// Where the file is that a domain came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checkpoint {
    /// Under its own name: no CPU has run.
    Untouched,
    /// Under its own name, and it is what a save had not yet finished: OpenNebula believes that the VM runs.
    Unfinished,
    /// Under the name `<checkpoint>.used`: a CPU may have run.
    Used,
    /// Under neither name.
    Nowhere,
}

/// A position among the SR-IOV NICs of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nic {
    /// Which one.
    pub position: Position,
    /// Whether the VM should have a VF there.
    pub wanted: bool,
    /// Whether it has one.
    pub device: bool,
    /// Whether the VF of that device, or of that NIC, is claimed.
    pub claim: Claimed,
    /// Whether it has the dummy interface; true as well for a NIC that needs none.
    pub dummy: bool,
}

/// Who claims a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claimed {
    /// Nobody, or nobody says for which NIC.
    Nobody,
    /// The VM.
    Own,
    /// The VM claims another VF for this NIC than the one it has.
    Other,
    /// Another VM, and nobody works on that one.
    Theirs,
}

/// What a VM's claims say of the file that it was being saved into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Noted {
    /// They name none.
    Nothing,
    /// It is not there (any more): it got its final name, or was never made.
    Missing,
    /// Not all of it is written.
    Incomplete,
    /// All of it is written.
    Complete,
    /// All of it is written, and the host was booted since: OpenNebula may have started the VM elsewhere.
    BeforeBoot,
    /// All of it is written, but another domain of the VM's name runs here by now.
    Outlived,
    /// It can't be read.
    Unreadable,
}

/// What is known of a domain on another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Elsewhere {
    /// Nothing.
    #[default]
    Unknown,
    /// Its CPUs run there.
    Runs,
    /// Its CPUs have never run there.
    Never,
}

impl Facts {
    /// How the domain stands, in a word or two.
    pub fn standing(&self) -> &'static str {
        match self.domain {
            None => "not here",
            Some(RunState::Running) => "running",
            Some(RunState::PausedByUser) => "paused by user",
            Some(RunState::PausedForMigration) => "paused for migration",
            Some(RunState::PausedOtherwise) => "paused",
            Some(RunState::PmSuspended) => "suspended by itself",
            Some(RunState::Ending) => "ending",
        }
    }

    /// What is known of a domain without asking libvirt anything: as if its CPUs ran and libvirt worked on nothing.
    pub(super) fn of_domain(
        domain: &DomainRef,
        live: &LiveDomain,
        wanted: &Wanted,
        claimants: &[Claimant],
        elsewhere: Elsewhere,
    ) -> Self {
        let owner = domain.owner();
        let own = claimants.iter().find(|claimant| claimant.owner.is(&owner));
        let is_checkpoint = |path: &&Path| {
            let operation = wanted.operation.as_ref().map(|operation| &operation.kind);
            matches!(operation, Some(OperationKind::Restore { checkpoint }) if checkpoint == path)
        };
        let image = own.and_then(|claimant| claimant.image.as_deref()).filter(|path| !is_checkpoint(path));
        Self {
            busy: Busy::Nobody,
            domain: Some(RunState::Running),
            operation: Open::of(wanted),
            nics: nics(live, wanted, own, claimants),
            spare: spare(live, wanted, own),
            image: image.map_or(Noted::Nothing, |path| Noted::at(path, true)),
            elsewhere,
        }
    }

    /// Adds what libvirt says of how the domain runs.
    pub(super) fn ask(mut self, host: &Host, domain: &DomainRef) -> Result<Self, Cause> {
        self.domain = host.hypervisor().state(domain)?;
        if let Some(job) = host.hypervisor().job(domain)? {
            self.busy = Busy::Job(job.kind);
        }
        Ok(self)
    }

    /// What is known of a VM that claims VFs and has no domain here.
    ///
    /// * `outlived` - whether another domain of its name runs here
    pub(super) fn of_claimant(claimant: &Claimant, outlived: bool, elsewhere: Elsewhere) -> Self {
        let image = match claimant.image.as_deref().map(|path| Noted::at(path, claimant.this_boot)) {
            None => Noted::Nothing,
            Some(Noted::Complete | Noted::BeforeBoot) if outlived => Noted::Outlived,
            Some(noted) => noted,
        };
        Self {
            busy: if claimant.held { Busy::Locked } else { Busy::Nobody },
            domain: None,
            operation: Open::Nothing,
            nics: Vec::new(),
            spare: claimant.claims.iter().map(|claim| claim.vf).collect(),
            image,
            elsewhere,
        }
    }
}

impl Open {
    fn of(wanted: &Wanted) -> Self {
        match wanted.operation.as_ref().map(|operation| &operation.kind) {
            None => Self::Nothing,
            Some(OperationKind::Save) => Self::Save,
            Some(OperationKind::Restore { checkpoint }) => Self::Restore(Checkpoint::at(checkpoint)),
            Some(OperationKind::Migrate { stands, .. }) => Self::Migrate { stands: *stands },
            Some(OperationKind::PendingUnplug { positions }) => Self::PendingUnplug(positions.clone()),
            Some(OperationKind::Other(_)) => Self::Newer,
        }
    }
}

/// The operation's name, as the metadata have it; `-` for none.
impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "-",
            Self::Save => "save",
            Self::Restore(_) => "restore",
            Self::Migrate { .. } => "migrate",
            Self::PendingUnplug(_) => "pending-unplug",
            Self::Newer => "of a later version",
        })
    }
}

impl Checkpoint {
    fn at(path: &Path) -> Self {
        let image = Image::at(path);
        if image.is_spent() {
            Self::Used
        } else if !path.exists() {
            Self::Nowhere
        } else if Image::of_unfinished(path).is_some() {
            Self::Unfinished
        } else {
            Self::Untouched
        }
    }
}

impl Noted {
    fn at(path: &Path, this_boot: bool) -> Self {
        // A path that no save of ours has written is none of ours to look at.
        if Image::of_unfinished(path).is_none() {
            return Self::Unreadable;
        }
        match checkpoint::is_complete(path) {
            Ok(false) => Self::Incomplete,
            Ok(true) if this_boot => Self::Complete,
            Ok(true) => Self::BeforeBoot,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Missing,
            Err(_) => Self::Unreadable,
        }
    }
}

/// Every position that is wanted or that a device with our alias has, in ascending order.
fn nics(live: &LiveDomain, wanted: &Wanted, own: Option<&Claimant>, claimants: &[Claimant]) -> Vec<Nic> {
    let positions: Vec<Position> = wanted.nics.iter().map(|nic| nic.position).chain(live.positions()).collect();
    let mut positions = ascending(positions, Position::cmp);
    positions.dedup();
    let described = |position| match wanted.nics.iter().find(|nic| nic.position == position) {
        Some(nic) => wanted_nic(live, nic, own, claimants),
        None => unwanted(live, position, own),
    };
    positions.into_iter().map(described).collect()
}

fn wanted_nic(live: &LiveDomain, nic: &WantedNic, own: Option<&Claimant>, claimants: &[Claimant]) -> Nic {
    let device = live.device_of(nic);
    let mut of_nic = own.into_iter().flat_map(|own| &own.claims).filter(|claim| claim.is_for(&nic.key())).peekable();
    let has_other = of_nic.peek().is_some();
    let claim = match device {
        None if has_other => Claimed::Own,
        None => Claimed::Nobody,
        Some(device) if of_nic.any(|claim| claim.vf == device.vf) => Claimed::Own,
        Some(device) => {
            let is_theirs = |claimant: &&Claimant| own.is_none_or(|own| own.owner != claimant.owner);
            let has_it = |claimant: &&Claimant| claimant.claims.iter().any(|claim| claim.vf == device.vf);
            match claimants.iter().filter(is_theirs).find(has_it) {
                // An action of the other VM that still runs learns from libvirt that it can't have the VF.
                Some(user) if user.held => Claimed::Own,
                Some(_) => Claimed::Theirs,
                None if has_other => Claimed::Other,
                None => Claimed::Nobody,
            }
        }
    };
    let dummy = nic.mode != Mode::Hostdev || live.dummy_of(nic).is_some();
    Nic { position: nic.position, wanted: true, device: device.is_some(), claim, dummy }
}

fn unwanted(live: &LiveDomain, position: Position, own: Option<&Claimant>) -> Nic {
    let alias = alias_of(position);
    let device = live.hostdevs.iter().find(|device| device.alias.as_deref() == Some(alias.as_str()));
    let mut claims = own.into_iter().flat_map(|own| &own.claims);
    let is_own = device.is_some_and(|device| claims.any(|claim| claim.vf == device.vf));
    Nic {
        position,
        wanted: false,
        device: device.is_some(),
        claim: if is_own { Claimed::Own } else { Claimed::Nobody },
        dummy: live.shows(&dummy_alias_of(position)),
    }
}

/// What the VM claims although no NIC of it is to have it and no device of it shows it.
fn spare(live: &LiveDomain, wanted: &Wanted, own: Option<&Claimant>) -> Vec<PciAddress> {
    let claims = own.into_iter().flat_map(|claimant| &claimant.claims);
    claims
        .filter(|claim| !live.vfs().any(|vf| vf == claim.vf))
        .filter(|claim| !wanted.nics.iter().any(|nic| claim.is_for(&nic.key())))
        .map(|claim| claim.vf)
        .collect()
}
