//! The repairs of a VM with a domain on this host.

use std::time::Instant;

use super::decide::{Repair, decide};
use super::facts::{Elsewhere, Facts};
use super::report::VmReport;
use crate::base::{PciAddress, Position};
use crate::claims::{Claim, Claimant};
use crate::error::Cause;
use crate::os;
use crate::vm::checkpoint::Checkpoint;
use crate::vm::dir::VmDir;
use crate::vm::gone;
use crate::vm::{self, NicDevice, NicDeviceKind, Vm, unplug};
use crate::xml::{OperationKind, WantedNic, alias_of, dummy_alias_of};

/// How many rounds of repairs are done at most. The facts are collected again after each round. An aborted save, or a
/// domain that was started from its image, needs one round more than others.
const ROUNDS: usize = 4;

/// What is known of a locked VM. Asks libvirt for its run state and job only if there is something to repair.
fn facts_of(vm: &Vm<'_>, elsewhere: Elsewhere) -> Result<Facts, Cause> {
    let facts = Facts::of_domain(&vm.domain, &vm.live, &vm.wanted, &vm.store.claimants()?, elsewhere);
    if decide(&facts).is_empty() { Ok(facts) } else { facts.ask(vm.host, &vm.domain) }
}

/// Which repairs are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All repairs.
    Everything,
    /// All repairs except plugging VFs.
    AllButPlugging,
}

impl Scope {
    fn has(self, repair: &Repair) -> bool {
        self == Self::Everything || !matches!(repair, Repair::Plug(_))
    }
}

/// Repairs a locked VM, until no repair is left, or a repair fails that the others need.
///
/// # Errors
/// The VM can no longer be read. Earlier repairs stay done.
pub(super) fn repair(vm: &mut Vm<'_>, until: Instant, elsewhere: Elsewhere, scope: Scope) -> Result<VmReport, Cause> {
    let mut facts = facts_of(vm, elsewhere)?;
    let mut report = VmReport::new(vm.owner(), facts.clone());
    for _ in 0..ROUNDS {
        let mut repairs = decide(&facts);
        repairs.retain(|repair| scope.has(repair));
        if repairs.iter().all(Repair::is_note) || os::now() >= until {
            break;
        }
        let is_stuck = Round { vm, until, report: &mut report, one_by_one: false }.apply(&repairs);
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

/// One round of repairs.
struct Round<'w, 'a> {
    vm: &'w mut Vm<'a>,
    until: Instant,
    report: &'w mut VmReport,
    /// Whether plugging all VFs at once was tried, so that each is now plugged by itself.
    one_by_one: bool,
}

impl Round<'_, '_> {
    /// Does these repairs. Returns whether one of them failed or had no time.
    fn apply(&mut self, repairs: &[Repair]) -> bool {
        let before = self.report.failures.len();
        let unplugs = |repair: &&Repair| matches!(repair, Repair::Unplug(_) | Repair::UnplugDummy(_));
        let unplugging: Vec<Repair> = repairs.iter().filter(unplugs).cloned().collect();
        self.unplug(&unplugging);
        for repair in repairs.iter().filter(|repair| !unplugs(repair) && !repair.is_note()) {
            let is_over = os::now() >= self.until;
            let done = if self.vm.lock.cancelled() {
                Err(Cause::Cancelled { name: self.vm.domain.name.clone() })
            } else if is_over {
                return true;
            } else {
                self.one(repair)
            };
            let goes_on = done.is_ok() || repair.concerns_one_nic();
            self.report.record(repair, done);
            if !goes_on {
                break;
            }
        }
        self.report.failures.len() > before
    }

    fn one(&mut self, repair: &Repair) -> Result<(), Cause> {
        let host = self.vm.host;
        match repair {
            // `unplug` has done all unplugs at once.
            Repair::Unplug(_) | Repair::UnplugDummy(_) => Ok(()),
            Repair::Leave(_) | Repair::InDoubt(_) => Ok(()),
            // Only a VM without a domain needs this.
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
            Repair::Spend => {
                self.checkpoint().map_or(Ok(()), |checkpoint| checkpoint.spend())?;
                self.journal("spent");
                Ok(())
            }
            Repair::Resume => {
                vm::resume(host, &self.vm.domain)?;
                self.journal("resumed");
                Ok(())
            }
            Repair::KeepPending(positions) => {
                self.vm.set_operation(Some(OperationKind::PendingUnplug { positions: positions.clone() }))?;
                // The domain backs the claims of the VFs that were plugged back, so they need no holder.
                self.vm.store.settle(&self.vm.owner())?;
                self.journal("still-pending");
                Ok(())
            }
            Repair::Close => self.close(&[]),
            Repair::NotePending(positions) => self.close(positions),
            Repair::RemoveUsed => self.checkpoint().map_or(Ok(()), |checkpoint| checkpoint.remove_used()),
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

    /// The checkpoint of the open restore.
    fn checkpoint(&self) -> Option<Checkpoint> {
        match &self.vm.wanted.operation.as_ref()?.kind {
            OperationKind::Restore { checkpoint } => Some(Checkpoint::at(checkpoint)),
            _ => None,
        }
    }

    /// Closes the open operation.
    ///
    /// * `pending` - the positions whose VFs the guest may still release
    fn close(&mut self, pending: &[Position]) -> Result<(), Cause> {
        let open = self.vm.wanted.operation.as_ref().map(|operation| operation.kind.clone());
        if let (Some(OperationKind::Migrate { .. }), Some(dir)) = (&open, VmDir::of_domain(&self.vm.live)) {
            // A migration removes the snapshots from libvirt on the source, and libvirt on the destination does not
            // know them.
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

    /// Asks the guest to release all unwanted devices at once.
    fn unplug(&mut self, repairs: &[Repair]) {
        let leaving: Vec<(&Repair, NicDevice)> =
            repairs.iter().filter_map(|repair| Some((repair, self.device(repair)?))).collect();
        let Some((first, _)) = leaving.first() else { return };
        // If the guest does not answer, time must be left for the repairs that don't need it.
        let half = self.until.saturating_duration_since(os::now()) / 2;
        let timeout = self.vm.host.settings().unplug_timeout.min(half);
        let aliases: Vec<String> = leaving.iter().map(|(_, device)| device.alias.clone()).collect();
        match unplug(self.vm.host.hypervisor(), &self.vm.domain, &aliases, timeout) {
            Ok(outcomes) => {
                for ((repair, device), outcome) in leaving.iter().zip(outcomes) {
                    let stayed = self.vm.not_released(std::slice::from_ref(device), &[outcome]);
                    let done = stayed.map_or_else(|| device.vf().map_or(Ok(()), |vf| self.release(vf)), Err);
                    self.report.record(repair, done);
                }
            }
            Err(source) => {
                let what = format!("the live XML of {}", self.vm.domain.name);
                self.report.record(first, Err(Cause::Xml { what, source }));
            }
        }
        // Plugging needs to know which devices have left.
        if let Err(cause) = self.vm.reread() {
            log::debug!("{cause}");
        }
    }

    /// The device that this repair unplugs.
    fn device(&self, repair: &Repair) -> Option<NicDevice> {
        let live = &self.vm.live;
        match repair {
            Repair::Unplug(position) => {
                let kind = NicDeviceKind::Vf(live.device_at(*position)?.vf);
                Some(NicDevice { kind, position: *position, alias: alias_of(*position) })
            }
            Repair::UnplugDummy(position) => {
                let kind = NicDeviceKind::Dummy(live.dummy_at(*position)?.mac);
                Some(NicDevice { kind, position: *position, alias: dummy_alias_of(*position) })
            }
            _ => None,
        }
    }

    /// Releases the VM's claim of this VF.
    fn release(&self, vf: PciAddress) -> Result<(), Cause> {
        self.vm.free(|claim| claim.vf == vf)
    }

    /// Makes the claims agree with the VF that the NIC at this position has.
    fn claim(&self, position: Position) -> Result<(), Cause> {
        let (vm, nic) = (&self.vm, self.nic(position)?);
        let device =
            vm.live.device_of(&nic).ok_or_else(|| self.not_as_asked(format!("position {position} is empty")))?;
        let maps = vm.host.maps_of(std::iter::once(&nic.root))?;
        if maps.iter().all(|map| map.index_of(device.vf).is_none()) {
            return Err(Cause::Unmapped { vm: vm.domain.name.clone(), vf: device.vf, root: nic.root.clone() });
        }
        // After a map was reordered, its claim files are renamed first: the new claim must not overwrite one of them.
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

    /// Plugs the VF of a NIC. The first call plugs those of all other NICs with it, and reads the live XML once for
    /// all. If that fails, each VF is plugged by itself, so that a failure of one does not stop the others.
    fn plug(&mut self, position: Position) -> Result<(), Cause> {
        let nic = self.nic(position)?;
        if self.vm.live.device_of(&nic).is_some() {
            return Ok(());
        }
        let missing = self.vm.missing();
        if missing.len() > 1 && !std::mem::replace(&mut self.one_by_one, true) {
            match self.plug_all(&missing) {
                Ok(()) => return Ok(()),
                Err(cause) => log::debug!("{cause}; each VF of {} is plugged by itself", self.vm.domain.name),
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
        // The domain backs the claims now, so they need no holder. While an operation is open they keep it.
        if self.vm.wanted.operation.is_none() {
            match self.vm.host.maps_of(nics.iter().map(|nic| &nic.root)) {
                Ok(maps) => self.vm.store.commit(&claims, &maps)?,
                // The VM had these claims before: they can be settled without the map.
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
