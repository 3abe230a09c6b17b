//! The targets by subject: XML documents, settings and names, the state directory, the agent.

mod agent;
mod settings;
mod state;
mod xml;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A parser, what is done with its result, and what must be true then.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// How much one run costs, in runs of a parser.
    pub cost: usize,
    run: fn(&[u8]),
}

impl Target {
    /// Runs the target. It panics if something is wrong.
    pub fn run(&self, input: &[u8]) {
        (self.run)(input);
    }

    /// As [`Target::run`], but says first what the input was.
    pub fn check(&self, input: &[u8]) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run(input))) {
            eprintln!("target {}, input \"{}\"", self.name, input.escape_ascii());
            resume_unwind(panic);
        }
    }
}

/// All targets.
pub fn targets() -> Vec<Target> {
    let all = [xml::targets(), settings::targets(), state::targets(), agent::targets()];
    all.into_iter().flatten().map(|(name, cost, run)| Target { name, cost, run }).collect()
}

/// The name, the cost and the code of a target.
type Described = (&'static str, usize, fn(&[u8]));

/// Runs what reads text. What is not UTF-8 is damaged text.
fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// A message of the driver is one line without control characters, whatever was read.
#[track_caller]
fn check_message(message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
}
