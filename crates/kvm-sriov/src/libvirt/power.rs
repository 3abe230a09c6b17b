//! Starting, stopping, resetting and resuming domains.

use std::time::Duration;

use virt::domain::Domain;
use virt::sys;

use super::domain::reference;
use super::{DomainRef, Libvirt, LibvirtError};

/// Calls that start, end, reset and resume domains.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait PowerCalls: Send + Sync {
    /// Creates and starts a transient domain. libvirt does not validate the XML against its schema: OpenNebula writes
    /// several `<devices>` elements, which libvirt reads but its schema does not allow.
    ///
    /// * `limit` - the deadline of the call, such as [`Host::call_limit`](crate::Host::call_limit) of the domain's
    ///   memory
    fn create(&self, xml: &str, limit: Duration) -> Result<DomainRef, LibvirtError>;
    /// Ends a domain at once.
    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Presses the power button. `Ok` means that the guest was asked.
    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Asks the guest to reboot.
    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Presses the reset button.
    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Starts the CPUs of a paused domain.
    fn resume(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Wakes a guest that suspended itself to memory.
    fn wake_up(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
}

impl PowerCalls for Libvirt {
    fn create(&self, xml: &str, limit: Duration) -> Result<DomainRef, LibvirtError> {
        let xml = xml.to_owned();
        self.call_within(limit, "virDomainCreateXML", move |connection| {
            let domain = connection.connect.create_domain_xml(&xml, sys::VIR_DOMAIN_NONE)?;
            let reference = reference(&domain)?;
            connection.known.keep(reference.uuid.as_str(), domain);
            Ok(reference)
        })
    }

    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainDestroy", domain, Domain::destroy)
    }

    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainShutdown", domain, Domain::shutdown)
    }

    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainReboot", domain, |domain| domain.reboot(sys::VIR_DOMAIN_REBOOT_DEFAULT))
    }

    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainReset", domain, Domain::reset)
    }

    fn resume(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainResume", domain, Domain::resume)
    }

    fn wake_up(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainPMWakeup", domain, |domain| domain.pm_wakeup(0))
    }
}
