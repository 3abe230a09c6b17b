//! Small worlds: what is there at first, and the programs that begin at the same time.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kvm_sriov::opennebula;
use kvm_sriov::os;
use kvm_sriov::xml::VmData;
use kvm_sriov::{ActionError, DomainId, DomainName, Host, SnapshotName, actions};

use kvm_sriov_model::Guest;

use super::arena::{Arena, Way};
use super::scheduler::Choice;
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
    /// The VM runs on host1, and the second VM on the last host.
    Both,
    /// The VM runs on host1, where a claim of the second VM is left, which has ended.
    Litter,
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
    /// `migrate` to the host before; from host1 to the last one.
    Back,
    /// `migrate` of the second VM to the host before.
    Meet,
    /// `cancel`.
    Cancel,
    /// `shutdown`.
    Shutdown,
    /// `attach_nic` of a third NIC with a VF.
    Attach,
    /// `attach_nic`, `detach_nic` and `attach_nic` of a third NIC with a VF.
    Again,
    /// `save` and `restore`, twice.
    Cycle,
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

const GIVEN: [(&str, Given); 8] = [
    ("nothing", Given::Nothing),
    ("runs", Given::Runs),
    ("paused", Given::Paused),
    ("saved", Given::Saved),
    ("snapshot", Given::Snapshot),
    ("slow", Given::Slow),
    ("both", Given::Both),
    ("litter", Given::Litter),
];

const PROGRAMS: [(&str, Program); 18] = [
    ("deploy", Program::Deploy),
    ("other", Program::Other),
    ("late", Program::Late),
    ("save", Program::Save),
    ("restore", Program::Restore),
    ("migrate", Program::Migrate),
    ("back", Program::Back),
    ("meet", Program::Meet),
    ("cancel", Program::Cancel),
    ("shutdown", Program::Shutdown),
    ("attach", Program::Attach),
    ("again", Program::Again),
    ("cycle", Program::Cycle),
    ("detach", Program::Detach),
    ("take", Program::Snapshot),
    ("revert", Program::Revert),
    ("reset", Program::Reset),
    ("probe", Program::Probe),
];

/// A world, written as `runs:migrate1+probe2`: what is there, and each program with the number of its host. A number of
/// VFs for each root may follow: `/1`. There are two hosts, and three where a program is on the third.
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
            Ok((program, host.checked_sub(1).filter(|host| *host < MOST_HOSTS).ok_or_else(|| wrong(text))?))
        };
        let programs = programs.split('+').map(program).collect::<Result<_, String>>()?;
        Ok(Self { given, programs, vfs: vfs.parse().map_err(|_| wrong(vfs))? })
    }
}

/// The most hosts of a world.
pub(super) const MOST_HOSTS: usize = 3;

fn id(vm: &Vm) -> DomainId {
    vm.uuid().parse().unwrap()
}

fn checkpoint(arena: &Arena) -> PathBuf {
    arena.hosts[0].vm_dir(&vm()).join("checkpoint")
}

fn text(result: Result<(), ActionError>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

/// The VM moves to a host.
fn migrate(arena: &Arc<Arena>, from: usize, to: usize, vm: &Vm) -> Result<(), String> {
    let route = actions::Route { from: Some(arena.name(from)), to: arena.name(to) };
    text(actions::migrate(&arena.host(from), &id(vm), &route, None, &Way::from(arena, from)))
}

fn deploy(arena: &Arena, host: usize, vm: &Vm) -> Result<(), String> {
    let there = &arena.hosts[host];
    text(actions::deploy(&arena.host(host), &there.deployment_file(vm), &there.deployment(vm)).map(drop))
}

fn save(arena: &Arena, host: usize) -> Result<(), String> {
    text(actions::save(&arena.host(host), &id(&vm()), &checkpoint(arena), None))
}

fn restore(arena: &Arena, host: usize) -> Result<(), String> {
    let file = checkpoint(arena);
    text(actions::restore(&arena.host(host), &file, opennebula::vm_of_checkpoint(&file).as_ref()))
}

/// The VM with a third NIC.
fn third() -> Vm {
    vm().nic("sriov_ib0")
}

fn attach(there: &Host) -> Result<(), String> {
    let vm = third();
    let (arguments, data) = (vm.nic_arguments(2, vm.bridge(2)), said(&vm, 2));
    text(actions::attach_nic(there, &id(&vm), &arguments.described(Some(&data)), Some(&data)))
}

fn detach(there: &Host, vm: &Vm, number: usize) -> Result<(), String> {
    text(actions::detach_nic(there, &id(vm), vm.mac(number).parse().unwrap(), Some(&said(vm, number))))
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
        let (there, vm, hosts) = (arena.host(host), vm(), arena.hosts.len());
        let (next, before) = ((host + 1) % hosts, (host + hosts - 1) % hosts);
        match self {
            Self::Deploy => deploy(arena, host, &vm),
            Self::Other => deploy(arena, host, &other()),
            Self::Late => {
                os::sleep(NOTICED);
                deploy(arena, host, &other())
            }
            Self::Save => save(arena, host),
            Self::Restore => restore(arena, host),
            Self::Cycle => {
                let once = || save(arena, host).and_then(|()| restore(arena, host));
                once().and_then(|()| once())
            }
            Self::Migrate => migrate(arena, host, next, &vm),
            Self::Back => migrate(arena, host, before, &vm),
            Self::Meet => migrate(arena, host, before, &other()),
            Self::Cancel => text(actions::cancel(&there, &id(&vm), Some(&DomainName::of_vm(42)))),
            Self::Shutdown => text(actions::shutdown(&there, &id(&vm), true)),
            Self::Attach => attach(&there),
            Self::Again => {
                attach(&there)?;
                detach(&there, &third(), 2)?;
                attach(&there)
            }
            Self::Detach => detach(&there, &vm, 1),
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
            Self::Both => deploy(arena, arena.hosts.len() - 1, &other()).unwrap(),
            Self::Slow => arena.hosts[0].model().set_guest("one-42", Guest::Answers(LATE)),
            Self::Litter => {
                deploy(arena, 0, &other()).unwrap();
                arena.hosts[0].model().end_domain("one-43");
            }
            Self::Nothing | Self::Runs => {}
        }
    }
}

impl World {
    /// How many hosts it has.
    pub(super) fn hosts(&self) -> usize {
        self.programs.iter().map(|(_, host)| host + 1).max().unwrap_or(0).max(2)
    }

    /// Whether what is struck is there.
    pub(super) fn has(&self, strike: Choice) -> bool {
        !matches!(strike, Choice::Restart(host) | Choice::PowerOff(host) if host >= self.hosts())
    }

    /// What is wrong with the fate of the VMs when everything has settled.
    ///
    /// * `ended` - whether a host lost its power, which may end a VM
    pub(super) fn fate(&self, arena: &Arena, ended: bool) -> Result<(), String> {
        let places = |vm: &Vm| -> Vec<(usize, bool)> {
            let of_host = |host: usize| arena.hosts[host].model().places().into_iter().map(move |found| (host, found));
            let all = (0..arena.hosts.len()).flat_map(of_host);
            all.filter(|(_, (domain, _))| domain.as_str() == vm.name()).map(|(host, (_, runs))| (host, runs)).collect()
        };
        if self.given == Given::Both && !matches!(places(&other())[..], [(_, true)]) && !ended {
            return Err(format!("the second VM does not run in one place: {:?}", places(&other())));
        }
        let places = places(&vm());
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
