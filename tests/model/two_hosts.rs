//! The rules of reconciliation over every state of two hosts: a VM never runs in two places, no memory is lost, and
//! every VM that is not in doubt reaches a final state.
//!
//! [`decide`] is a pure function, so its whole state space can be walked. A world is what is true on two hosts. From
//! each world each host may do the first repair that it decides on, with everything that it may truthfully have been
//! told of the other host; it may be killed after any repair, so each world on the way is a world that the other host,
//! or the next reconciliation, finds. What a host may be told comes from the other host, from an agent, or from a
//! person.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{HashSet, VecDeque};

use kvm_sriov::libvirt::RunState;
use kvm_sriov::reconcile::{
    Busy, CheckpointState, Elsewhere, Facts, NicClaim, NicFacts, OpenOperation, Repair, SaveImage, decide,
};
use kvm_sriov::{Obstacle, Position};

const RUN_STATES: [Option<RunState>; 7] = [
    None,
    Some(RunState::Running),
    Some(RunState::PausedByUser),
    Some(RunState::PausedForMigration),
    Some(RunState::PausedOtherwise),
    Some(RunState::PmSuspended),
    Some(RunState::Ending),
];

const IMAGES: [SaveImage; 7] = [
    SaveImage::None,
    SaveImage::Missing,
    SaveImage::Incomplete,
    SaveImage::Complete,
    SaveImage::BeforeBoot,
    SaveImage::Outlived,
    SaveImage::Unreadable,
];

fn position() -> Position {
    Position::new(0).unwrap()
}

/// Every operation that can be open.
fn operations() -> Vec<OpenOperation> {
    let mut all = vec![
        OpenOperation::None,
        OpenOperation::Save,
        OpenOperation::PendingUnplug(vec![position()]),
        OpenOperation::Newer,
        OpenOperation::Migrate { was_paused: false },
        OpenOperation::Migrate { was_paused: true },
    ];
    let checkpoints =
        [CheckpointState::Untouched, CheckpointState::Unfinished, CheckpointState::Used, CheckpointState::Missing];
    all.extend(checkpoints.map(OpenOperation::Restore));
    all
}

/// Every NIC: wanted or not, with and without its device, its dummy, and a claim.
fn nics() -> Vec<NicFacts> {
    let mut all = Vec::new();
    for bits in 0..8 {
        let [wanted, device, dummy] = [1, 2, 4].map(|bit| bits & bit != 0);
        for claim in [NicClaim::None, NicClaim::Own, NicClaim::OtherVf, NicClaim::OtherVm] {
            all.push(NicFacts { position: position(), wanted, device, claim, dummy });
        }
    }
    all
}

/// What is true of the VM on one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Side {
    domain: Option<RunState>,
    operation: OpenOperation,
    nic: Option<NicFacts>,
    image: SaveImage,
}

impl Side {
    fn empty() -> Self {
        Self { domain: None, operation: OpenOperation::None, nic: None, image: SaveImage::None }
    }

    /// Whether the VM's CPUs run here, or its guest suspended itself here.
    fn runs(&self) -> bool {
        matches!(self.domain, Some(RunState::Running | RunState::PmSuspended))
    }

    /// Whether the VM lives here: it runs, or it is paused and no operation is open, so its user paused it.
    fn lives(&self) -> bool {
        self.runs() || (self.domain.is_some() && self.operation == OpenOperation::None)
    }

    fn facts(&self, elsewhere: Elsewhere) -> Facts {
        Facts {
            busy: Busy::Nobody,
            domain: self.domain,
            operation: self.operation.clone(),
            nics: self.nic.into_iter().collect(),
            spare: Vec::new(),
            image: self.image,
            elsewhere,
        }
    }

    /// What a repair makes of it.
    fn after(&self, repair: &Repair) -> Self {
        let mut side = self.clone();
        let mut nic = |change: fn(&mut NicFacts)| side.nic.iter_mut().for_each(change);
        match repair {
            Repair::Plug(_) => nic(|nic| (nic.device, nic.claim) = (true, NicClaim::Own)),
            Repair::Unplug(_) => nic(|nic| (nic.device, nic.claim) = (false, NicClaim::None)),
            Repair::PlugDummy(_) => nic(|nic| nic.dummy = true),
            Repair::UnplugDummy(_) => nic(|nic| nic.dummy = false),
            Repair::Claim(_) => nic(|nic| nic.claim = NicClaim::Own),
            Repair::Resume => side.domain = Some(RunState::Running),
            Repair::Close => side.operation = OpenOperation::None,
            Repair::NotePending(positions) | Repair::KeepPending(positions) => {
                side.operation = OpenOperation::PendingUnplug(positions.clone());
            }
            Repair::Spend => side.operation = OpenOperation::Restore(CheckpointState::Used),
            Repair::RemoveUsed => side.operation = OpenOperation::Restore(CheckpointState::Missing),
            Repair::RemoveImage => side.image = SaveImage::None,
            Repair::RestoreImage => {
                side.domain = Some(RunState::PausedOtherwise);
                side.operation = OpenOperation::Restore(CheckpointState::Unfinished);
                side.image = SaveImage::None;
                side.nic = Some(NicFacts {
                    position: position(),
                    wanted: true,
                    device: false,
                    claim: NicClaim::Own,
                    dummy: true,
                });
            }
            Repair::Destroy => (side.domain, side.operation, side.nic) = (None, OpenOperation::None, None),
            Repair::ReleaseAll => (side.nic, side.image) = (None, SaveImage::None),
            other => panic!("{other:?} changes nothing, or is for a VM that somebody works on"),
        }
        side
    }
}

/// What is true of a VM on both hosts. The source of a move is the first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    sides: [Side; 2],
    /// Whether its CPUs have run on the second host since the move began.
    ran_there: bool,
}

impl World {
    /// What one host may truthfully be told of the other.
    fn told(&self, here: usize) -> Vec<Elsewhere> {
        let other = &self.sides[1 - here];
        let mut told = vec![Elsewhere::Unknown];
        if other.lives() {
            told.push(Elsewhere::Runs);
        }
        // At the destination it also means that the domain is gone from its source.
        let never_ran = if here == 0 { !self.ran_there && !other.lives() } else { other.domain.is_none() };
        if never_ran {
            told.push(Elsewhere::NeverRan);
        }
        told
    }

    /// The repairs of one host, and the worlds after the first of them. A repair that waits for a person does not
    /// count.
    fn steps(&self, here: usize, elsewhere: Elsewhere) -> (Vec<Repair>, Option<World>) {
        let repairs: Vec<Repair> = decide(&self.sides[here].facts(elsewhere));
        let first = repairs.iter().find(|repair| !repair.is_note());
        let next = first.map(|repair| self.after(here, repair));
        (repairs, next)
    }

    fn after(&self, here: usize, repair: &Repair) -> World {
        let side = &self.sides[here];
        let mut world = self.clone();
        world.sides[here] = side.after(repair);
        world.ran_there |= here == 1 && *repair == Repair::Resume;
        let other = &self.sides[1 - here];
        let untouched = side.operation == OpenOperation::Restore(CheckpointState::Untouched);
        match repair {
            Repair::Destroy => {
                assert!(!side.runs(), "a VM that runs is destroyed: {self:?}");
                assert!(other.lives() || untouched, "the only memory is destroyed: {self:?}");
            }
            Repair::Resume => assert!(!untouched, "a checkpoint can be used twice: {self:?}"),
            Repair::RemoveImage => {
                let is_old = side.domain.is_some() || other.lives();
                let is_worthless =
                    matches!(side.image, SaveImage::Incomplete | SaveImage::Outlived | SaveImage::Missing);
                assert!(is_old || is_worthless, "the only memory is removed: {self:?}");
            }
            _ => {}
        }
        world
    }

    fn check(&self) {
        assert!(!(self.sides[0].runs() && self.sides[1].runs()), "it runs in two places: {self:?}");
    }
}

/// A VM on one host, in every state; the other host knows nothing of it.
fn on_one_host() -> Vec<World> {
    let mut worlds = Vec::new();
    for domain in RUN_STATES {
        for operation in
            operations().into_iter().filter(|operation| domain.is_some() || *operation == OpenOperation::None)
        {
            for image in IMAGES {
                // An image that only a domain's end makes worthless, or that lasted longer than the host, has no
                // domain.
                for nic in nics().into_iter().map(Some).chain([None]) {
                    let side = Side { domain, operation: operation.clone(), nic, image };
                    worlds.push(World { sides: [side, Side::empty()], ran_there: false });
                }
            }
        }
    }
    worlds
}

/// A move that was cut off at any time, with everything that libvirt may have left on both hosts.
fn moves() -> Vec<World> {
    let mut worlds = Vec::new();
    for was_paused in [false, true] {
        let operation = OpenOperation::Migrate { was_paused };
        for (source, destination) in RUN_STATES.iter().flat_map(|source| RUN_STATES.map(|there| (*source, there))) {
            for nic in nics().into_iter().filter(|nic| nic.wanted) {
                let side = |domain: Option<RunState>| match domain {
                    None => Side { nic: Some(NicFacts { device: false, ..nic }), ..Side::empty() },
                    Some(_) => Side { domain, operation: operation.clone(), nic: Some(nic), image: SaveImage::None },
                };
                let sides = [side(source), side(destination)];
                let ran_there = sides[1].runs();
                // What has run at the destination is gone from the source, or paused there for good.
                if !(sides[0].runs() && ran_there) {
                    worlds.push(World { sides, ran_there });
                }
            }
        }
    }
    worlds
}

/// A host that was booted with the image of a save, while the VM may have been started on another one.
fn boots() -> Vec<World> {
    let running = |domain| Side { domain, ..Side::empty() };
    let mut worlds = Vec::new();
    for there in [None, Some(RunState::Running), Some(RunState::PmSuspended)] {
        for image in [SaveImage::BeforeBoot, SaveImage::Incomplete, SaveImage::Missing, SaveImage::Unreadable] {
            let here = Side { image, nic: nics().into_iter().find(|nic| nic.claim == NicClaim::Own), ..Side::empty() };
            worlds.push(World { sides: [here, running(there)], ran_there: there.is_some() });
        }
    }
    worlds
}

/// Every world that can be reached, each checked.
fn reached(from: Vec<World>) -> HashSet<World> {
    let mut seen: HashSet<World> = from.iter().cloned().collect();
    let mut waiting: VecDeque<World> = from.into();
    while let Some(world) = waiting.pop_front() {
        world.check();
        for here in [0, 1] {
            for elsewhere in world.told(here) {
                if let (_, Some(next)) = world.steps(here, elsewhere) {
                    if seen.insert(next.clone()) {
                        waiting.push_back(next);
                    }
                }
            }
        }
    }
    seen
}

/// Lets both hosts repair until nothing changes, each knowing what is true of the other. What ends has ended by then.
fn settle(world: &World) -> World {
    let mut world = world.clone();
    for side in &mut world.sides {
        if side.domain == Some(RunState::Ending) {
            (side.domain, side.operation) = (None, OpenOperation::None);
        }
    }
    for _ in 0..40 {
        let before = world.clone();
        for here in [0, 1] {
            let best = *world.told(here).last().unwrap();
            if let (_, Some(next)) = world.steps(here, best) {
                world = next;
            }
        }
        if world == before {
            return world;
        }
    }
    panic!("it does not come to an end: {world:?}");
}

/// Whether what is left on a host is a reason that the documents name.
fn may_be_left(repair: &Repair) -> bool {
    matches!(repair, Repair::Leave(Obstacle::Newer | Obstacle::Unreadable | Obstacle::GuestPaused(_)))
}

fn walk(from: Vec<World>) -> usize {
    let worlds = reached(from);
    for world in &worlds {
        let end = settle(world);
        for here in [0, 1] {
            let best = *end.told(here).last().unwrap();
            let (left, next) = end.steps(here, best);
            assert!(next.is_none() && left.iter().all(may_be_left), "{left:?} is left of {world:?}: {end:?}");
        }
    }
    worlds.len()
}

#[test]
fn a_vm_on_one_host_settles() {
    let number = walk(on_one_host());
    assert!(number > 12_000, "{number} worlds");
}

#[test]
fn a_move_ends_in_one_place() {
    let number = walk(moves());
    assert!(number > 1_500, "{number} worlds");
}

#[test]
fn a_boot_loses_no_memory() {
    let number = walk(boots());
    assert!(number > 12, "{number} worlds");
}
