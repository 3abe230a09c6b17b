//! A VM with VFs in the hands of one action: locked, read, and changed in steps that can be undone.
//!
//! * `unplug` - the engine that asks a guest to release devices
//! * `plug` - free VFs are claimed and plugged in, in order
//! * `blame` - whose fault it is that a domain does not get its VFs
//! * `dummy` - the interfaces that carry the IP addresses of VFs into the guest
//! * `gone` - a domain that goes, and the VFs that are free then
//! * `take_out` - devices that leave for good
//! * `adopt` - a domain of the stock driver, or of the driver of 2013, becomes one of ours
//! * `clock` - sets the clock of a guest that stood still

mod adopt;
mod blame;
pub(crate) mod block_job;
pub(crate) mod checkpoint;
pub(crate) mod clock;
pub(crate) mod dir;
mod dummy;
pub(crate) mod gone;
mod plug;
pub(crate) mod storage;
mod take_out;
mod unplug;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub use clock::sync_clock;
pub use unplug::unplug;

pub(crate) use blame::{PlugFailure, VfCall, with_refusals};
pub(crate) use dummy::nic_defaults;
pub(crate) use take_out::{NicDevice, NicDeviceKind, aliases};

use crate::base::{Action, DeployId, NicKey, Owner, POLL, Position};
use crate::claims::{ClaimStore, VmLock};
use crate::error::{Cause, UnplugOutcome};
use crate::host::Host;
use crate::host::detached;
use crate::libvirt::{DomainRef, JobKind, RunState};
use crate::xml::{LiveDomain, LiveHostdev, OperationKind, VmData, Wanted, WantedNic};

/// What an action finds when it looks for its VM.
pub(crate) enum Found<'a> {
    /// A VM with VFs, locked.
    WithVfs(Box<Vm<'a>>),
    /// A VM without: neither claims nor maps were touched.
    Plain(DomainRef, Box<LiveDomain>),
}

impl<'a> Found<'a> {
    /// The domain.
    pub(crate) fn domain(&self) -> &DomainRef {
        match self {
            Self::WithVfs(vm) => &vm.domain,
            Self::Plain(domain, _) => domain,
        }
    }

    /// The VM, if it has VFs.
    pub(crate) fn with_vfs(&mut self) -> Option<&mut Vm<'a>> {
        match self {
            Self::WithVfs(vm) => Some(vm),
            Self::Plain(..) => None,
        }
    }

    /// What it should have, if it has VFs.
    pub(crate) fn wanted(&self) -> Option<&Wanted> {
        match self {
            Self::WithVfs(vm) => Some(&vm.wanted),
            Self::Plain(..) => None,
        }
    }

    /// The positions of its NICs that have no VF.
    pub(crate) fn lacking(&self) -> Vec<Position> {
        match self {
            Self::WithVfs(vm) => vm.lacking.iter().map(|nic| nic.position).collect(),
            Self::Plain(..) => Vec::new(),
        }
    }

    /// Its live XML, as it was read last.
    pub(crate) fn live(&self) -> &LiveDomain {
        match self {
            Self::WithVfs(vm) => &vm.live,
            Self::Plain(_, live) => live,
        }
    }
}

/// A running VM with VFs, whose lock is held.
pub(crate) struct Vm<'a> {
    pub(crate) host: &'a Host,
    pub(crate) action: Action,
    pub(crate) domain: DomainRef,
    /// Its live XML, as it was read last.
    pub(crate) live: LiveDomain,
    /// What it should have; as it is written in the domain.
    pub(crate) wanted: Wanted,
    pub(crate) store: ClaimStore,
    pub(crate) lock: VmLock,
    /// Which positions were noted as pending when the operation began that is under way.
    noted: Vec<Position>,
    /// The NICs that had no VF when the action began: no reason for it to fail.
    lacking: Vec<NicKey>,
}

/// A NIC and the device that it has.
#[derive(Debug, Clone)]
pub(crate) struct Plugged {
    pub(crate) nic: WantedNic,
    pub(crate) device: LiveHostdev,
    pub(crate) alias: String,
}

/// Reads the live XML of a domain.
///
/// # Errors
/// It is gone, libvirtd does not answer, or its XML can't be read.
pub(crate) fn read(host: &Host, domain: &DomainRef) -> Result<LiveDomain, Cause> {
    LiveDomain::parse(&read_text(host, domain)?)
        .map_err(|source| Cause::Xml { what: format!("the live XML of {}", domain.name), source })
}

/// Reads the live XML of a domain as it is.
///
/// # Errors
/// It is gone, or libvirtd does not answer.
pub(crate) fn read_text(host: &Host, domain: &DomainRef) -> Result<String, Cause> {
    host.hypervisor().live_xml(domain)?.ok_or_else(|| Cause::Absent { id: domain.name.to_string() })
}

/// What a domain of ours should have; `None` when it is not one of ours.
///
/// # Errors
/// Our metadata in it can't be read, or were written by a newer version.
pub(crate) fn wanted(live: &LiveDomain) -> Result<Option<Wanted>, Cause> {
    live.wanted
        .clone()
        .map_err(|source| Cause::Xml { what: format!("the metadata of kvm-sriov in {}", live.name), source })
}

/// Refuses what needs an answer of a guest whose CPUs stand.
///
/// # Errors
/// [`Cause::NotRunning`], or libvirtd does not answer; nothing was touched.
pub(crate) fn check_answers(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    let how = match host.hypervisor().state(domain)? {
        Some(RunState::Running) | None => return Ok(()),
        Some(RunState::PmSuspended) => "suspended by itself",
        Some(_) => "paused",
    };
    Err(Cause::NotRunning { vm: domain.name.clone(), how })
}

/// Waits until libvirt has let go of a domain, whatever it said of its call.
///
/// * `what` - what libvirt does to it: "its move" ...
///
/// # Errors
/// [`Cause::JobRuns`] when it still works on it after `limit`, or libvirtd does not answer.
pub(crate) fn let_go(host: &Host, domain: &DomainRef, limit: Duration, what: &'static str) -> Result<(), Cause> {
    let end = Instant::now() + limit;
    while host.patiently(|| Ok(host.hypervisor().job(domain)?))?.is_some() {
        if Instant::now() >= end {
            return Err(Cause::JobRuns { vm: domain.name.clone(), what });
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Lets the CPUs of a domain run that stands.
///
/// # Errors
/// They stand, or libvirtd does not answer. A call whose answer was lost is no error when they run.
pub(crate) fn let_run(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    let hypervisor = host.hypervisor();
    host.patiently(|| {
        let Err(error) = hypervisor.resume(domain) else { return Ok(()) };
        if hypervisor.state(domain)?.is_some_and(RunState::runs) { Ok(()) } else { Err(error.into()) }
    })
}

/// Ends a save that libvirt still works on although nobody waits for it any more. It may be too late: then the domain is gone.
///
/// # Errors
/// [`Cause::JobRuns`] when it goes on until `end` although it was aborted, because QEMU does not answer; or libvirtd does not.
pub(crate) fn abort_save(host: &Host, domain: &DomainRef, end: Instant) -> Result<(), Cause> {
    let hypervisor = host.hypervisor();
    let mut asked = false;
    host.patiently_for(end.saturating_duration_since(Instant::now()), || {
        while hypervisor.job(domain)?.is_some_and(|job| job.kind == JobKind::Save) {
            if !asked {
                match hypervisor.abort_job(domain) {
                    Ok(()) => asked = true,
                    // It may have come to its end just now: only the next look counts.
                    Err(error) => log::debug!("cannot abort the save of {}: {error}", domain.name),
                }
            }
            if Instant::now() >= end {
                return Err(Cause::JobRuns { vm: domain.name.clone(), what: "its save" });
            }
            thread::sleep(POLL);
        }
        Ok(())
    })
}

/// What is to be said when the guest may still release a VF that it was asked for.
pub(crate) fn pending_text(cause: &Cause) -> Option<&'static str> {
    let Cause::NotReleased { kept, .. } = cause else { return None };
    let is_pending = |outcome: &UnplugOutcome| matches!(outcome, UnplugOutcome::Pending | UnplugOutcome::DaemonGone);
    kept.iter().any(|(.., outcome)| is_pending(outcome)).then_some(
        "the VM runs on, the request stays pending in the guest and a VF that leaves later is plugged back (is the guest's \
         PCI hot-plug driver loaded?)",
    )
}

impl<'a> Vm<'a> {
    /// Finds the VM that OpenNebula means and takes its lock if it has VFs. What an earlier action left stays as it is.
    ///
    /// * `data` - OpenNebula's description of the VM, for a domain that is adopted
    ///
    /// # Errors
    /// Nothing was changed: there is no such domain, another action of the VM runs, or a newer version wrote its metadata.
    pub(crate) fn open_as_is(
        host: &'a Host,
        action: Action,
        id: &DeployId,
        data: Option<&VmData>,
    ) -> Result<Found<'a>, Cause> {
        let domain = host.find(id)?;
        // A VM that was locked before has VFs most likely: when its lock is free, one look at it is enough.
        let lock = Self::lock_as_before(host, action, &domain);
        let live = read(host, &domain)?;
        // A device with our alias alone: the action that brought it died before it could say so.
        let has_ours =
            || Ok::<_, Cause>(!live.positions().is_empty() || !adopt::adoptable(host, &live, data)?.is_empty());
        if wanted(&live)?.is_none() && !has_ours()? {
            return Ok(Found::Plain(domain, Box::new(live)));
        }
        let vm = match lock {
            Some((store, lock)) => Self::seen(host, action, domain, live, store, lock, data)?,
            None => Self::lock_as_is(host, action, domain, data)?,
        };
        Ok(Found::WithVfs(Box::new(vm)))
    }

    /// The lock of a VM that has been locked before; `None` when it never was, is held now, or can't be taken: whether that
    /// matters shows the VM.
    fn lock_as_before(host: &Host, action: Action, domain: &DomainRef) -> Option<(ClaimStore, VmLock)> {
        let store = host.existing_claims().ok()??;
        let lock = store.lock_vm_again(&domain.name, action).ok()??;
        Some((store, lock))
    }

    /// Takes the lock of a VM that has VFs or is about to get its first one. What an earlier action left stays as it is.
    ///
    /// # Errors
    /// As [`Vm::open_as_is`].
    pub(crate) fn lock_as_is(
        host: &'a Host,
        action: Action,
        domain: DomainRef,
        data: Option<&VmData>,
    ) -> Result<Self, Cause> {
        let store = host.claims()?;
        let lock = store.lock_vm(&domain.name, action, host.settings().lock_timeout)?;
        Self::locked(host, action, domain, store, lock, data)
    }

    /// A VM whose lock is held already. Read anew: before the lock was taken it may have been another action's.
    pub(crate) fn locked(
        host: &'a Host,
        action: Action,
        domain: DomainRef,
        store: ClaimStore,
        lock: VmLock,
        data: Option<&VmData>,
    ) -> Result<Self, Cause> {
        let live = read(host, &domain)?;
        Self::seen(host, action, domain, live, store, lock, data)
    }

    /// A VM whose live XML was read with its lock held.
    pub(crate) fn seen(
        host: &'a Host,
        action: Action,
        domain: DomainRef,
        live: LiveDomain,
        store: ClaimStore,
        lock: VmLock,
        data: Option<&VmData>,
    ) -> Result<Self, Cause> {
        let known = wanted(&live)?;
        let is_ours = known.is_some();
        let wanted = known.unwrap_or_default();
        let mut vm = Self { host, action, domain, live, wanted, store, lock, noted: Vec::new(), lacking: Vec::new() };
        if is_ours {
            adopt::complete(&mut vm)?;
        } else {
            adopt::adopt(&mut vm, data)?;
        }
        vm.note_lacking();
        Ok(vm)
    }

    /// It, as the owner of claims.
    pub(crate) fn owner(&self) -> Owner {
        self.domain.owner()
    }

    /// Refuses what an unplug could not help: the guest can't answer, or a device that is not ours stays with its host.
    ///
    /// * `what` - "saved", "migrated" ...
    pub(crate) fn check_can_leave(&self, what: &'static str) -> Result<(), Cause> {
        let vm = self.domain.name.clone();
        let ours: Vec<LiveHostdev> = self.plugged().into_iter().map(|plugged| plugged.device).collect();
        if let Some(device) = self.live.stays(&ours) {
            return Err(Cause::ForeignDevice { vm, device, what });
        }
        if ours.is_empty() { Ok(()) } else { check_answers(self.host, &self.domain) }
    }

    /// Reads the live XML anew. What is wanted stays as this action knows it.
    pub(crate) fn reread(&mut self) -> Result<(), Cause> {
        self.live = read(self.host, &self.domain)?;
        Ok(())
    }

    /// The NICs that have their VF.
    pub(crate) fn plugged(&self) -> Vec<Plugged> {
        let device = |nic: &WantedNic| {
            let device = self.live.device_of(nic)?.clone();
            let alias = device.alias.clone()?;
            Some(Plugged { nic: nic.clone(), device, alias })
        };
        self.wanted.nics.iter().filter_map(device).collect()
    }

    /// The NICs that have none.
    pub(crate) fn missing(&self) -> Vec<WantedNic> {
        self.wanted.nics.iter().filter(|nic| self.live.device_of(nic).is_none()).cloned().collect()
    }

    /// Notes which NICs have no VF before the action does anything.
    pub(crate) fn note_lacking(&mut self) {
        self.lacking = self.missing().iter().map(WantedNic::key).collect();
    }

    /// The NICs that had no VF when the action began.
    pub(crate) fn lacking(&self) -> &[NicKey] {
        &self.lacking
    }

    /// The NICs that have lost their VF since the action began.
    pub(crate) fn lost(&self) -> Vec<WantedNic> {
        let mut lost = self.missing();
        lost.retain(|nic| !self.lacking.contains(&nic.key()));
        lost
    }

    /// Gives a VF to each NIC that has none, as far as there are VFs. What is left is a line in the log, and reconciliation's matter.
    pub(crate) fn plug_lacking(&mut self) {
        for nic in self.missing() {
            if let Err(cause) = self.plug(std::slice::from_ref(&nic)) {
                log::warn!(
                    "{cause}; NIC {} of {} still has no VF, reconciliation tries again",
                    nic.mac,
                    self.domain.name
                );
            }
        }
    }

    /// Writes what the VM should have into the domain. One that should have nothing is none of ours any more.
    ///
    /// # Errors
    /// libvirt refused; what was there is still there.
    pub(crate) fn write_wanted(&self) -> Result<(), Cause> {
        let text = (self.wanted != Wanted::default()).then(|| self.wanted.to_unqualified_xml());
        let hypervisor = self.host.hypervisor();
        Ok(hypervisor.set_metadata(&self.domain, text.as_deref(), Wanted::PREFIX, Wanted::NAMESPACE)?)
    }

    /// Writes what the VM should have unless the domain, as it was read last, says so: of a write that failed nobody knows
    /// whether it took effect.
    pub(crate) fn ensure_written(&self) -> Result<(), Cause> {
        let written = wanted(&self.live)?.unwrap_or_default();
        if written == self.wanted { Ok(()) } else { self.host.patiently(|| self.write_wanted()) }
    }

    /// Notes in the domain which operation is under way, or that none is.
    pub(crate) fn set_operation(&mut self, operation: Option<OperationKind>) -> Result<(), Cause> {
        if self.wanted.operation.as_ref().map(|operation| &operation.kind) == operation.as_ref() {
            return Ok(());
        }
        let before = self.wanted.operation.take();
        self.wanted.operation = operation.map(Into::into);
        self.write_wanted().inspect_err(|_| self.wanted.operation = before)
    }

    /// The positions of the NICs whose VF or dummy the guest may still release.
    pub(crate) fn pending(&self) -> Vec<Position> {
        match self.wanted.operation.as_ref().map(|operation| &operation.kind) {
            Some(OperationKind::PendingUnplug { positions }) => positions.clone(),
            _ => Vec::new(),
        }
    }

    /// Begins an operation during which VFs are out of the domain: the claims are held by this process, and the domain says
    /// what is under way.
    ///
    /// * `image` - the file that the domain goes into, if it does
    pub(crate) fn begin(&mut self, operation: OperationKind, image: Option<&Path>) -> Result<(), Cause> {
        self.store.hold(&self.lock, &self.owner(), image)?;
        self.noted = self.pending();
        self.set_operation(Some(operation))
    }

    /// Ends an operation: the domain backs its claims again, and no operation is under way.
    pub(crate) fn finish(&mut self) -> Result<(), Cause> {
        self.set_operation(None)?;
        self.store.settle(&self.owner())?;
        Ok(())
    }

    /// Ends an operation after which the guest may still release the VFs at these positions: says so in the domain, and has
    /// them watched for.
    pub(crate) fn finish_pending(&mut self, positions: Vec<Position>) -> Result<(), Cause> {
        self.set_operation(Some(OperationKind::PendingUnplug { positions }))?;
        self.store.settle(&self.owner())?;
        detached::start(self.host, detached::WATCHER, &self.domain);
        Ok(())
    }

    /// Ends an operation that plugged VFs for these NICs right after they had left. A guest that stood still, or was saved, in the moment
    /// when it had released the last of several may have more requests of then in its queue, and carry them out on what it has been
    /// given: watched for. Where that can't be noted the operation ends all the same: the next look plugs back what leaves.
    ///
    /// # Source
    /// QEMU `hw/acpi/pcihp.c`: each request has the guest told of all that are open, so of the first ones more than once. Linux
    /// `drivers/pci/hotplug/acpiphp_glue.c`: one request after the other, and an empty slot is ejected as well.
    pub(crate) fn finish_plugged(&mut self, nics: &[WantedNic]) -> Result<(), Cause> {
        if let [_, _, ..] = nics {
            let noted = self.finish_pending(nics.iter().map(|nic| nic.position).collect());
            return noted.or_else(|cause| {
                log::warn!("{cause}; {} is not watched for VFs that its guest may still release", self.domain.name);
                self.finish()
            });
        }
        self.finish()
    }

    /// One line in the journal for each of these NICs.
    pub(crate) fn journal(&self, devices: &[Plugged], result: &str) {
        for Plugged { nic, device, .. } in devices {
            self.host.journal().vf(self.action, &self.domain.name, &nic.root, device.vf, result);
        }
    }

    /// Asks the guest to release the devices with these aliases, all at once, and waits for all of them.
    ///
    /// * returns an outcome for each, in their order
    ///
    /// # Errors
    /// [`Cause::Absent`] when the domain ended meanwhile; or its XML can't be read, and devices may have left.
    pub(crate) fn ask_for(&self, aliases: &[String]) -> Result<Vec<UnplugOutcome>, Cause> {
        let outcomes = unplug(self.host.hypervisor(), &self.domain, aliases, self.host.settings().unplug_timeout)
            .map_err(|source| Cause::Xml { what: format!("the live XML of {}", self.domain.name), source })?;
        if outcomes.contains(&UnplugOutcome::DomainGone) {
            return Err(Cause::Absent { id: self.domain.name.to_string() });
        }
        Ok(outcomes)
    }

    /// Asks the guest to release these VFs and waits for all of them.
    ///
    /// # Errors
    /// [`Cause::NotReleased`] says which stayed; those that left are to be plugged back by [`Vm::plug_back`].
    pub(crate) fn unplug(&mut self, devices: &[Plugged]) -> Result<(), Cause> {
        if devices.is_empty() {
            return Ok(());
        }
        let aliases: Vec<String> = devices.iter().map(|device| device.alias.clone()).collect();
        let outcomes = self.ask_for(&aliases)?;
        let (released, kept): (Vec<_>, Vec<_>) =
            devices.iter().cloned().zip(outcomes).partition(|(_, outcome)| *outcome == UnplugOutcome::Released);
        let released: Vec<Plugged> = released.into_iter().map(|(device, _)| device).collect();
        self.journal(&released, "unplugged");
        let gone: Vec<String> = released.iter().map(|device| device.alias.clone()).collect();
        self.live.forget(&gone);
        if kept.is_empty() {
            return Ok(());
        }
        Err(Cause::NotReleased {
            vm: self.domain.name.clone(),
            seconds: self.host.settings().unplug_timeout.as_secs(),
            kept: kept.into_iter().map(|(device, outcome)| (device.nic.position, device.device.vf, outcome)).collect(),
        })
    }

    /// After an unplug that failed, or an action that failed after it: plugs back what has left, at its place, notes what may
    /// leave later, or was noted before, and has it watched for.
    ///
    /// * `cause` - why the action failed; what is pending is read from it
    /// * returns what is to be said of the host
    pub(crate) fn plug_back(&mut self, cause: &Cause) -> Result<(), Cause> {
        let mut pending: Vec<Position> = match cause {
            Cause::NotReleased { kept, .. } => {
                let is_pending =
                    |outcome: &UnplugOutcome| matches!(outcome, UnplugOutcome::Pending | UnplugOutcome::DaemonGone);
                kept.iter().filter(|(.., outcome)| is_pending(outcome)).map(|(position, ..)| *position).collect()
            }
            _ => Vec::new(),
        };
        self.live = self.host.patiently(|| read(self.host, &self.domain))?;
        // A note that failed may have been written all the same.
        if let Some(written) = wanted(&self.live)? {
            self.wanted.operation = written.operation;
        }
        let lost = self.lost();
        self.plug(&lost)?;
        self.plug_lacking();
        // No action that comes here takes a dummy out.
        if let Err(cause) = self.plug_dummies() {
            log::warn!("{cause}; reconciliation tries again");
        }
        if pending.is_empty() {
            pending = self.noted_before();
        }
        self.finish_as(pending)
    }

    /// The positions that were noted as pending when this action began.
    pub(crate) fn noted_before(&self) -> Vec<Position> {
        if self.noted.is_empty() { self.pending() } else { self.noted.clone() }
    }

    /// Ends an operation, with this note.
    pub(crate) fn finish_as(&mut self, pending: Vec<Position>) -> Result<(), Cause> {
        if pending.is_empty() { self.finish() } else { self.finish_pending(pending) }
    }
}
