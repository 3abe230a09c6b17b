//! The watcher: a process of its own that plugs back the VFs that leave after the action has stopped waiting for them.
//!
//! A request to release a device can't be withdrawn. A guest that did not answer in time may do so when it has booted,
//! or when it is resumed or reset. Then it has lost a VF that it should still have.

use std::time::Duration;

use super::repair;
use crate::base::{Action, DomainId};
use crate::claims::ClaimError;
use crate::error::{Cause, Obstacle};
use crate::host::Host;
use crate::libvirt::{DomainRef, Event, LibvirtErrorKind};
use crate::os;
use crate::vm::{self, Vm};
use crate::xml::OperationKind;

/// The action that locks and the journal name.
const ACTION: Action = Action::Watcher;

/// How often the watcher reads the domain when no event has come. Also the time between two tries when libvirtd is
/// away.
const READ_AGAIN: Duration = Duration::from_secs(10);

/// Plugs back the VFs that a domain with a pending unplug loses, until no unplug is pending, the domain is gone, or
/// SRIOV_UNPLUG_GRACE has passed. After that time the pending unplug is removed from the metadata, and the next
/// reconciliation plugs back what leaves later.
///
/// # Errors
/// libvirtd does not answer, or a VF that left can't be plugged back. Later actions and `kvm-sriov reconcile` try
/// again.
pub fn watch(host: &Host, id: &DomainId) -> Result<(), Cause> {
    let end = os::now() + host.settings().unplug_grace;
    'grace: while os::now() < end {
        // A libvirtd that was restarted may need a moment to know the domain again.
        let Some(domain) = host.patiently(|| Ok(host.hypervisor().find(id)?))? else { return Ok(()) };
        let events = match host.hypervisor().watch(&domain) {
            Ok(events) => events,
            Err(error) if error.is_passing() => continue,
            Err(error) if error.kind() == LibvirtErrorKind::NoDomain => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        loop {
            match is_settled(host, &domain) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(cause) if cause.is_passing() => break,
                Err(cause) => return Err(cause),
            }
            match events.next(READ_AGAIN.min(end.saturating_duration_since(os::now()))) {
                Some(Event::Ended) => return Ok(()),
                Some(Event::Disconnected) => break,
                _ if os::now() >= end => break 'grace,
                _ => {}
            }
        }
    }
    match host.hypervisor().find(id)? {
        Some(domain) => withdraw(host, &domain),
        None => Ok(()),
    }
}

/// Removes the pending unplug from the metadata. If an action holds the VM's lock, it ends its own operation.
fn withdraw(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    let Some(mut vm) = locked(host, domain)? else { return Ok(()) };
    repair(&mut vm)?.only(&[])?;
    if vm.pending().is_empty() {
        return Ok(());
    }
    vm.finish()?;
    host.journal().vm(ACTION, &domain.name, "pending-unplug-withdrawn");
    Ok(())
}

/// Locks the VM; `None` if an action holds its lock.
fn locked<'a>(host: &'a Host, domain: &DomainRef) -> Result<Option<Vm<'a>>, Cause> {
    let store = host.claims()?;
    match store.lock_vm(&domain.name, ACTION, Duration::ZERO) {
        Err(ClaimError::Busy { .. }) => Ok(None),
        lock => Vm::locked(host, ACTION, domain.clone(), store.clone(), lock?, None).map(Some),
    }
}

/// Plugs back what is missing, if no action holds the VM's lock. Returns whether no unplug is pending any more.
fn is_settled(host: &Host, domain: &DomainRef) -> Result<bool, Cause> {
    match vm::read(host, domain) {
        Ok(live) => {
            let wanted = vm::wanted(&live)?.unwrap_or_default();
            let pending =
                matches!(wanted.operation.as_ref().map(|o| &o.kind), Some(OperationKind::PendingUnplug { .. }));
            if !pending {
                return Ok(true);
            }
            if live.missing().next().is_none() && wanted.nics.iter().all(|nic| live.dummy_of(nic).is_some()) {
                return Ok(false);
            }
        }
        Err(Cause::Absent { .. }) => return Ok(true),
        Err(cause) => return Err(cause),
    }
    let Some(mut vm) = locked(host, domain)? else { return Ok(false) };
    match repair(&mut vm) {
        // libvirt migrates or saves the domain. Its devices can be changed afterwards.
        Err(Cause::OpenOperation { why: Obstacle::Job, .. }) => Ok(false),
        other => other?.only(&[]).map(|()| vm.pending().is_empty()),
    }
}
