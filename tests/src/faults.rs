//! docs/reference/faults.md: known faults, and the tests that show what the driver does.

use std::collections::BTreeMap;
use std::fs;

use crate::project;

/// A row of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its number.
    pub number: usize,
    /// What goes wrong.
    pub text: String,
    /// The tests that show it: the test's file or rig, and its name.
    pub tests: Vec<(String, String)>,
    /// What is missing, for a fault without a test.
    pub open: Option<String>,
}

/// Every row of the document, in its order.
pub fn faults() -> Vec<Fault> {
    let text = fs::read_to_string(project().join("docs/reference/faults.md")).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.trim_end_matches(" |").split(" | ").collect();
        let [number, text, shown] = cells.try_into().ok()?;
        let number = number.parse().ok()?;
        let (open, tests) = (shown.strip_prefix("open: ").map(str::to_owned), named_tests(shown));
        Some(Fault { number, text: text.to_owned(), tests, open })
    };
    text.lines().filter_map(row).collect()
}

/// The names `file: test` in backquotes in a text.
pub fn named_tests(text: &str) -> Vec<(String, String)> {
    let names = text.split('`').skip(1).step_by(2).filter_map(|name| name.split_once(": "));
    names.map(|(file, test)| (file.to_owned(), test.to_owned())).collect()
}

/// What a test came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nobody ran it: it needs a rig, or this machine lacks what it needs.
    NotRun,
    /// It passed.
    Passed,
    /// It failed.
    Failed,
}

/// Outcomes by the names of tests, without the modules that they are in.
pub type Outcomes = BTreeMap<String, Outcome>;

/// Reads lines `test name ... ok` of test programs, and `scenario name ... ok` of the rigs. Of several outcomes of one
/// name, the worst counts.
pub fn read(said: &str, outcomes: &mut Outcomes) {
    for line in said.lines() {
        let words = ["test ", "scenario "].iter().find_map(|word| line.trim().strip_prefix(word));
        let Some((name, result)) = words.and_then(|line| line.split_once(" ... ")) else { continue };
        let outcome = match result.split([' ', ',']).next().unwrap_or_default() {
            "ok" => Outcome::Passed,
            "ignored" => Outcome::NotRun,
            _ => Outcome::Failed,
        };
        let name = name.rsplit("::").next().unwrap_or(name).to_owned();
        outcomes.entry(name).and_modify(|known| *known = outcome.max(*known)).or_insert(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_outcome_of_a_name_counts() {
        let mut outcomes = Outcomes::new();
        read(
            "test a::b::c ... ok\ntest d ... FAILED\ntest e ... ignored, needs root\nscenario f ... ok (3.0 s, host1)\n",
            &mut outcomes,
        );
        read("running 3 tests\ntest c ... FAILED\ntest d ... ok\n", &mut outcomes);
        let of = |name: &str| outcomes[name];
        assert_eq!((of("c"), of("d")), (Outcome::Failed, Outcome::Failed));
        assert_eq!((of("e"), of("f")), (Outcome::NotRun, Outcome::Passed));
        assert_eq!(outcomes.len(), 4);
    }
}
