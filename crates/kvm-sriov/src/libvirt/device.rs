//! Devices of running domains.

use std::time::Duration;

use virt::sys;

use super::text::{c_text, without_nul};
use super::{DomainRef, Libvirt, LibvirtError, ffi};

/// Calls that plug and unplug devices.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait DeviceCalls: Send + Sync {
    /// Plugs a device into a running domain. `Ok` means that libvirt has done it; the caller still verifies it.
    ///
    /// * `limit` - the deadline of the call, such as [`Host::call_limit`](crate::Host::call_limit) of the memory that
    ///   QEMU pins for the device: all of the domain's memory for a host device
    fn attach(&self, domain: &DomainRef, device_xml: &str, limit: Duration) -> Result<(), LibvirtError>;
    /// Asks the guest to release the device with this alias. `Ok` means that the guest was asked.
    ///
    /// * `limit` - the deadline of the call; never later than that of any other call. libvirt waits up to 30 s for a
    ///   domain that is busy, then 5 s for the guest.
    fn detach_alias(&self, domain: &DomainRef, alias: &str, limit: Duration) -> Result<(), LibvirtError>;
    /// Unplugs the device that this XML describes. For devices without an alias that the driver chose.
    fn detach(&self, domain: &DomainRef, device_xml: &str) -> Result<(), LibvirtError>;
    /// Changes the medium of a drive as the XML of its `<disk>` says, even while the guest has locked the drive.
    fn change_medium(&self, domain: &DomainRef, disk_xml: &str) -> Result<(), LibvirtError>;
}

impl DeviceCalls for Libvirt {
    fn attach(&self, domain: &DomainRef, device_xml: &str, limit: Duration) -> Result<(), LibvirtError> {
        let xml = device_xml.to_owned();
        self.on_domain_within(limit, "virDomainAttachDeviceFlags", domain, move |domain| {
            domain.attach_device_flags(&xml, sys::VIR_DOMAIN_AFFECT_LIVE)
        })
    }

    fn detach_alias(&self, domain: &DomainRef, alias: &str, limit: Duration) -> Result<(), LibvirtError> {
        let alias = c_text(alias)?;
        let limit = limit.min(self.patience.call);
        self.on_domain_within(limit, "virDomainDetachDeviceAlias", domain, move |domain| {
            ffi::detach_alias(domain, &alias)
        })
    }

    fn detach(&self, domain: &DomainRef, device_xml: &str) -> Result<(), LibvirtError> {
        let xml = device_xml.to_owned();
        self.on_domain("virDomainDetachDeviceFlags", domain, move |domain| {
            domain.detach_device_flags(&xml, sys::VIR_DOMAIN_AFFECT_LIVE)
        })
    }

    fn change_medium(&self, domain: &DomainRef, disk_xml: &str) -> Result<(), LibvirtError> {
        without_nul(disk_xml)?;
        let xml = disk_xml.to_owned();
        self.on_domain("virDomainUpdateDeviceFlags", domain, move |domain| {
            let flags = sys::VIR_DOMAIN_DEVICE_MODIFY_LIVE | sys::VIR_DOMAIN_DEVICE_MODIFY_FORCE;
            domain.update_device_flags(&xml, flags).map(drop)
        })
    }
}
