//! One baton for all programs of all hosts: a task runs until it waits, or until the plan says otherwise at a step.
//!
//! A task is a coroutine, so a run is exactly repeatable: nothing depends on threads or on the real time. A process is
//! killed by dropping its coroutines. Their destructors run then, as the kernel closes files and unlocks locks; none of
//! them reaches a step.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use generator::{Generator, Gn};
use kvm_sriov::os::{Os, Side, Step, simulate, simulated, wait_until};

/// The stack of a task, in words.
const STACK: usize = 0x2_0000;

/// The process numbers of simulated processes begin here, where no real one is.
const FIRST_PID: u32 = 5_000_000;

/// A run with more moments than this does not end.
const MOST_MOMENTS: u32 = 400_000;

/// One run at a time unwinds a coroutine.
static UNWINDS: Mutex<()> = Mutex::new(());

thread_local! {
    static HERE: RefCell<Option<Rc<Scheduler>>> = const { RefCell::new(None) };
}

/// The scheduler of the run on this thread.
pub(super) fn here() -> Rc<Scheduler> {
    HERE.with(|here| Rc::clone(here.borrow().as_ref().unwrap()))
}

/// Puts a run on this thread; `None` ends it.
pub(super) fn set_here(scheduler: Option<&Rc<Scheduler>>) {
    HERE.with(|here| *here.borrow_mut() = scheduler.map(Rc::clone));
    simulate(scheduler.map(|scheduler| Rc::clone(scheduler) as Rc<dyn Os>));
}

/// The number of a task, in the order in which they began.
pub type TaskId = usize;

/// What happens at a moment instead of what would happen by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// This task goes on.
    Run(TaskId),
    /// The process that runs is killed.
    Kill,
    /// The process that runs gets no processor for this many seconds.
    Stall(u16),
    /// The hosts do not reach each other for this many seconds.
    Cut(u16),
    /// libvirtd restarts on the host with this number.
    Restart(usize),
    /// The host with this number loses its power.
    PowerOff(usize),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(task) => write!(f, "run{task}"),
            Self::Kill => f.write_str("kill"),
            Self::Stall(seconds) => write!(f, "stall{seconds}"),
            Self::Cut(seconds) => write!(f, "cut{seconds}"),
            Self::Restart(host) => write!(f, "restart{host}"),
            Self::PowerOff(host) => write!(f, "power{host}"),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no choice");
        let at = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
        let (word, number) = text.split_at(at);
        let number = || number.parse::<u16>().map_err(|_| wrong());
        Ok(match word {
            "run" => Self::Run(number()?.into()),
            "kill" => Self::Kill,
            "stall" => Self::Stall(number()?),
            "cut" => Self::Cut(number()?),
            "restart" => Self::Restart(number()?.into()),
            "power" => Self::PowerOff(number()?.into()),
            _ => return Err(wrong()),
        })
    }
}

/// The choices of a run, by moment: everything that a run needs to be repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plan(pub BTreeMap<u32, Choice>);

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choices: Vec<String> = self.0.iter().map(|(moment, choice)| format!("{moment}:{choice}")).collect();
        f.write_str(if choices.is_empty() { "-" } else { "" })?;
        f.write_str(&choices.join(","))
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let choice = |text: &str| {
            let (moment, choice) = text.split_once(':').ok_or(format!("\"{text}\" has no colon"))?;
            Ok((moment.parse().map_err(|_| format!("\"{moment}\" is no moment"))?, choice.parse()?))
        };
        text.split(',').filter(|word| !matches!(*word, "" | "-")).map(choice).collect::<Result<_, String>>().map(Self)
    }
}

/// A moment at which a choice can be made.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Counts from 1.
    pub number: u32,
    /// The task that has come to a step; `None` when the last task waits or has ended.
    pub at: Option<(TaskId, Step)>,
    /// The process of that task; `None` for the world around.
    pub process: Option<usize>,
    /// The other tasks that can go on. Empty unless the one who chooses asked for them.
    pub ready: Vec<TaskId>,
}

/// Chooses what happens at a moment.
pub trait Chooser {
    /// Whether it wants to know, at a step of a program, who else can go on.
    fn looks(&mut self, number: u32) -> bool;
    /// What happens instead of what would happen by itself.
    fn choose(&mut self, moment: &Moment) -> Option<Choice>;
}

/// What the scheduler asks of the hosts.
pub trait Surroundings {
    /// A host loses its power, its libvirtd restarts, or the network breaks or heals.
    fn strike(&self, what: Strike);
    /// A program of the driver starts on a host. Returns its work; `None` when there is no such program.
    fn program(&self, host: usize, program: &Path, arg: Option<&str>) -> Option<Box<dyn FnOnce() + Send>>;
    /// Checks what must be true at every step.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self, step: Step) -> Result<(), String>;
}

/// What happens to the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// A host has no power.
    PowerOff(usize),
    /// The libvirtd of a host restarts.
    Restart(usize),
    /// The network works, or does not.
    Network(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Ready,
    /// It waits, at most until this time.
    Waits(Option<Instant>),
    Ended,
}

struct Task {
    name: String,
    process: Option<usize>,
    condition: Condition,
    coroutine: Option<Generator<'static, (), ()>>,
}

struct Process {
    name: String,
    host: usize,
    main: TaskId,
    is_alive: bool,
    stalled: Option<Instant>,
}

struct State {
    begin: Instant,
    day: SystemTime,
    passed: Duration,
    tasks: Vec<Task>,
    processes: Vec<Process>,
    boots: Vec<u32>,
    current: Option<TaskId>,
    /// A waiting task only looks whether it can go on.
    is_probing: bool,
    /// How many calls to libvirtd were steps.
    calls: usize,
    /// Nothing is a step: a check reads the hosts, or a coroutine is being dropped.
    is_quiet: bool,
    /// The choice that the current task has just been stopped for.
    chosen: Option<Choice>,
    moments: u32,
    /// Whether choices are made. Until then, and after that, all goes its own way.
    is_open: bool,
    chooser: Option<Box<dyn Chooser>>,
    made: Plan,
    seen: BTreeSet<Step>,
    wrong: Option<String>,
    trace: Option<Vec<String>>,
}

/// The scheduler.
pub struct Scheduler {
    state: RefCell<State>,
    surroundings: RefCell<Option<Rc<dyn Surroundings>>>,
}

impl Scheduler {
    /// A scheduler for this many hosts.
    pub fn new(hosts: usize) -> Rc<Self> {
        let state = State {
            begin: Instant::now(),
            day: SystemTime::now(),
            passed: Duration::ZERO,
            tasks: Vec::new(),
            processes: Vec::new(),
            boots: vec![0; hosts],
            current: None,
            is_probing: false,
            calls: 0,
            is_quiet: false,
            chosen: None,
            moments: 0,
            is_open: false,
            chooser: None,
            made: Plan::default(),
            seen: BTreeSet::new(),
            wrong: None,
            trace: None,
        };
        Rc::new(Self { state: RefCell::new(state), surroundings: RefCell::default() })
    }

    pub(super) fn set_surroundings(&self, surroundings: Option<Rc<dyn Surroundings>>) {
        *self.surroundings.borrow_mut() = surroundings;
    }

    fn surroundings(&self) -> Rc<dyn Surroundings> {
        Rc::clone(self.surroundings.borrow().as_ref().unwrap())
    }

    /// Keeps a line for each moment.
    pub(super) fn keep_trace(&self) {
        self.state.borrow_mut().trace = Some(Vec::new());
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.state.borrow().trace.clone().unwrap_or_default()
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        if self.state.borrow().trace.is_none() {
            return;
        }
        let text = text();
        let mut state = self.state.borrow_mut();
        let (passed, moments) = (state.passed, state.moments);
        let who = state.current.map(|task| state.tasks[task].name.clone()).unwrap_or_default();
        if let Some(trace) = &mut state.trace {
            trace.push(format!("{:>9.3} s {moments:>5} {who:<18} {text}", passed.as_secs_f64()));
        }
    }

    /// From now on this one chooses; `None`: nobody does.
    pub(super) fn let_choose(&self, chooser: Option<Box<dyn Chooser>>) {
        let mut state = self.state.borrow_mut();
        state.is_open = chooser.is_some();
        state.chooser = chooser;
    }

    /// The choices that were made.
    pub(super) fn made(&self) -> Plan {
        self.state.borrow().made.clone()
    }

    /// How many moments there were.
    pub(super) fn moments(&self) -> u32 {
        self.state.borrow().moments
    }

    /// How many calls to libvirtd were steps.
    pub(super) fn calls(&self) -> usize {
        self.state.borrow().calls
    }

    /// The steps that were come to.
    pub(super) fn seen(&self) -> BTreeSet<Step> {
        self.state.borrow().seen.clone()
    }

    /// The first thing that was wrong.
    pub(super) fn wrong(&self) -> Option<String> {
        self.state.borrow().wrong.clone()
    }

    pub(super) fn is_wrong(&self, what: String) {
        self.note(|| format!("WRONG: {what}"));
        let mut state = self.state.borrow_mut();
        state.wrong.get_or_insert(what);
    }

    /// The host on which the current process runs.
    pub(super) fn host(&self) -> Option<usize> {
        let state = self.state.borrow();
        let process = state.tasks[state.current?].process?;
        Some(state.processes[process].host)
    }

    /// Starts a process on a host. It ends when `work` returns.
    pub(super) fn start(&self, name: &str, host: usize, work: Box<dyn FnOnce() + Send>) -> usize {
        let mut state = self.state.borrow_mut();
        let (process, main) = (state.processes.len(), state.tasks.len());
        state.processes.push(Process { name: name.to_owned(), host, main, is_alive: true, stalled: None });
        drop(state);
        self.add(name.to_owned(), Some(process), work);
        process
    }

    fn add(&self, name: String, process: Option<usize>, work: Box<dyn FnOnce() + Send>) {
        let coroutine = Gn::<()>::new_opt(STACK, work);
        let task = Task { name, process, condition: Condition::Ready, coroutine: Some(coroutine) };
        self.state.borrow_mut().tasks.push(task);
    }

    /// The processes that have not ended, by name.
    pub(super) fn running(&self) -> Vec<String> {
        let state = self.state.borrow();
        let alive = state.processes.iter().filter(|process| process.is_alive);
        alive.map(|process| format!("{} on host{}", process.name, process.host + 1)).collect()
    }

    /// Runs until nobody can go on, something is wrong, or `is_over`.
    pub(super) fn run(&self, mut is_over: impl FnMut() -> bool) {
        let mut next = None;
        loop {
            if self.state.borrow().wrong.is_some() || is_over() {
                return;
            }
            let Some(task) = next.take().or_else(|| self.pick()) else { return };
            next = self.go_on(task);
            let moments = self.state.borrow().moments;
            if moments > MOST_MOMENTS {
                self.is_wrong(format!("no end after {moments} moments"));
            }
        }
    }

    /// Lets a task go on until it waits, ends or is stopped by a choice. Returns who goes on then, if that was chosen.
    fn go_on(&self, task: TaskId) -> Option<TaskId> {
        self.resume(task);
        let (chosen, ended, process) = {
            let mut state = self.state.borrow_mut();
            let ended = state.tasks[task].condition == Condition::Ended;
            (state.chosen.take(), ended, state.tasks[task].process)
        };
        if let Some(process) = process.filter(|_| ended) {
            if self.state.borrow().processes[process].main == task {
                self.end(process);
            }
        }
        match chosen? {
            Choice::Run(other) if self.is_ready(other) => return Some(other),
            Choice::Run(_) => return Some(task),
            Choice::Kill => {
                if let Some(process) = process {
                    self.note(|| format!("{} is killed", self.state.borrow().processes[process].name));
                    self.end(process);
                }
            }
            Choice::Stall(seconds) => {
                let mut state = self.state.borrow_mut();
                let end = state.begin + state.passed + Duration::from_secs(seconds.into());
                if let Some(process) = process {
                    state.processes[process].stalled = Some(end);
                }
            }
            Choice::Cut(seconds) => self.cut(Duration::from_secs(seconds.into())),
            Choice::Restart(host) => self.surroundings().strike(Strike::Restart(host)),
            Choice::PowerOff(host) => self.power_off(host),
        }
        None
    }

    fn cut(&self, time: Duration) {
        let surroundings = self.surroundings();
        surroundings.strike(Strike::Network(false));
        let end = self.now() + time;
        // The scheduler is on one thread, but a task could be moved: it finds the surroundings by the simulation.
        self.add(
            "network".into(),
            None,
            Box::new(move || {
                let os = simulated().unwrap();
                wait_until(&*os, Some(end), || false);
                here().surroundings().strike(Strike::Network(true));
            }),
        );
    }

    fn power_off(&self, host: usize) {
        self.note(|| format!("host{} loses its power", host + 1));
        let there: Vec<usize> = {
            let mut state = self.state.borrow_mut();
            state.boots[host] += 1;
            let alive = |(_, process): &(usize, &Process)| process.is_alive && process.host == host;
            state.processes.iter().enumerate().filter(alive).map(|(number, _)| number).collect()
        };
        self.surroundings().strike(Strike::PowerOff(host));
        there.into_iter().for_each(|process| self.end(process));
    }

    /// Ends a process and all its tasks.
    fn end(&self, process: usize) {
        let tasks: Vec<TaskId> = {
            let mut state = self.state.borrow_mut();
            state.processes[process].is_alive = false;
            let is_its = |(_, task): &(usize, &Task)| task.process == Some(process);
            state.tasks.iter().enumerate().filter(is_its).map(|(number, _)| number).collect()
        };
        for task in tasks {
            self.discard(task);
        }
    }

    fn discard(&self, task: TaskId) {
        let coroutine = {
            let mut state = self.state.borrow_mut();
            state.tasks[task].condition = Condition::Ended;
            state.current = Some(task);
            state.is_quiet = true;
            state.tasks[task].coroutine.take()
        };
        {
            // The crate takes the process's panic hook away while it unwinds a coroutine. When two runs do that at once,
            // one of them unwinds under the standard hook, which prints "Box<dyn Any>".
            let _alone = UNWINDS.lock().unwrap_or_else(PoisonError::into_inner);
            drop(coroutine);
        }
        let mut state = self.state.borrow_mut();
        state.current = None;
        state.is_quiet = false;
    }

    /// Ends everything that still runs.
    pub(super) fn end_all(&self) {
        let tasks = self.state.borrow().tasks.len();
        (0..tasks).for_each(|task| self.discard(task));
    }

    fn resume(&self, task: TaskId) {
        let coroutine = {
            let mut state = self.state.borrow_mut();
            state.current = Some(task);
            state.tasks[task].coroutine.take()
        };
        let Some(mut coroutine) = coroutine else { return };
        let result = catch_unwind(AssertUnwindSafe(|| coroutine.resume()));
        let is_done = coroutine.is_done();
        let mut state = self.state.borrow_mut();
        state.current = None;
        if is_done {
            state.tasks[task].condition = Condition::Ended;
        } else {
            state.tasks[task].coroutine = Some(coroutine);
        }
        let name = state.tasks[task].name.clone();
        drop(state);
        if let Err(payload) = result {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("?");
            self.is_wrong(format!("{name} panicked: {text}"));
        }
    }

    /// Whether a task can go on. A task that waits looks for itself.
    fn is_ready(&self, task: TaskId) -> bool {
        let (condition, now) = {
            let state = self.state.borrow();
            let Some(found) = state.tasks.get(task) else { return false };
            let now = state.begin + state.passed;
            let stalled = found.process.and_then(|process| state.processes[process].stalled);
            if stalled.is_some_and(|end| now < end) {
                return false;
            }
            (found.condition, now)
        };
        match condition {
            Condition::Ready => true,
            Condition::Ended => false,
            Condition::Waits(Some(end)) if now >= end => true,
            Condition::Waits(_) => {
                self.state.borrow_mut().is_probing = true;
                self.resume(task);
                let mut state = self.state.borrow_mut();
                state.is_probing = false;
                state.tasks[task].condition == Condition::Ready
            }
        }
    }

    /// The tasks that can go on, apart from one.
    fn ready_besides(&self, besides: Option<TaskId>) -> Vec<TaskId> {
        let all = self.state.borrow().tasks.len();
        (0..all).filter(|task| Some(*task) != besides && self.is_ready(*task)).collect()
    }

    /// Who goes on when the last task waits or has ended. Lets time pass when nobody can.
    fn pick(&self) -> Option<TaskId> {
        loop {
            let ready = self.ready_besides(None);
            let Some(first) = ready.first().copied() else {
                let mut state = self.state.borrow_mut();
                let now = state.begin + state.passed;
                let stall = |task: &Task| task.process.and_then(|process| state.processes[process].stalled);
                let ends = state.tasks.iter().filter_map(|task| {
                    let stall = stall(task).filter(|end| *end > now);
                    match task.condition {
                        Condition::Waits(end) => end.into_iter().chain(stall).max(),
                        Condition::Ready => stall,
                        Condition::Ended => None,
                    }
                });
                let earliest = ends.min()?;
                state.passed = state.passed.max(earliest.saturating_duration_since(state.begin));
                continue;
            };
            if ready.len() == 1 {
                return Some(first);
            }
            let moment = {
                let mut state = self.state.borrow_mut();
                if !state.is_open {
                    return Some(first);
                }
                state.moments += 1;
                Moment { number: state.moments, at: None, process: None, ready }
            };
            let chosen = self.ask(&moment);
            return match chosen {
                Some(Choice::Run(task)) if moment.ready.contains(&task) => Some(task),
                _ => Some(first),
            };
        }
    }

    /// Asks what happens at a moment, and keeps the answer.
    fn ask(&self, moment: &Moment) -> Option<Choice> {
        let chooser = self.state.borrow_mut().chooser.take();
        let mut chooser = chooser?;
        let chosen = chooser.choose(moment);
        let mut state = self.state.borrow_mut();
        state.chooser = Some(chooser);
        if let Some(chosen) = chosen {
            state.made.0.insert(moment.number, chosen);
        }
        chosen
    }
}

/// Gives the baton back.
fn give_back() {
    // The other form of this call needs a handle that lives as long as the coroutine, where the driver calls a function
    // of the operating system, which has no such handle.
    #[allow(deprecated)]
    generator::yield_with(());
}

impl Os for Scheduler {
    fn now(&self) -> Instant {
        let state = self.state.borrow();
        state.begin + state.passed
    }

    fn time_of_day(&self) -> SystemTime {
        let state = self.state.borrow();
        state.day + state.passed
    }

    fn step(&self, step: Step) {
        self.come_to(step);
        // A process that was killed there makes no call.
        self.state.borrow_mut().calls += usize::from(step.kind == "call");
    }

    fn pause(&self, end: Option<Instant>) {
        {
            let mut state = self.state.borrow_mut();
            let Some(task) = state.current else { panic!("a wait outside of every task") };
            assert!(!state.is_quiet, "a check or a destructor waits");
            state.tasks[task].condition = Condition::Waits(end);
        }
        give_back();
    }

    fn spawn(&self, name: &'static str, side: Side, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        let (process, name) = {
            let state = self.state.borrow();
            let process = state.current.and_then(|task| state.tasks[task].process).filter(|_| side == Side::Process);
            let owner = process.map(|process| state.processes[process].name.as_str()).unwrap_or("world");
            (process, format!("{owner}/{name}"))
        };
        self.add(name, process, work);
        Ok(())
    }

    fn process(&self) -> (u32, u64) {
        let state = self.state.borrow();
        let process = state.current.and_then(|task| state.tasks[task].process);
        let number = process.map_or(1, |process| FIRST_PID + u32::try_from(process).unwrap());
        (number, u64::from(number))
    }

    fn is_alive(&self, pid: u32, started: u64) -> bool {
        let state = self.state.borrow();
        let process = pid.checked_sub(FIRST_PID).and_then(|number| state.processes.get(number as usize));
        process.is_some_and(|process| process.is_alive) && started == u64::from(pid)
    }

    fn boot_id(&self) -> String {
        let host = self.host().unwrap_or(0);
        format!("boot-{host}-{}", self.state.borrow().boots[host])
    }

    fn start_program(&self, program: &Path, arg: Option<&str>) -> io::Result<()> {
        let host = self.host().unwrap_or(0);
        let work = self.surroundings().program(host, program, arg).ok_or(io::ErrorKind::NotFound)?;
        self.start(&program.file_name().unwrap().to_string_lossy(), host, work);
        Ok(())
    }
}

impl Scheduler {
    /// The program that runs has come to this step: others may go on, or it may be struck.
    fn come_to(&self, step: Step) {
        let (task, process, number, looks) = {
            let mut state = self.state.borrow_mut();
            let Some(task) = state.current.filter(|_| !state.is_quiet) else { return };
            if state.is_probing {
                state.tasks[task].condition = Condition::Ready;
                drop(state);
                give_back();
                return;
            }
            state.seen.insert(step);
            let process = state.tasks[task].process;
            if !state.is_open {
                drop(state);
                return self.look(step);
            }
            state.moments += 1;
            let number = state.moments;
            let looks = process.is_some() && state.chooser.as_mut().is_some_and(|chooser| chooser.looks(number));
            (task, process, number, looks)
        };
        self.note(|| format!("{} {}", step.kind, step.name));
        self.look(step);
        let ready = if looks { self.ready_besides(Some(task)) } else { Vec::new() };
        self.state.borrow_mut().current = Some(task);
        let moment = Moment { number, at: Some((task, step)), process, ready };
        if let Some(chosen) = self.ask(&moment) {
            self.note(|| format!("-> {chosen}"));
            let mut state = self.state.borrow_mut();
            state.chosen = Some(chosen);
            state.tasks[task].condition = Condition::Ready;
            drop(state);
            give_back();
        }
    }

    /// Checks what must be true at every step.
    fn look(&self, step: Step) {
        let surroundings = self.surroundings.borrow().clone();
        let Some(surroundings) = surroundings else { return };
        self.state.borrow_mut().is_quiet = true;
        let checked = surroundings.check(step);
        self.state.borrow_mut().is_quiet = false;
        if let Err(what) = checked {
            self.is_wrong(what);
        }
    }
}
