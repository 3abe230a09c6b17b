//! `detach_nic`: takes a NIC out of a running VM, with its VF if it has one.

use super::device;
use crate::detached;
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::reconcile;
use crate::vm::gone;
use crate::vm::{self, Device, Found, Outcome, Vm};
use crate::xml::{LiveDomain, OperationKind, VmData, Wanted, WantedNic};
use crate::{DeployId, MacAddress, Position};

const ACTION: &str = "detach_nic";

/// Takes the NIC with this MAC out of a running VM and frees its VF. Success when it is not there, or the VM is not.
///
/// The guest is asked to release VF and dummy together. A NIC without a VF of ours, of whatever kind, and a PCI device leave
/// in the same way.
///
/// * `data` - OpenNebula's description of the VM: says which of two NICs with the same MAC is meant, and which PCI device
///
/// # Errors
/// The NIC stays: what has left is plugged back. A guest that did not answer in time may do so later: what leaves then is
/// plugged back, too, and the error says so. A NIC without a VF of ours is left to the guest then.
///
/// # Source
/// OpenNebula's stock `detach_nic`.
pub fn detach_nic(host: &Host, id: &DeployId, mac: MacAddress, data: Option<&VmData>) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // Whatever is plugged back now would have to leave again.
    let mut found = match Vm::open_as_is(host, ACTION, id, data) {
        Err(Cause::Absent { .. }) => return Ok(()),
        other => other.map_err(untouched)?,
    };
    if let Found::WithVfs(vm) = &mut found {
        let ready = |vm: &Vm<'_>| match vm.wanted.operation.as_ref().map(|operation| &operation.kind) {
            None | Some(OperationKind::PendingUnplug { .. }) => true,
            Some(_) => false,
        };
        let wanted = |vm: &Vm<'_>| vm.wanted.nics.iter().find(|nic| nic.mac == mac).cloned();
        if wanted(vm).is_none() || !ready(vm) {
            reconcile::mend(vm).map_err(untouched)?;
        }
        if let Some(nic) = wanted(vm) {
            take_out(vm, &nic)?;
            match reconcile::mend(vm) {
                Ok(_) | Err(Cause::Absent { .. }) => {}
                Err(cause) => {
                    log::warn!("{cause}; NIC {mac} is detached, the rest of {} is not yet put right", vm.domain.name);
                }
            }
            return Ok(());
        }
    }
    as_stock(host, &found, mac, data)
}

/// Takes out a device that is no VF of ours.
fn as_stock(host: &Host, found: &Found<'_>, mac: MacAddress, data: Option<&VmData>) -> Result<(), ActionError> {
    match meant(found.live(), mac, data) {
        Some((name, alias)) => device::unplug(host, ACTION, found.domain(), name, &alias),
        None => Ok(()),
    }
}

/// What to call the device that is to leave, and its alias.
fn meant(live: &LiveDomain, mac: MacAddress, data: Option<&VmData>) -> Option<(String, String)> {
    let pci = data.and_then(VmData::attached_pci).filter(|pci| pci.mac.is_none_or(|pci| pci == mac));
    if let Some(pci) = pci {
        return Some((format!("host device {}", pci.device), live.pci_alias(&pci.device)?.to_owned()));
    }
    let with = || live.interfaces.iter().filter(move |interface| interface.mac == mac && !interface.is_ours());
    let target = data.and_then(|data| data.nic(mac)?.target.as_deref());
    let by_target = || with().find(|interface| target.is_some() && interface.target.as_deref() == target);
    let interface = by_target().or_else(|| with().next())?;
    Some((format!("interface {mac}"), interface.alias.clone()?))
}

/// Takes VF and dummy of a NIC out and frees the VF; or puts both back.
fn take_out(vm: &mut Vm<'_>, nic: &WantedNic) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    let devices = vm.devices_of(nic);
    let before = vm.wanted.clone();
    let mut kept = Vec::new();
    if !devices.is_empty() {
        vm::check_answers(vm.host, &vm.domain).map_err(untouched)?;
        if let Err(cause) = begin(vm, nic) {
            return Err(put_back(vm, nic, before, cause, false));
        }
        match vm.ask_for(&vm::aliases(&devices)) {
            Ok(outcomes) => kept = outcomes,
            Err(Cause::Absent { .. }) => return ended(vm),
            Err(cause) => return Err(put_back(vm, nic, before, cause, true)),
        }
    }
    if let Some(cause) = vm.not_released(&devices, &kept) {
        let is_pending = |outcome: &Outcome| matches!(outcome, Outcome::Pending | Outcome::DaemonGone);
        return Err(put_back(vm, nic, before, cause, kept.iter().any(is_pending)));
    }
    journal(vm, nic, &devices);
    vm.live.forget(&vm::aliases(&devices));
    commit(vm, nic).map_err(|cause| put_back(vm, nic, before, cause, false))?;
    let freed = vm.free_nic(nic).and_then(|()| Ok(vm.store.settle(&vm.owner())?));
    if let Err(cause) = freed {
        log::warn!("{cause}; NIC {} is detached, its VF is freed by the next action that looks", nic.mac);
    }
    Ok(())
}

fn journal(vm: &Vm<'_>, nic: &WantedNic, devices: &[Device]) {
    for vf in devices.iter().filter_map(Device::vf) {
        vm.host.journal().vf(ACTION, &vm.domain.name, &nic.root, vf, "unplugged");
    }
}

/// Before the guest is asked, the domain says what it takes to plug its dummy in again. A VF needs no such note.
fn begin(vm: &mut Vm<'_>, nic: &WantedNic) -> Result<(), Cause> {
    vm.store.hold(&vm.owner(), None)?;
    let dummy = vm.dummy_of(nic).map(|dummy| dummy.xml.clone());
    for wanted in vm.wanted.nics.iter_mut().filter(|wanted| wanted.mac == nic.mac) {
        wanted.dummy = dummy.clone().or(wanted.dummy.take());
    }
    vm.write_wanted()
}

/// From here on the VM is not to have the NIC.
fn commit(vm: &mut Vm<'_>, nic: &WantedNic) -> Result<(), Cause> {
    let noted = vm.wanted.clone();
    vm.wanted.nics.retain(|wanted| wanted.mac != nic.mac);
    let mut positions = vm.pending();
    positions.retain(|position| *position != nic.position);
    note_pending(vm, positions);
    vm.write_wanted().inspect_err(|_| vm.wanted = noted)
}

/// What the guest may still release, as the operation that is open.
fn note_pending(vm: &mut Vm<'_>, positions: Vec<Position>) {
    let pending = (!positions.is_empty()).then_some(OperationKind::PendingUnplug { positions });
    vm.wanted.operation = pending.map(Into::into);
}

/// The domain ended while its guest was asked: nothing of it has a VF any more.
fn ended(vm: &Vm<'_>) -> Result<(), ActionError> {
    if let Err(error) = gone::release(vm.host, &vm.store, &vm.owner(), ACTION) {
        log::warn!("{error}; {} is gone, its VFs are freed by the next action that looks", vm.domain.name);
    }
    Ok(())
}

/// Plugs back what has left, and has what may leave later watched for.
///
/// * `before` - what the VM was to have before this began; `pending` - whether something may still leave
fn put_back(vm: &mut Vm<'_>, nic: &WantedNic, before: Wanted, cause: Cause, pending: bool) -> ActionError {
    match plug_back(vm, nic, before, pending) {
        Ok(()) if pending => {
            let text = "the NIC stays, the request stays pending in the guest and what leaves later is plugged back (is the \
                        guest's PCI hot-plug driver loaded?)";
            ActionError::new(ACTION, cause, HostState::Left(text.into()))
        }
        Ok(()) => ActionError::untouched(ACTION, cause),
        Err(undo) => {
            let name = &vm.domain.name;
            let text = format!(
                "NIC {} of {name} may lack its VF or its dummy; kvm-sriov reconcile, or the next action of {name}, plugs \
                 them back",
                nic.mac
            );
            let cause = Cause::Twice { cause: Box::new(cause), undo: Box::new(undo) };
            ActionError::new(ACTION, cause, HostState::Left(text))
        }
    }
}

fn plug_back(vm: &mut Vm<'_>, nic: &WantedNic, before: Wanted, pending: bool) -> Result<(), Cause> {
    let (host, domain) = (vm.host, vm.domain.clone());
    vm.live = host.patiently(|| vm::read(host, &domain))?;
    let lost = vm.lost();
    vm.plug(&lost)?;
    vm.plug_lacking();
    vm.plug_dummies()?;
    if pending {
        let mut positions = vm.pending();
        if !positions.contains(&nic.position) {
            positions.push(nic.position);
        }
        note_pending(vm, positions);
    } else {
        vm.wanted = before;
    }
    vm.ensure_written()?;
    vm.store.settle(&vm.owner())?;
    if pending {
        detached::start(host, detached::WATCHER, &domain);
    }
    Ok(())
}
