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
use super::world::World;

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
        self.plans(world, 0, kinds);
    }

    /// Every plan with at most this many switches from a program that could go on to another task that can.
    pub fn switches(&self, world: &World, most: usize) {
        self.plans(world, most, &[]);
    }

    /// Every plan with at most this many switches and at most one choice of these kinds, in every order.
    pub fn plans(&self, world: &World, switches: usize, kinds: &[Choice]) {
        let kinds: Vec<Choice> = kinds.iter().copied().filter(|kind| world.has(*kind)).collect();
        self.side_by_side(self.longer(world, &Plan::default(), switches, &kinds), |(plan, switches, kinds)| {
            self.deeper(world, &plan, switches, kinds);
        });
    }

    fn deeper(&self, world: &World, plan: &Plan, switches: usize, kinds: &[Choice]) {
        if self.is_over() {
            return;
        }
        if switches == 0 && kinds.is_empty() {
            self.run(world, Box::new(ByPlan(plan.clone())));
            return;
        }
        for (plan, switches, kinds) in self.longer(world, plan, switches, kinds) {
            self.deeper(world, &plan, switches, kinds);
        }
    }

    /// Runs a plan, and returns all with one more choice after its last one, each with what may be added to it.
    fn longer<'a>(
        &self,
        world: &World,
        plan: &Plan,
        switches: usize,
        kinds: &'a [Choice],
    ) -> Vec<(Plan, usize, &'a [Choice])> {
        let mut all = Vec::new();
        for moment in self.recorded(world, plan.clone()).iter().filter(|moment| moment.process.is_some()) {
            let with = |choice| {
                let mut longer = plan.clone();
                longer.0.insert(moment.number, choice);
                longer
            };
            all.extend(kinds.iter().map(|kind| (with(*kind), switches, &[][..])));
            if let Some(fewer) = switches.checked_sub(1) {
                all.extend(moment.ready.iter().map(|task| (with(Choice::Run(*task)), fewer, kinds)));
            }
        }
        all
    }

    /// Runs a plan, and returns the moments after its last choice, with who else could go on.
    fn recorded(&self, world: &World, plan: Plan) -> Vec<Moment> {
        let moments = Rc::new(RefCell::new(Vec::new()));
        self.run(world, Box::new(Recorder { plan, moments: Rc::clone(&moments) }));
        moments.take()
    }

    /// Looks for the first failure: random plans in all worlds, every switch in them, every strike in the small ones,
    /// and then more random plans.
    pub fn hunt(&self, small: &[World], all: &[World], strikes: &[Choice]) {
        self.seeds(all, 0..1000);
        all.iter().for_each(|world| self.switches(world, 1));
        small.iter().for_each(|world| self.strikes(world, strikes));
        self.seeds(all, 1000..20_000);
    }

    /// Random plans, one for each seed.
    pub fn seeds(&self, worlds: &[World], seeds: std::ops::Range<u64>) {
        self.side_by_side(seeds.collect(), |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let world = &worlds[random.usize(..worlds.len())];
            self.run(world, Box::new(Random::new(random, world.hosts())));
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
    /// At how many of 1000 moments another task goes on.
    switches: u32,
    /// What is struck, and how many moments of programs it waits for.
    strikes: Vec<(u32, Choice)>,
    programs: u32,
}

impl Random {
    fn new(mut random: fastrand::Rng, hosts: usize) -> Self {
        let switches = [0, 10, 50, 200][random.usize(..4)];
        let number = [0, 1, 1, 2, 3][random.usize(..5)];
        let strikes = (0..number).map(|_| {
            let host = random.usize(..hosts);
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
        Self { random, switches, strikes, programs: 0 }
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
