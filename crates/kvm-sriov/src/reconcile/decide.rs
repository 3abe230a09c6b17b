//! The rules: which repairs a VM needs, from what is known of it. docs/reference/reconcile.md has them as tables.

use std::fmt;

use super::facts::{Busy, CheckpointState, Elsewhere, Facts, NicClaim, NicFacts, OpenOperation, SaveImage};
use crate::base::{PciAddress, Position};
use crate::error::{Doubt, Obstacle};
use crate::libvirt::{JobKind, RunState};

/// One thing that is done to a VM, or the reason why nothing is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// Nothing is touched.
    Leave(Obstacle),
    /// Nothing is touched until a person says where the VM lives.
    InDoubt(Doubt),
    /// The save that libvirt still works on is aborted; what is true then decides.
    AbortSave,
    /// The device at this position leaves the guest, and its claim is released.
    Unplug(Position),
    /// The dummy interface at this position leaves the guest.
    UnplugDummy(Position),
    /// A claim that belongs to no NIC is released.
    Release(PciAddress),
    /// The VF that the NIC has is claimed for it.
    Claim(Position),
    /// The NIC gets a VF: the one that is claimed for it, or a free one.
    Plug(Position),
    /// The NIC gets its dummy interface.
    PlugDummy(Position),
    /// The checkpoint gets the name that says it must not be used again.
    Spend,
    /// The CPUs run.
    Resume,
    /// Only these positions are pending any more.
    KeepPending(Vec<Position>),
    /// The operation is at its end, but the guest may have been asked to release the VFs at these positions.
    NotePending(Vec<Position>),
    /// The operation is at its end.
    Close,
    /// The checkpoint that was used is removed.
    RemoveUsed,
    /// The image that a save had not finished is removed.
    RemoveImage,
    /// The domain is started from the image that a save had not finished; what is true then decides.
    RestoreImage,
    /// The domain is destroyed.
    Destroy,
    /// Everything that the VM claims is released.
    ReleaseAll,
}

/// The repairs that a VM needs, in the order in which they are done.
///
/// Decides from the facts alone; touches nothing.
///
/// ```
/// use kvm_sriov::libvirt::RunState;
/// use kvm_sriov::reconcile::{Busy, NicClaim, Doubt, Elsewhere, Facts, NicFacts, SaveImage, OpenOperation, Repair, decide};
/// let position = kvm_sriov::Position::new(0)?;
/// let nic = NicFacts { position, wanted: true, device: false, claim: NicClaim::Own, dummy: true };
/// let mut facts = Facts {
///     busy: Busy::Nobody,
///     domain: Some(RunState::Running),
///     operation: OpenOperation::Migrate { was_paused: false },
///     nics: vec![nic],
///     spare: vec![],
///     image: SaveImage::None,
///     elsewhere: Elsewhere::Unknown,
/// };
/// assert_eq!(decide(&facts), [Repair::Plug(position), Repair::Close]);
/// facts.domain = Some(RunState::PausedForMigration);
/// assert_eq!(decide(&facts), [Repair::InDoubt(Doubt::Migration)]);
/// # Ok::<(), kvm_sriov::ParseError>(())
/// ```
pub fn decide(facts: &Facts) -> Vec<Repair> {
    match (facts.busy, &facts.operation, facts.domain) {
        (Busy::Locked, ..) => vec![Repair::Leave(Obstacle::Locked)],
        (Busy::Job(JobKind::Save), OpenOperation::Save, _) => vec![Repair::AbortSave],
        (Busy::Job(_), ..) => vec![Repair::Leave(Obstacle::Job)],
        (Busy::Nobody, _, None) => gone(facts),
        (Busy::Nobody, _, Some(RunState::Ending)) => vec![Repair::Leave(Obstacle::Ending)],
        (Busy::Nobody, OpenOperation::Newer, _) => vec![Repair::Leave(Obstacle::Newer)],
        (Busy::Nobody, _, Some(state)) => here(facts, state),
    }
}

/// A VM that claims VFs and has no domain here.
fn gone(facts: &Facts) -> Vec<Repair> {
    match (facts.image, facts.elsewhere) {
        (SaveImage::None, _) if facts.spare.is_empty() => Vec::new(),
        (SaveImage::None | SaveImage::Missing, _) => vec![Repair::ReleaseAll],
        (SaveImage::Incomplete | SaveImage::Outlived, _) | (SaveImage::BeforeBoot, Elsewhere::Runs) => {
            vec![Repair::RemoveImage, Repair::ReleaseAll]
        }
        (SaveImage::BeforeBoot, Elsewhere::Unknown) => vec![Repair::InDoubt(Doubt::BeforeBoot)],
        (SaveImage::Complete, _) | (SaveImage::BeforeBoot, Elsewhere::NeverRan) => vec![Repair::RestoreImage],
        (SaveImage::Unreadable, _) => vec![Repair::Leave(Obstacle::Unreadable)],
    }
}

/// A VM whose domain is here and not ending.
fn here(facts: &Facts, state: RunState) -> Vec<Repair> {
    // A guest that suspended itself ran here: only its CPUs rest, and only the guest's user wakes them.
    let stands = matches!(state, RunState::PausedByUser | RunState::PausedForMigration | RunState::PausedOtherwise);
    let image = || (facts.image != SaveImage::None).then_some(Repair::RemoveImage).into_iter();
    let nics = || of_nics(facts, state).into_iter().chain(image());
    let resume = stands.then_some(Repair::Resume);
    let end = || vec![Repair::Destroy].into_iter().chain(image()).chain([Repair::ReleaseAll]).collect();
    // CPUs that stand here may run elsewhere: nobody resumes or destroys before both sides are known.
    let known = |doubt| match facts.elsewhere {
        Elsewhere::Unknown => vec![Repair::InDoubt(doubt)],
        Elsewhere::Runs => end(),
        Elsewhere::NeverRan => nics().chain(resume.clone()).chain([closing(facts)]).collect(),
    };
    match (&facts.operation, stands) {
        (OpenOperation::None | OpenOperation::Newer, _) => nics().collect(),
        (OpenOperation::Save, _) | (OpenOperation::Restore(CheckpointState::Missing), false) => {
            nics().chain([closing(facts)]).collect()
        }
        (OpenOperation::PendingUnplug(positions), _) => nics().chain(pending(facts, positions)).collect(),
        (OpenOperation::Restore(CheckpointState::Untouched), true) => end(),
        // Somebody let it run by hand: what it came from must not be used again.
        (OpenOperation::Restore(CheckpointState::Untouched | CheckpointState::Unfinished), false) => {
            [Repair::Spend].into_iter().chain(nics()).chain([Repair::RemoveUsed, Repair::Close]).collect()
        }
        (OpenOperation::Restore(CheckpointState::Unfinished), true) => {
            nics().chain([Repair::Spend, Repair::Resume, Repair::RemoveUsed, Repair::Close]).collect()
        }
        (OpenOperation::Restore(CheckpointState::Used), _) => {
            nics().chain(resume).chain([Repair::RemoveUsed, Repair::Close]).collect()
        }
        (OpenOperation::Restore(CheckpointState::Missing), true) => known(Doubt::NoCheckpoint),
        (OpenOperation::Migrate { .. }, _) if state.runs() => nics().chain([closing(facts)]).collect(),
        // Its user had paused it before.
        (OpenOperation::Migrate { was_paused: true }, _) if facts.elsewhere == Elsewhere::NeverRan => {
            nics().chain([closing(facts)]).collect()
        }
        // At once: its guest stands still, and its VFs can come while it runs.
        (OpenOperation::Migrate { .. }, _) if facts.elsewhere == Elsewhere::NeverRan => {
            resume.into_iter().chain(nics()).chain([closing(facts)]).collect()
        }
        (OpenOperation::Migrate { .. }, _) => known(Doubt::Migration),
    }
}

/// The positions that have the VF that they should have.
fn there(facts: &Facts) -> impl Iterator<Item = Position> {
    facts.nics.iter().filter(|nic| nic.wanted && nic.device).map(|nic| nic.position)
}

/// The end of an operation that was cut off. One that takes VFs out may have asked for those that are there: a request can't
/// be taken back, and nobody knows whether it was made.
fn closing(facts: &Facts) -> Repair {
    let there: Vec<Position> = there(facts).collect();
    match facts.operation {
        OpenOperation::Save | OpenOperation::Migrate { was_paused: false } if !there.is_empty() => {
            Repair::NotePending(there)
        }
        _ => Repair::Close,
    }
}

/// What becomes of the note that these positions are pending: those stay whose VF has not left.
fn pending(facts: &Facts, positions: &[Position]) -> Option<Repair> {
    let stays = |position: &&Position| there(facts).any(|there| there == **position);
    let rest: Vec<Position> = positions.iter().filter(stays).copied().collect();
    if rest.is_empty() { Some(Repair::Close) } else { (rest != *positions).then_some(Repair::KeepPending(rest)) }
}

/// What leaves goes first: it makes room. Plugging is in ascending order of position.
fn of_nics(facts: &Facts, state: RunState) -> Vec<Repair> {
    let unwanted = || facts.nics.iter().filter(|nic| !nic.wanted);
    let wanted = || facts.nics.iter().filter(|nic| nic.wanted);
    let mut repairs: Vec<Repair> = if state.runs() {
        let devices = unwanted().filter(|nic| nic.device).map(|nic| Repair::Unplug(nic.position));
        let dummies = unwanted().filter(|nic| nic.dummy).map(|nic| Repair::UnplugDummy(nic.position));
        devices.chain(dummies).collect()
    } else {
        let stays = unwanted().filter(|nic| nic.device || nic.dummy);
        stays.map(|nic| Repair::Leave(Obstacle::GuestPaused(nic.position))).collect()
    };
    repairs.extend(facts.spare.iter().map(|vf| Repair::Release(*vf)));
    let is_wrong = |nic: &&NicFacts| nic.device && nic.claim != NicClaim::Own;
    repairs.extend(wanted().filter(is_wrong).map(|nic| Repair::Claim(nic.position)));
    repairs.extend(wanted().filter(|nic| !nic.device).map(|nic| Repair::Plug(nic.position)));
    repairs.extend(wanted().filter(|nic| !nic.dummy).map(|nic| Repair::PlugDummy(nic.position)));
    repairs
}

impl Repair {
    /// What it is in one or two words, as in docs/reference/reconcile.md.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Leave(_) => "leave",
            Self::InDoubt(_) => "in doubt",
            Self::AbortSave => "abort save",
            Self::Unplug(_) => "unplug",
            Self::UnplugDummy(_) => "unplug dummy",
            Self::Release(_) => "release",
            Self::Claim(_) => "claim",
            Self::Plug(_) => "plug",
            Self::PlugDummy(_) => "plug dummy",
            Self::Spend => "spend checkpoint",
            Self::Resume => "resume",
            Self::KeepPending(_) => "keep pending",
            Self::NotePending(_) => "note pending",
            Self::Close => "close",
            Self::RemoveUsed => "remove used",
            Self::RemoveImage => "remove image",
            Self::RestoreImage => "restore image",
            Self::Destroy => "destroy",
            Self::ReleaseAll => "release all",
        }
    }

    /// Why it is done, for people.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Leave(_) => "who works on it now looks after it",
            Self::InDoubt(_) => "a VM must never run in two places",
            Self::AbortSave => "the process that asked for it is gone, and OpenNebula believes that the VM runs",
            Self::Unplug(_) | Self::UnplugDummy(_) => {
                "it has an alias of ours: it is left of an attach that did not end, or of a detach"
            }
            Self::Release(_) => "a claim is for a NIC that the VM wants, or for a VF that it has",
            Self::Claim(_) => "libvirt is right: who shows a VF has it",
            Self::Plug(_) => "the VM should have it and has not",
            Self::PlugDummy(_) => "it carries the IP address of the VF into the guest",
            Self::Spend | Self::RemoveUsed => "once its CPUs ran, memory of before must not be used with its disks",
            Self::Resume => "all that it waited for is done, and the process that would let it run is gone",
            Self::KeepPending(_) | Self::NotePending(_) => {
                "a request can't be taken back: what leaves late is plugged back"
            }
            Self::Close => "nobody goes on with the operation, and nothing of it is left to do",
            Self::RemoveImage => "the VM's memory of before is worth nothing any more",
            Self::RestoreImage => "it holds all of the VM's memory, and OpenNebula believes that the VM runs",
            Self::Destroy => "its CPUs have not run from here, or run elsewhere",
            Self::ReleaseAll => "no domain of the VM is on this host",
        }
    }

    /// Whether it is about one NIC or its claim alone: what goes wrong with it keeps nothing else from being put right.
    pub(super) fn concerns_one_nic(&self) -> bool {
        matches!(
            self,
            Self::Unplug(_)
                | Self::UnplugDummy(_)
                | Self::Release(_)
                | Self::Claim(_)
                | Self::Plug(_)
                | Self::PlugDummy(_)
        )
    }

    /// Whether it changes nothing.
    pub fn is_note(&self) -> bool {
        matches!(self, Self::Leave(_) | Self::InDoubt(_))
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leave(why) => write!(f, "leave it: {why}"),
            Self::InDoubt(doubt) => write!(f, "in doubt: {doubt}"),
            Self::AbortSave => f.write_str("abort the save that nobody waits for"),
            Self::Unplug(position) => write!(f, "unplug the VF at position {position}, which is not wanted"),
            Self::UnplugDummy(position) => write!(f, "unplug the dummy at position {position}, which is not wanted"),
            Self::Release(vf) => write!(f, "release VF {vf}, which is claimed for no NIC"),
            Self::Claim(position) => write!(f, "claim the VF that the NIC at position {position} has"),
            Self::Plug(position) => write!(f, "plug a VF for the NIC at position {position}"),
            Self::PlugDummy(position) => write!(f, "plug the dummy of the NIC at position {position}"),
            Self::Spend => f.write_str("mark the checkpoint as used"),
            Self::Resume => f.write_str("let its CPUs run"),
            Self::KeepPending(positions) => {
                write!(f, "note that only position {} is still pending", listed(positions))
            }
            Self::NotePending(positions) => {
                write!(f, "note that the VF at position {} may still leave, and watch for it", listed(positions))
            }
            Self::Close => f.write_str("note that no operation is open"),
            Self::RemoveUsed => f.write_str("remove the checkpoint that was used"),
            Self::RemoveImage => f.write_str("remove the image that was not finished"),
            Self::RestoreImage => f.write_str("start it from the image that was not finished"),
            Self::Destroy => f.write_str("destroy the domain"),
            Self::ReleaseAll => f.write_str("release everything that it claims"),
        }
    }
}

fn listed(positions: &[Position]) -> String {
    positions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
