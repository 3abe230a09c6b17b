//! What a running guest can be asked for: memory, CPUs, its agent.

use virt::sys;

use super::text::c_text;
use super::{DomainRef, Libvirt, LibvirtError, ffi};

/// Calls that the guest itself takes part in.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait GuestCalls: Send + Sync {
    /// Asks the guest's balloon to leave the guest this much memory, in KiB. `Ok` means that the guest was asked.
    fn set_memory(&self, domain: &DomainRef, kib: u64) -> Result<(), LibvirtError>;
    /// Sets the number of virtual CPUs of a running domain. Only hot-pluggable CPUs are added and removed.
    fn set_vcpus(&self, domain: &DomainRef, number: u32) -> Result<(), LibvirtError>;
    /// Sends a command of the guest agent's protocol to the agent in a guest and returns the agent's answer. Both are
    /// JSON.
    fn ask_agent(&self, domain: &DomainRef, command: &str) -> Result<String, LibvirtError>;
    /// Asks the guest's agent to set the guest's clock from the hardware clock.
    fn sync_time(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
}

impl GuestCalls for Libvirt {
    fn set_memory(&self, domain: &DomainRef, kib: u64) -> Result<(), LibvirtError> {
        self.on_domain("virDomainSetMemoryFlags", domain, move |domain| {
            domain.set_memory_flags(kib, sys::VIR_DOMAIN_MEM_LIVE)
        })
    }

    fn set_vcpus(&self, domain: &DomainRef, number: u32) -> Result<(), LibvirtError> {
        self.on_domain("virDomainSetVcpusFlags", domain, move |domain| {
            domain.set_vcpus_flags(number, sys::VIR_DOMAIN_VCPU_LIVE | sys::VIR_DOMAIN_VCPU_HOTPLUGGABLE)
        })
    }

    fn ask_agent(&self, domain: &DomainRef, command: &str) -> Result<String, LibvirtError> {
        let command = c_text(command)?;
        self.on_domain("virDomainQemuAgentCommand", domain, move |domain| ffi::agent_command(domain, &command))
    }

    fn sync_time(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainSetTime", domain, |domain| domain.set_time(0, 0, sys::VIR_DOMAIN_TIME_SYNC))
    }
}
