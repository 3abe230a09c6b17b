//! The end of a move: the VM is handed over to the destination, or stays, or has ended, or is in doubt.

use super::Departure;
use crate::actions::shared::undo::lacks_vfs;
use crate::agent::{Agent, AgentAnswer, AgentRequest};
use crate::base::Action;
use crate::error::{ActionError, AgentError, Cause, HostState};
use crate::host::sudo::Sudo;
use crate::libvirt::RunState;
use crate::vm::{self, gone};

impl Departure<'_> {
    /// The VM is at the destination. Destroys what is left of its domain here.
    ///
    /// # Errors
    /// The domain was not seen to be gone here, so it was not resumed at the destination: the VM is in doubt.
    pub(super) fn arrive(self) -> Result<(), ActionError> {
        let (host, domain) = (self.host, self.found.domain().clone());
        if let Err(cause) = host.patiently(|| gone::destroy(host, &domain)) {
            if self.migration.paused {
                return Err(self.in_doubt(cause));
            }
            let (name, to) = (&domain.name, self.agent.host());
            log::warn!("{cause}; {name} runs on {to}, but was not seen to be gone here");
        }
        self.hand_over()
    }

    /// The VM is gone here, so the action succeeds. Has the destination resume it, and frees its claims here.
    pub(super) fn hand_over(mut self) -> Result<(), ActionError> {
        let (name, to) = (self.found.domain().name.clone(), self.agent.host().clone());
        // First of all: the guest is paused until then.
        let finished = self.finish();
        self.release_claims(true);
        match finished {
            Ok(AgentAnswer::Done) => log::info!("{name} runs on {to}"),
            Ok(AgentAnswer::Left(what)) => log::warn!("{name} is on {to}, but {what}"),
            Ok(other) => log::warn!("{name} is on {to}; its agent answered {other}"),
            Err(error) if self.migration.paused => log::error!(
                "{error}; {name} is on {to} and may stay paused until the agent there has asked this host; if it stays \
                 paused, run kvm-sriov resolve {name} --here on {to}"
            ),
            Err(error) => {
                log::warn!("{error}; {name} runs on {to}, and reconciliation there plugs in the VFs that it lacks")
            }
        }
        if self.host.settings().cleanup_memory_on_stop {
            Sudo::ask().compact_memory();
        }
        Ok(())
    }

    /// Has the destination resume the VM. Uses a new connection when the first one is lost.
    fn finish(&mut self) -> Result<AgentAnswer, AgentError> {
        let request = AgentRequest::Finish { uuid: self.found.domain().uuid.clone(), id: self.id.clone() };
        let error = match self.agent.ask(&request) {
            Err(error @ (AgentError::Lost { .. } | AgentError::NoAnswer { .. })) if self.migration.paused => error,
            answered => return answered,
        };
        log::warn!("{error}; another one is started");
        let agent = Agent::start(self.reach, &self.agent.host().clone())?;
        agent.with_call_timeout(self.host.settings().call_timeout).ask(&request)
    }

    /// The VM stays here. Undoes everything in reverse, or says exactly what is left.
    pub(super) fn stay(mut self, cause: Cause) -> ActionError {
        let (host, domain) = (self.host, self.found.domain().clone());
        // Before the operation is closed: while it is open, reconciliation would do this after a crash.
        for (xml, is_current) in &self.snapshots {
            if let Err(error) = host.hypervisor().redefine_snapshot(&domain, xml, *is_current) {
                log::warn!("libvirt no longer knows a snapshot of {}: {error}", domain.name);
            }
        }
        // This host first: the VM need not wait for its VFs until a libvirtd at the destination answers.
        let undo = self.found.with_vfs().and_then(|vm| vm.plug_back(&cause).err());
        // The agent may destroy a domain at the destination only while the CPUs run here. Such a domain has never run,
        // or libvirt itself resumed it (a VM without VFs).
        let destroy = matches!(host.patiently(|| Ok(host.hypervisor().state(&domain)?)), Ok(Some(RunState::Running)));
        let there = self.agent.ask(&AgentRequest::Abort { destroy }).err().map(|error| {
            log::warn!("{error}");
            format!(
                "; {} frees the claims that it holds for the VM, now or at its next reconciliation",
                self.agent.host()
            )
        });
        let here = undo.as_ref().map_or_else(
            || vm::pending_text(&cause).map(|text| format!("nothing was moved; {text}")),
            |_| Some(format!("nothing was moved, and {}", lacks_vfs(&domain.name))),
        );
        let cause = match undo {
            None => cause,
            Some(undo) => {
                self.release_claims(false);
                cause.and_undo(undo)
            }
        };
        let state = match (here, there) {
            (None, None) => HostState::NothingMoved,
            (here, there) => {
                HostState::Left(here.unwrap_or(HostState::NothingMoved.to_string()) + &there.unwrap_or_default())
            }
        };
        ActionError::new(Action::Migrate, cause, state)
    }

    /// The VM ended during its move, on both hosts.
    pub(super) fn lost(mut self, cause: Cause) -> ActionError {
        // After a cancel the destination must destroy a domain that has arrived.
        let destroy = self.is_cancelled();
        if let Err(error) = self.agent.ask(&AgentRequest::Abort { destroy }) {
            log::warn!("{error}; the next reconciliation there frees its claims");
        }
        self.release_claims(true);
        let left = format!("{} has ended, here and on {}", self.found.domain().name, self.agent.host());
        ActionError::new(Action::Migrate, cause, HostState::Left(left))
    }

    /// Nobody knows where the VM runs. Nothing is resumed or destroyed.
    pub(super) fn in_doubt(mut self, cause: Cause) -> ActionError {
        self.release_claims(false);
        let (vm, to) = (self.found.domain().name.clone(), self.agent.host().clone());
        let decides = match self.found.with_vfs() {
            Some(_) => format!("kvm-sriov resolve {vm} decides"),
            None => format!("look on both hosts where {vm} runs (virsh list --all), and end or resume it there"),
        };
        let left = format!("nothing was resumed or destroyed; {decides}");
        ActionError::new(
            Action::Migrate,
            Cause::UnknownThere { cause: Box::new(cause), vm, to },
            HostState::InDoubt(left),
        )
    }

    /// Releases the VM's claims here. When the VM may still be here, only records that no process works on it any more.
    fn release_claims(&mut self, is_gone: bool) {
        let Some(vm) = self.found.with_vfs() else { return };
        let owner = vm.owner();
        let done = if is_gone {
            gone::release(vm.host, &vm.store, &owner, Action::Migrate)
        } else {
            vm.store.settle(&owner).map(drop)
        };
        if let Err(error) = done {
            log::warn!("{error}; the next reconciliation repairs the claims of {} here", owner.vm);
        }
    }
}
