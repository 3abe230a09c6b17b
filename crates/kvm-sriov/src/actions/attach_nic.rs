//! `attach_nic`: plugs a NIC into a running VM, with a VF if its bridge names a root.

use std::slice;

use super::shared::device::{self, NewDevice};
use super::shared::undo::undo_failed;
use crate::base::{Action, DomainId, MacAddress, NicMode, RootName};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::reconcile;
use crate::vm::{self, Dummy, PluggedVf, Vm, nic_defaults};
use crate::xml::{
    LiveDomain, NicPlace, PciDevice, VmData, VmNic, VmPci, Wanted, WantedNic, interface_of, nic_alias, pci_of,
};

const ACTION: Action = Action::AttachNic;

/// Plugs a NIC into a running VM. Success when it is there already.
///
/// A NIC on a bridge `sriov_<root>` gets a free VF of that root, and a dummy interface unless the root has
/// MODE=ethernet. It gets the lowest position that keeps the VM's VFs in the order of their guest addresses. A NIC on
/// any other bridge, and a PCI device, are attached as by the stock driver. An alias is another address of a NIC, so
/// there is nothing to plug in.
///
/// * `nic` - the NIC
/// * `data` - OpenNebula's description of the VM: says whether the NIC is an alias or a PCI device, and which other
///   NICs there are
///
/// # Errors
/// Nothing was changed, or the error's state says exactly what is left.
///
/// # Source
/// OpenNebula's stock `attach_nic`.
pub fn attach_nic(host: &Host, id: &DomainId, nic: &VmNic, data: Option<&VmData>) -> Result<(), ActionError> {
    if data.is_some_and(|data| data.attaches_alias(nic.mac)) {
        log::info!("{} is an alias: there is nothing to plug in", nic.mac);
        return Ok(());
    }
    let pci = data.and_then(VmData::attached_pci).filter(|pci| pci.mac.is_none_or(|mac| mac == nic.mac));
    if let Some(pci) = pci {
        return as_stock(host, id, data, &New::Pci(pci));
    }
    let root = nic.root().transpose().map_err(|source| {
        ActionError::untouched(ACTION, Cause::Value { what: format!("the bridge of NIC {}", nic.mac), source })
    })?;
    if let Some(root) = root {
        let mode = host.mode_of(&root).map_err(|cause| ActionError::untouched(ACTION, cause))?;
        vm::check_vlan_is_known(nic, mode).map_err(|cause| ActionError::untouched(ACTION, cause))?;
        return with_vf(host, id, nic, (root, mode), data).map(drop);
    }
    as_stock(host, id, data, &New::Interface(nic))
}

/// A device that is not a VF of this driver.
enum New<'a> {
    Interface(&'a VmNic),
    Pci(&'a VmPci),
}

impl New<'_> {
    /// Whether the domain has the device already.
    fn is_in(&self, live: &LiveDomain) -> bool {
        match self {
            Self::Pci(pci) => live.pci_alias(&pci.device).is_some(),
            Self::Interface(nic) => live.interfaces.iter().any(|interface| {
                // Without NIC_ID and interface name on the host, only MAC and bridge are known.
                let is_nameless = nic.id.is_none() && nic.target.is_none();
                interface.belongs_to(nic) || (is_nameless && interface.is_on_bridge_of(nic))
            }),
        }
    }

    fn mac(&self) -> Option<MacAddress> {
        match self {
            Self::Interface(nic) => Some(nic.mac),
            Self::Pci(pci) => pci.mac,
        }
    }
}

/// A free alias for a NIC. With a NIC_ID the alias is the NIC's own. Without one, another NIC with the same MAC may
/// have it already.
fn free_alias(nic: &VmNic, live: &LiveDomain) -> String {
    let alias = nic_alias(nic);
    let numbered = (2..).map(|number: u32| format!("{alias}-{number}"));
    std::iter::once(alias.clone()).chain(numbered).find(|alias| !live.has_alias(alias)).unwrap_or_default()
}

/// The device for a PCI NIC. OpenNebula's guest address is used only if its bus exists and the address is free.
fn pci_xml(host: &Host, pci: &VmPci, live: &LiveDomain) -> String {
    let is_vf = matches!(&pci.device, PciDevice::Function(address) if host.sysfs().check_vf(*address).is_ok());
    let guest = pci.guest.filter(|guest| live.has_alias("pci.1") && !live.uses_guest_address(*guest));
    pci_of(pci, is_vf, guest)
}

/// Plugs in a device as the stock driver does.
fn as_stock(host: &Host, id: &DomainId, data: Option<&VmData>, new: &New<'_>) -> Result<(), ActionError> {
    let failed = |cause: Cause| ActionError::untouched(ACTION, cause);
    // The lock of a VM with VFs is held until this function returns, so its devices do not change meanwhile.
    let found = reconcile::open(host, ACTION, id, data).map_err(failed)?;
    let domain = found.domain();
    let live = found.live();
    if new.is_in(live) {
        log::info!("{} has this NIC already", domain.name);
        return Ok(());
    }
    if found.wanted().is_some_and(Wanted::has_dummies) {
        host.check_macs(new.mac()).map_err(failed)?;
    }
    let what = format!("attach NIC to {}", domain.name);
    let (xml, alias) = match new {
        New::Pci(pci) => (pci_xml(host, pci, live), None),
        New::Interface(nic) => {
            let alias = free_alias(nic, live);
            (interface_of(nic, nic_defaults(host, data.and_then(VmData::vcpus)), &alias), Some(alias))
        }
    };
    let is_in = || {
        let live = vm::read(host, domain)?;
        Ok(alias.as_ref().map_or_else(|| new.is_in(&live), |alias| live.has_alias(alias)))
    };
    // A PCI device pins all memory of the domain.
    let memory_kib = live.memory_kib;
    device::plug(
        host,
        ACTION,
        domain,
        &NewDevice { xml: &xml, what: &what, undo: "detach_nic", memory_kib, is_in: &is_in },
    )
}

/// Plugs in a VF of a root, and its dummy if it needs one. Success when the NIC has them already.
///
/// * `(root, mode)` - the root, and its mode as its map says
///
/// # Errors
/// Nothing was changed, or the error's state says exactly what is left.
pub(crate) fn with_vf(
    host: &Host,
    id: &DomainId,
    nic: &VmNic,
    (root, mode): (RootName, NicMode),
    data: Option<&VmData>,
) -> Result<PluggedVf, ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // Everything besides the VF is checked before anything is claimed. The map is read again when the VF is claimed.
    vm::check_mode(nic, mode).map_err(untouched)?;
    if mode == NicMode::Hostdev {
        host.dummy_bridge().map_err(untouched)?;
    }
    let domain = host.find(id).map_err(untouched)?;
    let mut vm = reconcile::lock(host, ACTION, domain, data).map_err(untouched)?;
    if let Some(known) = known(&vm, nic, &root, data).map_err(untouched)? {
        if vm.live.device_of(&known).is_none() {
            // The VM lacks this VF. The user asks for it now, so it is plugged in, or the action fails.
            vm.plug(slice::from_ref(&known)).map_err(untouched)?;
            vm.store.settle(&vm.owner()).map_err(|error| untouched(error.into()))?;
        }
        vm.plug_dummies().map_err(untouched)?;
        log::info!("{} has NIC {} at position {} already", vm.domain.name, known.mac, known.position);
        return plugged(&vm, &known);
    }
    if mode == NicMode::Hostdev || vm.wanted.has_dummies() {
        check_macs(&vm, nic, data).map_err(untouched)?;
    }
    let (new, place) = plan(&vm, nic, root, mode).map_err(untouched)?;
    let dummy = || Dummy::of(host, nic, new.position, data.and_then(VmData::vcpus));
    let dummy = new.has_dummy().then(dummy).transpose().map_err(untouched)?;
    if let Err(cause) = plug(&mut vm, &new, dummy.as_ref()) {
        return Err(undo(vm, &new, cause));
    }
    let before = vm.wanted.clone();
    if let Err(cause) = commit(&mut vm, &new, place) {
        vm.wanted = before;
        return Err(undo(vm, &new, cause));
    }
    if let Err(error) = vm.store.settle(&vm.owner()) {
        log::warn!("{error}; the next reconciliation repairs the claims of {}", vm.domain.name);
    }
    plugged(&vm, &new)
}

/// The VF that a NIC has, as the live XML shows it.
fn plugged(vm: &Vm<'_>, nic: &WantedNic) -> Result<PluggedVf, ActionError> {
    let device = vm.live.device_of(nic).ok_or_else(|| {
        let (name, what) =
            (vm.domain.name.clone(), format!("the VF of NIC {} is missing although it was plugged in", nic.mac));
        ActionError::new(ACTION, Cause::NotAsAsked { name, what }, HostState::Left(left(vm, nic)))
    })?;
    Ok(PluggedVf { position: nic.position, vf: device.vf, guest: device.guest })
}

/// Refuses a MAC that the guest would take for the MAC of a dummy.
fn check_macs(vm: &Vm<'_>, nic: &VmNic, data: Option<&VmData>) -> Result<(), Cause> {
    let is_adopted = |mac| vm.wanted.nics.iter().any(|known| known.adopted.dummy == Some(mac));
    let plain = vm.live.interfaces.iter().filter(|it| !it.is_ours() && !is_adopted(it.mac)).map(|it| it.mac);
    vm.host.check_macs(data.into_iter().flat_map(VmData::macs).chain(plain).chain([nic.mac]))
}

/// The NIC, if the VM should have it already. Another NIC may have the same MAC.
fn known(vm: &Vm<'_>, nic: &VmNic, root: &RootName, data: Option<&VmData>) -> Result<Option<WantedNic>, Cause> {
    let other = |what: String| Err(Cause::OtherNic { vm: vm.domain.name.clone(), mac: nic.mac, what });
    let with_mac = || vm.wanted.nics.iter().filter(|known| known.mac == nic.mac);
    let has_id = |known: &WantedNic| nic.id.is_some() && known.nic_id == nic.id;
    match with_mac().find(|known| has_id(known) || vm.has_device_of(known, nic)) {
        Some(known) if known.root == *root => return Ok(Some(known.clone())),
        Some(known) => return other(format!("it has a VF of {}", known.root)),
        None => {}
    }
    // NICs of this MAC and root without a recorded NIC_ID. OpenNebula's description may explain some of them as other
    // NICs. If one is left over, it is this NIC.
    let nameless = with_mac().filter(|known| known.root == *root && (known.nic_id.is_none() || nic.id.is_none()));
    let is_noted = |id: Option<u32>| id.is_some() && with_mac().any(|known| known.nic_id == id);
    let is_other =
        |(it, of): &(&VmNic, RootName)| it.mac == nic.mac && of == root && it.id != nic.id && !is_noted(it.id);
    let others = data.into_iter().flat_map(VmData::sriov_nics).filter(is_other).count();
    if let Some(known) = nameless.skip(others).last() {
        return Ok(Some(known.clone()));
    }
    match vm.live.interfaces.iter().find(|interface| interface.belongs_to(nic) || interface.is_on_bridge_of(nic)) {
        Some(interface) => {
            let bridge = interface.bridge.as_deref().map(|bridge| format!("an interface on {bridge}"));
            other(bridge.unwrap_or_else(|| "an interface without a VF of this driver".into()))
        }
        None => Ok(None),
    }
}

/// The position and the guest address of the new NIC.
fn plan(vm: &Vm<'_>, nic: &VmNic, root: RootName, mode: NicMode) -> Result<(WantedNic, NicPlace), Cause> {
    let place = vm.live.free.place(&vm.wanted.nics, &vm.live.positions());
    let place = place.ok_or_else(|| Cause::TooMany { vm: vm.domain.name.clone() })?;
    Ok((WantedNic::described(nic, root, mode, &place), place))
}

fn plug(vm: &mut Vm<'_>, new: &WantedNic, dummy: Option<&Dummy>) -> Result<(), Cause> {
    // Holds the claims: reconciliation must not release one that an earlier try left and that is used now.
    vm.store.hold(&vm.lock, &vm.owner(), None)?;
    vm.plug(slice::from_ref(new))?;
    dummy.map_or(Ok(()), |dummy| vm.plug_dummy(new, dummy))
}

/// Records in the domain that the VM should have the NIC.
fn commit(vm: &mut Vm<'_>, new: &WantedNic, place: NicPlace) -> Result<(), Cause> {
    let guest = vm.live.device_of(new).and_then(|device| device.guest);
    vm.wanted.nics.push(WantedNic { guest, ..new.clone() });
    vm.wanted.nics = WantedNic::in_order(std::mem::take(&mut vm.wanted.nics));
    let guests: Vec<_> = vm.wanted.nics.iter().map(|nic| nic.guest).collect();
    if !place.in_order || !guests.is_sorted() {
        log::warn!(
            "the VF of NIC {} is at a guest address out of the order of the VM's NICs: no other was free",
            new.mac
        );
    }
    vm.write_wanted()
}

/// Unplugs what was plugged in, and frees the VF.
fn undo(mut vm: Vm<'_>, new: &WantedNic, cause: Cause) -> ActionError {
    // A VF whose call has not answered can't be unplugged, and must not be given to another VM. Its claim stays without
    // a holder, so the next reconciliation decides whether the VF was plugged in.
    let undone = vm.undo_plug(new, cause.leaves_doubt()).and_then(|is_out| {
        vm.ensure_written()?;
        vm.store.settle(&vm.owner())?;
        Ok(is_out)
    });
    match undone {
        Ok(true) => ActionError::untouched(ACTION, cause),
        Ok(false) => {
            let name = &vm.domain.name;
            let text = format!(
                "a VF may still be plugged into {name}; then its next action, or kvm-sriov reconcile, unplugs it"
            );
            ActionError::new(ACTION, cause, HostState::InDoubt(text))
        }
        Err(undo) => undo_failed(ACTION, cause, undo, left(&vm, new)),
    }
}

fn left(vm: &Vm<'_>, new: &WantedNic) -> String {
    let name = &vm.domain.name;
    format!("NIC {} may still be in {name}; its next action, or kvm-sriov reconcile, unplugs it", new.mac)
}
