//! A domain that OpenNebula's stock driver or the driver of 2013 started becomes one of this driver's at its first
//! action.

use super::{Plugged, Vm};
use crate::base::ascending;
use crate::base::{MacAddress, Position};
use crate::claims::Claim;
use crate::config::VfMap;
use crate::error::Cause;
use crate::host::Host;
use crate::xml::{AdoptedDevices, LiveDomain, LiveHostdev, LiveInterface, VmData, VmNic, WantedNic};

/// The first two bytes of OpenNebula's MACs, unless oned.conf says otherwise.
const MAC_PREFIX: [u8; 2] = [0x02, 0x00];

/// The VFs that can be adopted, each with its dummy: the k-th VF belongs to the k-th dummy. Empty for a domain without
/// dummies, whose VFs are not the driver's. PCI devices and NICs that OpenNebula itself describes are never adopted,
/// even if their MAC looks like that of a dummy.
///
/// # Errors
/// A map can't be read, and only that map may list the VF of a dummy. Then it is unknown which VF belongs to which
/// dummy.
pub(super) fn adoptable(
    host: &Host,
    live: &LiveDomain,
    data: Option<&VmData>,
) -> Result<Vec<(LiveHostdev, LiveInterface)>, Cause> {
    let prefix = host.settings().dummy_mac_prefix.filter(|_| !live.hostdevs.is_empty());
    let Some(prefix) = prefix else { return Ok(Vec::new()) };
    let is_dummy = |interface: &&LiveInterface| {
        interface.mac.has_prefix(prefix)
            && !interface.is_ours()
            && !data.is_some_and(|data| data.macs().any(|mac| mac == interface.mac))
            && interface.bridge.as_deref() == host.settings().dummy_bridge.as_deref()
    };
    let dummies: Vec<_> = live.interfaces.iter().filter(is_dummy).cloned().collect();
    if dummies.is_empty() {
        return Ok(Vec::new());
    }
    let dummies = ascending(dummies, |a, b| a.mac.octets().cmp(&b.mac.octets()));
    let (maps, problems) = host.readable_maps();
    let is_vf = |device: &&LiveHostdev| {
        !device.is_ours()
            && !data.is_some_and(|data| data.has_pci(device.vf))
            && map_of(&maps, device).is_some()
            && host.sysfs().check_vf(device.vf).is_ok()
    };
    let devices: Vec<_> = live.hostdevs.iter().filter(is_vf).cloned().collect();
    if devices.len() != dummies.len() {
        if let Some(problem) = problems.into_iter().next() {
            return Err(problem.into());
        }
    }
    if devices.len() > dummies.len() {
        let (vfs, dummies) = (devices.len(), dummies.len());
        log::warn!(
            "{} has {vfs} VFs and {dummies} dummies: it is unknown which belong together, so none is adopted",
            live.name
        );
        return Ok(Vec::new());
    }
    Ok(ascending(devices, |a, b| a.guest.cmp(&b.guest)).into_iter().zip(dummies).collect())
}

fn map_of<'a>(maps: &'a [VfMap], device: &LiveHostdev) -> Option<&'a VfMap> {
    maps.iter().find(|map| map.index_of(device.vf).is_some())
}

/// Whether this dummy may belong to a NIC of OpenNebula, and this device may be the VF of that NIC.
fn may_be(nic: &VmNic, maps: &[VfMap], device: &LiveHostdev, dummy: &LiveInterface) -> bool {
    let lists = |root| maps.iter().any(|map| *map.root() == root && map.index_of(device.vf).is_some());
    let is_its_root = match nic.root() {
        Some(root) => root.is_ok_and(lists),
        None => nic.bridge.is_none(),
    };
    nic.mac.tail() == dummy.mac.tail() && is_its_root
}

/// Adopts a domain: writes metadata that say which VFs it should have.
///
/// # Errors
/// libvirt refused the metadata, or a map that may list one of the VFs can't be read. The domain is as before.
pub(super) fn adopt(vm: &mut Vm<'_>, data: Option<&VmData>) -> Result<(), Cause> {
    let found = adoptable(vm.host, &vm.live, data)?;
    if found.is_empty() {
        return Ok(());
    }
    let (maps, _) = vm.host.readable_maps();
    let mut described: Vec<&VmNic> = data.into_iter().flat_map(VmData::nics).collect();
    for (number, (device, dummy)) in found.into_iter().enumerate() {
        let Some(map) = map_of(&maps, &device) else { continue };
        let position = Position::new(number)
            .map_err(|source| Cause::Value { what: format!("the VFs of {}", vm.domain.name), source })?;
        // Two NICs with one MAC are in the order of their dummies, as they were started.
        let at = described.iter().position(|nic| may_be(nic, &maps, &device, &dummy));
        let described = at.map(|at| described.remove(at));
        let root = described.and_then(VmNic::root).and_then(Result::ok);
        let mac = described.map_or_else(|| MacAddress::with_tail(MAC_PREFIX, dummy.mac.tail()), |nic| nic.mac);
        let root = root.unwrap_or_else(|| map.root().clone());
        let nic = WantedNic {
            guest: device.guest,
            vlan: described.and_then(|nic| nic.vlan),
            nic_id: described.and_then(|nic| nic.id),
            adopted: AdoptedDevices { vf: Some(device.vf), dummy: Some(dummy.mac) },
            ..WantedNic::new(mac, root, position)
        };
        log::info!("{} is adopted: NIC {} has VF {} of {}", vm.domain.name, nic.mac, device.vf, nic.root);
        let alias = device.alias.clone().unwrap_or_default();
        vm.journal(&[Plugged { nic: nic.clone(), device, alias }], "adopted");
        vm.wanted.nics.push(nic);
    }
    vm.write_wanted()?;
    let maps = vm.host.maps_of(vm.wanted.nics.iter().map(|nic| &nic.root))?;
    vm.host.recover(&vm.store, &maps, vm.action).map(drop)
}

/// Writes the devices of an adopted domain into metadata of an earlier version, which found a VF by its guest address
/// and a dummy by its MAC. A VF counts only when the VM claims it for this NIC: another device may have the guest
/// address. A device that has left is removed from the metadata.
///
/// # Errors
/// The claims can't be read. The domain is as before. When libvirt refuses the metadata, the next action writes them.
pub(super) fn complete(vm: &mut Vm<'_>) -> Result<(), Cause> {
    let live = &vm.live;
    let is_whole =
        |nic: &WantedNic| live.device_of(nic).is_some() && (!nic.has_dummy() || live.dummy_of(nic).is_some());
    if vm.wanted.nics.iter().all(is_whole) {
        return Ok(());
    }
    let claims = vm.store.claims_of(&vm.owner())?;
    let (prefix, bridge) = (vm.host.settings().dummy_mac_prefix, vm.host.settings().dummy_bridge.as_deref());
    let before = vm.wanted.clone();
    let named = |mac| before.nics.iter().any(|nic| nic.adopted.dummy == Some(mac));
    for nic in vm.wanted.nics.iter_mut().filter(|nic| nic.has_dummy()) {
        if live.device_of(nic).is_none() {
            let is_claimed = |vf| claims.iter().any(|claim: &Claim| claim.vf == vf && claim.is_for(&nic.key()));
            let is_there =
                |device: &&LiveHostdev| !device.is_ours() && nic.guest.is_some() && device.guest == nic.guest;
            let device = live.hostdevs.iter().find(|device| is_there(device) && is_claimed(device.vf));
            nic.adopted.vf = device.map(|device| device.vf);
        }
        if live.dummy_of(nic).is_none() {
            let is_dummy = |interface: &&LiveInterface| {
                prefix.is_some_and(|prefix| interface.mac.has_prefix(prefix))
                    && interface.mac.tail() == nic.mac.tail()
                    && interface.bridge.as_deref() == bridge
                    && !interface.is_ours()
                    && !named(interface.mac)
            };
            nic.adopted.dummy = live.interfaces.iter().find(is_dummy).map(|interface| interface.mac);
        }
    }
    if vm.wanted != before {
        if let Err(cause) = vm.write_wanted() {
            log::warn!("{cause}; the next action records the devices of {}", vm.domain.name);
        }
    }
    Ok(())
}
