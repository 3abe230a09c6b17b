//! Small worlds: what is there at first, and the programs that begin at the same time.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kvm_sriov::opennebula;
use kvm_sriov::os;
use kvm_sriov::xml::VmData;
use kvm_sriov::{ActionError, DomainId, DomainName, SnapshotName, actions};

use kvm_sriov_model::Guest;

use super::arena::{Arena, Way};
use crate::model_host::OpenNebulaHost;
use crate::vm::Vm;

/// How long a slow guest takes: longer than SRIOV_UNPLUG_TIMEOUT, and less than it and SRIOV_UNPLUG_GRACE.
const LATE: Duration = Duration::from_secs(25);

/// A little longer than a host takes the other one for alive that says nothing.
const NOTICED: Duration = Duration::from_secs(65);

/// The VM that the programs work on: a VF of each root.
pub(super) fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("sriov_ib1")
}

/// A second VM, which wants a VF of the first root.
pub(super) fn other() -> Vm {
    Vm::new(43).nic("sriov_ib0")
}

/// What is there before the programs begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Given {
    /// No VM.
    Nothing,
    /// The VM runs on host1.
    Runs,
    /// The VM runs on host1, paused by its user.
    Paused,
    /// The VM was saved on host1.
    Saved,
    /// The VM runs on host1 and has a snapshot.
    Snapshot,
    /// The VM runs on host1. Its guest releases a VF only after the driver has stopped waiting for it.
    Slow,
}

/// A program that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// `deploy` of the VM.
    Deploy,
    /// `deploy` of the second VM.
    Other,
    /// `deploy` of the second VM, once a host that hears nothing from the other one has noticed it.
    Late,
    /// `save`.
    Save,
    /// `restore`.
    Restore,
    /// `migrate` to the next host.
    Migrate,
    /// `cancel`.
    Cancel,
    /// `shutdown`.
    Shutdown,
    /// `attach_nic` of a third NIC with a VF.
    Attach,
    /// `detach_nic` of the second NIC.
    Detach,
    /// `snapshot_create`.
    Snapshot,
    /// `snapshot_revert`.
    Revert,
    /// `reset`.
    Reset,
    /// The monitoring probe.
    Probe,
}

const GIVEN: [(&str, Given); 6] = [
    ("nothing", Given::Nothing),
    ("runs", Given::Runs),
    ("paused", Given::Paused),
    ("saved", Given::Saved),
    ("snapshot", Given::Snapshot),
    ("slow", Given::Slow),
];

const PROGRAMS: [(&str, Program); 14] = [
    ("deploy", Program::Deploy),
    ("other", Program::Other),
    ("late", Program::Late),
    ("save", Program::Save),
    ("restore", Program::Restore),
    ("migrate", Program::Migrate),
    ("cancel", Program::Cancel),
    ("shutdown", Program::Shutdown),
    ("attach", Program::Attach),
    ("detach", Program::Detach),
    ("take", Program::Snapshot),
    ("revert", Program::Revert),
    ("reset", Program::Reset),
    ("probe", Program::Probe),
];

/// A world, written as `runs:migrate1+probe2`: what is there, and each program with the number of its host. A number of
/// VFs for each root may follow: `/1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct World {
    /// What is there at first.
    pub given: Given,
    /// The programs, each with its host.
    pub programs: Vec<(Program, usize)>,
    /// How many VFs each root of each host has.
    pub vfs: usize,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |wanted: Given| GIVEN.iter().find(|(_, given)| *given == wanted).map_or("?", |(name, _)| *name);
        let program = |(wanted, host): &(Program, usize)| {
            let name = PROGRAMS.iter().find(|(_, program)| program == wanted).map_or("?", |(name, _)| *name);
            format!("{name}{}", host + 1)
        };
        let programs: Vec<String> = self.programs.iter().map(program).collect();
        write!(f, "{}:{}/{}", name(self.given), programs.join("+"), self.vfs)
    }
}

impl FromStr for World {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("\"{what}\" in the world \"{text}\"");
        let (rest, vfs) = text.split_once('/').unwrap_or((text, "2"));
        let (given, programs) = rest.split_once(':').ok_or_else(|| wrong(rest))?;
        let given = GIVEN.iter().find(|(name, _)| *name == given).ok_or_else(|| wrong(given))?.1;
        let program = |text: &str| {
            let (name, host) = text.split_at_checked(text.len() - 1).ok_or_else(|| wrong(text))?;
            let program = PROGRAMS.iter().find(|(known, _)| *known == name).ok_or_else(|| wrong(name))?.1;
            let host: usize = host.parse().map_err(|_| wrong(host))?;
            Ok((program, host.checked_sub(1).filter(|host| *host < HOSTS).ok_or_else(|| wrong(text))?))
        };
        let programs = programs.split('+').map(program).collect::<Result<_, String>>()?;
        Ok(Self { given, programs, vfs: vfs.parse().map_err(|_| wrong(vfs))? })
    }
}

/// The hosts of every world.
pub(super) const HOSTS: usize = 2;

fn id(vm: &Vm) -> DomainId {
    vm.uuid().parse().unwrap()
}

fn checkpoint(arena: &Arena) -> PathBuf {
    arena.hosts[0].vm_dir(&vm()).join("checkpoint")
}

fn text(result: Result<(), ActionError>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

fn deploy(arena: &Arena, host: usize, vm: &Vm) -> Result<(), String> {
    let there = &arena.hosts[host];
    text(actions::deploy(&arena.host(host), &there.deployment_file(vm), &there.deployment(vm)).map(drop))
}

fn save(arena: &Arena, host: usize) -> Result<(), String> {
    text(actions::save(&arena.host(host), &id(&vm()), &checkpoint(arena), None))
}

/// OpenNebula's description of a VM whose NIC with this number is attached or detached.
fn said(vm: &Vm, number: usize) -> VmData {
    VmData::parse(&vm.action_data("host1").attach(number).xml()).unwrap()
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        PROGRAMS.iter().find(|(_, program)| *program == self).map_or("?", |(name, _)| name)
    }

    /// Whether the VM may be gone afterwards.
    pub(super) fn ends_the_vm(self) -> bool {
        matches!(self, Self::Cancel | Self::Shutdown)
    }

    /// Runs it on a host.
    pub(super) fn run(self, arena: &Arc<Arena>, host: usize) -> Result<(), String> {
        let (there, vm) = (arena.host(host), vm());
        match self {
            Self::Deploy => deploy(arena, host, &vm),
            Self::Other => deploy(arena, host, &other()),
            Self::Late => {
                os::sleep(NOTICED);
                deploy(arena, host, &other())
            }
            Self::Save => save(arena, host),
            Self::Restore => {
                let file = checkpoint(arena);
                text(actions::restore(&there, &file, opennebula::vm_of_checkpoint(&file).as_ref()))
            }
            Self::Migrate => {
                let to = arena.name((host + 1) % HOSTS);
                let route = actions::Route { from: Some(arena.name(host)), to };
                text(actions::migrate(&there, &id(&vm), &route, None, &Way::from(arena, host)))
            }
            Self::Cancel => text(actions::cancel(&there, &id(&vm), Some(&DomainName::of_vm(42)))),
            Self::Shutdown => text(actions::shutdown(&there, &id(&vm), true)),
            Self::Attach => {
                let vm = vm.nic("sriov_ib0");
                let (arguments, data) = (vm.nic_arguments(2, vm.bridge(2)), said(&vm, 2));
                text(actions::attach_nic(&there, &id(&vm), &arguments.described(Some(&data)), Some(&data)))
            }
            Self::Detach => {
                let mac = vm.mac(1).parse().unwrap();
                text(actions::detach_nic(&there, &id(&vm), mac, Some(&said(&vm, 1))))
            }
            Self::Snapshot => text(actions::snapshot_create(&there, &id(&vm), 1, None).map(drop)),
            Self::Revert => text(actions::snapshot_revert(&there, &id(&vm), &SnapshotName::of(0), None)),
            Self::Reset => text(actions::reset(&there, &id(&vm))),
            Self::Probe => {
                arena.probe(host);
                Ok(())
            }
        }
    }
}

impl Given {
    /// Makes it so.
    pub(super) fn make(self, arena: &Arc<Arena>) {
        for vm in [vm(), other()] {
            std::fs::create_dir_all(arena.hosts[0].vm_dir(&vm)).unwrap();
        }
        if self == Self::Nothing {
            return;
        }
        deploy(arena, 0, &vm()).unwrap();
        match self {
            Self::Paused => arena.hosts[0].model().pause("one-42"),
            Self::Saved => save(arena, 0).unwrap(),
            Self::Snapshot => {
                actions::snapshot_create(&arena.host(0), &id(&vm()), 0, None).unwrap();
            }
            Self::Slow => arena.hosts[0].model().set_guest("one-42", Guest::Answers(LATE)),
            Self::Nothing | Self::Runs => {}
        }
    }
}

impl World {
    /// What is wrong with the fate of the VM when everything has settled.
    ///
    /// * `ended` - whether a host lost its power, which may end the VM
    pub(super) fn fate(&self, arena: &Arena, ended: bool) -> Result<(), String> {
        let name = vm().name();
        let places: Vec<(usize, bool)> = (0..HOSTS)
            .flat_map(|host| {
                let domains = arena.hosts[host].model().places();
                domains.into_iter().filter(|(domain, _)| domain.as_str() == name).map(move |(_, runs)| (host, runs))
            })
            .collect();
        let is_saved = arena.hosts[0].model().is_newest(&checkpoint(arena)).unwrap_or(false);
        match places[..] {
            [] if is_saved => Ok(()),
            [] if ended || self.programs.iter().any(|(program, _)| program.ends_the_vm()) => Ok(()),
            [] if self.given == Given::Nothing => Ok(()),
            [] => Err("the VM is lost: it runs nowhere, and no checkpoint has its newest memory".into()),
            [_] if is_saved => Err("the VM runs, and a checkpoint has its newest memory".into()),
            [(_, true)] => Ok(()),
            [(_, false)] if self.given == Given::Paused => Ok(()),
            [(host, false)] => Err(format!("the VM is on host{}, and its CPUs stand", host + 1)),
            _ => Err(format!("the VM is in several places: {places:?}")),
        }
    }
}
