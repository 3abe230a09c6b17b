//! Repairs are done, one after the other, until nothing is left to do or something does not go on.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::decide::{Repair, decide};
use super::facts::{Elsewhere, Facts};
use super::report::VmReport;
use crate::base::{Action, DeployId, Owner, PciAddress, Position};
use crate::claims::{Claim, ClaimStore, Claimant, VmLock};
use crate::error::Cause;
use crate::host::Host;
use crate::vm::checkpoint::Checkpoint;
use crate::vm::dir::VmDir;
use crate::vm::gone;
use crate::vm::{self, NicDevice, NicDeviceKind, Vm, unplug};
use crate::xml::{LiveDomain, OperationKind, WantedNic, alias_of, dummy_alias_of, image_for};

/// What is true is looked at anew after each round; an aborted save, or a domain that was started from its image, takes one
/// more than others.
const ROUNDS: usize = 4;

/// What is known of a locked VM. libvirt is asked how it runs only when that matters.
pub(super) fn facts_of(vm: &Vm<'_>, elsewhere: Elsewhere) -> Result<Facts, Cause> {
    let facts = Facts::of_domain(&vm.domain, &vm.live, &vm.wanted, &vm.store.claimants()?, elsewhere);
    if decide(&facts).is_empty() { Ok(facts) } else { facts.ask(vm.host, &vm.domain) }
}

/// How much of a VM is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Everything,
    /// No VF is plugged in.
    AllButPlugging,
}

impl Scope {
    fn has(self, repair: &Repair) -> bool {
        self == Self::Everything || !matches!(repair, Repair::Plug(_))
    }
}

/// Puts a locked VM right.
///
/// # Errors
/// It can't be looked at any more; what was done until then is done.
pub(super) fn repair(vm: &mut Vm<'_>, until: Instant, elsewhere: Elsewhere, scope: Scope) -> Result<VmReport, Cause> {
    let mut facts = facts_of(vm, elsewhere)?;
    let mut report = VmReport::new(vm.owner(), facts.clone());
    for _ in 0..ROUNDS {
        let mut repairs = decide(&facts);
        repairs.retain(|repair| scope.has(repair));
        if repairs.iter().all(Repair::is_note) || Instant::now() >= until {
            break;
        }
        let is_stuck = Work { vm, until, report: &mut report, one_by_one: false }.apply(&repairs);
        if report.done.contains(&Repair::Destroy) {
            return Ok(report);
        }
        match vm.reread() {
            Err(Cause::Absent { .. }) => {
                report.is_gone = true;
                return Ok(report);
            }
            other => other?,
        }
        facts = facts_of(vm, elsewhere)?;
        if is_stuck {
            break;
        }
    }
    report.left = decide(&facts);
    Ok(report)
}

struct Work<'w, 'a> {
    vm: &'w mut Vm<'a>,
    until: Instant,
    report: &'w mut VmReport,
    /// Whether plugging all at once was tried.
    one_by_one: bool,
}

impl Work<'_, '_> {
    /// Does all of them. Whether something did not go on.
    fn apply(&mut self, repairs: &[Repair]) -> bool {
        let before = self.report.failures.len();
        let leaves = |repair: &&Repair| matches!(repair, Repair::Unplug(_) | Repair::UnplugDummy(_));
        let leaving: Vec<Repair> = repairs.iter().filter(leaves).cloned().collect();
        self.unplug(&leaving);
        for repair in repairs.iter().filter(|repair| !leaves(repair) && !repair.is_note()) {
            let is_over = Instant::now() >= self.until;
            let done = if self.vm.lock.cancelled() {
                Err(Cause::Cancelled { name: self.vm.domain.name.clone() })
            } else if is_over {
                return true;
            } else {
                self.one(repair)
            };
            let goes_on = done.is_ok() || repair.concerns_one_nic();
            self.note(repair, done);
            if !goes_on {
                break;
            }
        }
        self.report.failures.len() > before
    }

    fn note(&mut self, repair: &Repair, done: Result<(), Cause>) {
        let name = &self.vm.domain.name;
        match done {
            Ok(()) => {
                log::info!("{name}: {repair}: done");
                self.report.done.push(repair.clone());
            }
            Err(cause) => self.report.fail(repair.clone(), cause),
        }
    }

    fn one(&mut self, repair: &Repair) -> Result<(), Cause> {
        let host = self.vm.host;
        match repair {
            // Asked for all at once, before; and notes change nothing.
            Repair::Unplug(_) | Repair::UnplugDummy(_) | Repair::Leave(_) | Repair::InDoubt(_) => Ok(()),
            // Of a VM that has no domain.
            Repair::RestoreImage => Ok(()),
            Repair::AbortSave => {
                vm::abort_save(host, &self.vm.domain, self.until)?;
                self.journal("save-aborted");
                Ok(())
            }
            Repair::Release(vf) => self.release(*vf),
            Repair::Claim(position) => self.claim(*position),
            Repair::Plug(position) => self.plug(*position),
            Repair::PlugDummy(position) => self.plug_dummy(*position),
            Repair::Spend => self.checkpoint().map_or(Ok(()), |image| image.spend()).map(|()| self.journal("spent")),
            Repair::Resume => {
                vm::let_run(host, &self.vm.domain)?;
                self.journal("resumed");
                Ok(())
            }
            Repair::KeepPending(positions) => {
                self.vm.set_operation(Some(OperationKind::PendingUnplug { positions: positions.clone() }))?;
                // What was plugged in meanwhile is the domain's.
                self.vm.store.settle(&self.vm.owner())?;
                self.journal("still-pending");
                Ok(())
            }
            Repair::Close => self.close(&[]),
            Repair::NotePending(positions) => self.close(positions),
            Repair::RemoveUsed => self.checkpoint().map_or(Ok(()), |image| image.remove_used()),
            Repair::RemoveImage => self.remove_image(),
            Repair::Destroy => {
                gone::destroy(host, &self.vm.domain)?;
                self.journal("destroyed");
                Ok(())
            }
            Repair::ReleaseAll => Ok(gone::release(host, &self.vm.store, &self.vm.owner(), self.vm.action)?),
        }
    }

    fn journal(&self, result: &str) {
        self.vm.host.journal().vm(self.vm.action, &self.vm.domain.name, result);
    }

    /// The image of the restore that is open.
    fn checkpoint(&self) -> Option<Checkpoint> {
        match &self.vm.wanted.operation.as_ref()?.kind {
            OperationKind::Restore { checkpoint } => Some(Checkpoint::at(checkpoint)),
            _ => None,
        }
    }

    /// Ends the operation that is open.
    ///
    /// * `pending` - what the guest may still release
    fn close(&mut self, pending: &[Position]) -> Result<(), Cause> {
        let open = self.vm.wanted.operation.as_ref().map(|operation| operation.kind.clone());
        if let (Some(OperationKind::Migrate { .. }), Some(dir)) = (&open, VmDir::of_domain(&self.vm.live)) {
            // A move takes them from libvirt.
            dir.redefine_snapshots(self.vm.host.hypervisor(), &self.vm.domain);
        }
        if pending.is_empty() {
            self.vm.finish()?
        } else {
            self.vm.finish_pending(pending.to_vec())?
        }
        self.journal(&format!("{}-closed", open.map_or_else(String::new, |kind| kind.to_string())));
        Ok(())
    }

    fn nic(&self, position: Position) -> Result<WantedNic, Cause> {
        let nic = self.vm.wanted.nics.iter().find(|nic| nic.position == position);
        nic.cloned().ok_or_else(|| self.not_as_asked(format!("position {position} is not wanted any more")))
    }

    fn not_as_asked(&self, what: String) -> Cause {
        Cause::NotAsAsked { name: self.vm.domain.name.clone(), what }
    }

    /// Asks the guest to release everything that is not wanted, all at once.
    fn unplug(&mut self, leaving: &[Repair]) {
        let leaving: Vec<(&Repair, NicDevice)> =
            leaving.iter().filter_map(|repair| Some((repair, self.device(repair)?))).collect();
        let Some((first, _)) = leaving.first() else { return };
        // A silent guest must leave time for what can be done without it.
        let half = self.until.saturating_duration_since(Instant::now()) / 2;
        let timeout = self.vm.host.settings().unplug_timeout.min(half);
        let aliases: Vec<String> = leaving.iter().map(|(_, device)| device.alias.clone()).collect();
        match unplug(self.vm.host.hypervisor(), &self.vm.domain, &aliases, timeout) {
            Ok(outcomes) => {
                for ((repair, device), outcome) in leaving.iter().zip(outcomes) {
                    let stayed = self.vm.not_released(std::slice::from_ref(device), &[outcome]);
                    let done = stayed.map_or_else(|| device.vf().map_or(Ok(()), |vf| self.release(vf)), Err);
                    self.note(repair, done);
                }
            }
            Err(source) => {
                let what = format!("the live XML of {}", self.vm.domain.name);
                self.note(first, Err(Cause::Xml { what, source }));
            }
        }
        // What is plugged in next must know what has left.
        if let Err(cause) = self.vm.reread() {
            log::debug!("{cause}");
        }
    }

    /// The device that is to leave.
    fn device(&self, repair: &Repair) -> Option<NicDevice> {
        let live = &self.vm.live;
        match repair {
            Repair::Unplug(position) => {
                let alias = alias_of(*position);
                let found = live.hostdevs.iter().find(|device| device.alias.as_deref() == Some(&*alias))?;
                Some(NicDevice { kind: NicDeviceKind::Vf(found.vf), position: *position, alias })
            }
            Repair::UnplugDummy(position) => {
                let alias = dummy_alias_of(*position);
                let found = live.interfaces.iter().find(|dummy| dummy.alias.as_deref() == Some(&*alias))?;
                Some(NicDevice { kind: NicDeviceKind::Dummy(found.mac), position: *position, alias })
            }
            _ => None,
        }
    }

    /// Releases what the VM claims of this VF.
    fn release(&self, vf: PciAddress) -> Result<(), Cause> {
        self.vm.free(|claim| claim.vf == vf)
    }

    /// Makes the claims say what the domain shows.
    fn claim(&self, position: Position) -> Result<(), Cause> {
        let (vm, nic) = (&self.vm, self.nic(position)?);
        let device =
            vm.live.device_of(&nic).ok_or_else(|| self.not_as_asked(format!("position {position} is empty")))?;
        let maps = vm.host.maps_of(std::iter::once(&nic.root))?;
        if maps.iter().all(|map| map.index_of(device.vf).is_none()) {
            return Err(Cause::Unmapped { vm: vm.domain.name.clone(), vf: device.vf, root: nic.root.clone() });
        }
        // Files of a map that was reordered take their places first: what is written now must not fall upon one of them.
        vm.host.recover(&vm.store, &maps, vm.action)?;
        let owner = vm.owner();
        let is_wrong = |claimant: &Claimant, claim: &Claim| {
            if claimant.owner.is(&owner) {
                claim.is_for(&nic.key()) && claim.vf != device.vf && !vm.live.vfs().any(|vf| vf == claim.vf)
            } else {
                claim.vf == device.vf && !claimant.held
            }
        };
        for claimant in vm.store.claimants()? {
            let wrong: Vec<Claim> =
                claimant.claims.iter().filter(|claim| is_wrong(&claimant, claim)).cloned().collect();
            vm.store.release(&wrong)?;
        }
        let claim = Claim::new(owner, nic.root.clone(), device.vf, nic.key());
        vm.store.commit(std::slice::from_ref(&claim), &maps)?;
        vm.host.journal().vf(vm.action, &vm.domain.name, &claim.root, claim.vf, "adopted");
        Ok(())
    }

    /// Plugs a NIC's VF, and together with the first one those of all others, with one look for all. Where that fails each is
    /// tried by itself: what goes wrong with one keeps no other from its VF.
    fn plug(&mut self, position: Position) -> Result<(), Cause> {
        let nic = self.nic(position)?;
        if self.vm.live.device_of(&nic).is_some() {
            return Ok(());
        }
        let missing = self.vm.missing();
        if missing.len() > 1 && !std::mem::replace(&mut self.one_by_one, true) {
            match self.plug_all(&missing) {
                Ok(()) => return Ok(()),
                Err(cause) => log::debug!("{cause}; each VF of {} is tried by itself", self.vm.domain.name),
            }
            self.vm.reread()?;
            if self.vm.live.device_of(&nic).is_some() {
                return Ok(());
            }
        }
        self.plug_all(std::slice::from_ref(&nic))
    }

    fn plug_all(&mut self, nics: &[WantedNic]) -> Result<(), Cause> {
        let claims = self.vm.plug(nics)?;
        // Held by nobody: the domain backs it now. While another operation is open it stays held.
        if self.vm.wanted.operation.is_none() {
            match self.vm.host.maps_of(nics.iter().map(|nic| &nic.root)) {
                Ok(maps) => self.vm.store.commit(&claims, &maps)?,
                // The VM had these claims: they need no map.
                Err(_) => drop(self.vm.store.settle(&self.vm.owner())?),
            }
        }
        Ok(())
    }

    fn plug_dummy(&mut self, position: Position) -> Result<(), Cause> {
        let nic = self.nic(position)?;
        self.vm.plug_dummy_back(&nic)?;
        self.journal("dummy-plugged");
        Ok(())
    }

    fn remove_image(&self) -> Result<(), Cause> {
        let owner = self.vm.owner();
        let claimants = self.vm.store.claimants()?;
        let path = claimants.iter().find(|claimant| claimant.owner.is(&owner)).and_then(|own| own.image.as_deref());
        if let Some(image) = path.and_then(Checkpoint::of_unfinished) {
            image.discard()?;
        }
        self.vm.store.settle(&owner)?;
        self.journal("image-removed");
        Ok(())
    }
}

/// A VM that claims VFs, has no domain here, and whose lock is held.
pub(super) struct Domainless<'a> {
    pub(super) host: &'a Host,
    pub(super) action: Action,
    pub(super) store: ClaimStore,
    pub(super) lock: VmLock,
    pub(super) owner: Owner,
}

impl<'a> Domainless<'a> {
    /// Puts it right.
    ///
    /// # Errors
    /// It can't be looked at.
    pub(super) fn repair(self, until: Instant, elsewhere: Elsewhere) -> Result<Option<VmReport>, Cause> {
        let Some(claimant) = self.store.claimants()?.into_iter().find(|claimant| claimant.owner.is(&self.owner)) else {
            return Ok(None);
        };
        let facts = Facts::of_claimant(&claimant, is_outlived(self.host, &self.owner)?, elsewhere);
        let repairs = decide(&facts);
        let mut report = VmReport::new(self.owner.clone(), facts);
        let path = claimant.image.clone().unwrap_or_default();
        for repair in &repairs {
            let done = match repair {
                Repair::RestoreImage => return self.restore(path, report, until, elsewhere).map(Some),
                Repair::RemoveImage => Checkpoint::of_unfinished(&path).map_or(Ok(()), |image| image.discard()),
                Repair::ReleaseAll => {
                    gone::release(self.host, &self.store, &self.owner, self.action).map_err(Cause::from)
                }
                _ => {
                    report.left.push(repair.clone());
                    continue;
                }
            };
            match done {
                Ok(()) => {
                    log::info!("{}: {repair}: done", self.owner.vm);
                    if *repair == Repair::RemoveImage {
                        self.host.journal().vm(self.action, &self.owner.vm, "image-removed");
                    }
                    report.done.push(repair.clone());
                }
                Err(cause) => {
                    report.fail(repair.clone(), cause);
                    break;
                }
            }
        }
        Ok(Some(report))
    }

    /// Starts the domain, paused, from what a save had not yet finished, and then puts that domain right, which lets it run.
    fn restore(
        self,
        path: PathBuf,
        mut report: VmReport,
        until: Instant,
        elsewhere: Elsewhere,
    ) -> Result<VmReport, Cause> {
        let (host, action, owner) = (self.host, self.action, self.owner.clone());
        match self.start(&path) {
            Ok(mut vm) => {
                log::info!("{}: {}: done", owner.vm, Repair::RestoreImage);
                host.journal().vm(action, &owner.vm, "image-restored");
                report.done.push(Repair::RestoreImage);
                report.extend(repair(&mut vm, until, elsewhere, Scope::Everything)?);
            }
            Err(cause) => {
                report.left.push(Repair::RestoreImage);
                report.fail(Repair::RestoreImage, cause);
            }
        }
        Ok(report)
    }

    fn start(self, path: &Path) -> Result<Vm<'a>, Cause> {
        let hypervisor = self.host.hypervisor();
        let text = hypervisor
            .image_xml(path)
            .map_err(|source| Cause::Call { what: format!("read the domain in {}", path.display()), source })?;
        let of_image = |source| Cause::Xml { what: format!("the domain in {}", path.display()), source };
        let saved = LiveDomain::parse(&text).map_err(of_image)?;
        let mut wanted = vm::wanted(&saved)?.unwrap_or_default();
        wanted.operation = Some(OperationKind::Restore { checkpoint: path.to_owned() }.into());
        let xml =
            image_for(&text, path, Some(&wanted), self.host.settings().dummy_bridge.as_deref()).map_err(of_image)?;
        // A claim that names an image is nobody else's to free: it needs no holder.
        hypervisor.restore(path, &xml, true, self.host.copy_limit(saved.memory_kib)).map_err(|source| Cause::Call {
            what: format!("start {} from {}", self.owner.vm, path.display()),
            source,
        })?;
        let domain = self.host.find(&DeployId::Uuid(saved.uuid))?;
        Vm::locked(self.host, self.action, domain, self.store, self.lock, None)
    }
}

/// Whether another domain of the VM's name runs here: then nothing of the old one may come back.
pub(super) fn is_outlived(host: &Host, owner: &Owner) -> Result<bool, Cause> {
    let found = host.hypervisor().find(&DeployId::Name(owner.vm.clone()))?;
    Ok(found.is_some_and(|domain| domain.id.is_some() && owner.uuid.as_ref() != Some(&domain.uuid)))
}
