//! `kvm-sriov resolve`: a person, or the other host, decides where a VM in doubt lives.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use kvm_sriov::agent::{Presence, Ssh, ask_state};
use kvm_sriov::libvirt::RunState;
use kvm_sriov::reconcile::{self, Consistency, Elsewhere, Explanation};
use kvm_sriov::xml::OperationKind;
use kvm_sriov::{DomainId, Host, HostName};
use serde::Serialize;

use crate::view::{self, VmView};
use crate::{CommandError, exit_code, explain};

/// Where a person says that the VM lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// On this host. `force`: even when the other host can't be asked.
    Here { force: bool },
    /// Elsewhere, or nowhere.
    There,
}

#[derive(Serialize)]
struct ResolveView {
    #[serde(flatten)]
    vm: VmView,
    /// The other host's answer.
    there: Option<OtherHostView>,
}

#[derive(Serialize)]
struct OtherHostView {
    host: String,
    says: Option<String>,
    problem: Option<String>,
}

/// The other host of a migration, and its answer.
struct OtherHost {
    host: String,
    says: Result<Presence, String>,
}

impl OtherHost {
    /// Asks the other host. `None` when the doubt is not about a migration.
    ///
    /// The domain's metadata are the same on both hosts. An arrived domain is in the state "paused by user", a
    /// departing one is not. If a user had paused the VM before the migration, both look alike, so both hosts are
    /// asked; the answer of this host adds nothing. A host that can't be asked may be running the VM.
    fn ask(driver: &Path, explanation: &Explanation) -> Option<Self> {
        let uuid = explanation.report.owner.uuid.as_ref()?;
        let OperationKind::Migrate { to, from, was_paused, .. } = &explanation.wanted.operation.as_ref()?.kind else {
            return None;
        };
        let has_come = explanation.report.found.domain == Some(RunState::PausedByUser);
        let ends = match from {
            Some(from) if *was_paused => vec![to, from],
            Some(from) if has_come => vec![from],
            _ => vec![to],
        };
        let ask = |name: &String| {
            let says = name
                .parse::<HostName>()
                .map_err(|error| error.to_string())
                .and_then(|host| ask_state(&Ssh::new(driver), &host, uuid).map_err(|error| error.to_string()));
            Self { host: name.clone(), says }
        };
        let mut asked: Vec<Self> = ends.into_iter().map(ask).collect();
        let is_silent = |there: &Self| there.says.is_err();
        let at = asked.iter().position(Self::runs).or_else(|| asked.iter().position(is_silent)).unwrap_or(0);
        (at < asked.len()).then(|| asked.swap_remove(at))
    }

    fn runs(&self) -> bool {
        self.says == Ok(Presence::Running)
    }

    fn text(&self, vm: &str) -> String {
        match &self.says {
            Ok(Presence::Absent | Presence::Ended) => format!("{} reports: there is no domain {vm}", self.host),
            Ok(presence) => format!("{} reports: {vm} is {presence} there", self.host),
            Err(problem) => format!("the other host can't be asked: {problem}"),
        }
    }

    fn view(&self) -> OtherHostView {
        OtherHostView {
            host: self.host.clone(),
            says: self.says.as_ref().ok().map(ToString::to_string),
            problem: self.says.as_ref().err().cloned(),
        }
    }
}

pub(crate) fn resolve(
    driver: &Path,
    vm: &DomainId,
    decision: Option<Decision>,
    json: bool,
    colours: bool,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    let host = Host::open_lenient(driver)?;
    let explanation = reconcile::explain(&host, vm)?;
    let name = view::plain(&explanation.report.owner.vm);
    // Without a doubt a decision is ignored: it would destroy or resume a VM that needs neither.
    if explanation.report.consistency() != Consistency::InDoubt {
        let said = format!("{name} is not in doubt; nothing was changed");
        return show(&explanation, None, &[said], json, colours, out);
    }
    let there = if decision == Some(Decision::There) { None } else { OtherHost::ask(driver, &explanation) };
    let runs_there = there.as_ref().is_some_and(OtherHost::runs);
    let elsewhere = match decision {
        Some(Decision::Here { .. }) if runs_there => {
            let said = format!("{name} runs there, so it can't be resumed here; nothing was changed");
            return show(&explanation, there.as_ref(), &[said], json, colours, out);
        }
        Some(Decision::Here { force: false }) if there.as_ref().is_some_and(|there| there.says.is_err()) => {
            let said = [
                format!("nobody knows whether {name} runs there: check that host first; nothing was changed"),
                format!(
                    "  kvm-sriov resolve {name} --here --force   it does not run there and never has: resumes it here"
                ),
            ];
            return show(&explanation, there.as_ref(), &said, json, colours, out);
        }
        Some(Decision::Here { .. }) => Elsewhere::NeverRan,
        Some(Decision::There) => Elsewhere::Runs,
        None if runs_there => Elsewhere::Runs,
        None => {
            let said = [
                format!("find out where {name} runs, then run one of these:"),
                format!(
                    "  kvm-sriov resolve {name} --here    it has not run elsewhere since it was paused here: resumes it here"
                ),
                format!(
                    "  kvm-sriov resolve {name} --there   it runs elsewhere, or is to end: destroys its domain here"
                ),
            ];
            return show(&explanation, there.as_ref(), &said, json, colours, out);
        }
    };
    let report = reconcile::resolve(&host, vm, elsewhere)?;
    if json {
        view::json(&ResolveView { vm: VmView::of(&report), there: there.as_ref().map(OtherHost::view) }, out)?;
    } else {
        if let Some(there) = &there {
            writeln!(out, "{}", view::plain(&there.text(&name)))?;
        }
        writeln!(out, "{}", view::headline(&report))?;
        view::write_steps(&report, false, colours, out)?;
    }
    Ok(exit_code(report.consistency()))
}

/// Prints what is known. Changes nothing.
fn show(
    explanation: &Explanation,
    there: Option<&OtherHost>,
    said: &[String],
    json: bool,
    colours: bool,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    if json {
        view::json(&ResolveView { vm: VmView::of(&explanation.report), there: there.map(OtherHost::view) }, out)?;
    } else {
        explain::write(explanation, colours, out)?;
        if let Some(there) = there {
            writeln!(out, "{}", view::plain(&there.text(explanation.report.owner.vm.as_str())))?;
        }
        for line in said {
            writeln!(out, "{line}")?;
        }
    }
    Ok(exit_code(explanation.report.consistency()))
}
