//! Runs the tests that docs/reference/faults.md names, and prints the outcome of each fault. Scenarios of the rigs are
//! not run: `--log FILE` takes their outcomes from what a run of `./check` said.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::process::{Command, ExitCode};

use kvm_sriov_tests::faults::{Fault, Outcome, Outcomes, faults, read};
use kvm_sriov_tests::project;

/// Runs these tests of one file, or of the crates.
fn run(file: &str, tests: &BTreeSet<&str>) -> Outcomes {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(project()).args(["test", "--locked", "--no-fail-fast"]);
    if file == "unit" {
        cargo.args(["--workspace", "--exclude", "kvm-sriov-tests", "--lib", "--"]);
    } else {
        cargo.args(["-p", "kvm-sriov-tests", "--test", file, "--", "--exact"]);
    }
    // The model's guests answer in milliseconds: two at once, as in ./check.
    let out = cargo.args(tests).arg("--test-threads=2").output().unwrap();
    let mut outcomes = Outcomes::new();
    read(&String::from_utf8_lossy(&out.stdout), &mut outcomes);
    if outcomes.is_empty() {
        eprintln!("{file}: {}", String::from_utf8_lossy(&out.stderr));
    }
    outcomes
}

/// The tests of all faults by their files, and their outcomes.
fn outcomes(faults: &[Fault], logs: &[String]) -> BTreeMap<(String, String), Outcome> {
    let mut files: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, test) in faults.iter().flat_map(|fault| &fault.tests) {
        files.entry(file).or_default().insert(test);
    }
    let mut logged = Outcomes::new();
    logs.iter().for_each(|log| read(&fs::read_to_string(log).unwrap(), &mut logged));
    let mut all = BTreeMap::new();
    for (file, tests) in &files {
        let outcomes = if matches!(*file, "lab" | "light") { logged.clone() } else { run(file, tests) };
        for test in tests {
            let outcome = outcomes.get(*test).copied().unwrap_or(Outcome::NotRun);
            all.insert(((*file).to_owned(), (*test).to_owned()), outcome);
        }
    }
    all
}

fn main() -> ExitCode {
    let mut logs = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--log", Some(log)) => logs.push(log),
            _ => {
                eprintln!("usage: faults [--log FILE]...");
                return ExitCode::from(2);
            }
        }
    }
    let faults = faults();
    let outcomes = outcomes(&faults, &logs);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for Fault { number, text, tests, open } in &faults {
        let of: Vec<Outcome> = tests.iter().map(|test| outcomes[test]).collect();
        let word = match open {
            Some(_) => "open",
            None if of.contains(&Outcome::Failed) => "FAILED",
            None if of.iter().all(|outcome| *outcome == Outcome::Passed) => "passed",
            None if of.contains(&Outcome::Passed) => "passed in part",
            None => "not run",
        };
        *counts.entry(word).or_default() += 1;
        println!("{number:>3}  {word:<14}  {text}");
        for ((file, test), outcome) in tests.iter().zip(&of).filter(|(_, outcome)| **outcome != Outcome::Passed) {
            let what = if *outcome == Outcome::Failed { "FAILED" } else { "not run" };
            println!("     {what:<14}  {file}: {test}");
        }
        if let Some(open) = open {
            println!("                     {open}");
        }
    }
    let tests = |wanted: Outcome| outcomes.values().filter(|outcome| **outcome == wanted).count();
    println!(
        "\n{} faults: {}; {} tests: {} passed, {} failed, {} not run",
        faults.len(),
        counts.iter().map(|(word, number)| format!("{number} {word}")).collect::<Vec<_>>().join(", "),
        outcomes.len(),
        tests(Outcome::Passed),
        tests(Outcome::Failed),
        tests(Outcome::NotRun)
    );
    if tests(Outcome::Failed) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
