//! Runs scenarios: tests that share running hosts. Their lines and the verdict are like cargo's own.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::panic::UnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;
use std::{env, iter, panic, process, thread};

use crate::rig_host::RigHost;

/// A scenario: its name, and the function that runs it on a site.
pub type Scenario<S> = (&'static str, fn(S));

/// Makes a list of [`Scenario`]s from the names of functions.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

/// The scenarios that the command line names; words that begin with `-` are cargo's. An unknown name ends the process
/// with code 2, before any host starts.
pub fn wanted(known: &[&str]) -> BTreeSet<String> {
    let wanted: BTreeSet<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let unknown: Vec<&str> = wanted.iter().map(String::as_str).filter(|name| !known.contains(name)).collect();
    if !unknown.is_empty() {
        eprintln!("unknown scenario: {} (there are: {})", unknown.join(", "), known.join(", "));
        process::exit(2);
    }
    wanted
}

/// The scenarios that passed before, in a file that the environment names. A long run that was interrupted goes on with
/// the others. Without that file every run begins anew.
pub struct Earlier(Option<PathBuf>);

/// The variable with the file of [`Earlier`]: a name a line. `./check long` sets it.
const EARLIER: &str = "KVM_SRIOV_PASSED";

impl Earlier {
    /// As the environment says.
    pub fn from_environment() -> Self {
        Self(env::var_os(EARLIER).map(PathBuf::from))
    }

    /// The names that passed before.
    pub fn passed(&self) -> BTreeSet<String> {
        let Some(path) = &self.0 else { return BTreeSet::new() };
        match fs::read_to_string(path) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// Notes a scenario that has passed.
    pub fn note(&self, name: &str) {
        let Some(path) = &self.0 else { return };
        // Both hosts' threads add lines. A line is written by one call, at the end of the file.
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(format!("{name}\n").as_bytes()).unwrap();
    }
}

/// Runs scenarios with `passes` on several hosts: each takes the next scenario when it is free. Returns how many
/// failed.
pub fn side_by_side<S>(
    hosts: &[RigHost],
    scenarios: &[&Scenario<S>],
    passes: impl Fn(RigHost, &Scenario<S>) -> bool + Sync,
) -> usize {
    let queue = Mutex::new(scenarios.iter());
    let work = |host| {
        let next = || queue.lock().unwrap().next();
        iter::from_fn(next).filter(|scenario| !passes(host, scenario)).count()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = hosts.iter().map(|host| scope.spawn(|| work(*host))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    })
}

/// Runs a scenario on hosts and prints the result, after a failure with the evidence of each host. Returns whether it
/// passed.
pub fn passes(name: &str, hosts: &[RigHost], scenario: impl FnOnce() + UnwindSafe) -> bool {
    let begin = Instant::now();
    let passed = panic::catch_unwind(scenario).is_ok();
    let word = if passed { "ok" } else { "FAILED" };
    let names: Vec<String> = hosts.iter().map(|host| host.name()).collect();
    println!("scenario {name} ... {word} ({:.1} s, {})", begin.elapsed().as_secs_f32(), names.join(" and "));
    if !passed {
        hosts.iter().for_each(|host| println!("{}", host.evidence()));
    }
    passed
}

/// Prints the last line, which `./check` counts, and returns the exit code.
pub fn verdict(ran: usize, failed: usize) -> ExitCode {
    let (word, code) = if failed == 0 { ("ok", ExitCode::SUCCESS) } else { ("FAILED", ExitCode::FAILURE) };
    println!("\ntest result: {word}. {} passed; {failed} failed; 0 ignored", ran.saturating_sub(failed));
    code
}
