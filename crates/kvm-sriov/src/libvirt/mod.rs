//! libvirtd, through libvirt's C API. The only place that names the crate `virt`.
//!
//! * `connection` - [`Libvirt`]: one connection, whose every call ends at a deadline
//! * `event_loop` - the thread that libvirt's keepalive and events need
//! * `error` - [`LibvirtError`]: libvirt's code and text, sorted by what an action does about them
//!
//! What an action needs is the trait [`Hypervisor`], so that error paths can be shown without a libvirtd that fails.
//! Calls that `virt` lacks (events, detach by alias, save parameters, abort of a job) get a module of their own here, the
//! only one that may hold `unsafe`.

mod connection;
mod error;
mod event_loop;

pub use connection::Libvirt;
pub use error::{LibvirtError, LibvirtErrorKind};

use crate::{DeployId, DomainName, DomainUuid};

/// A domain, as it was when it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRef {
    /// Its name, such as `one-42`.
    pub name: DomainName,
    /// Its UUID: the one thing that no other domain ever has.
    pub uuid: DomainUuid,
    /// libvirt's number; `None` when it does not run.
    pub id: Option<u32>,
}

/// What the actions ask of libvirtd. Every call looks its domain up anew, by UUID.
///
/// # Errors
/// Every method: libvirt's refusal, or [`LibvirtErrorKind::NoAnswer`] when the call did not return in time; then it is not
/// known whether it took effect.
#[allow(clippy::missing_errors_doc)]
pub trait Hypervisor: Send + Sync {
    /// The running domains.
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError>;
    /// The domain that OpenNebula means; `None` when there is none.
    fn find(&self, id: &DeployId) -> Result<Option<DomainRef>, LibvirtError>;
    /// The XML of the domain as it runs, without passwords; `None` when it is gone.
    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError>;
    /// Creates and starts a transient domain. Without validation: OpenNebula writes several `<devices>` blocks, which
    /// libvirt reads and its schema does not allow.
    fn create(&self, xml: &str) -> Result<DomainRef, LibvirtError>;
    /// Ends a domain at once.
    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Presses the power button.
    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Asks the guest to reboot.
    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Presses the reset button.
    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// The element of this namespace in the metadata of a running domain; `None` when it has none.
    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError>;
    /// Sets or, with `None`, removes the element of this namespace in the metadata of a running domain.
    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError>;
    /// Makes a snapshot known that the domain's disks hold already.
    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError>;
}
