//! Searches: every plan of a kind, random plans, and the small plan behind a large one that fails.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic;
use std::rc::Rc;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use kvm_sriov::os::Step;

use super::run::{ByPlan, Outcome, run};
use super::scheduler::{Choice, Chooser, Moment, Plan};
use super::world::{HOSTS, World};

/// How many runs go on at once.
const AT_ONCE: usize = 2;

/// A run that failed, and how it is repeated.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The world.
    pub world: World,
    /// The smallest plan that was found to fail.
    pub plan: Plan,
    /// What is wrong.
    pub wrong: String,
    /// How many runs had been made, and how long that took, in seconds.
    pub found_after: (u64, f64),
}

impl Failure {
    /// The line that repeats the run.
    pub fn line(&self) -> String {
        format!("cargo run -p kvm-sriov-tests --bin explore -- replay {} {}", self.world, self.plan)
    }
}

/// What a search has found.
#[derive(Debug, Default)]
pub struct Found {
    /// How many runs were made.
    pub runs: u64,
    /// How many moments they had in all.
    pub moments: u64,
    /// The steps that were come to.
    pub seen: BTreeSet<Step>,
    /// How often something was in doubt at the end, by reason.
    pub doubts: BTreeMap<String, u64>,
    /// The runs that failed, each with another text.
    pub failures: Vec<Failure>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} runs, {} moments, {} kinds of steps", self.runs, self.moments, self.seen.len())?;
        for (doubt, times) in &self.doubts {
            write!(f, "\nin doubt {times} times: {doubt}")?;
        }
        for failure in &self.failures {
            let ((runs, seconds), wrong) = (failure.found_after, failure.wrong.replace('\n', "\n  "));
            write!(f, "\nFAILED after {runs} runs, {seconds:.1} s: {wrong}\n  {}", failure.line())?;
        }
        Ok(())
    }
}

/// The runs that a search makes.
pub struct Search {
    begin: Instant,
    found: Mutex<Found>,
    /// The search ends after this many failures.
    most: usize,
}

impl Search {
    /// A search that ends after this many failures.
    pub fn new(most: usize) -> Self {
        // A panic is a failure of the run, and is told with the plan.
        panic::set_hook(Box::new(|_| {}));
        Self { begin: Instant::now(), found: Mutex::default(), most }
    }

    /// What was found.
    pub fn found(self) -> Found {
        drop(panic::take_hook());
        self.found.into_inner().unwrap()
    }

    fn is_over(&self) -> bool {
        self.found.lock().unwrap().failures.len() >= self.most
    }

    /// Makes a run, and keeps what came of it.
    fn run(&self, world: &World, chooser: Box<dyn Chooser>) -> Outcome {
        let outcome = run(world, chooser, false);
        let mut found = self.found.lock().unwrap();
        found.runs += 1;
        found.moments += u64::from(outcome.moments);
        found.seen.extend(outcome.seen.iter().copied());
        for doubt in &outcome.doubts {
            *found.doubts.entry(doubt.clone()).or_default() += 1;
        }
        let (runs, known) = (found.runs, &found.failures);
        let Some(wrong) = outcome.wrong.clone() else { return outcome };
        if known.iter().any(|failure| kind(&failure.wrong) == kind(&wrong)) {
            return outcome;
        }
        drop(found);
        let found_after = (runs, self.begin.elapsed().as_secs_f64());
        let plan = shrink(world, outcome.made.clone(), &wrong);
        let failure = Failure { world: world.clone(), plan, wrong, found_after };
        self.found.lock().unwrap().failures.push(failure);
        outcome
    }

    /// Every plan with one choice of these kinds: at each moment of a program.
    pub fn strikes(&self, world: &World, kinds: &[Choice]) {
        let moments = self.recorded(world, Plan::default());
        let at_programs = moments.iter().filter(|moment| moment.process.is_some());
        let plans = at_programs.flat_map(|moment| kinds.iter().map(|kind| Plan([(moment.number, *kind)].into())));
        self.side_by_side(plans.collect(), |plan| drop(self.run(world, Box::new(ByPlan(plan)))));
    }

    /// Every plan with at most this many switches from a program that could go on to another task that can.
    pub fn switches(&self, world: &World, most: usize) {
        let first = alternatives(&self.recorded(world, Plan::default()), &Plan::default());
        self.side_by_side(first, |plan| self.deeper(world, plan, most - 1));
    }

    fn deeper(&self, world: &World, plan: Plan, more: usize) {
        if self.is_over() {
            return;
        }
        if more == 0 {
            self.run(world, Box::new(ByPlan(plan)));
            return;
        }
        let moments = self.recorded(world, plan.clone());
        for next in alternatives(&moments, &plan) {
            self.deeper(world, next, more - 1);
        }
    }

    /// Runs a plan, and returns the moments after its last choice, with who else could go on.
    fn recorded(&self, world: &World, plan: Plan) -> Vec<Moment> {
        let moments = Rc::new(RefCell::new(Vec::new()));
        self.run(world, Box::new(Recorder { plan, moments: Rc::clone(&moments) }));
        moments.take()
    }

    /// Looks for the first failure: every strike, every switch, and then random plans without an end.
    pub fn hunt(&self, worlds: &[World], strikes: &[Choice]) {
        self.seeds(worlds, 0..1000);
        for world in worlds {
            self.strikes(world, strikes);
            self.switches(world, 1);
        }
        self.seeds(worlds, 1000..20_000);
    }

    /// Random plans, one for each seed.
    pub fn seeds(&self, worlds: &[World], seeds: std::ops::Range<u64>) {
        self.side_by_side(seeds.collect(), |seed| {
            let random = Random::new(seed);
            let world = &worlds[random.world % worlds.len()];
            self.run(world, Box::new(random));
        });
    }

    /// Does work for each of these, several at once, until the search is over.
    fn side_by_side<T: Send>(&self, all: Vec<T>, work: impl Fn(T) + Sync) {
        let all = Mutex::new(all.into_iter());
        let next = || all.lock().unwrap().next().filter(|_| !self.is_over());
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| std::iter::from_fn(next).for_each(&work));
            }
        });
    }
}

/// What failures of one kind have in common: the text without numbers.
fn kind(wrong: &str) -> String {
    wrong.chars().filter(|c| !c.is_ascii_digit()).take(80).collect()
}

/// The plans with one more switch than this one, after its last choice.
fn alternatives(moments: &[Moment], plan: &Plan) -> Vec<Plan> {
    let mut all = Vec::new();
    for moment in moments.iter().filter(|moment| moment.process.is_some()) {
        for task in &moment.ready {
            let mut longer = plan.clone();
            longer.0.insert(moment.number, Choice::Run(*task));
            all.push(longer);
        }
    }
    all
}

/// Leaves out choices as long as the run fails in the same way.
fn shrink(world: &World, mut plan: Plan, wrong: &str) -> Plan {
    loop {
        let moments: Vec<u32> = plan.0.keys().rev().copied().collect();
        let shorter = moments.into_iter().find_map(|moment| {
            let mut less = plan.clone();
            less.0.remove(&moment);
            let outcome = run(world, Box::new(ByPlan(less)), false);
            outcome.wrong.filter(|other| kind(other) == kind(wrong)).map(|_| outcome.made)
        });
        match shorter {
            Some(shorter) if shorter.0.len() < plan.0.len() => plan = shorter,
            _ => return plan,
        }
    }
}

/// Follows a plan, and notes the moments after its last choice.
struct Recorder {
    plan: Plan,
    moments: Rc<RefCell<Vec<Moment>>>,
}

impl Recorder {
    fn is_after(&self, number: u32) -> bool {
        self.plan.0.keys().next_back().is_none_or(|last| number > *last)
    }
}

impl Chooser for Recorder {
    fn looks(&mut self, number: u32) -> bool {
        self.is_after(number)
    }

    fn choose(&mut self, moment: &Moment) -> Option<Choice> {
        if self.is_after(moment.number) {
            self.moments.borrow_mut().push(moment.clone());
        }
        self.plan.0.get(&moment.number).copied()
    }
}

/// Switches, and strikes, at random.
struct Random {
    random: fastrand::Rng,
    world: usize,
    /// At how many of 1000 moments another task goes on.
    switches: u32,
    /// What is struck, and how many moments of programs it waits for.
    strikes: Vec<(u32, Choice)>,
    programs: u32,
}

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let world = random.usize(..);
        let switches = [0, 10, 50, 200][random.usize(..4)];
        let number = [0, 1, 1, 2, 3][random.usize(..5)];
        let strikes = (0..number).map(|_| {
            let host = random.usize(..HOSTS);
            let what = match random.u8(..10) {
                0..4 => Choice::Kill,
                4 => Choice::Stall([5, 40, 70, 200][random.usize(..4)]),
                5 | 6 => Choice::Cut([20, 70, 400][random.usize(..3)]),
                7 | 8 => Choice::Restart(host),
                _ => Choice::PowerOff(host),
            };
            (random.u32(1..120), what)
        });
        let strikes = strikes.collect();
        Self { random, world, switches, strikes, programs: 0 }
    }
}

impl Chooser for Random {
    fn looks(&mut self, _: u32) -> bool {
        self.random.u32(..1000) < self.switches
    }

    fn choose(&mut self, moment: &Moment) -> Option<Choice> {
        if moment.process.is_some() {
            self.programs += 1;
            let due = |(at, _): &(u32, Choice)| *at == self.programs;
            if let Some((_, strike)) = self.strikes.iter().find(|strike| due(strike)) {
                return Some(*strike);
            }
        }
        if moment.ready.is_empty() || (moment.at.is_none() && self.switches == 0) {
            return None;
        }
        Some(Choice::Run(moment.ready[self.random.usize(..moment.ready.len())]))
    }
}
