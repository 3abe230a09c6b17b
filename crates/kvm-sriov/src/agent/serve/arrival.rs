//! The VM has come: its CPUs run, and it gets its VFs, its snapshots and the time.

use std::time::Duration;

use super::reservation::Reservation;
use super::{ACTION, done_or_left};
use crate::agent::conversation::Heartbeat;
use crate::agent::{AgentAnswer, Presence};
use crate::base::{DomainId, DomainUuid, POLL, Position};
use crate::claims::{ClaimStore, VmLock};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::os;
use crate::reconcile::{self, Elsewhere, Obstacle, Repair};
use crate::vm::{self, Vm};
use crate::xml::{LiveDomain, OperationKind};

/// How long an agent asks the source what has become of the VM there.
pub(super) const ASK_SOURCE: Duration = Duration::from_secs(60);

impl Reservation {
    /// Lets the VM run, and gives it its VFs, its snapshots and the time. Once the VM runs there is no way back: what
    /// fails from then on is returned as a text, and reconciliation tries again.
    ///
    /// # Errors
    /// The VM is as before, and nothing was done.
    pub(super) fn receive(
        &mut self,
        host: &Host,
        domain: &DomainRef,
        presence: Presence,
    ) -> Result<Vec<String>, Cause> {
        let live = self.let_run(host, domain, presence)?;
        let mut left = Vec::new();
        // Before the operation is closed: while it is open, reconciliation knows that snapshots may be missing.
        for (xml, is_current) in &self.snapshots {
            if let Err(error) = host.hypervisor().redefine_snapshot(domain, xml, *is_current) {
                left.push(format!("a snapshot of {} is not known to libvirt: {error}", domain.name));
            }
        }
        if let Some((store, lock)) = self.held.take() {
            left.extend(plug(host, domain, live, store, lock, &self.vm.lacking));
        }
        vm::clock::start(host, domain);
        Ok(left)
    }

    /// Lets a VM run that its source has given away. Returns its live XML, if that was read.
    fn let_run(&self, host: &Host, domain: &DomainRef, presence: Presence) -> Result<Option<LiveDomain>, Cause> {
        if !self.is_handed_over() {
            return Ok(None);
        }
        let live = vm::read(host, domain)?;
        if presence == Presence::Paused && !was_paused(domain, &live, &self.vm.id)? {
            if self.is_cancelled() {
                return Err(Cause::Cancelled { name: domain.name.clone() });
            }
            resume(host, domain)?;
        }
        Ok(Some(live))
    }
}

/// Whether the VM's CPUs were paused when this migration began.
///
/// # Errors
/// The domain's open operation is not this migration.
fn was_paused(domain: &DomainRef, live: &LiveDomain, id: &str) -> Result<bool, Cause> {
    match vm::wanted(live)?.and_then(|wanted| wanted.operation).map(|operation| operation.kind) {
        Some(OperationKind::Migrate { id: other, was_paused, .. }) if other == id => Ok(was_paused),
        _ => Err(Cause::NotAsAsked { name: domain.name.clone(), what: "it was not brought by this move".into() }),
    }
}

fn resume(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    vm::resume(host, domain)?;
    host.journal().vm(ACTION, &domain.name, "resumed");
    Ok(())
}

/// Plugs the VM's VFs and closes the operation. Returns what could not be done.
///
/// * `lacking` - the NICs that had no VF on the source; if one gets none here, that is only logged
fn plug(
    host: &Host,
    domain: &DomainRef,
    live: Option<LiveDomain>,
    store: ClaimStore,
    lock: VmLock,
    lacking: &[Position],
) -> Vec<String> {
    let name = &domain.name;
    let claims = store.clone();
    let mut left = Vec::new();
    let vm = match live {
        Some(live) => Vm::seen(host, ACTION, domain.clone(), live, store, lock, None),
        None => Vm::locked(host, ACTION, domain.clone(), store, lock, None),
    };
    match vm {
        Err(cause) => left.push(format!("{name} lacks its VFs, which are plugged by reconciliation: {cause}")),
        Ok(mut vm) => {
            let mut missing = vm.missing();
            missing.retain(|nic| !lacking.contains(&nic.position));
            if vm.lock.cancelled() {
                left.push(Cause::Cancelled { name: name.clone() }.to_string());
            } else if let Err(cause) = vm.plug(&missing) {
                left.push(format!("{name} lacks VFs, which are plugged by reconciliation: {cause}"));
            } else {
                vm.plug_lacking();
            }
            if let Err(cause) = vm.finish() {
                left.push(format!("the migration of {name} is still noted as under way: {cause}"));
            }
        }
    }
    // Also after a failure: the domain now backs its claims, so they must not name this process as their holder.
    if let Err(error) = claims.settle(&domain.owner()) {
        left.push(format!("the claims of {name} still name the agent: {error}"));
    }
    left
}

/// `finish` for a VM that another agent prepared, which was lost together with its connection to the source.
///
/// That agent may still live and hold the VM's lock. The VM's CPUs run at once; only its VFs wait for the lock.
pub(super) fn finish_unprepared(host: &Host, uuid: &DomainUuid, id: &str) -> Result<AgentAnswer, Cause> {
    let uuid = DomainId::Uuid(uuid.clone());
    let Some(domain) = host.hypervisor().find(&uuid)? else { return Err(Cause::NothingPrepared) };
    let live = vm::read(host, &domain)?;
    let (presence, _) = Presence::on(host, &domain.uuid)?;
    let is_closed = vm::wanted(&live)?.is_some_and(|wanted| wanted.operation.is_none());
    if is_closed && presence == Presence::Running {
        // The first agent had received the first `finish`.
        return Ok(AgentAnswer::Done);
    }
    let was_paused = was_paused(&domain, &live, id)?;
    if presence == Presence::Paused && !was_paused {
        resume(host, &domain)?;
    }
    // The first agent holds the lock until it has noticed the loss and has asked the source.
    let end = os::now() + Heartbeat::default().silence + ASK_SOURCE + host.settings().lock_timeout;
    let report = loop {
        let report = reconcile::resolve(host, &uuid, Elsewhere::NeverRan)?;
        if !report.left.contains(&Repair::Leave(Obstacle::Locked)) || os::now() >= end {
            break report;
        }
        os::sleep(POLL);
    };
    let failures = report.failures.iter().map(|failure| format!("cannot {}: {}", failure.repair, failure.cause));
    let left: Vec<String> = failures.chain(report.left.iter().map(ToString::to_string)).collect();
    Ok(done_or_left(&left))
}
