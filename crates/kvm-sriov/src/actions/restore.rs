//! `restore`: starts a VM from the file of its save, with VFs of the same roots.

use std::path::Path;
use std::time::Duration;

use super::shared::undo::undo_failed;
use crate::base::{Action, DomainId, DomainName, Owner};
use crate::claims::{Claim, ClaimRequest, ClaimStore, VmLock};
use crate::config::VfMap;
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::{DomainRef, RunState};
use crate::os;
use crate::reconcile;
use crate::vm::checkpoint::Checkpoint;
use crate::vm::dir::VmDir;
use crate::vm::gone;
use crate::vm::{self, Vm};
use crate::xml::{LiveDomain, OperationKind, Wanted, WantedNic, adapted_to_host};

/// The time between two tries of a restore.
///
/// # Source
/// OpenNebula's stock driver: VIRSH_RETRIES tries, 1 s apart.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts the domain that `checkpoint` holds, and removes the checkpoint when the domain runs. Before the first CPU
/// runs, each SR-IOV NIC gets a free VF of its root at its old guest address.
///
/// * `vm` - the VM's name, where the caller knows it. A VM of that name that suspended itself to memory is only woken
///   up, and needs no checkpoint. Without a name the image alone says which VM is restored.
///
/// # Errors
/// Nothing runs, nothing is claimed, and the checkpoint is as it was. Once a CPU may have run, the checkpoint is never
/// used again, and the error's state says what is left.
///
/// # Source
/// OpenNebula's stock `restore`.
pub fn restore(host: &Host, checkpoint: &Path, vm: Option<&DomainName>) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::new(Action::Restore, cause, HostState::NothingRestored);
    if let Some(name) = vm {
        if wake_up(host, name).map_err(untouched)? {
            return Ok(());
        }
    }
    let image = Checkpoint::at(checkpoint);
    if image.is_spent() && finish_earlier(host, &image).map_err(untouched)? {
        return Ok(());
    }
    let text = host
        .hypervisor()
        .image_xml(checkpoint)
        .map_err(|source| untouched(Cause::Call { what: format!("restore from {}", checkpoint.display()), source }))?;
    let of_image = |source| Cause::Xml { what: format!("the domain in {}", checkpoint.display()), source };
    let saved = LiveDomain::parse(&text).map_err(|source| untouched(of_image(source)))?;
    let wanted = vm::wanted(&saved).map_err(untouched)?;
    let restoring = Restoring { host, image: &image, text: &text, saved: &saved };
    let domain = match wanted.filter(|wanted| !wanted.nics.is_empty()) {
        None => restoring.plain()?,
        Some(wanted) => restoring.with_vfs(wanted)?,
    };
    vm::clock::start(host, &domain);
    if let Ok(dir) = VmDir::of(checkpoint) {
        dir.redefine_snapshots(host.hypervisor(), &domain);
    }
    Ok(())
}

/// Wakes up a VM that suspended itself to memory. Returns whether it did.
///
/// # Source
/// OpenNebula's stock `restore` (6.8 and later).
fn wake_up(host: &Host, name: &DomainName) -> Result<bool, Cause> {
    let Some(domain) = host.hypervisor().find(&DomainId::Name(name.clone()))? else { return Ok(false) };
    let is_asleep = host.hypervisor().state(&domain)? == Some(RunState::PmSuspended);
    if is_asleep {
        host.hypervisor().wake_up(&domain)?;
    }
    Ok(is_asleep)
}

/// Finishes a restore that was interrupted after its commit: the domain has its VFs, and only its CPUs are stopped.
/// Returns whether there was one.
fn finish_earlier(host: &Host, image: &Checkpoint) -> Result<bool, Cause> {
    for domain in host.hypervisor().domains()? {
        // A domain that can't be read has just ended, or a newer version wrote its metadata. It is not this VM.
        let Ok(live) = vm::read(host, &domain) else { continue };
        if is_from(&live, image) {
            // The repair that follows the lock resumes the domain.
            reconcile::lock(host, Action::Restore, domain, None)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the domain's open operation is a restore from this image.
fn is_from(live: &LiveDomain, image: &Checkpoint) -> bool {
    let operation = live.wanted.as_ref().ok().and_then(Option::as_ref).and_then(|wanted| wanted.operation.as_ref());
    operation.is_some_and(|operation| {
        matches!(&operation.kind, OperationKind::Restore { checkpoint } if checkpoint == image.checkpoint())
    })
}

struct Restoring<'a> {
    host: &'a Host,
    image: &'a Checkpoint,
    text: &'a str,
    saved: &'a LiveDomain,
}

impl Restoring<'_> {
    fn owner(&self) -> Owner {
        Owner { vm: self.saved.name.clone(), uuid: Some(self.saved.uuid.clone()) }
    }

    /// Refuses to start a VM that runs already.
    fn check_absent(&self) -> Result<(), Cause> {
        let found = self.host.hypervisor().find(&DomainId::Name(self.saved.name.clone()))?;
        found.filter(|domain| domain.id.is_some()).map_or(Ok(()), |domain| Err(Cause::Exists { name: domain.name }))
    }

    fn prepare(&self) {
        if self.host.settings().cleanup_memory_on_start {
            Sudo::ask().compact_memory();
        }
    }

    fn xml(&self, wanted: Option<&Wanted>) -> Result<String, Cause> {
        let checkpoint = self.image.checkpoint();
        adapted_to_host(
            self.text,
            checkpoint,
            wanted,
            self.host.settings().dummy_bridge.as_deref().filter(|_| wanted.is_some()),
        )
        .map_err(|source| Cause::Xml { what: format!("the domain in {}", checkpoint.display()), source })
    }

    /// Has libvirt start the domain. Tries as often as the stock driver does.
    fn start(&self, xml: &str, paused: bool) -> Result<DomainRef, Cause> {
        let checkpoint = self.image.checkpoint();
        let hypervisor = self.host.hypervisor();
        let mut tries = self.host.settings().retries;
        let limit = self.host.copy_limit(self.saved.memory_kib);
        while let Err(source) = hypervisor.restore(checkpoint, xml, paused, limit) {
            tries = tries.saturating_sub(1);
            let failed = Cause::Call { what: format!("restore from {}", checkpoint.display()), source };
            if let Some(domain) = self.running()? {
                // The call's error does not decide: a domain without a job of libvirt is restored.
                let is_restored = self.host.patiently(|| Ok(hypervisor.job(&domain)?))?.is_none();
                return if is_restored { Ok(domain) } else { Err(failed) };
            }
            if tries == 0 {
                return Err(failed);
            }
            self.host.check_stop()?;
            log::warn!("{failed}; trying again");
            os::sleep(AGAIN);
        }
        self.running()?.ok_or_else(|| Cause::Absent { id: self.saved.name.to_string() })
    }

    fn running(&self) -> Result<Option<DomainRef>, Cause> {
        let id = DomainId::Uuid(self.saved.uuid.clone());
        self.host.patiently(|| Ok(self.host.hypervisor().find(&id)?))
    }

    fn plain(&self) -> Result<DomainRef, ActionError> {
        let untouched = |cause: Cause| ActionError::new(Action::Restore, cause, HostState::NothingRestored);
        self.check_absent().map_err(untouched)?;
        let xml = self.xml(None).map_err(untouched)?;
        self.prepare();
        let domain = self.start(&xml, false).map_err(|cause| {
            let state = match self.running() {
                Ok(None) => HostState::NothingRestored,
                _ => HostState::InDoubt(format!(
                    "whether {} runs, or will, is not known; until that is known its checkpoint must not be used again",
                    self.saved.name
                )),
            };
            ActionError::new(Action::Restore, cause, state)
        })?;
        self.image.spend().and_then(|()| self.image.remove_used()).unwrap_or_else(|cause| {
            log::warn!("{cause}; the domain runs, the checkpoint must not be used again");
        });
        Ok(domain)
    }

    fn with_vfs(&self, wanted: Wanted) -> Result<DomainRef, ActionError> {
        let untouched = |cause: Cause| ActionError::new(Action::Restore, cause, HostState::NothingRestored);
        let store = self.host.claims().map_err(|error| untouched(error.into()))?;
        let lock = self.host.lock_vm(&store, &self.saved.name, Action::Restore).map_err(untouched)?;
        // Checked with the lock held: another restore of this VM may have finished meanwhile.
        self.check_absent().map_err(untouched)?;
        let wanted = Wanted {
            operation: Some(OperationKind::Restore { checkpoint: self.image.checkpoint().to_owned() }.into()),
            ..wanted
        };
        let xml = self.xml(Some(&wanted)).map_err(untouched)?;
        let claims = self.claim(&store, &lock, &wanted).map_err(untouched)?;
        self.prepare();
        let domain = match self.start(&xml, true) {
            Ok(domain) => domain,
            Err(cause) => return Err(self.undo(&store, cause, &claims)),
        };
        self.run(domain, store, lock, &claims)
    }

    /// Claims a VF for every NIC.
    fn claim(&self, store: &ClaimStore, lock: &VmLock, wanted: &Wanted) -> Result<Vec<Claim>, Cause> {
        if wanted.has_dummies() {
            self.host.dummy_bridge()?;
        }
        let maps: Vec<VfMap> = self.host.maps_and_others(wanted.nics.iter().map(|nic| &nic.root))?;
        let vfs: Vec<_> = wanted.nics.iter().map(WantedNic::vf).collect();
        let owner = self.owner();
        let request =
            ClaimRequest { owner: &owner, lock, vfs: &vfs, maps: &maps, sysfs: self.host.sysfs(), refused: &[] };
        self.host.claim(store, &request, Action::Restore)
    }

    /// Plugs VFs into the paused domain, commits, and resumes it.
    fn run(
        &self,
        domain: DomainRef,
        store: ClaimStore,
        lock: VmLock,
        claims: &[Claim],
    ) -> Result<DomainRef, ActionError> {
        let vm =
            Vm::locked(self.host, Action::Restore, domain.clone(), store.clone(), lock, None).and_then(|mut vm| {
                let nics = vm.missing();
                vm.plug(&nics)?;
                self.image.spend()?;
                Ok((vm, nics))
            });
        let (mut vm, nics) = match vm {
            Ok(vm) => vm,
            Err(cause) => return Err(self.undo(&store, cause, claims)),
        };
        // From here on the checkpoint must not be used again. After a failure the next reconciliation finishes the
        // restore.
        let finished = self
            .host
            .patiently(|| Ok(self.host.hypervisor().resume(&vm.domain)?))
            // Before the operation is closed: the open operation names the checkpoint.
            .and_then(|()| self.image.remove_used())
            .and_then(|()| vm.finish_plugged(&nics));
        match finished {
            Ok(()) => Ok(domain),
            Err(cause) => Err(ActionError::new(
                Action::Restore,
                cause,
                HostState::Left(format!(
                    "{} is there with its VFs; kvm-sriov reconcile, or its next action, resumes it",
                    domain.name
                )),
            )),
        }
    }

    /// Destroys the domain if this restore started it.
    fn destroy(&self, domain: &DomainRef) -> Result<(), Cause> {
        match self.host.patiently(|| vm::read(self.host, domain)) {
            Ok(live) if is_from(&live, self.image) => gone::destroy(self.host, domain),
            Ok(_) => Err(Cause::Exists { name: domain.name.clone() }),
            Err(Cause::Absent { .. }) => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    /// No CPU has run: destroys the domain and releases its claims. The checkpoint is as it was.
    fn undo(&self, store: &ClaimStore, cause: Cause, claims: &[Claim]) -> ActionError {
        let undone = self.running().and_then(|found| match found {
            Some(domain) => self.destroy(&domain),
            None => Ok(()),
        });
        match undone.and_then(|()| Ok(gone::release(self.host, store, &self.owner(), Action::Restore)?)) {
            Ok(()) => ActionError::new(Action::Restore, cause, HostState::NothingRestored),
            Err(undo) => {
                let vfs: Vec<String> = claims.iter().map(|claim| claim.vf.to_string()).collect();
                let left = format!(
                    "the checkpoint is as it was; VF {} stays claimed by {} until it is known whether the domain runs",
                    vfs.join(", "),
                    self.saved.name
                );
                undo_failed(Action::Restore, cause, undo, left)
            }
        }
    }
}
