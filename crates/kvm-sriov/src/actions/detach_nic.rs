//! `detach_nic`: takes a NIC out of a running VM, with its VF if it has one.

use super::shared::device;
use super::shared::undo::undo_failed;
use crate::base::{Action, DomainId, MacAddress, Position};
use crate::error::{ActionError, Cause, HostState, UnplugOutcome};
use crate::host::Host;
use crate::host::detached;
use crate::reconcile;
use crate::vm::gone;
use crate::vm::{self, Found, NicDevice, Vm};
use crate::xml::{LiveDomain, LiveInterface, OperationKind, VmData, VmNic, Wanted, WantedNic};

const ACTION: Action = Action::DetachNic;

/// Takes the NIC with this MAC out of a running VM and frees its VF. Success when the NIC, or the VM, is not there.
///
/// The guest is asked to release VF and dummy together. A NIC without a VF of this driver, or a PCI device, is
/// unplugged in the same way.
///
/// * `data` - OpenNebula's description of the VM: says which of several NICs with the MAC is meant, and which PCI
///   device
///
/// # Errors
/// The NIC stays: what has left is plugged back. A guest that did not answer in time may still release the NIC. Then
/// the NIC is plugged back as well, and the error's state says so; but a NIC without a VF of this driver leaves for
/// good. When several NICs have the MAC and nothing tells which one is meant, nothing is changed.
///
/// # Source
/// OpenNebula's stock `detach_nic`.
pub fn detach_nic(host: &Host, id: &DomainId, mac: MacAddress, data: Option<&VmData>) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // Repairs come later: a VF that they plugged back for this NIC would have to be unplugged again.
    let mut found = match Vm::open_as_is(host, ACTION, id, data) {
        Err(Cause::Absent { .. }) => return Ok(()),
        other => other.map_err(untouched)?,
    };
    let pci = data.and_then(VmData::attached_pci).filter(|pci| pci.mac.is_none_or(|pci| pci == mac));
    if let (Found::WithVfs(vm), None) = (&mut found, pci) {
        let ready = |vm: &Vm<'_>| match vm.wanted.operation.as_ref().map(|operation| &operation.kind) {
            None | Some(OperationKind::PendingUnplug { .. }) => true,
            Some(_) => false,
        };
        if !ready(vm) || with_vf(vm, mac, data).map_err(untouched)?.is_none() {
            reconcile::repair(vm).map_err(untouched)?;
        }
        if let Some(nic) = with_vf(vm, mac, data).map_err(untouched)? {
            take_out(vm, &nic)?;
            match reconcile::repair(vm) {
                Ok(_) | Err(Cause::Absent { .. }) => {}
                Err(cause) => {
                    log::warn!("{cause}; NIC {mac} is detached, the rest of {} is not repaired yet", vm.domain.name);
                }
            }
            return Ok(());
        }
    }
    // A device that is not a VF of this driver.
    let (name, alias) = match pci {
        Some(pci) => (format!("host device {}", pci.device), found.live().pci_alias(&pci.device).map(str::to_owned)),
        None => {
            let interface = without_vf(found.live(), mac, data).map_err(untouched)?;
            (format!("interface {mac}"), interface.and_then(|interface| interface.alias.clone()))
        }
    };
    alias.map_or(Ok(()), |alias| device::unplug(host, ACTION, found.domain(), name, &alias))
}

/// The NIC with a VF of this driver that is meant; `None` when the NIC that is meant has none.
///
/// # Errors
/// Several NICs may be meant.
fn with_vf(vm: &Vm<'_>, mac: MacAddress, data: Option<&VmData>) -> Result<Option<WantedNic>, Cause> {
    let mut candidates: Vec<&WantedNic> = vm.wanted.nics.iter().filter(|known| known.mac == mac).collect();
    let mut rivals: Vec<String> = Vec::new();
    match data.and_then(|data| Some((data, data.nic_of_action(mac)?))) {
        None => rivals.extend(interfaces(&vm.live, mac).map(name_of)),
        Some((data, nic)) => {
            // Without a recorded NIC_ID, the interface name on the host identifies the NIC.
            if let Some(it) = candidates.iter().find(|known| vm.has_device_of(known, nic)) {
                return Ok(Some((*it).clone()));
            }
            let is_of_another = |known: &WantedNic| others(data, nic).any(|other| vm.has_device_of(known, other));
            candidates.retain(|known| known.is_described_by(nic) && !is_of_another(known));
            let may_be_another = |other: &&VmNic| candidates.iter().any(|known| known.is_described_by(other));
            rivals.extend(others(data, nic).filter(may_be_another).map(|_| "another of OpenNebula's".to_owned()));
        }
    }
    match (&candidates[..], &rivals[..]) {
        ([], _) => Ok(None),
        ([one], []) => Ok(Some((*one).clone())),
        _ => {
            let vfs = candidates.iter().map(|nic| format!("a VF of {} at position {}", nic.root, nic.position));
            Err(several_nics(&vm.live, mac, vfs.chain(rivals)))
        }
    }
}

/// The interface without a VF of this driver that is meant; `None` when it is not there. An interface that is known to
/// be another NIC of OpenNebula's is never returned.
///
/// # Errors
/// Several NICs may be meant.
fn without_vf<'l>(
    live: &'l LiveDomain,
    mac: MacAddress,
    data: Option<&VmData>,
) -> Result<Option<&'l LiveInterface>, Cause> {
    let mut candidates: Vec<&LiveInterface> = interfaces(live, mac).collect();
    if let Some((data, nic)) = data.and_then(|data| Some((data, data.nic_of_action(mac)?))) {
        if let Some(it) = candidates.iter().find(|interface| interface.belongs_to(nic)) {
            return Ok(Some(it));
        }
        candidates.retain(|interface| !others(data, nic).any(|other| interface.belongs_to(other)));
        let is_on_bridge = |interface: &&LiveInterface| interface.is_on_bridge_of(nic);
        // A NIC on a bridge that names a root is only an interface on that bridge.
        if nic.root().is_some() || candidates.iter().copied().filter(|it| is_on_bridge(it)).count() == 1 {
            candidates.retain(is_on_bridge);
        }
    }
    match candidates[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(several_nics(live, mac, candidates.into_iter().map(name_of))),
    }
}

/// The other NICs in OpenNebula's description with the MAC of this NIC.
fn others<'d>(data: &'d VmData, nic: &'d VmNic) -> impl Iterator<Item = &'d VmNic> {
    data.nics().iter().filter(move |other| other.mac == nic.mac && !std::ptr::eq(*other, nic))
}

/// The interfaces with this MAC that are not dummies of this driver.
fn interfaces(live: &LiveDomain, mac: MacAddress) -> impl Iterator<Item = &LiveInterface> {
    live.interfaces.iter().filter(move |interface| interface.mac == mac && !interface.is_ours())
}

fn name_of(interface: &LiveInterface) -> String {
    let name = interface.target.as_deref().or(interface.alias.as_deref()).unwrap_or("an interface");
    interface.bridge.as_ref().map_or_else(|| name.to_owned(), |bridge| format!("{name} on {bridge}"))
}

fn several_nics(live: &LiveDomain, mac: MacAddress, names: impl Iterator<Item = String>) -> Cause {
    Cause::SeveralNics { vm: live.name.clone(), mac, nics: names.collect::<Vec<_>>().join(", ") }
}

/// Unplugs VF and dummy of a NIC and frees the VF, or plugs both back.
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
        return Err(put_back(vm, nic, before, cause, kept.iter().any(UnplugOutcome::is_pending)));
    }
    journal(vm, nic, &devices);
    vm.live.forget(&vm::aliases(&devices));
    commit(vm, nic).map_err(|cause| put_back(vm, nic, before, cause, false))?;
    let freed = vm.free_nic(nic).and_then(|()| Ok(vm.store.settle(&vm.owner())?));
    if let Err(cause) = freed {
        log::warn!("{cause}; NIC {} is detached, the next reconciliation frees its VF", nic.mac);
    }
    Ok(())
}

fn journal(vm: &Vm<'_>, nic: &WantedNic, devices: &[NicDevice]) {
    for vf in devices.iter().filter_map(NicDevice::vf) {
        vm.host.journal().vf(ACTION, &vm.domain.name, &nic.root, vf, "unplugged");
    }
}

/// Records in the domain, before the guest is asked, the XML that plugs the dummy back. A VF needs no such record.
fn begin(vm: &mut Vm<'_>, nic: &WantedNic) -> Result<(), Cause> {
    vm.store.hold(&vm.lock, &vm.owner(), None)?;
    let dummy = vm.dummy_of(nic).map(|dummy| dummy.xml.clone());
    for wanted in vm.wanted.nics.iter_mut().filter(|wanted| wanted.position == nic.position) {
        wanted.dummy = dummy.clone().or(wanted.dummy.take());
    }
    vm.write_wanted()
}

/// Records in the domain that the VM should not have the NIC.
fn commit(vm: &mut Vm<'_>, nic: &WantedNic) -> Result<(), Cause> {
    let noted = vm.wanted.clone();
    vm.wanted.nics.retain(|wanted| wanted.position != nic.position);
    let mut positions = vm.pending();
    positions.retain(|position| *position != nic.position);
    note_pending(vm, positions);
    vm.write_wanted().inspect_err(|_| vm.wanted = noted)
}

/// Sets the open operation to a pending unplug of these positions.
fn note_pending(vm: &mut Vm<'_>, positions: Vec<Position>) {
    let pending = (!positions.is_empty()).then_some(OperationKind::PendingUnplug { positions });
    vm.wanted.operation = pending.map(Into::into);
}

/// The domain ended while its guest was asked, so its VFs are free.
fn ended(vm: &Vm<'_>) -> Result<(), ActionError> {
    if let Err(error) = gone::release(vm.host, &vm.store, &vm.owner(), ACTION) {
        log::warn!("{error}; {} is gone, the next reconciliation frees its VFs", vm.domain.name);
    }
    Ok(())
}

/// Plugs back what has left. Starts the watcher for what may leave later.
///
/// * `before` - what the VM should have had before this action; `pending` - whether the guest may still release a
///   device
fn put_back(vm: &mut Vm<'_>, nic: &WantedNic, before: Wanted, cause: Cause, pending: bool) -> ActionError {
    match plug_back(vm, nic, before, pending) {
        Ok(()) if pending => {
            let text = "the NIC stays; the request stays pending in the guest, and what leaves later is plugged back (is \
                        the guest's PCI hot-plug driver loaded?)";
            ActionError::new(ACTION, cause, HostState::Left(text.into()))
        }
        Ok(()) => ActionError::untouched(ACTION, cause),
        Err(undo) => {
            let name = &vm.domain.name;
            let text = format!(
                "NIC {} of {name} may lack its VF or its dummy; kvm-sriov reconcile, or the next action of {name}, \
                 plugs them back",
                nic.mac
            );
            undo_failed(ACTION, cause, undo, text)
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
