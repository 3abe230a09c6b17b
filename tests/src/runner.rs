//! Scenarios: tests that share running hosts, with lines and a verdict as cargo's own.

use std::collections::BTreeSet;
use std::panic::UnwindSafe;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;
use std::{env, iter, panic, thread};

use crate::rig_host::RigHost;

/// A name and what runs on a site.
pub type Scenario<S> = (&'static str, fn(S));

/// Functions as a list of [`Scenario`]s with their names.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

/// The scenarios that the command line names, each one that there is; what begins with `-` is cargo's.
pub fn wanted(known: &[&str]) -> BTreeSet<String> {
    let wanted: BTreeSet<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for name in &wanted {
        assert!(known.contains(&name.as_str()), "there is no scenario {name}");
    }
    wanted
}

/// Runs scenarios on hosts that take the next one as they get free, each with `passes`. Returns how many failed.
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

/// Runs a scenario on hosts, says how it went, and explains a failure with what each of them tells. Returns whether it passed.
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

/// The last line, as `./check` counts it.
pub fn verdict(ran: usize, failed: usize) -> ExitCode {
    let (word, code) = if failed == 0 { ("ok", ExitCode::SUCCESS) } else { ("FAILED", ExitCode::FAILURE) };
    println!("\ntest result: {word}. {} passed; {failed} failed; 0 ignored", ran.saturating_sub(failed));
    code
}
