//! The watcher: a process of its own that plugs back what leaves after its action stopped waiting.
//!
//! A request to release a device can't be withdrawn. A guest that did not answer in time may do so when it has booted,
//! when it is resumed, or when it is reset; then it has lost a VF that nobody wanted out any more.

use std::time::{Duration, Instant};

use super::repair;
use crate::base::{Action, DeployId};
use crate::claims::ClaimError;
use crate::error::{Cause, Obstacle};
use crate::host::Host;
use crate::libvirt::{DomainRef, Event, LibvirtErrorKind};
use crate::vm::{self, Vm};
use crate::xml::OperationKind;

/// What locks and the journal call it.
const ACTION: Action = Action::Watcher;

/// How often it looks without having been told of anything, and tries again when libvirtd is away.
const LOOK: Duration = Duration::from_secs(10);

/// Plugs back what a domain with a pending unplug loses, until nothing is pending any more, the domain is gone, or
/// SRIOV_UNPLUG_GRACE has passed. Then the note in the domain goes: what leaves later still is plugged back by whoever looks
/// next.
///
/// # Errors
/// libvirtd does not answer, or a VF that left can't be plugged back: later actions and `kvm-sriov reconcile` try again.
pub fn watch(host: &Host, id: &DeployId) -> Result<(), Cause> {
    let end = Instant::now() + host.settings().unplug_grace;
    'grace: while Instant::now() < end {
        // A libvirtd that is restarted knows the domain a moment later.
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
            match events.next(LOOK.min(end.saturating_duration_since(Instant::now()))) {
                Some(Event::Ended) => return Ok(()),
                Some(Event::Disconnected) => break,
                _ if Instant::now() >= end => break 'grace,
                _ => {}
            }
        }
    }
    match host.hypervisor().find(id)? {
        Some(domain) => withdraw(host, &domain),
        None => Ok(()),
    }
}

/// Takes the note back that something is pending; who has the VM now ends its operation by itself.
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

/// The VM, if no action has it.
fn locked<'a>(host: &'a Host, domain: &DomainRef) -> Result<Option<Vm<'a>>, Cause> {
    let store = host.claims()?;
    match store.lock_vm(&domain.name, ACTION, Duration::ZERO) {
        Err(ClaimError::Busy { .. }) => Ok(None),
        lock => Vm::locked(host, ACTION, domain.clone(), store.clone(), lock?, None).map(Some),
    }
}

/// Plugs back what is missing, if no action has the VM. Whether nothing is pending any more.
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
        // libvirt copies or saves it: devices can be changed afterwards.
        Err(Cause::OpenOperation { why: Obstacle::Job, .. }) => Ok(false),
        other => other?.only(&[]).map(|()| vm.pending().is_empty()),
    }
}
