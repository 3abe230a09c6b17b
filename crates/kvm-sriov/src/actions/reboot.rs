//! `reboot`: asks the guest to reboot.

use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause};
use crate::host::Host;

/// Asks the guest of a running domain to reboot. Does not wait for the reboot.
///
/// # Errors
/// The domain is not there, or libvirt refused. The domain runs on as before.
///
/// # Source
/// OpenNebula's stock `reboot`: `virDomainReboot` without flags.
pub fn reboot(host: &Host, id: &DomainId) -> Result<(), ActionError> {
    let failed = |cause: Cause| ActionError::untouched(Action::Reboot, cause);
    let domain = host.find(id).map_err(failed)?;
    host.hypervisor()
        .reboot(&domain)
        .map_err(|source| failed(Cause::Call { what: format!("reboot domain {id}"), source }))
}
