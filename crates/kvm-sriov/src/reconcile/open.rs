//! An action locks its VM and repairs what an earlier action left unfinished.

use super::apply::{self, Scope};
use super::{Elsewhere, Obstacle, Repair, RepairFailure};
use crate::base::{Action, DomainId, NicKey, Position};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::os;
use crate::vm::{Found, Vm};
use crate::xml::VmData;

/// Finds the VM that OpenNebula means, locks it if it has VFs, and repairs what an earlier action left unfinished. A VF
/// that no map can supply is only logged.
///
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// There is no such domain, another action works on the VM, a newer version wrote its metadata, or earlier work can't
/// be repaired. Nothing was changed, except that earlier work may have been finished.
pub(crate) fn open<'a>(
    host: &'a Host,
    action: Action,
    id: &DomainId,
    data: Option<&VmData>,
) -> Result<Found<'a>, Cause> {
    open_in(host, action, id, data, Scope::Everything)
}

/// As [`open`], but plugs no VF: for an action that would unplug it at once.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_to_unplug<'a>(
    host: &'a Host,
    action: Action,
    id: &DomainId,
    data: Option<&VmData>,
) -> Result<Found<'a>, Cause> {
    open_in(host, action, id, data, Scope::AllButPlugging)
}

fn open_in<'a>(
    host: &'a Host,
    action: Action,
    id: &DomainId,
    data: Option<&VmData>,
    scope: Scope,
) -> Result<Found<'a>, Cause> {
    let mut found = Vm::open_as_is(host, action, id, data)?;
    if let Found::WithVfs(vm) = &mut found {
        repair_in(vm, scope)?;
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

/// Repairs what an earlier action left unfinished. The caller holds the VM's lock, so no other action works on the VM.
///
/// Returns the NICs that still lack their VF or dummy, and why. That is no reason for another action to fail; each was
/// logged.
///
/// # Errors
/// An open operation can't be closed; earlier repairs stay done. Or the VM is in doubt, or a newer version or libvirt
/// still works on its open operation; nothing was changed.
pub(crate) fn repair(vm: &mut Vm<'_>) -> Result<Lacking, Cause> {
    repair_in(vm, Scope::Everything)
}

/// As [`repair`], but plugs no VF: for an action that would unplug it at once.
pub(crate) fn repair_to_unplug(vm: &mut Vm<'_>) -> Result<(), Cause> {
    repair_in(vm, Scope::AllButPlugging).map(drop)
}

/// The positions of the NICs that lack their VF or dummy, and why they could not get it.
#[derive(Debug, Default)]
pub(crate) struct Lacking(Vec<(Position, Cause)>);

impl Lacking {
    /// Fails if a NIC that is not among these lacks its VF or dummy.
    ///
    /// # Errors
    /// Why the first of them lacks it.
    pub(crate) fn only(self, excused: &[NicKey]) -> Result<(), Cause> {
        let is_excused = |position: &Position| excused.iter().any(|nic| nic.position == *position);
        self.0.into_iter().find(|(position, _)| !is_excused(position)).map_or(Ok(()), |(_, cause)| Err(cause))
    }
}

fn repair_in(vm: &mut Vm<'_>, scope: Scope) -> Result<Lacking, Cause> {
    let until = os::now() + vm.host.call_limit(vm.live.memory_kib);
    let report = apply::repair(vm, until, Elsewhere::Unknown, scope)?;
    vm.note_lacking();
    if report.is_gone || report.done.contains(&Repair::Destroy) {
        return Err(Cause::Absent { id: vm.domain.name.to_string() });
    }
    for left in &report.left {
        match left {
            Repair::InDoubt(doubt) => return Err(Cause::Unresolved { vm: vm.domain.name.clone(), doubt: *doubt }),
            Repair::Leave(why @ (Obstacle::Newer | Obstacle::Job | Obstacle::Ending)) => {
                if let Some(operation) = &vm.wanted.operation {
                    let operation = operation.kind.to_string();
                    return Err(Cause::OpenOperation { vm: vm.domain.name.clone(), operation, why: *why });
                }
            }
            _ => {}
        }
    }
    let mut lacking = Lacking::default();
    let mut fatal = None;
    for RepairFailure { repair, cause } in report.failures {
        // A failure of one NIC or of its claim does not stop the action.
        let is_fatal = !repair.concerns_one_nic() || matches!(cause, Cause::Cancelled { .. });
        if fatal.is_none() && is_fatal {
            fatal = Some(cause);
            continue;
        }
        log::warn!("{}: cannot {repair}: {cause}", vm.domain.name);
        if let Repair::Plug(position) | Repair::PlugDummy(position) = repair {
            lacking.0.push((position, cause));
        }
    }
    fatal.map_or(Ok(lacking), Err)
}
