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
use crate::vm::checkpoint::{self, Checkpoint};
use crate::xml::{LiveDomain, OperationKind, Wanted, WantedNic, dummy_alias_of};

/// What is known of a VM: the NICs it wants, the devices it has, the VFs it claims, and its open operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who works on the VM.
    pub busy: Busy,
    /// The run state of its domain on this host; `None` when no domain of the VM is active here.
    pub domain: Option<RunState>,
    /// The operation that was begun and not closed.
    pub operation: OpenOperation,
    /// One entry for each position that the VM wants, or that a device with our alias has; in ascending order.
    pub nics: Vec<NicFacts>,
    /// VFs that the VM claims and that belong to none of its NICs.
    pub spare: Vec<PciAddress>,
    /// The file that the VM's claims name, unless it is the checkpoint of an open restore.
    pub image: SaveImage,
    /// What is known of the VM's domain on another host.
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
    /// libvirt runs a job on the domain.
    Job(JobKind),
}

/// The operation that was begun and not closed, as the domain's metadata name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenOperation {
    /// No operation is open.
    None,
    /// The domain was being saved to a file.
    Save,
    /// The domain was being restored from a file.
    Restore(CheckpointState),
    /// The domain was being migrated. Its metadata are the same on both hosts.
    Migrate {
        /// Whether its CPUs were paused when the migration began.
        was_paused: bool,
    },
    /// The guest was asked to release the VFs at these positions, and did not do so in time.
    PendingUnplug(Vec<Position>),
    /// An operation that a newer version of this crate began and this version does not know.
    Newer,
}

/// What is left of the file that a domain was restored from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckpointState {
    /// The file has its own name: no CPU has run.
    Untouched,
    /// The file has the name that a save writes to. The save was cut off, so OpenNebula believes that the VM runs.
    Unfinished,
    /// The file was renamed to `<checkpoint>.used`: a CPU may have run.
    Used,
    /// The file has neither name.
    Missing,
}

/// What is known of one position among the SR-IOV NICs of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NicFacts {
    /// The position.
    pub position: Position,
    /// Whether the VM wants a VF at this position.
    pub wanted: bool,
    /// Whether the domain has a VF at this position.
    pub device: bool,
    /// Who claims the VF of that device. Without a device: whether the VM claims a VF for this NIC.
    pub claim: NicClaim,
    /// Whether the domain has the dummy interface. Also true for a NIC that needs none.
    pub dummy: bool,
}

/// Who claims the VF of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NicClaim {
    /// No claim names the VF, or the claim does not say for which NIC.
    None,
    /// The VM, for this NIC.
    Own,
    /// The VM claims another VF for this NIC than the one that the domain has.
    OtherVf,
    /// Another VM, and no action works on that VM.
    OtherVm,
}

/// The state of the file that a save was writing, as the VM's claims name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SaveImage {
    /// The claims name no file.
    None,
    /// The file does not exist: the save renamed it to its final name, or never created it.
    Missing,
    /// The file is only partly written.
    Incomplete,
    /// The file is complete.
    Complete,
    /// The file is complete, and the host was booted since: OpenNebula may have started the VM on another host.
    BeforeBoot,
    /// The file is complete, but another domain with the VM's name runs here now.
    Outlived,
    /// The file can't be read, or its name is not one that a save writes to.
    Unreadable,
}

/// What is known of a VM's domain on another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Elsewhere {
    /// Nothing is known.
    #[default]
    Unknown,
    /// The domain's CPUs run there.
    Runs,
    /// The domain's CPUs have never run there.
    NeverRan,
}

impl Facts {
    /// The state of the domain in a few words, for a person.
    pub fn domain_state(&self) -> &'static str {
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

    /// What the live XML and the claims tell of a domain. Does not call libvirt: the facts say that the domain runs
    /// and that libvirt runs no job on it.
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
            operation: OpenOperation::of(wanted),
            nics: nics(live, wanted, own, claimants),
            spare: spare(live, wanted, own),
            image: image.map_or(SaveImage::None, |path| SaveImage::at(path, true)),
            elsewhere,
        }
    }

    /// Adds the domain's run state and job, which libvirt is asked for.
    pub(super) fn ask(mut self, host: &Host, domain: &DomainRef) -> Result<Self, Cause> {
        self.domain = host.hypervisor().state(domain)?;
        if let Some(job) = host.hypervisor().job(domain)? {
            self.busy = Busy::Job(job.kind);
        }
        Ok(self)
    }

    /// What is known of a VM that claims VFs and has no domain here.
    ///
    /// * `outlived` - whether another domain with the VM's name runs here
    pub(super) fn of_claimant(claimant: &Claimant, outlived: bool, elsewhere: Elsewhere) -> Self {
        let image = match claimant.image.as_deref().map(|path| SaveImage::at(path, claimant.this_boot)) {
            None => SaveImage::None,
            Some(SaveImage::Complete | SaveImage::BeforeBoot) if outlived => SaveImage::Outlived,
            Some(image) => image,
        };
        Self {
            busy: if claimant.held { Busy::Locked } else { Busy::Nobody },
            domain: None,
            operation: OpenOperation::None,
            nics: Vec::new(),
            spare: claimant.claims.iter().map(|claim| claim.vf).collect(),
            image,
            elsewhere,
        }
    }
}

impl OpenOperation {
    fn of(wanted: &Wanted) -> Self {
        match wanted.operation.as_ref().map(|operation| &operation.kind) {
            None => Self::None,
            Some(OperationKind::Save) => Self::Save,
            Some(OperationKind::Restore { checkpoint }) => Self::Restore(CheckpointState::at(checkpoint)),
            Some(OperationKind::Migrate { was_paused, .. }) => Self::Migrate { was_paused: *was_paused },
            Some(OperationKind::PendingUnplug { positions }) => Self::PendingUnplug(positions.clone()),
            Some(OperationKind::Other(_)) => Self::Newer,
        }
    }
}

/// The operation's name, as the metadata have it; `-` for none.
impl fmt::Display for OpenOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "-",
            Self::Save => "save",
            Self::Restore(_) => "restore",
            Self::Migrate { .. } => "migrate",
            Self::PendingUnplug(_) => "pending-unplug",
            Self::Newer => "of a later version",
        })
    }
}

impl CheckpointState {
    fn at(path: &Path) -> Self {
        let image = Checkpoint::at(path);
        if image.is_spent() {
            Self::Used
        } else if !path.exists() {
            Self::Missing
        } else if Checkpoint::of_unfinished(path).is_some() {
            Self::Unfinished
        } else {
            Self::Untouched
        }
    }
}

impl SaveImage {
    fn at(path: &Path, this_boot: bool) -> Self {
        // Our saves write only to names of this form. Any other file is not ours, so it is not opened.
        if Checkpoint::of_unfinished(path).is_none() {
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

/// One entry for each position that the VM wants or that a device with our alias has, in ascending order.
fn nics(live: &LiveDomain, wanted: &Wanted, own: Option<&Claimant>, claimants: &[Claimant]) -> Vec<NicFacts> {
    let positions: Vec<Position> = wanted.nics.iter().map(|nic| nic.position).chain(live.positions()).collect();
    let mut positions = ascending(positions, Position::cmp);
    positions.dedup();
    let described = |position| match wanted.nics.iter().find(|nic| nic.position == position) {
        Some(nic) => wanted_nic(live, nic, own, claimants),
        None => unwanted(live, position, own),
    };
    positions.into_iter().map(described).collect()
}

fn wanted_nic(live: &LiveDomain, nic: &WantedNic, own: Option<&Claimant>, claimants: &[Claimant]) -> NicFacts {
    let device = live.device_of(nic);
    let mut of_nic = own.into_iter().flat_map(|own| &own.claims).filter(|claim| claim.is_for(&nic.key())).peekable();
    let has_other = of_nic.peek().is_some();
    let claim = match device {
        None if has_other => NicClaim::Own,
        None => NicClaim::None,
        Some(device) if of_nic.any(|claim| claim.vf == device.vf) => NicClaim::Own,
        Some(device) => {
            let is_theirs = |claimant: &&Claimant| own.is_none_or(|own| own.owner != claimant.owner);
            let has_it = |claimant: &&Claimant| claimant.claims.iter().any(|claim| claim.vf == device.vf);
            match claimants.iter().filter(is_theirs).find(has_it) {
                // The other VM's action is still running. libvirt will refuse it this VF.
                Some(user) if user.held => NicClaim::Own,
                Some(_) => NicClaim::OtherVm,
                None if has_other => NicClaim::OtherVf,
                None => NicClaim::None,
            }
        }
    };
    let dummy = !nic.has_dummy() || live.dummy_of(nic).is_some();
    NicFacts { position: nic.position, wanted: true, device: device.is_some(), claim, dummy }
}

fn unwanted(live: &LiveDomain, position: Position, own: Option<&Claimant>) -> NicFacts {
    let device = live.device_at(position);
    let mut claims = own.into_iter().flat_map(|own| &own.claims);
    let is_own = device.is_some_and(|device| claims.any(|claim| claim.vf == device.vf));
    NicFacts {
        position,
        wanted: false,
        device: device.is_some(),
        claim: if is_own { NicClaim::Own } else { NicClaim::None },
        dummy: live.has_alias(&dummy_alias_of(position)),
    }
}

/// The VFs that the VM claims for no wanted NIC, and that no device of the domain has.
fn spare(live: &LiveDomain, wanted: &Wanted, own: Option<&Claimant>) -> Vec<PciAddress> {
    let claims = own.into_iter().flat_map(|claimant| &claimant.claims);
    claims
        .filter(|claim| !live.vfs().any(|vf| vf == claim.vf))
        .filter(|claim| !wanted.nics.iter().any(|nic| claim.is_for(&nic.key())))
        .map(|claim| claim.vf)
        .collect()
}
