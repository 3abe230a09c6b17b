//! Where a VM is after its move failed: decided by what both hosts show.

use std::time::Duration;

use super::Departure;
use crate::agent::Presence;
use crate::base::POLL;
use crate::error::Cause;
use crate::libvirt::RunState;
use crate::os;
use crate::vm;
use crate::xml::OperationKind;

/// How long libvirt may take to end a failed move, on each of the two hosts.
const CLEAR: Duration = Duration::from_secs(30);

/// Where the VM lives.
pub(super) enum Whereabouts {
    /// On this host. The destination may have a copy of its domain that has never run.
    Here,
    /// At the destination.
    There,
    /// On neither host.
    Gone,
    /// Nobody knows whether it runs at the destination.
    InDoubt,
}

impl Departure<'_> {
    /// Where the VM lives after a failure.
    ///
    /// * `moved` - whether libvirt reports that the domain was moved
    pub(super) fn whereabouts(&mut self, cause: &Cause, moved: bool) -> Whereabouts {
        if !self.is_under_way {
            return if matches!(cause, Cause::Absent { .. }) { Whereabouts::Gone } else { Whereabouts::Here };
        }
        let here = match self.here() {
            Ok(state) => state,
            Err(cause) => {
                log::warn!("{cause}");
                return Whereabouts::InDoubt;
            }
        };
        if here.is_some_and(RunState::runs) {
            return Whereabouts::Here;
        }
        let there = match self.there() {
            Ok(presence) => presence,
            Err(cause) => {
                log::warn!("{cause}");
                return Whereabouts::InDoubt;
            }
        };
        let never_ran = match there {
            Presence::Absent => true,
            // Only the agent resumes the domain there, and the agent has not been asked to.
            Presence::Paused => self.migration.paused && !moved && self.may_run_here(),
            _ => false,
        };
        match (here, there) {
            // In post-copy a part of the memory may still be here.
            (Some(_), _) if self.migration.options.is_postcopy() => Whereabouts::InDoubt,
            (_, Presence::Running) => Whereabouts::There,
            (None, Presence::Absent | Presence::Ended) => Whereabouts::Gone,
            (None, Presence::Paused) if self.is_cancelled() => Whereabouts::Gone,
            (None, Presence::Paused) => Whereabouts::There,
            (Some(_), Presence::Paused) if self.migration.paused && moved => Whereabouts::There,
            (Some(_), _) if never_ran => match self.resume() {
                Ok(()) => Whereabouts::Here,
                Err(cause) => {
                    log::warn!("{cause}");
                    Whereabouts::InDoubt
                }
            },
            _ => Whereabouts::InDoubt,
        }
    }

    /// The state of the domain on this host, once libvirt's job on it has ended.
    fn here(&self) -> Result<Option<RunState>, Cause> {
        let (host, domain) = (self.host, self.found.domain());
        vm::wait_for_job(host, domain, CLEAR, "its migration")?;
        host.patiently(|| Ok(host.hypervisor().state(domain)?))
    }

    /// What the destination shows of the VM. Waits for a move that is about to end.
    fn there(&mut self) -> Result<Presence, Cause> {
        let uuid = self.found.domain().uuid.clone();
        let end = os::now() + CLEAR;
        loop {
            match self.agent.state(&uuid)? {
                Presence::Incoming | Presence::Ending if os::now() < end => os::sleep(POLL),
                presence => return Ok(presence),
            }
        }
    }

    /// Whether the domain's CPUs ran when the move began.
    fn may_run_here(&self) -> bool {
        let operation = self.found.wanted().and_then(|wanted| wanted.operation.as_ref());
        !operation.is_some_and(|operation| matches!(operation.kind, OperationKind::Migrate { was_paused: true, .. }))
    }

    /// Resumes a domain that libvirt left paused here and that never ran at the destination.
    fn resume(&self) -> Result<(), Cause> {
        let (hypervisor, domain) = (self.host.hypervisor(), self.found.domain());
        match hypervisor.state(domain)? {
            Some(RunState::PausedForMigration) => vm::resume(self.host, domain),
            // Paused by its user, or by a disk error: it was so before the move.
            _ => Ok(()),
        }
    }
}
