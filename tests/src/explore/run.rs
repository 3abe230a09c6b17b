//! One run of a world: under a plan, or under somebody who chooses.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvm_sriov::os::{self, Step};
use kvm_sriov::reconcile::{Elsewhere, Options, Repair, reconcile, resolve};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::host::ModelHost;

use super::arena::{Arena, OnHosts};
use super::scheduler::{Choice, Chooser, Moment, Plan, Scheduler, Strike, Surroundings, set_here};
use super::world::{World, vm};

/// How often each host is probed before everything must have settled.
const PROBES: usize = 4;

/// The time between two probes of OpenNebula's monitoring.
const BETWEEN: Duration = Duration::from_secs(30);

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was wrong; `None` when nothing was.
    pub wrong: Option<String>,
    /// The choices that were made, by which the run can be repeated.
    pub made: Plan,
    /// How many moments there were.
    pub moments: u32,
    /// The steps that were come to.
    pub seen: BTreeSet<Step>,
    /// What was in doubt when everything had settled.
    pub doubts: Vec<String>,
    /// What the programs returned.
    pub outcomes: Vec<String>,
    /// A line for each moment, if they were kept.
    pub trace: Vec<String>,
}

/// Makes the choices of a plan.
pub struct ByPlan(pub Plan);

impl Chooser for ByPlan {
    fn looks(&mut self, _: u32) -> bool {
        false
    }

    fn choose(&mut self, moment: &Moment) -> Option<Choice> {
        self.0.0.get(&moment.number).copied()
    }
}

struct Hosts<'a>(&'a Arena);

impl Stage for Hosts<'_> {
    fn hosts(&self) -> Vec<&ModelHost> {
        self.0.hosts.iter().collect()
    }
}

/// Runs a world.
pub fn run(world: &World, chooser: Box<dyn Chooser>, keep_trace: bool) -> Outcome {
    let arena = Arena::new(world.hosts(), world.vfs);
    let scheduler = Scheduler::new(world.hosts());
    if keep_trace {
        scheduler.keep_trace();
    }
    let surroundings: Rc<dyn Surroundings> = Rc::new(OnHosts(Arc::clone(&arena)));
    scheduler.set_surroundings(Some(Rc::clone(&surroundings)));
    set_here(Some(&scheduler));
    Run { world, arena: &arena, scheduler: &scheduler, surroundings: &*surroundings }.whole(chooser);
    scheduler.end_all();
    scheduler.set_surroundings(None);
    set_here(None);
    let take = |texts: &std::sync::Mutex<Vec<String>>| std::mem::take(&mut *texts.lock().unwrap());
    Outcome {
        wrong: scheduler.wrong(),
        made: scheduler.made(),
        moments: scheduler.moments(),
        seen: scheduler.seen(),
        doubts: take(&arena.doubts),
        outcomes: take(&arena.outcomes),
        trace: scheduler.trace(),
    }
}

struct Run<'a> {
    world: &'a World,
    arena: &'a Arc<Arena>,
    scheduler: &'a Scheduler,
    surroundings: &'a dyn Surroundings,
}

impl Run<'_> {
    fn whole(&self, chooser: Box<dyn Chooser>) {
        let (given, arena) = (self.world.given, Arc::clone(self.arena));
        self.one("given", 0, move || given.make(&arena));
        let foreign = self.arena.foreign(&vm());
        self.scheduler.let_choose(Some(chooser));
        for (program, host) in self.world.programs.iter().copied() {
            let arena = Arc::clone(self.arena);
            let work = move || {
                let result = program.run(&arena, host);
                arena.says(program.name(), result);
            };
            self.scheduler.start(&format!("{}{}", program.name(), host + 1), host, Box::new(work));
        }
        self.scheduler.run(|| false);
        self.scheduler.let_choose(None);
        self.nothing_runs();
        self.settle();
        let calls: usize = self.arena.hosts.iter().map(|host| host.faults().calls().len()).sum();
        if calls != self.scheduler.calls() {
            let simulated = self.scheduler.calls();
            self.scheduler.is_wrong(format!("{calls} calls to libvirtd were made, and {simulated} were steps"));
        }
        if foreign != self.arena.foreign(&vm()) {
            self.scheduler.is_wrong(format!("devices of others were {foreign:?}"));
        }
    }

    /// Runs one program to its end, and all that it starts.
    fn one(&self, name: &str, host: usize, work: impl FnOnce() + Send + 'static) {
        self.scheduler.start(name, host, Box::new(work));
        self.scheduler.run(|| false);
        self.nothing_runs();
    }

    /// A process that can't go on, and waits for nothing, never ends.
    fn nothing_runs(&self) {
        let running = self.scheduler.running();
        if !running.is_empty() && self.scheduler.wrong().is_none() {
            self.scheduler.is_wrong(format!("these never end: {}", running.join(", ")));
        }
    }

    /// Everything works again. Then the probes repair what is left, or say why they can't.
    fn settle(&self) {
        let made = self.scheduler.made();
        for host in &self.arena.hosts {
            if !host.model().is_up() {
                host.model().start_daemon();
            }
        }
        self.surroundings.strike(Strike::Network(true));
        for _ in 0..PROBES {
            let changed = Arc::new(AtomicBool::new(false));
            for host in 0..self.arena.hosts.len() {
                let (arena, changed) = (Arc::clone(self.arena), Arc::clone(&changed));
                self.one("probe", host, move || {
                    if arena.probe(host) {
                        changed.store(true, Ordering::Relaxed);
                    }
                });
            }
            if !changed.load(Ordering::Relaxed) {
                break;
            }
            self.one("pause", 0, || os::sleep(BETWEEN));
        }
        let strikes = made.0.values().any(|choice| !matches!(choice, Choice::Run(_)));
        let ended = made.0.values().any(|choice| matches!(choice, Choice::PowerOff(_)));
        let (arena, world) = (Arc::clone(self.arena), self.world.clone());
        self.one("person", 0, move || {
            for host in 0..arena.hosts.len() {
                decide(&arena, host);
            }
            let doubts = arena.doubts.lock().unwrap().clone();
            assert!(strikes || doubts.is_empty(), "nothing was struck, and there is doubt: {doubts:?}");
        });
        let arena = Arc::clone(self.arena);
        self.one("check", 0, move || {
            let fate = world.fate(&arena, ended);
            assert!(fate.is_ok(), "{}", fate.unwrap_err());
            Hosts(&arena).check();
        });
    }
}

/// A person decides about what is in doubt on a host, from what is true.
fn decide(arena: &Arena, host: usize) {
    let report = reconcile(&arena.host(host), &Options::default()).unwrap();
    for vm in &report.vms {
        let Some(Repair::InDoubt(doubt)) = vm.left.iter().find(|repair| matches!(repair, Repair::InDoubt(_))) else {
            continue;
        };
        let name = vm.owner.vm.clone();
        let runs_elsewhere = (0..arena.hosts.len())
            .filter(|other| *other != host)
            .any(|other| arena.hosts[other].model().places().iter().any(|(domain, runs)| *domain == name && *runs));
        let elsewhere = if runs_elsewhere { Elsewhere::Runs } else { Elsewhere::NeverRan };
        arena.doubts.lock().unwrap().push(format!("{name} on host{}: {doubt:?}", host + 1));
        resolve(&arena.host(host), &name.as_str().parse().unwrap(), elsewhere).unwrap();
    }
}
