//! A domain that was started by the stock driver, or by the driver of 2013, becomes one of ours at its first action.

use super::{Plugged, Vm};
use crate::error::Cause;
use crate::host::Host;
use crate::order::ascending;
use crate::vf_map::VfMap;
use crate::xml::{Kept, LiveDomain, LiveHostdev, LiveInterface, Mode, VmData, WantedNic};
use crate::{MacAddress, Position};

/// The first two bytes of OpenNebula's MACs, unless oned.conf says otherwise.
const MAC_PREFIX: [u8; 2] = [0x02, 0x00];

/// The host devices of a domain without metadata of ours that are VFs of our maps, with the dummies that stand for them:
/// the k-th with the k-th. None when there are no dummies: then the VF is somebody else's business.
pub(super) fn adoptable(host: &Host, live: &LiveDomain) -> Vec<(LiveHostdev, LiveInterface)> {
    let Some(prefix) = host.kvmrc().dummy_mac_prefix().filter(|_| !live.hostdevs.is_empty()) else { return Vec::new() };
    let is_dummy = |interface: &&LiveInterface| {
        interface.mac.has_prefix(prefix)
            && !interface.is_ours()
            && interface.bridge.as_deref() == host.kvmrc().dummy_bridge()
    };
    let dummies: Vec<_> = live.interfaces.iter().filter(is_dummy).cloned().collect();
    if dummies.is_empty() {
        return Vec::new();
    }
    let dummies = ascending(dummies, |a, b| a.mac.octets().cmp(&b.mac.octets()));
    let (maps, problems) = host.readable_maps();
    for problem in problems {
        log::warn!("{problem}; a VF that only this map lists is not adopted");
    }
    let is_vf = |device: &&LiveHostdev| {
        !device.is_ours() && map_of(&maps, device).is_some() && host.sysfs().check_vf(device.vf).is_ok()
    };
    let devices: Vec<_> = live.hostdevs.iter().filter(is_vf).cloned().collect();
    ascending(devices, |a, b| a.guest.cmp(&b.guest)).into_iter().zip(dummies).collect()
}

fn map_of<'a>(maps: &'a [VfMap], device: &LiveHostdev) -> Option<&'a VfMap> {
    maps.iter().find(|map| map.index_of(device.vf).is_some())
}

/// Makes such a domain one of ours: its metadata say from now on what it should have.
///
/// # Errors
/// libvirt refused the metadata; the domain is as it was.
pub(super) fn adopt(vm: &mut Vm<'_>, data: Option<&VmData>) -> Result<(), Cause> {
    let found = adoptable(vm.host, &vm.live);
    if found.is_empty() {
        return Ok(());
    }
    let (maps, _) = vm.host.readable_maps();
    for (number, (device, dummy)) in found.into_iter().enumerate() {
        let Some(map) = map_of(&maps, &device) else { continue };
        let position = Position::new(number)
            .map_err(|source| Cause::Value { what: format!("the VFs of {}", vm.domain.name), source })?;
        let described = data.into_iter().flat_map(VmData::nics).find(|nic| nic.mac.tail() == dummy.mac.tail());
        let nic = WantedNic {
            mac: described.map_or_else(|| MacAddress::with_tail(MAC_PREFIX, dummy.mac.tail()), |nic| nic.mac),
            root: map.root().clone(),
            mode: Mode::Hostdev,
            position,
            guest: device.guest,
            boot_order: None,
            vlan: described.and_then(|nic| nic.vlan),
            nic_id: described.and_then(|nic| nic.id),
            dummy: None,
            kept: Kept::default(),
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
