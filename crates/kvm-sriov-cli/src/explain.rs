//! `kvm-sriov explain`: what one VM should have, has and claims, and what reconcile would do.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use kvm_sriov::reconcile::{self, Explanation, NicClaim, NicFacts};
use kvm_sriov::xml::OperationKind;
use kvm_sriov::{DomainId, Host};
use serde::Serialize;

use crate::view::{self, VmView};
use crate::{CommandError, exit_code};

#[derive(Serialize)]
struct ExplainView {
    #[serde(flatten)]
    vm: VmView,
    holder: Option<String>,
    nics: Vec<NicView>,
    claims: Vec<OwnClaimView>,
}

/// An SR-IOV NIC: one that the VM should have, or one that it has.
#[derive(Serialize)]
struct NicView {
    position: u8,
    nic_id: Option<u32>,
    mac: Option<String>,
    root: Option<String>,
    guest: Option<String>,
    wanted: bool,
    vf: Option<String>,
    claim: &'static str,
    dummy: bool,
}

#[derive(Serialize)]
struct OwnClaimView {
    root: String,
    address: String,
    position: Option<u8>,
    mac: Option<String>,
}

pub(crate) fn explain(
    driver: &Path,
    vm: &DomainId,
    json: bool,
    colours: bool,
    out: &mut impl Write,
) -> Result<ExitCode, CommandError> {
    let explanation = reconcile::explain(&Host::open_lenient(driver)?, vm)?;
    if json {
        view::json(&view_of(&explanation), out)?;
    } else {
        write(&explanation, colours, out)?;
    }
    Ok(exit_code(explanation.report.consistency()))
}

fn view_of(explanation: &Explanation) -> ExplainView {
    let nics = explanation.report.found.nics.iter().map(|nic| nic_view(explanation, nic)).collect();
    let claims = explanation.claims.iter().map(|claim| OwnClaimView {
        root: claim.root.to_string(),
        address: claim.vf.to_string(),
        position: claim.position.map(|position| position.number()),
        mac: claim.mac.map(|mac| mac.to_string()),
    });
    ExplainView {
        vm: VmView::of(&explanation.report),
        holder: explanation.holder.as_ref().map(ToString::to_string),
        nics,
        claims: claims.collect(),
    }
}

fn nic_view(explanation: &Explanation, nic: &NicFacts) -> NicView {
    let wanted = explanation.wanted.nics.iter().find(|wanted| wanted.position == nic.position);
    let live = explanation.live.as_ref();
    let device = live.and_then(|live| match wanted {
        Some(wanted) => live.device_of(wanted),
        None => live.device_at(nic.position),
    });
    let guest = device.and_then(|device| device.guest).or_else(|| wanted.and_then(|wanted| wanted.guest));
    NicView {
        position: nic.position.number(),
        nic_id: wanted.and_then(|wanted| wanted.nic_id),
        mac: wanted.map(|wanted| wanted.mac.to_string()),
        root: wanted.map(|wanted| wanted.root.to_string()),
        guest: guest.map(|guest| guest.to_string()),
        wanted: nic.wanted,
        vf: device.map(|device| device.vf.to_string()),
        claim: match nic.claim {
            NicClaim::Own => "its own",
            NicClaim::OtherVf => "for another VF",
            NicClaim::OtherVm => "another VM's",
            _ => "none",
        },
        dummy: nic.dummy,
    }
}

/// Prints the explanation for a person.
pub(crate) fn write(explanation: &Explanation, colours: bool, out: &mut impl Write) -> Result<(), CommandError> {
    let report = &explanation.report;
    let uuid = report.owner.uuid.as_ref().map_or_else(String::new, |uuid| format!(" ({uuid})"));
    writeln!(out, "{}{uuid}: {}", view::plain(&report.owner.vm), report.found.domain_state())?;
    writeln!(out, "open operation: {}", view::plain(&operation(explanation)))?;
    let holder = explanation.holder.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
    writeln!(out, "locked by: {}", view::plain(&holder))?;
    let nics: Vec<NicView> = report.found.nics.iter().map(|nic| nic_view(explanation, nic)).collect();
    if !nics.is_empty() {
        let mut table = view::table(&["POSITION", "NIC_ID", "MAC", "ROOT", "GUEST", "WANTED", "VF", "CLAIM", "DUMMY"]);
        let (or_none, yes) = (|text: &Option<String>| text.clone().unwrap_or_else(|| "-".into()), yes_or_no);
        for nic in &nics {
            table.add_row([
                nic.position.to_string(),
                nic.nic_id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
                or_none(&nic.mac),
                or_none(&nic.root),
                or_none(&nic.guest),
                yes(nic.wanted),
                or_none(&nic.vf),
                nic.claim.to_owned(),
                yes(nic.dummy),
            ]);
        }
        writeln!(out, "{}", table.trim_fmt())?;
    }
    for claim in &explanation.claims {
        let at = claim.position.map_or_else(String::new, |position| format!(" at position {position}"));
        let nic = claim.mac.map_or_else(|| "no known NIC".into(), |mac| format!("NIC {mac}{at}"));
        writeln!(out, "claims VF {} of {} for {nic}", claim.vf, claim.root)?;
    }
    if report.left.is_empty() {
        writeln!(out, "nothing to repair: reconcile would do nothing")?;
    } else {
        writeln!(out, "reconcile:")?;
        view::write_steps(report, true, colours, out)?;
    }
    Ok(())
}

fn yes_or_no(is: bool) -> String {
    if is { "yes" } else { "no" }.into()
}

fn operation(explanation: &Explanation) -> String {
    match explanation.wanted.operation.as_ref().map(|operation| &operation.kind) {
        None => "none".into(),
        Some(OperationKind::Migrate { to, .. }) => format!("migrate to {to}"),
        Some(OperationKind::Restore { checkpoint }) => format!("restore from {}", checkpoint.display()),
        Some(OperationKind::PendingUnplug { positions }) => {
            let positions: Vec<String> = positions.iter().map(ToString::to_string).collect();
            format!("pending-unplug of position {}", positions.join(", "))
        }
        Some(other) => other.to_string(),
    }
}
