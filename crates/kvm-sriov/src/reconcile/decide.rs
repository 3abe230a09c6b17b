//! The rules: which repairs a VM needs, from the facts about it. docs/reference/reconcile.md has them as tables.

use std::fmt;

use super::facts::{Busy, CheckpointState, Elsewhere, Facts, NicClaim, NicFacts, OpenOperation, SaveImage};
use crate::base::{PciAddress, Position};
use crate::error::{Doubt, Obstacle};
use crate::libvirt::{JobKind, RunState};

/// One repair of a VM, or the reason why the VM is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// Nothing is changed.
    Leave(Obstacle),
    /// Nothing is changed until a person says on which host the VM lives.
    InDoubt(Doubt),
    /// The save that libvirt still runs is aborted. Then the facts are collected again.
    AbortSave,
    /// The VF at this position is unplugged and its claim released.
    Unplug(Position),
    /// The dummy at this position is unplugged.
    UnplugDummy(Position),
    /// The claim of a VF that no NIC uses is released.
    Release(PciAddress),
    /// The VF that the NIC at this position has is claimed for it.
    Claim(Position),
    /// The NIC at this position gets a VF: the one that is claimed for it, or a free one.
    Plug(Position),
    /// The NIC at this position gets its dummy.
    PlugDummy(Position),
    /// The checkpoint is renamed to `<checkpoint>.used`, so that nothing restores it again.
    Spend,
    /// The CPUs are started.
    Resume,
    /// The metadata say that only these positions are still pending.
    KeepPending(Vec<Position>),
    /// The operation is closed, and the metadata say that these positions are pending: the guest may have been asked to
    /// release their VFs.
    NotePending(Vec<Position>),
    /// The operation is closed.
    Close,
    /// The used checkpoint is removed.
    RemoveUsed,
    /// The image of an unfinished save is removed.
    RemoveImage,
    /// The VM is started, paused, from the image of an unfinished save. Then the facts are collected again.
    RestoreImage,
    /// The domain is destroyed.
    Destroy,
    /// All claims of the VM are released.
    ReleaseAll,
}

/// The repairs that a VM needs, in the order in which they are done.
///
/// Decides from the facts alone: reads and changes nothing.
///
/// ```
/// use kvm_sriov::libvirt::RunState;
/// use kvm_sriov::reconcile::{Busy, NicClaim, Doubt, Elsewhere, Facts, NicFacts, SaveImage, OpenOperation, Repair,
/// decide}; let position = kvm_sriov::Position::new(0)?;
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
        (Busy::Nobody, _, None) => without_domain(facts),
        (Busy::Nobody, _, Some(RunState::Ending)) => vec![Repair::Leave(Obstacle::Ending)],
        (Busy::Nobody, OpenOperation::Newer, _) => vec![Repair::Leave(Obstacle::Newer)],
        (Busy::Nobody, _, Some(state)) => with_domain(facts, state),
    }
}

/// The repairs of a VM that claims VFs and has no domain here.
fn without_domain(facts: &Facts) -> Vec<Repair> {
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

/// The repairs of a VM whose domain is here and not ending.
fn with_domain(facts: &Facts, state: RunState) -> Vec<Repair> {
    // A guest that suspended itself (PmSuspended) is not among them: it ran here, and only its own user wakes it.
    let is_paused = matches!(state, RunState::PausedByUser | RunState::PausedForMigration | RunState::PausedOtherwise);
    let image = || (facts.image != SaveImage::None).then_some(Repair::RemoveImage).into_iter();
    let nics = || of_nics(facts, state).into_iter().chain(image());
    let resume = is_paused.then_some(Repair::Resume);
    let end = || vec![Repair::Destroy].into_iter().chain(image()).chain([Repair::ReleaseAll]).collect();
    // CPUs that are paused here may run on the other host. The VM is not resumed or destroyed before that is known.
    let known = |doubt| match facts.elsewhere {
        Elsewhere::Unknown => vec![Repair::InDoubt(doubt)],
        Elsewhere::Runs => end(),
        Elsewhere::NeverRan => nics().chain(resume.clone()).chain([closing(facts)]).collect(),
    };
    match (&facts.operation, is_paused) {
        (OpenOperation::None | OpenOperation::Newer, _) => nics().collect(),
        (OpenOperation::Save, _) | (OpenOperation::Restore(CheckpointState::Missing), false) => {
            nics().chain([closing(facts)]).collect()
        }
        (OpenOperation::PendingUnplug(positions), _) => nics().chain(pending(facts, positions)).collect(),
        (OpenOperation::Restore(CheckpointState::Untouched), true) => end(),
        // Somebody started the CPUs by hand: the checkpoint must not be restored again.
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
        // Its user had paused it before the migration.
        (OpenOperation::Migrate { was_paused: true }, _) if facts.elsewhere == Elsewhere::NeverRan => {
            nics().chain([closing(facts)]).collect()
        }
        // The CPUs come first: the guest waits for them, and its VFs can be plugged while it runs.
        (OpenOperation::Migrate { .. }, _) if facts.elsewhere == Elsewhere::NeverRan => {
            resume.into_iter().chain(nics()).chain([closing(facts)]).collect()
        }
        (OpenOperation::Migrate { .. }, _) => known(Doubt::Migration),
    }
}

/// The wanted positions that have a VF.
fn plugged(facts: &Facts) -> impl Iterator<Item = Position> {
    facts.nics.iter().filter(|nic| nic.wanted && nic.device).map(|nic| nic.position)
}

/// How an interrupted operation is closed. A save and a migration unplug VFs: nobody knows whether the guest was asked
/// to release those that are still plugged, and such a request can't be withdrawn.
fn closing(facts: &Facts) -> Repair {
    let plugged: Vec<Position> = plugged(facts).collect();
    match facts.operation {
        OpenOperation::Save | OpenOperation::Migrate { was_paused: false } if !plugged.is_empty() => {
            Repair::NotePending(plugged)
        }
        _ => Repair::Close,
    }
}

/// What becomes of the note that these positions are pending: a position stays pending until its VF has left.
fn pending(facts: &Facts, positions: &[Position]) -> Option<Repair> {
    let stays = |position: &&Position| plugged(facts).any(|plugged| plugged == **position);
    let rest: Vec<Position> = positions.iter().filter(stays).copied().collect();
    if rest.is_empty() { Some(Repair::Close) } else { (rest != *positions).then_some(Repair::KeepPending(rest)) }
}

/// The repairs of the NICs. Unplugging comes first, because it makes room. Plugging is in ascending order of position.
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
    /// The repair in one or two words, as docs/reference/reconcile.md has it.
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

    /// Why it is done, for a person. Follows "because".
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Leave(Obstacle::Locked | Obstacle::Job) => "whoever works on the VM now takes care of it",
            Self::Leave(Obstacle::Ending) => "the domain is gone in a moment",
            Self::Leave(Obstacle::Newer) => "only a version that knows the operation can end it",
            Self::Leave(Obstacle::Unreadable) => "the image may be all that is left of the VM",
            Self::Leave(Obstacle::GuestPaused(_)) => "the VM must run for that",
            Self::InDoubt(_) => "a VM must never run on two hosts at once",
            Self::AbortSave => "the process that asked for the save is gone, and OpenNebula believes that the VM runs",
            Self::Unplug(_) | Self::UnplugDummy(_) => {
                "it has one of the driver's aliases: an attach or a detach was interrupted"
            }
            Self::Release(_) => "a claim must belong to a NIC of the VM, or to a VF that the VM has",
            Self::Claim(_) => "libvirt is right about which VF a VM has, and the claims must agree with it",
            Self::Plug(_) => "the VM should have this VF and does not have it",
            Self::PlugDummy(_) => "the guest gets the IP address of its VF through the dummy",
            Self::Spend | Self::RemoveUsed => "the CPUs ran, so the disks are newer than the memory in the checkpoint",
            Self::Resume => "everything that the VM waited for is done, and the process that would resume it is gone",
            Self::KeepPending(_) | Self::NotePending(_) => {
                "a request to release a VF can't be withdrawn; a VF that leaves late is plugged back"
            }
            Self::Close => "no process continues the operation, and nothing of it is left to do",
            Self::RemoveImage => "the VM's memory in it is outdated",
            Self::RestoreImage => "the image holds all of the VM's memory, and OpenNebula believes that the VM runs",
            Self::Destroy => "its CPUs have not run since its checkpoint, or they run on another host",
            Self::ReleaseAll => "the VM has no domain on this host",
        }
    }

    /// Whether it concerns one NIC or its claim alone. If it fails, the other repairs are still done.
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

    /// Whether it changes nothing: [`Repair::Leave`] or [`Repair::InDoubt`].
    pub fn is_note(&self) -> bool {
        matches!(self, Self::Leave(_) | Self::InDoubt(_))
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leave(why) => write!(f, "leave it as it is: {why}"),
            Self::InDoubt(doubt) => write!(f, "in doubt: {doubt}"),
            Self::AbortSave => f.write_str("abort the save, whose process is gone"),
            Self::Unplug(position) => {
                write!(f, "unplug the VF at position {position}, which the VM should not have")
            }
            Self::UnplugDummy(position) => {
                write!(f, "unplug the dummy at position {position}, which the VM should not have")
            }
            Self::Release(vf) => write!(f, "release the claim of VF {vf}, which no NIC of the VM uses"),
            Self::Claim(position) => write!(f, "claim the VF that the NIC at position {position} has"),
            Self::Plug(position) => write!(f, "plug a VF for the NIC at position {position}"),
            Self::PlugDummy(position) => write!(f, "plug the dummy of the NIC at position {position}"),
            Self::Spend => f.write_str("mark the checkpoint as used"),
            Self::Resume => f.write_str("resume the VM"),
            Self::KeepPending(positions) => {
                write!(f, "record which VFs may still leave: position {}", listed(positions))
            }
            Self::NotePending(positions) => {
                write!(f, "close the operation and watch for VFs that may still leave: position {}", listed(positions))
            }
            Self::Close => f.write_str("close the operation"),
            Self::RemoveUsed => f.write_str("remove the used checkpoint"),
            Self::RemoveImage => f.write_str("remove the image of the unfinished save"),
            Self::RestoreImage => f.write_str("start the VM from the image of the unfinished save"),
            Self::Destroy => f.write_str("destroy the domain"),
            Self::ReleaseAll => f.write_str("release all claims of the VM"),
        }
    }
}

fn listed(positions: &[Position]) -> String {
    positions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_says_what_and_why_and_whether_it_concerns_one_nic() {
        let positions: Vec<Position> = [0, 3].iter().map(|number| Position::new(*number).unwrap()).collect();
        let one = positions[1];
        for (repair, says, concerns_one_nic) in [
            (Repair::KeepPending(positions.clone()), "record which VFs may still leave: position 0, 3", false),
            (Repair::Plug(one), "plug a VF for the NIC at position 3", true),
            (Repair::PlugDummy(one), "plug the dummy of the NIC at position 3", true),
            (Repair::Unplug(one), "unplug the VF at position 3, which the VM should not have", true),
            (Repair::Resume, "resume the VM", false),
            (Repair::Leave(Obstacle::Locked), "leave it as it is: ", false),
        ] {
            assert!(repair.to_string().starts_with(says), "{repair}");
            assert!(repair.reason().len() > 10, "{repair}");
            assert_eq!(repair.concerns_one_nic(), concerns_one_nic, "{repair}");
        }
    }
}
