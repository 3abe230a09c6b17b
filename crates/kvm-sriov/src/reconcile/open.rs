//! An action takes its VM: it is found, locked, and repaired.

use super::{repair, repair_to_unplug};
use crate::base::{Action, DeployId};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::vm::{Found, Vm};
use crate::xml::VmData;

/// Finds the VM that OpenNebula means, locks it if it has VFs, and repairs what an earlier action left unfinished. A VF that
/// no map can supply is a line in the log.
///
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// Nothing was changed, except that earlier work may have been finished: there is no such domain, another action of the VM
/// runs, a newer version wrote its metadata, or earlier work can't be repaired.
pub(crate) fn open<'a>(
    host: &'a Host,
    action: Action,
    id: &DeployId,
    data: Option<&VmData>,
) -> Result<Found<'a>, Cause> {
    let mut found = Vm::open_as_is(host, action, id, data)?;
    if let Found::WithVfs(vm) = &mut found {
        repair(vm)?;
    }
    Ok(found)
}

/// As [`open`], but plugs no VF: for an action that would unplug it at once.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_to_unplug<'a>(
    host: &'a Host,
    action: Action,
    id: &DeployId,
    data: Option<&VmData>,
) -> Result<Found<'a>, Cause> {
    let mut found = Vm::open_as_is(host, action, id, data)?;
    if let Found::WithVfs(vm) = &mut found {
        repair_to_unplug(vm)?;
    }
    Ok(found)
}

/// Locks a VM that has VFs or is about to get its first one, and repairs what an earlier action left unfinished.
///
/// # Errors
/// As [`open`].
pub(crate) fn lock<'a>(
    host: &'a Host,
    action: Action,
    domain: DomainRef,
    data: Option<&VmData>,
) -> Result<Vm<'a>, Cause> {
    let mut vm = Vm::lock_as_is(host, action, domain, data)?;
    repair(&mut vm)?;
    Ok(vm)
}
