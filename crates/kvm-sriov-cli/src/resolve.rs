//! `kvm-sriov resolve`: a person says where a VM lives, or the other host does.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use kvm_sriov::agent::{Presence, Ssh, ask_state};
use kvm_sriov::libvirt::RunState;
use kvm_sriov::reconcile::{self, Consistency, Elsewhere, Explanation};
use kvm_sriov::xml::OperationKind;
use kvm_sriov::{DeployId, Host, HostName};
use serde::Serialize;

use crate::view::{self, VmView};
use crate::{Failure, exit_code, explain};

/// A person's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// `force`: also when the other host can't be asked.
    Here {
        force: bool,
    },
    There,
}

#[derive(Serialize)]
struct View {
    #[serde(flatten)]
    vm: VmView,
    /// The other host, and what it says of the VM.
    there: Option<ThereView>,
}

#[derive(Serialize)]
struct ThereView {
    host: String,
    says: Option<String>,
    problem: Option<String>,
}

/// The other end of a move, and where the VM is, seen from there.
struct There {
    host: String,
    says: Result<Presence, String>,
}

impl There {
    /// Asks the other end. `None` when no move is what the doubt is about.
    ///
    /// The domain looks the same at both ends; but what has come stands as if its user had paused it, and what goes does not.
    /// Of one that its user had paused before, both are asked: this host among them says nothing new. An end that can't be asked may run it.
    fn ask(driver: &Path, explanation: &Explanation) -> Option<Self> {
        let uuid = explanation.report.owner.uuid.as_ref()?;
        let OperationKind::Migrate { to, from, stands, .. } = &explanation.wanted.operation.as_ref()?.kind else {
            return None;
        };
        let has_come = explanation.report.found.domain == Some(RunState::PausedByUser);
        let ends = match from {
            Some(from) if *stands => vec![to, from],
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
            Ok(Presence::Absent | Presence::Ended) => format!("{} says: no domain {vm} is there", self.host),
            Ok(presence) => format!("{} says: {vm} is {presence} there", self.host),
            Err(problem) => format!("the other host can't be asked: {problem}"),
        }
    }

    fn view(&self) -> ThereView {
        ThereView {
            host: self.host.clone(),
            says: self.says.as_ref().ok().map(ToString::to_string),
            problem: self.says.as_ref().err().cloned(),
        }
    }
}

pub(crate) fn resolve(
    driver: &Path,
    vm: &DeployId,
    word: Option<Word>,
    json: bool,
    colours: bool,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    let host = Host::open_lenient(driver)?;
    let explanation = reconcile::explain(&host, vm)?;
    let name = explanation.report.owner.vm.to_string();
    // A word that nobody asked for decides nothing: it would destroy or resume a VM that needs neither.
    if explanation.report.consistency() != Consistency::InDoubt {
        let said = format!("{name} is not in doubt; nothing was changed");
        return show(&explanation, None, &[said], json, colours, out);
    }
    let there = if word == Some(Word::There) { None } else { There::ask(driver, &explanation) };
    let runs_there = there.as_ref().is_some_and(There::runs);
    let elsewhere = match word {
        Some(Word::Here { .. }) if runs_there => {
            let said = format!("{name} runs there, so it does not live here; nothing was changed");
            return show(&explanation, there.as_ref(), &[said], json, colours, out);
        }
        Some(Word::Here { force: false }) if there.as_ref().is_some_and(|there| there.says.is_err()) => {
            let said = [
                format!("nobody knows whether {name} runs there: look at that host; nothing was changed"),
                format!("  kvm-sriov resolve {name} --here --force   it does not, and never has: it is let run here"),
            ];
            return show(&explanation, there.as_ref(), &said, json, colours, out);
        }
        Some(Word::Here { .. }) => Elsewhere::NeverRan,
        Some(Word::There) => Elsewhere::Runs,
        None if runs_there => Elsewhere::Runs,
        None => {
            let said = [
                format!("look where {name} runs, then say so:"),
                format!(
                    "  kvm-sriov resolve {name} --here    it runs nowhere else, and has not since it stopped here: it is let run"
                ),
                format!("  kvm-sriov resolve {name} --there   it runs elsewhere, or is to end: what is here goes"),
            ];
            return show(&explanation, there.as_ref(), &said, json, colours, out);
        }
    };
    let report = reconcile::resolve(&host, vm, elsewhere)?;
    if json {
        view::json(&View { vm: VmView::of(&report), there: there.as_ref().map(There::view) }, out)?;
    } else {
        if let Some(there) = &there {
            writeln!(out, "{}", there.text(&name))?;
        }
        writeln!(out, "{name}: {}, operation {}", report.found.domain_state(), report.found.operation)?;
        view::write_steps(&report, false, colours, out)?;
    }
    Ok(exit_code(report.consistency()))
}

/// Shows what is known, and changes nothing.
fn show(
    explanation: &Explanation,
    there: Option<&There>,
    said: &[String],
    json: bool,
    colours: bool,
    out: &mut impl Write,
) -> Result<ExitCode, Failure> {
    if json {
        view::json(&View { vm: VmView::of(&explanation.report), there: there.map(There::view) }, out)?;
    } else {
        explain::write(explanation, colours, out)?;
        if let Some(there) = there {
            writeln!(out, "{}", there.text(explanation.report.owner.vm.as_str()))?;
        }
        for line in said {
            writeln!(out, "{line}")?;
        }
    }
    Ok(exit_code(explanation.report.consistency()))
}
