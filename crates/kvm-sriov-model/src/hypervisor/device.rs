//! Calls that plug and unplug devices.

use std::time::Duration;

use kvm_sriov::libvirt::{DeviceCalls, DomainRef, Event, LibvirtError};
use kvm_sriov::os;

use crate::element::Element;
use crate::{Model, refusal};

/// How long `detach` waits for the guest to release the device. libvirt waits 5 s.
const DETACH: Duration = Duration::from_millis(50);

impl DeviceCalls for Model {
    fn attach(&self, domain: &DomainRef, device_xml: &str, _limit: Duration) -> Result<(), LibvirtError> {
        let device = Element::parse(device_xml);
        let device = device.map_err(|error| refusal::xml(format!("(device_definition): {error}")))?;
        let mut world = self.enter()?;
        let site = &mut world.sites[self.site];
        site.changeable(&domain.uuid)?;
        site.can_have(&domain.name, std::slice::from_ref(&device))?;
        let definition = &mut site.existing(&domain.uuid)?.definition;
        if device.name() == "memory" {
            definition.can_take_dimm(&device)?;
        }
        // Plugging a CD into a drive that is there changes its medium.
        let target = device.child("target").and_then(|target| target.attribute("dev")).unwrap_or_default().to_owned();
        let is_cd = |disk: &Element| disk.attribute("device") == Some("cdrom");
        if is_cd(&device) && definition.disk(&target).is_some_and(is_cd) {
            definition.pivot(&target, &device);
            return Ok(());
        }
        site.may_open(&device)?;
        let alias = site.existing(&domain.uuid)?.definition.plug(device)?;
        site.emit(&domain.uuid, &Event::DeviceAdded(alias));
        world.hear(self.site, &domain.uuid);
        Ok(())
    }

    fn detach_alias(&self, domain: &DomainRef, alias: &str, _: Duration) -> Result<(), LibvirtError> {
        self.enter()?.ask(self.site, &domain.uuid, alias)
    }

    fn detach(&self, domain: &DomainRef, device_xml: &str) -> Result<(), LibvirtError> {
        let wanted = Element::parse(device_xml);
        let wanted = wanted.map_err(|error| refusal::xml(format!("(device_definition): {error}")))?;
        let mut world = self.enter()?;
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        let is_it = |device: &&Element| {
            let same = |ours: Option<&str>, theirs: Option<&str>| theirs.is_none_or(|theirs| ours == Some(theirs));
            device.name() == wanted.name()
                && same(device.alias(), wanted.alias())
                && same(device.mac(), wanted.mac())
                && (wanted.host_address().is_none() || device.host_address() == wanted.host_address())
        };
        let found = there.definition.devices().iter().find(is_it).and_then(Element::alias).map(str::to_owned);
        let alias = found.ok_or_else(|| refusal::no_device(wanted.alias().or(wanted.mac()).unwrap_or("?")))?;
        world.ask(self.site, &domain.uuid, &alias)?;
        let begin = os::now();
        while let Some(rest) = DETACH.checked_sub(os::now() - begin) {
            let there = world.sites[self.site].domain(&domain.uuid);
            if there.is_none_or(|domain| domain.definition.device(&alias).is_none()) {
                break;
            }
            world = self.shared.wait(world, rest);
        }
        Ok(())
    }

    fn change_medium(&self, domain: &DomainRef, disk_xml: &str) -> Result<(), LibvirtError> {
        let disk = Element::parse(disk_xml);
        let disk = disk.map_err(|error| refusal::xml(format!("(device_definition): {error}")))?;
        let target = disk.child("target").and_then(|target| target.attribute("dev")).unwrap_or_default().to_owned();
        self.change(domain, |domain| {
            domain.definition.disk(&target).ok_or_else(|| refusal::no_disk(&target))?;
            domain.definition.pivot(&target, &disk);
            Ok(())
        })
    }
}
