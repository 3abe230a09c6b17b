//! `kvm-sriov list`: every VF, and the VM that uses it.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use kvm_sriov::reconcile::{Consistency, OpenOperation, Report, Survey, survey};
use kvm_sriov::{Host, Vf, VfState};
use serde::Serialize;

use crate::{CommandError, view};

/// One VF, as a row of the table and as `--json` prints it.
#[derive(Serialize)]
struct VfRow<'a> {
    root: &'a str,
    index: usize,
    address: String,
    state: &'static str,
    vm: Option<&'a str>,
    /// The open operation of that VM.
    operation: Option<String>,
    in_doubt: bool,
}

pub(crate) fn list(driver: &Path, json: bool, out: &mut impl Write) -> Result<ExitCode, CommandError> {
    let host = Host::open_lenient(driver)?;
    let Survey { vfs, report } = survey(&host)?;
    let rows: Vec<VfRow<'_>> = vfs.iter().map(|vf| row(vf, &report)).collect();
    if json {
        view::json(&rows, out)?;
        // The array holds VFs only, so problems go to standard error.
        report.problems.iter().for_each(|problem| eprintln!("kvm-sriov: {}", view::plain(problem)));
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        writeln!(out, "this host has no VF map: write one to /etc/kvm-sriov/vf_maps/<root>")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = view::table(&["ROOT", "INDEX", "ADDRESS", "STATE", "VM", "OPERATION"]);
    for row in &rows {
        let operation = row.operation.as_deref().unwrap_or("-");
        let operation = if row.in_doubt { format!("{operation}, in doubt") } else { operation.to_owned() };
        let (index, vm, operation) =
            (row.index.to_string(), view::plain(&row.vm.unwrap_or("-")), view::plain(&operation));
        table.add_row([row.root, &index, &row.address, row.state, &vm, &operation]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    for problem in &report.problems {
        writeln!(out, "problem: {}", view::plain(problem))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row<'a>(vf: &'a Vf, report: &Report) -> VfRow<'a> {
    let (state, vm) = match &vf.state {
        VfState::Used { vm } => ("used", Some(vm.as_str())),
        VfState::Unclaimed { vm } => ("unclaimed", Some(vm.as_str())),
        VfState::Missing { vm } => ("missing", vm.as_deref()),
        VfState::NotVf { vm } => ("not a VF", vm.as_deref()),
        VfState::Unbacked { vm } => ("unbacked", Some(vm.as_str())),
        _ => ("free", None),
    };
    let user = report.vms.iter().find(|user| Some(user.owner.vm.as_str()) == vm);
    VfRow {
        root: vf.root.as_str(),
        index: vf.index,
        address: vf.address.to_string(),
        state,
        vm,
        operation: user
            .filter(|user| user.found.operation != OpenOperation::None)
            .map(|user| user.found.operation.to_string()),
        in_doubt: user.is_some_and(|user| user.consistency() == Consistency::InDoubt),
    }
}
