//! The output that several commands share.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use kvm_sriov::reconcile::{Consistency, Repair, VmReport};
use serde::Serialize;

/// A VM as `--json` prints it.
#[derive(Serialize)]
pub(crate) struct VmView {
    pub(crate) vm: String,
    uuid: Option<String>,
    state: &'static str,
    operation: Option<String>,
    done: Vec<String>,
    failed: Vec<FailedView>,
    left: Vec<LeftView>,
    verdict: &'static str,
}

#[derive(Serialize)]
struct FailedView {
    repair: String,
    why: String,
}

#[derive(Serialize)]
struct LeftView {
    word: &'static str,
    text: String,
    reason: &'static str,
}

impl VmView {
    pub(crate) fn of(report: &VmReport) -> Self {
        let operation = report.found.operation.to_string();
        let left =
            |repair: &Repair| LeftView { word: repair.word(), text: repair.to_string(), reason: repair.reason() };
        Self {
            vm: report.owner.vm.to_string(),
            uuid: report.owner.uuid.as_ref().map(ToString::to_string),
            state: report.found.domain_state(),
            operation: (operation != "-").then_some(operation),
            done: report.done.iter().map(ToString::to_string).collect(),
            failed: report
                .failures
                .iter()
                .map(|failure| FailedView { repair: failure.repair.to_string(), why: failure.cause.to_string() })
                .collect(),
            left: report.left.iter().map(left).collect(),
            verdict: word(report.consistency()),
        }
    }
}

/// A verdict as `--json` prints it.
pub(crate) fn word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Consistent => "right",
        Consistency::Unfinished => "left",
        Consistency::InDoubt => "in-doubt",
    }
}

/// Prints JSON. It may end on a terminal: serde writes the characters of C0 as `\u001b`, and here all others that a
/// terminal obeys are written so too. They can only be in strings.
pub(crate) fn json(value: &impl Serialize, out: &mut impl Write) -> Result<(), crate::CommandError> {
    let text = serde_json::to_string_pretty(value)?;
    for line in text.lines() {
        let escaped = |c: char| if c.is_control() { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
        writeln!(out, "{}", line.chars().map(escaped).collect::<String>())?;
    }
    Ok(())
}

/// A value for a person's terminal: one line, without characters that the terminal obeys.
pub(crate) fn plain(value: &impl Display) -> String {
    kvm_sriov::printable(&value.to_string())
}

/// A table without lines between its cells.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    table
}

/// The text in a colour, if `colours` is set.
pub(crate) fn paint(text: &str, consistency: Consistency, colours: bool) -> String {
    let colour = match consistency {
        Consistency::Consistent => "32",
        Consistency::Unfinished => "33",
        Consistency::InDoubt => "31",
    };
    if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A VM, its state and its open operation, as one line.
pub(crate) fn headline(report: &VmReport) -> String {
    let (vm, operation) = (plain(&report.owner.vm), plain(&report.found.operation));
    format!("{vm}: {}, operation {operation}", report.found.domain_state())
}

/// Prints the repairs of a VM: those that were done, failed and are left, one line each.
pub(crate) fn write_steps(report: &VmReport, is_plan: bool, colours: bool, out: &mut impl Write) -> io::Result<()> {
    for repair in &report.done {
        writeln!(out, "  {} {}", paint("done:", Consistency::Consistent, colours), plain(repair))?;
    }
    for failure in &report.failures {
        let (repair, cause) = (plain(&failure.repair), plain(&failure.cause));
        writeln!(out, "  {} {repair}: {cause}", paint("failed:", Consistency::InDoubt, colours))?;
    }
    let failed = |repair: &&Repair| !report.failures.iter().any(|failure| failure.repair == **repair);
    for repair in report.left.iter().filter(failed) {
        let mark = match repair {
            Repair::InDoubt(_) => paint("?", Consistency::InDoubt, colours),
            Repair::Leave(_) => "note:".to_owned(),
            _ if is_plan => "would".to_owned(),
            _ => paint("left:", Consistency::Unfinished, colours),
        };
        writeln!(out, "  {mark} {}", plain(repair))?;
        if is_plan {
            writeln!(out, "        because {}", repair.reason())?;
        }
    }
    Ok(())
}
