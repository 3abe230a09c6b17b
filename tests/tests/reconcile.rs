//! Reconciliation: docs/reconcile.md is complete, the program follows it, and every row comes true on a model host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;

use kvm_sriov::libvirt::{JobKind, RunState};
use kvm_sriov::reconcile::{Busy, Checkpoint, Claimed, Elsewhere, Facts, Nic, Noted, Open, Repair, decide};
use kvm_sriov::{PciAddress, Position};
use kvm_sriov_tests::project;

/// A table of docs/reconcile.md.
struct Table {
    /// The columns that a row is chosen by, and every value that each can have.
    columns: Vec<(&'static str, Vec<&'static str>)>,
    rows: Vec<Row>,
}

struct Row {
    cells: Vec<String>,
    done: Vec<String>,
}

impl Table {
    /// Reads the table under the heading `### Table <number>`, whose last two columns are what is done, and why.
    fn read(number: usize, columns: Vec<(&'static str, Vec<&'static str>)>) -> Self {
        let text = fs::read_to_string(project().join("docs/reconcile.md")).unwrap();
        let section = text.split(&format!("\n### Table {number}:")).nth(1).unwrap().split("\n#").next().unwrap();
        let cells = |line: &str| -> Vec<String> {
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = section.lines().filter(|line| line.starts_with('|')).map(cells);
        let mut expected: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        expected.extend(["what is done", "why"]);
        assert_eq!(lines.next().unwrap(), expected);
        assert!(lines.next().unwrap().iter().all(|cell| cell == "---"));
        let rows = lines.map(|mut cells| {
            let why = cells.pop().unwrap();
            assert!(why.len() > 10, "a row does not say why: {cells:?}");
            let done = cells.pop().unwrap().split(", ").map(str::to_owned).collect();
            assert_eq!(cells.len(), columns.len(), "{cells:?}");
            Row { cells, done }
        });
        Self { rows: rows.collect(), columns }
    }

    fn fits(cell: &str, value: &str, values: &[&str]) -> bool {
        let known = |name: &str| assert!(values.contains(&name), "{name:?} is none of {values:?}");
        if cell == "any" {
            return true;
        }
        if let Some(other) = cell.strip_prefix("but ") {
            known(other);
            return other != value;
        }
        cell.split(" / ").inspect(|name| known(name)).any(|name| name == value)
    }

    /// Every combination of values.
    fn combinations(&self) -> Vec<Vec<&'static str>> {
        let mut all: Vec<Vec<&'static str>> = vec![Vec::new()];
        for (_, values) in &self.columns {
            all = all.iter().flat_map(|one| values.iter().map(|value| [&one[..], &[value]].concat())).collect();
        }
        all
    }

    /// The one row for this combination.
    fn row(&self, combination: &[&str]) -> usize {
        let fits = |row: &Row| {
            let cells = row.cells.iter().zip(combination).zip(&self.columns);
            cells.fold(true, |fits, ((cell, value), (_, values))| Self::fits(cell, value, values) && fits)
        };
        let found: Vec<usize> = (0..self.rows.len()).filter(|number| fits(&self.rows[*number])).collect();
        match found[..] {
            [one] => one,
            [] => panic!("no row for {combination:?}"),
            _ => panic!("{} rows for {combination:?}: {:?}", found.len(), found.iter().map(|n| &self.rows[*n].cells)),
        }
    }

    fn done(&self, combination: &[&str]) -> &[String] {
        &self.rows[self.row(combination)].done
    }

    /// Checks that every combination has its row, and every row a combination.
    fn check(&self) {
        let used: BTreeSet<usize> = self.combinations().iter().map(|combination| self.row(combination)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            assert!(used.contains(&number), "nothing is ever in this row: {:?}", row.cells);
        }
    }
}

fn elsewhere_column() -> (&'static str, Vec<&'static str>) {
    ("elsewhere", vec!["unknown", "runs", "never ran"])
}

fn vms() -> Table {
    Table::read(
        1,
        vec![
            ("works on it", vec!["nobody", "an action", "libvirt saves", "libvirt works"]),
            ("domain", vec!["running", "paused by user", "paused for migration", "paused", "suspended", "ending"]),
            (
                "operation",
                vec![
                    "none",
                    "save",
                    "pending, all there",
                    "pending, some left",
                    "pending, all left",
                    "restore, untouched",
                    "restore, unfinished",
                    "restore, used",
                    "restore, gone",
                    "migrate",
                    "newer",
                ],
            ),
            ("image", vec!["none", "named"]),
            elsewhere_column(),
        ],
    )
}

fn nics() -> Table {
    Table::read(
        2,
        vec![
            ("wanted", vec!["yes", "no"]),
            ("device", vec!["yes", "no"]),
            ("claim", vec!["its own", "none", "for another VF", "another VM's"]),
            ("CPUs", vec!["run", "stand"]),
        ],
    )
}

fn dummies() -> Table {
    Table::read(3, vec![("wanted", vec!["yes", "no"]), ("dummy", vec!["yes", "no"]), ("CPUs", vec!["run", "stand"])])
}

fn gone() -> Table {
    let images = vec!["none", "missing", "incomplete", "complete", "before boot", "outlived", "unreadable"];
    Table::read(4, vec![("works on it", vec!["nobody", "an action"]), ("image", images), elsewhere_column()])
}

#[test]
fn every_combination_is_in_exactly_one_row() {
    for table in [vms(), nics(), dummies(), gone()] {
        table.check();
    }
}

fn position(number: usize) -> Position {
    Position::new(number).unwrap()
}

fn vf() -> PciAddress {
    "0000:07:00.1".parse().unwrap()
}

fn elsewhere(word: &str) -> Elsewhere {
    match word {
        "unknown" => Elsewhere::Unknown,
        "runs" => Elsewhere::Runs,
        "never ran" => Elsewhere::Never,
        other => panic!("{other}"),
    }
}

/// The NIC of a combination of tables 2 and 3, at position 0, or the VF that is claimed for none.
fn nic(wanted: bool, device: bool, claim: &str, dummy: bool) -> (Vec<Nic>, Vec<PciAddress>) {
    let claim = match claim {
        "its own" => Claimed::Own,
        "none" => Claimed::Nobody,
        "for another VF" => Claimed::Other,
        "another VM's" => Claimed::Theirs,
        other => panic!("{other}"),
    };
    let nic = Nic { position: position(0), wanted, device, claim, dummy };
    let is_spare = !wanted && !device && claim == Claimed::Own;
    (if wanted || device || dummy { vec![nic] } else { Vec::new() }, if is_spare { vec![vf()] } else { Vec::new() })
}

/// The order in which a NIC's repairs are done.
const ORDER: [&str; 7] = ["unplug", "unplug dummy", "leave", "release", "claim", "plug", "plug dummy"];

fn words(repairs: &[Repair]) -> Vec<&'static str> {
    repairs.iter().map(Repair::word).collect()
}

#[test]
fn the_rules_are_those_of_the_document() {
    let (vms, nics, dummies) = (vms(), nics(), dummies());
    let mut walked = 0;
    for of_nic in nics.combinations() {
        for dummy in ["yes", "no"] {
            let [wanted, device, claim, cpus] = of_nic[..] else { panic!() };
            let mut expected: Vec<&str> = nics.done(&of_nic).iter().map(String::as_str).collect();
            expected.extend(dummies.done(&[wanted, dummy, cpus]).iter().map(String::as_str));
            let expected: Vec<&str> = ORDER.into_iter().filter(|word| expected.contains(word)).collect();
            let (found, spare) = nic(wanted == "yes", device == "yes", claim, dummy == "yes");
            for of_vm in vms.combinations().into_iter().filter(|vm| (vm[1] == "running") == (cpus == "run")) {
                let Some(facts) = facts(&of_vm, found.clone(), spare.clone()) else { continue };
                let mut all: Vec<&str> = Vec::new();
                for word in vms.done(&of_vm) {
                    match word.as_str() {
                        "nothing" => {}
                        // What is pending stands at positions of its own.
                        "NICs" if of_vm[2].starts_with("pending") => all.extend(with_plugs(&expected, of_vm[2])),
                        "NICs" => all.extend(&expected),
                        word => all.push(word),
                    }
                }
                assert_eq!(words(&decide(&facts)), all, "{of_vm:?} {of_nic:?} dummy {dummy}");
                walked += 1;
            }
        }
    }
    assert!(walked > 20_000, "{walked}");
}

/// The repairs of a NIC, together with those of the VFs of [`facts`] that have left.
fn with_plugs<'a>(expected: &[&'a str], operation: &str) -> Vec<&'a str> {
    let left = match operation {
        "pending, some left" => 1,
        "pending, all left" => 2,
        _ => 0,
    };
    let before: Vec<&str> = expected.iter().copied().filter(|word| *word != "plug dummy").collect();
    let after = expected.iter().copied().filter(|word| *word == "plug dummy");
    before.into_iter().chain(std::iter::repeat_n("plug", left)).chain(after).collect()
}

/// The facts of a combination of table 1.
fn facts(combination: &[&str], mut nics: Vec<Nic>, spare: Vec<PciAddress>) -> Option<Facts> {
    let [works, domain, operation, image, there] = combination[..] else { panic!() };
    let pending = || vec![position(4), position(5)];
    let there_is = |position, device| Nic { position, wanted: true, device, claim: Claimed::Own, dummy: true };
    let devices = match operation {
        "pending, all there" => Some([true, true]),
        "pending, some left" => Some([false, true]),
        "pending, all left" => Some([false, false]),
        _ => None,
    };
    nics.extend(devices.into_iter().flatten().zip(pending()).map(|(device, position)| there_is(position, device)));
    Some(Facts {
        busy: match works {
            "nobody" => Busy::Nobody,
            "an action" => Busy::Locked,
            "libvirt saves" => Busy::Job(JobKind::Save),
            "libvirt works" => Busy::Job(JobKind::MigrationOut),
            other => panic!("{other}"),
        },
        domain: Some(state(domain)),
        operation: match operation {
            "none" => Open::Nothing,
            "save" => Open::Save,
            "restore, untouched" => Open::Restore(Checkpoint::Untouched),
            "restore, unfinished" => Open::Restore(Checkpoint::Unfinished),
            "restore, used" => Open::Restore(Checkpoint::Used),
            "restore, gone" => Open::Restore(Checkpoint::Nowhere),
            "migrate" => Open::Migrate,
            "newer" => Open::Newer,
            _ => Open::PendingUnplug(pending()),
        },
        nics,
        spare,
        image: if image == "named" { Noted::Incomplete } else { Noted::Nothing },
        elsewhere: elsewhere(there),
    })
}

fn state(word: &str) -> RunState {
    match word {
        "running" => RunState::Running,
        "paused by user" => RunState::PausedByUser,
        "paused for migration" => RunState::PausedForMigration,
        "paused" => RunState::PausedOtherwise,
        "suspended" => RunState::PmSuspended,
        "ending" => RunState::Ending,
        other => panic!("{other}"),
    }
}

#[test]
fn the_rules_for_what_is_gone_are_those_of_the_document() {
    let table = gone();
    for combination in table.combinations() {
        let [works, image, there] = combination[..] else { panic!() };
        let facts = Facts {
            busy: if works == "nobody" { Busy::Nobody } else { Busy::Locked },
            domain: None,
            operation: Open::Nothing,
            nics: Vec::new(),
            spare: vec![vf()],
            image: match image {
                "none" => Noted::Nothing,
                "missing" => Noted::Missing,
                "incomplete" => Noted::Incomplete,
                "complete" => Noted::Complete,
                "before boot" => Noted::BeforeBoot,
                "outlived" => Noted::Outlived,
                "unreadable" => Noted::Unreadable,
                other => panic!("{other}"),
            },
            elsewhere: elsewhere(there),
        };
        assert_eq!(words(&decide(&facts)), table.done(&combination), "{combination:?}");
    }
}
