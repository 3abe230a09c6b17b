//! `reset`: resets a VM without asking its guest.

use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause};
use crate::host::Host;

/// Resets a running domain without asking its guest. The domain keeps its VFs.
///
/// # Errors
/// The domain is not there, or libvirt refused. The domain runs on as before.
///
/// # Source
/// OpenNebula's stock `reset`: `virDomainReset` without flags.
pub fn reset(host: &Host, id: &DomainId) -> Result<(), ActionError> {
    let failed = |cause: Cause| ActionError::untouched(Action::Reset, cause);
    let domain = host.find(id).map_err(failed)?;
    host.hypervisor()
        .reset(&domain)
        .map_err(|source| failed(Cause::Call { what: format!("reset domain {id}"), source }))
}
