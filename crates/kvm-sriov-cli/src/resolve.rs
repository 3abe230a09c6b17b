//! `kvm-sriov resolve`: a person says where a VM lives.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use kvm_sriov::reconcile::{self, Elsewhere, Verdict};
use kvm_sriov::{DeployId, Host};

use crate::view::{self, VmView};
use crate::{Failure, exit_code, explain};

/// A person's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Here,
    There,
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
    // A word that nobody asked for decides nothing: it would destroy or resume a VM that needs neither.
    if explanation.report.verdict() != Verdict::InDoubt {
        if json {
            view::json(&VmView::of(&explanation.report), out)?;
        } else {
            explain::write(&explanation, colours, out)?;
            writeln!(out, "{} is not in doubt; nothing was changed", explanation.report.owner.vm)?;
        }
        return Ok(exit_code(explanation.report.verdict()));
    }
    let elsewhere = match word {
        Some(Word::Here) => Elsewhere::Never,
        Some(Word::There) => Elsewhere::Runs,
        None => Elsewhere::Unknown,
    };
    if elsewhere == Elsewhere::Unknown {
        if json {
            view::json(&VmView::of(&explanation.report), out)?;
        } else {
            explain::write(&explanation, colours, out)?;
            let name = &explanation.report.owner.vm;
            writeln!(out, "look where {name} runs, then say so:")?;
            writeln!(out, "  kvm-sriov resolve {name} --here    it has never run elsewhere: it is let run here")?;
            writeln!(out, "  kvm-sriov resolve {name} --there   it runs elsewhere, or is to end: what is here goes")?;
        }
        return Ok(exit_code(Verdict::InDoubt));
    }
    let report = reconcile::resolve(&host, vm, elsewhere)?;
    if json {
        view::json(&VmView::of(&report), out)?;
    } else {
        writeln!(out, "{}: {}, operation {}", report.owner.vm, report.found.standing(), report.found.operation)?;
        view::write_steps(&report, false, colours, out)?;
    }
    Ok(exit_code(report.verdict()))
}
