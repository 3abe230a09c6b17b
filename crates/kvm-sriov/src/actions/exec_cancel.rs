//! `exec_cancel`: ends the command that `exec` started in a guest.

use std::time::Duration;

use super::shared::guest_command::{self, CommandRecord};
use crate::base::{Action, DomainId, DomainName, POLL};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::os;

const ACTION: Action = Action::ExecCancel;

/// How long a killed process may take to end.
const ENDS: Duration = Duration::from_secs(10);

/// Ends the command that `exec` started in the guest of a VM, and removes its record. Success when no command runs, or
/// the VM is gone.
///
/// # Errors
/// The command may still run. Its record is kept, so the action can be called again.
///
/// # Source
/// OpenNebula's stock `exec_cancel` (7.2 and later).
pub fn exec_cancel(host: &Host, vm: &DomainName) -> Result<(), ActionError> {
    let failed = |cause: Cause| ActionError::untouched(ACTION, cause);
    let record = CommandRecord::lock(host, vm.clone()).map_err(failed)?;
    if let Some(number) = record.read().map_err(failed)? {
        let domain = match host.find(&DomainId::Name(vm.clone())) {
            Ok(domain) => Some(domain),
            Err(Cause::Absent { .. }) => None,
            Err(cause) => return Err(failed(cause)),
        };
        if let Some(domain) = domain {
            end(host, &domain, number).map_err(|cause| {
                let left = format!("process {number} may still run in the guest, and can be cancelled again");
                ActionError::new(ACTION, cause, HostState::InDoubt(left))
            })?;
        }
    }
    record.remove().map_err(failed)
}

fn end(host: &Host, domain: &DomainRef, number: u64) -> Result<(), Cause> {
    if !guest_command::runs(host, domain, number)? {
        return Ok(());
    }
    guest_command::kill(host, domain, number)?;
    let end = os::now() + ENDS;
    while guest_command::runs(host, domain, number)? {
        if os::now() >= end {
            let text = format!("process {number} runs on after {} s", ENDS.as_secs());
            return Err(Cause::GuestAgent { vm: domain.name.clone(), text });
        }
        os::sleep(POLL);
    }
    Ok(())
}
