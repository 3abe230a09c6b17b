//! `kvm-sriov reconcile`: repairs what a crash or a late guest left.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvm_sriov::Host;
use kvm_sriov::reconcile::{self, Consistency, Options, Report};
use serde::Serialize;

use crate::view::{self, VmView};
use crate::{CommandError, exit_code};

#[derive(Serialize)]
struct ReconcileView {
    vms: Vec<VmView>,
    claims: Vec<ClaimRepairView>,
    problems: Vec<String>,
    verdict: &'static str,
}

#[derive(Serialize)]
struct ClaimRepairView {
    root: String,
    address: String,
    vm: String,
    repair: &'static str,
}

pub(crate) fn reconcile(
    driver: &Path,
    timeout: Duration,
    dry_run: bool,
    json: bool,
    colours: bool,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    // One second is kept to close the connection, and one to print the report.
    let end = Instant::now() + timeout.saturating_sub(Duration::from_secs(2));
    let options = Options { dry_run, timeout: timeout * 2 / 3 };
    let report = reconcile::reconcile(&Host::open_lenient_until(driver, end)?, &options)?;
    let verdict = report.consistency(dry_run);
    if json {
        view::json(&view_of(&report, verdict), out)?;
    } else {
        write(&report, &options, colours, out)?;
    }
    Ok(exit_code(verdict))
}

fn view_of(report: &Report, verdict: Consistency) -> ReconcileView {
    let claim = |repair: &kvm_sriov::claims::ClaimRepair| ClaimRepairView {
        root: repair.claim().root.to_string(),
        address: repair.claim().vf.to_string(),
        vm: repair.claim().owner.vm.to_string(),
        repair: repair.word(),
    };
    ReconcileView {
        vms: report.vms.iter().map(VmView::of).collect(),
        claims: report.claims.iter().map(claim).collect(),
        problems: report.problems.iter().map(ToString::to_string).collect(),
        verdict: view::word(verdict),
    }
}

fn write(report: &Report, options: &Options, colours: bool, out: &mut impl Write) -> Result<(), CommandError> {
    let would = if options.dry_run { "would be " } else { "" };
    for repair in &report.claims {
        let claim = repair.claim();
        let vm = view::plain(&claim.owner.vm);
        writeln!(out, "VF {} of {}, claimed by {vm}: {would}{}", claim.vf, claim.root, repair.word())?;
    }
    let is_quiet = |vm: &&reconcile::VmReport| vm.done.is_empty() && vm.failures.is_empty() && vm.left.is_empty();
    for vm in report.vms.iter().filter(|vm| !is_quiet(vm)) {
        writeln!(out, "{}", view::headline(vm))?;
        view::write_steps(vm, options.dry_run, colours, out)?;
    }
    for problem in &report.problems {
        writeln!(out, "{}: {}", view::paint("problem", Consistency::Unfinished, colours), view::plain(problem))?;
    }
    let count = |verdict| report.vms.iter().filter(|vm| vm.consistency() == verdict).count();
    let (right, left, doubt) =
        (count(Consistency::Consistent), count(Consistency::Unfinished), count(Consistency::InDoubt));
    let verdict = report.consistency(options.dry_run);
    let summary = format!("VMs with VFs: {right} in order, {left} with repairs left, {doubt} in doubt");
    writeln!(out, "{}", view::paint(&summary, verdict, colours))?;
    Ok(())
}
