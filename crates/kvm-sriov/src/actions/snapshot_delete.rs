//! `snapshot_delete`: deletes a snapshot of a VM.

use super::shared::undo::undo_failed;
use crate::base::{Action, DomainId, SnapshotName};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::vm::Vm;
use crate::vm::block_job;
use crate::vm::dir::VmDir;

const ACTION: Action = Action::SnapshotDelete;

/// Deletes a snapshot. Success when there is no such snapshot. The VM keeps its VFs.
///
/// The XML of the remaining snapshots is written again into the VM's directory, because their parents may have changed.
///
/// # Errors
/// The snapshot is still there, or the error's state says what is not known.
///
/// # Source
/// OpenNebula's stock `snapshot_delete`: `virDomainSnapshotDelete` without flags.
pub fn snapshot_delete(host: &Host, id: &DomainId, name: &SnapshotName) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // The lock of a VM with VFs is held until this function returns, so no other action changes its snapshots
    // meanwhile.
    let found = Vm::open_as_is(host, ACTION, id, None).map_err(untouched)?;
    let domain = found.domain();
    // Before OpenNebula 5.8 a domain does not name its directory, and no XML of its snapshots was kept there.
    let dir = VmDir::of_domain(found.live());
    let left = delete(host, domain, dir.as_ref(), name)?;
    let Some(dir) = dir else { return Ok(()) };
    if let Err(cause) = dir.forget_snapshot(name) {
        log::warn!("{cause}; snapshot {name} is deleted nevertheless");
    }
    for name in left {
        if let Err(cause) = dir.keep_snapshot(host.hypervisor(), domain, &name) {
            log::warn!("the XML of snapshot {name} is not kept: {cause}");
        }
    }
    Ok(())
}

/// Deletes the snapshot. Returns OpenNebula's snapshots that are left.
fn delete(
    host: &Host,
    domain: &DomainRef,
    dir: Option<&VmDir>,
    name: &SnapshotName,
) -> Result<Vec<SnapshotName>, ActionError> {
    let hypervisor = host.hypervisor();
    let names = || host.patiently(|| Ok(hypervisor.snapshots(domain)?.names));
    let untouched = |cause| ActionError::untouched(ACTION, cause);
    let is_it = |other: &String| other == name.as_str();
    let mut before = names().map_err(untouched)?;
    // libvirt removes a snapshot from the disks only when it knows the snapshot.
    if !before.iter().any(is_it) && dir.is_some_and(|dir| dir.recall_snapshot(hypervisor, domain, name)) {
        before = names().map_err(untouched)?;
    }
    let mut left = before.clone();
    left.retain(|other| !is_it(other));
    if left.len() < before.len() {
        let deleted = block_job::wait_out(&domain.name, || hypervisor.delete_snapshot(domain, name.as_str(), false));
        if let Err(source) = deleted {
            let what = format!("delete snapshot {name} for domain {}", domain.name);
            let cause = Cause::Call { what, source };
            // The call's error does not decide: the list of snapshots tells.
            match names() {
                Ok(names) if !names.iter().any(is_it) => {}
                Ok(_) if cause.leaves_doubt() => {
                    let text = "the snapshot was still there, and may go later".into();
                    return Err(ActionError::new(ACTION, cause, HostState::InDoubt(text)));
                }
                Ok(_) => return Err(untouched(cause)),
                Err(undo) => {
                    let text = "whether the snapshot is still there is not known".into();
                    return Err(undo_failed(ACTION, cause, undo, text));
                }
            }
        }
    }
    Ok(left.iter().filter(|name| name.starts_with("snap-")).filter_map(|name| name.parse().ok()).collect())
}
