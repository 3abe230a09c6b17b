//! `kvm-sriov list`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use kvm_sriov::{Host, Vf, VfState};
use serde::Serialize;

use crate::Failure;

/// A VF as `--json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    root: &'a str,
    index: usize,
    address: String,
    state: &'static str,
    vm: Option<&'a str>,
}

pub(crate) fn list(driver: &Path, json: bool, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let vfs = Host::open_lenient(driver)?.vfs()?;
    let rows: Vec<Row<'_>> = vfs.iter().map(row).collect();
    if json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        writeln!(out, "no VF map on this host: write one to /etc/kvm-sriov/vf_maps/<root>")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["ROOT", "INDEX", "ADDRESS", "STATE", "VM"]);
    for row in &rows {
        table.add_row([row.root, &row.index.to_string(), &row.address, row.state, row.vm.unwrap_or("-")]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

fn row(vf: &Vf) -> Row<'_> {
    let (state, vm) = match &vf.state {
        VfState::Used { vm } => ("used", Some(vm.as_str())),
        VfState::Unclaimed { vm } => ("unclaimed", Some(vm.as_str())),
        VfState::Unbacked { vm } => ("unbacked", Some(vm.as_str())),
        _ => ("free", None),
    };
    Row { root: vf.root.as_str(), index: vf.index, address: vf.address.to_string(), state, vm }
}
