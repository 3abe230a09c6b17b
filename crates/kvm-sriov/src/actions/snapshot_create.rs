//! `snapshot_create`: takes a snapshot of a VM's memory and disks.

use super::shared::undo::{lacks_vfs, undo_failed};
use crate::base::{Action, DomainId, SnapshotName};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::reconcile;
use crate::vm::block_job;
use crate::vm::dir::VmDir;
use crate::vm::gone;
use crate::vm::{self, Found, Vm};
use crate::xml::{LiveDomain, VmData};

const ACTION: Action = Action::SnapshotCreate;

/// The state when it is not known whether libvirt took the snapshot.
const IN_DOUBT: &str = "the domain runs on; whether there is a snapshot is not known";

/// Takes the snapshot with this number of OpenNebula, and returns its name.
///
/// VFs are unplugged first and plugged back afterwards, so the snapshot holds none. An existing snapshot of the same
/// name is replaced: an earlier call took it, and OpenNebula does not know of it. The snapshot's XML is kept in the
/// VM's directory.
///
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// No snapshot was taken, and the domain runs on with its VFs. A guest that did not release a VF in time may release it
/// later. Then that VF is plugged back, and the error's state says so.
///
/// # Source
/// OpenNebula's stock `snapshot_create`: `virDomainSnapshotCreateXML` without flags.
pub fn snapshot_create(
    host: &Host,
    id: &DomainId,
    number: u32,
    data: Option<&VmData>,
) -> Result<SnapshotName, ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    let name = SnapshotName::of(number);
    match reconcile::open_to_unplug(host, ACTION, id, data).map_err(untouched)? {
        Found::Plain(domain, _) => {
            take(host, &domain, &name).map_err(|cause| match cause {
                Cause::Twice { .. } => ActionError::new(ACTION, cause, HostState::InDoubt(IN_DOUBT.into())),
                cause => untouched(cause),
            })?;
            keep(host, &domain, vm::read(host, &domain), &name);
        }
        Found::WithVfs(vm) => {
            let domain = vm.domain.clone();
            keep(host, &domain, Ok(with_vfs(*vm, &name)?), &name);
        }
    }
    Ok(name)
}

/// Takes the snapshot.
///
/// # Errors
/// There is no snapshot. [`Cause::Twice`] when it is not known whether there is one.
fn take(host: &Host, domain: &DomainRef, name: &SnapshotName) -> Result<(), Cause> {
    let hypervisor = host.hypervisor();
    let xml = format!("<domainsnapshot><name>{name}</name></domainsnapshot>");
    let create = || block_job::wait_out(&domain.name, || hypervisor.create_snapshot(domain, &xml));
    let failed = |source| Cause::Call { what: format!("create snapshot {name} for domain {}", domain.name), source };
    let Err(error) = create() else { return Ok(()) };
    let is_there = || host.patiently(|| Ok(hypervisor.snapshots(domain)?.names.iter().any(|n| n == name.as_str())));
    // libvirt may still be taking the snapshot.
    match vm::wait_for_job(host, domain, host.settings().call_timeout, "its snapshot").and_then(|()| is_there()) {
        Ok(false) => Err(failed(error)),
        Ok(true) => {
            log::info!("{} has a snapshot {name} that OpenNebula does not know of: replacing it", domain.name);
            hypervisor.delete_snapshot(domain, name.as_str(), false).map_err(failed)?;
            create().map_err(failed)
        }
        Err(undo) => Err(failed(error).and_undo(undo)),
    }
}

/// Takes the snapshot of a VM with VFs. Returns the live XML after the snapshot.
fn with_vfs(mut vm: Vm<'_>, name: &SnapshotName) -> Result<LiveDomain, ActionError> {
    vm.check_can_leave("in a snapshot").map_err(|cause| ActionError::untouched(ACTION, cause))?;
    let (host, domain, devices) = (vm.host, vm.domain.clone(), vm.plugged());
    let held = vm.store.hold(&vm.lock, &vm.owner(), None).map_err(Cause::from);
    let taken = held.and_then(|_| vm.unplug(&devices)).and_then(|()| take(host, &domain, name));
    if let Err(cause) = taken {
        return Err(undo(vm, cause));
    }
    let (missing, lost) = (vm.missing(), vm.lost());
    let back = vm.plug(&lost).and_then(|_| {
        vm.plug_lacking();
        let there: Vec<_> = missing.into_iter().filter(|nic| vm.live.device_of(nic).is_some()).collect();
        vm.finish_plugged(&there)
    });
    let Err(cause) = back else { return Ok(vm.live) };
    // OpenNebula does not keep a snapshot whose creation failed.
    let left = format!("no snapshot is kept, and {}", lacks_vfs(&vm.domain.name));
    Err(match host.hypervisor().delete_snapshot(&domain, name.as_str(), false) {
        Ok(()) => ActionError::new(ACTION, cause, HostState::InDoubt(left)),
        Err(undo) => undo_failed(
            ACTION,
            cause,
            undo,
            format!("snapshot {name} may be there, and {}", lacks_vfs(&vm.domain.name)),
        ),
    })
}

/// Plugs the VFs back after a failure.
fn undo(mut vm: Vm<'_>, cause: Cause) -> ActionError {
    if vm.host.patiently(|| gone::is_gone(vm.host, &vm.domain)).unwrap_or(false) {
        let left = "no snapshot was taken, the domain is gone";
        return match gone::release(vm.host, &vm.store, &vm.owner(), ACTION) {
            Ok(()) => ActionError::new(ACTION, cause, HostState::Left(left.into())),
            Err(undo) => undo_failed(ACTION, cause, undo, left.into()),
        };
    }
    let in_doubt = matches!(cause, Cause::Twice { .. });
    match vm.plug_back(&cause) {
        Ok(()) if in_doubt => {
            let left = "the domain runs on with its VFs; whether there is a snapshot is not known";
            ActionError::new(ACTION, cause, HostState::InDoubt(left.into()))
        }
        Ok(()) => match vm::pending_text(&cause) {
            Some(pending) => {
                ActionError::new(ACTION, cause, HostState::Left(format!("no snapshot was taken; {pending}")))
            }
            None => ActionError::untouched(ACTION, cause),
        },
        Err(undo) => {
            let left = format!("no snapshot was taken, and {}", lacks_vfs(&vm.domain.name));
            undo_failed(ACTION, cause, undo, left)
        }
    }
}

/// Writes the snapshot's XML into the VM's directory. Without that file libvirt loses the snapshot when the VM is
/// powered off.
fn keep(host: &Host, domain: &DomainRef, live: Result<LiveDomain, Cause>, name: &SnapshotName) {
    let kept = live.and_then(|live| {
        let dir = VmDir::of_domain(&live).ok_or_else(|| Cause::NoVmDir { vm: domain.name.clone() })?;
        dir.keep_snapshot(host.hypervisor(), domain, name)
    });
    if let Err(cause) = kept {
        log::warn!("the XML of snapshot {name} is not kept: {cause}");
    }
}
