//! `snapshot_revert`: returns a VM's memory and disks to a snapshot.

use super::shared::undo::{lacks_vfs, undo_failed};
use crate::base::{Action, DomainId, NicKey, NicMode, RootName, SnapshotName};
use crate::config::{VfMap, mode_of};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::libvirt::{DomainRef, LibvirtErrorKind};
use crate::reconcile;
use crate::vm::block_job;
use crate::vm::dir::VmDir;
use crate::vm::gone;
use crate::vm::{self, Dummy, Found, Vm};
use crate::xml::{LiveDomain, LiveInterface, OperationKind, VmData, VmNic, Wanted, WantedNic, wanted_in_snapshot};

const ACTION: Action = Action::SnapshotRevert;

/// Returns a running VM to a snapshot, and gives it the VFs that it should have now.
///
/// VFs are unplugged first. The snapshot's metadata tell which NICs the VM had then, not which it should have now. So
/// the VM gets a VF and a dummy for each SR-IOV NIC in OpenNebula's description, at its old guest address if that is
/// free, and loses all other dummies.
///
/// * `data` - OpenNebula's description of the VM; without it (before 5.10) the VM keeps the SR-IOV NICs that it has
///
/// # Errors
/// The VM was not reverted and runs on with its VFs, or the error's state says what is left. If libvirt ended the
/// domain, its VFs are free.
///
/// # Source
/// OpenNebula's stock `snapshot_revert`: `virDomainRevertToSnapshot` with the flag FORCE.
pub fn snapshot_revert(
    host: &Host,
    id: &DomainId,
    name: &SnapshotName,
    data: Option<&VmData>,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // Repairs come afterwards: a VF that they plugged in now would have to be unplugged again.
    let found = Vm::open_as_is(host, ACTION, id, data).map_err(untouched)?;
    let domain = found.domain().clone();
    let old = wanted_then(host, &domain, found.live(), name).map_err(untouched)?;
    match found {
        Found::WithVfs(vm) => Revert { vm: *vm, name, data, maps: Vec::new(), old, has_changed: false }.run(),
        // The VM had VFs when the snapshot was taken, or gets its first one now.
        Found::Plain(domain, _) if old.is_some() || data.is_some_and(|data| data.sriov_nics().next().is_some()) => {
            let vm = reconcile::lock(host, ACTION, domain, data).map_err(untouched)?;
            Revert { vm, name, data, maps: Vec::new(), old, has_changed: false }.run()
        }
        Found::Plain(domain, _) => revert(host, &domain, name).map_err(|cause| failed_plain(host, &domain, cause)),
    }
}

/// The metadata in the snapshot: the NICs that the VM should have had when the snapshot was taken.
fn wanted_then(
    host: &Host,
    domain: &DomainRef,
    live: &LiveDomain,
    name: &SnapshotName,
) -> Result<Option<Wanted>, Cause> {
    let hypervisor = host.hypervisor();
    let recalled = || VmDir::of_domain(live).is_some_and(|dir| dir.recall_snapshot(hypervisor, domain, name));
    let text = match hypervisor.snapshot_xml(domain, name.as_str()) {
        Err(error) if error.kind() == LibvirtErrorKind::NoSnapshot && recalled() => {
            hypervisor.snapshot_xml(domain, name.as_str())
        }
        read => read,
    };
    let text = text.map_err(|source| call(domain, name, source))?;
    wanted_in_snapshot(&text)
        .map_err(|source| Cause::Xml { what: format!("snapshot {name} of {}", domain.name), source })
}

fn call(domain: &DomainRef, name: &SnapshotName, source: crate::libvirt::LibvirtError) -> Cause {
    Cause::Call { what: format!("revert to snapshot {name} for domain {}", domain.name), source }
}

fn revert(host: &Host, domain: &DomainRef, name: &SnapshotName) -> Result<(), Cause> {
    block_job::wait_out(&domain.name, || host.hypervisor().revert_snapshot(domain, name.as_str()))
        .map_err(|source| call(domain, name, source))
}

fn failed_plain(host: &Host, domain: &DomainRef, cause: Cause) -> ActionError {
    let state = match host.patiently(|| gone::is_gone(host, domain)) {
        Ok(true) => HostState::Left("the domain is gone".into()),
        Ok(false) if !cause.leaves_doubt() => HostState::RunsOn,
        Ok(false) | Err(_) => HostState::InDoubt(in_doubt(domain)),
    };
    ActionError::new(ACTION, cause, state)
}

fn in_doubt(domain: &DomainRef) -> String {
    format!("whether {} was reverted is not known", domain.name)
}

/// A VM with VFs that is being reverted.
struct Revert<'a, 'd> {
    vm: Vm<'a>,
    name: &'d SnapshotName,
    data: Option<&'d VmData>,
    /// The maps of the roots of new NICs.
    maps: Vec<VfMap>,
    /// The metadata in the snapshot.
    old: Option<Wanted>,
    /// Whether the domain's metadata were different after the call: then the revert has taken effect.
    has_changed: bool,
}

impl Revert<'_, '_> {
    fn run(mut self) -> Result<(), ActionError> {
        self.check().map_err(|cause| ActionError::untouched(ACTION, cause))?;
        let devices = self.vm.plugged();
        let held = self.vm.store.hold(&self.vm.lock, &self.vm.owner(), None).map_err(Cause::from);
        if let Err(cause) = held.and_then(|_| self.vm.unplug(&devices)) {
            return Err(self.not_unplugged(cause));
        }
        if let Err(cause) = revert(self.vm.host, &self.vm.domain, self.name) {
            return Err(self.not_reverted(cause));
        }
        let arranged = self.arrange().and_then(|()| {
            let nics = self.vm.wanted.nics.clone();
            self.vm.finish_plugged(&nics)
        });
        arranged.map_err(|cause| {
            let text = format!(
                "{0} is reverted but may lack VFs or have NICs of the snapshot; kvm-sriov reconcile, or its next action, repairs \
                 it",
                self.vm.domain.name
            );
            ActionError::new(ACTION, cause, HostState::InDoubt(text))
        })
    }

    /// Checks that the guest can answer, and that everything besides free VFs is there.
    fn check(&mut self) -> Result<(), Cause> {
        let (host, vm) = (self.vm.host, &mut self.vm);
        match vm.wanted.operation.as_ref().map(|operation| &operation.kind) {
            None | Some(OperationKind::PendingUnplug { .. }) => {}
            Some(_) => reconcile::repair_to_unplug(vm)?,
        }
        if !vm.plugged().is_empty() {
            vm::check_answers(host, &vm.domain)?;
        }
        let nics = &self.vm.wanted.nics;
        let is_new =
            |nic: &VmNic, root: &RootName| !nics.iter().any(|known| known.is_described_by(nic) && known.root == *root);
        // Only a new NIC needs its map. A NIC that has a VF gets that VF back, and a NIC that lacks one stays without.
        let new = || self.described().filter(|(nic, root)| is_new(nic, root));
        let roots: Vec<RootName> = new().map(|(_, root)| root).collect();
        let maps = host.maps_of(roots.iter())?;
        let mut needs_dummies = nics.iter().any(WantedNic::has_dummy);
        for (nic, root) in new() {
            let mode = mode_of(&maps, &root).unwrap_or_default();
            vm::check_mode(nic, mode)?;
            needs_dummies |= mode == NicMode::Hostdev;
        }
        if needs_dummies {
            host.dummy_bridge()?;
        }
        self.maps = maps;
        Ok(())
    }

    /// The SR-IOV NICs in OpenNebula's description. NICs that are plain interfaces on a bridge `sriov_<root>` are left
    /// out.
    fn described(&self) -> impl Iterator<Item = (&VmNic, RootName)> {
        let is_it =
            |interface: &LiveInterface, nic: &VmNic| interface.belongs_to(nic) || interface.is_on_bridge_of(nic);
        let is_interface = move |nic: &VmNic| self.vm.live.interfaces.iter().any(|interface| is_it(interface, nic));
        self.data.into_iter().flat_map(VmData::sriov_nics).filter(move |(nic, _)| !is_interface(nic))
    }

    /// Gives the reverted domain what it should have now.
    fn arrange(&mut self) -> Result<(), Cause> {
        let (host, vm) = (self.vm.host, &mut self.vm);
        vm.live = host.patiently(|| vm::read(host, &vm.domain))?;
        self.has_changed = vm::wanted(&vm.live)?.unwrap_or_default() != vm.wanted;
        let nics = self.nics();
        let vm = &mut self.vm;
        vm.wanted = Wanted { nics, operation: None, ..std::mem::take(&mut vm.wanted) };
        // A NIC whose guest address another device has in the reverted domain gets another address.
        let mut nics = vm.wanted.nics.clone();
        vm.keep_off_others(&mut nics);
        vm.wanted.nics = nics;
        self.describe_dummies()?;
        // From here on reconciliation can finish the work.
        self.vm.ensure_written()?;
        self.vm.unplug_wrong_dummies()?;
        // A VF that the VM lacked before the revert is no reason to fail.
        let excused: Vec<NicKey> = self.vm.lacking().to_vec();
        reconcile::repair(&mut self.vm)?.only(&excused)
    }

    /// The NICs that the VM should have now. Each is taken from the VM's metadata, from the snapshot's metadata, or is
    /// new.
    fn nics(&self) -> Vec<WantedNic> {
        if self.data.is_none() {
            return self.vm.wanted.nics.clone();
        }
        let mut nics: Vec<WantedNic> = Vec::new();
        let mut new = Vec::new();
        for (nic, root) in self.described() {
            // Two NICs may have one MAC and unknown NIC_IDs. Each position is used once.
            let is_taken = |known: &WantedNic| nics.iter().any(|taken| taken.position == known.position);
            let is_it = |known: &&WantedNic| known.is_described_by(nic) && known.root == root && !is_taken(known);
            let now = self.vm.wanted.nics.iter().find(is_it);
            let then = || {
                let then = self.old.iter().flat_map(|old| &old.nics).find(is_it)?;
                let is_free = self.vm.wanted.nics.iter().all(|known| known.position != then.position);
                is_free.then_some(then)
            };
            match now.or_else(then) {
                Some(known) => nics.push(known.clone()),
                None => new.push((nic, root)),
            }
        }
        for (nic, root) in new {
            let Some(place) = self.vm.live.free.place(&nics, &[]) else {
                log::warn!("NIC {} gets no VF: {} has 16 already", nic.mac, self.vm.domain.name);
                continue;
            };
            let mode = mode_of(&self.maps, &root).unwrap_or_default();
            nics.push(WantedNic::described(nic, root, mode, &place));
        }
        WantedNic::in_order(nics)
    }

    /// Records OpenNebula's description of each dummy that is missing, or that belongs to another NIC.
    fn describe_dummies(&mut self) -> Result<(), Cause> {
        let Some(data) = self.data else { return Ok(()) };
        let (host, vm) = (self.vm.host, &mut self.vm);
        let mut nics = vm.wanted.nics.clone();
        for nic in nics.iter_mut().filter(|nic| nic.has_dummy()) {
            let mac = host.dummy_mac(nic.mac, nic.position)?;
            let has_its_own = vm.dummy_of(nic).is_some_and(|dummy| dummy.mac == mac || !dummy.is_ours());
            if let (false, Some(described)) =
                (has_its_own, data.nics().iter().find(|described| nic.is_described_by(described)))
            {
                nic.dummy = Some(Dummy::of(host, described, nic.position, data.vcpus())?.xml);
            }
        }
        vm.wanted.nics = nics;
        Ok(())
    }

    /// The guest did not release all VFs. Plugs back those that left.
    fn not_unplugged(mut self, cause: Cause) -> ActionError {
        if let Some((state, undo)) = self.if_gone() {
            return ActionError::new(ACTION, with_undo(cause, undo), state);
        }
        match self.vm.plug_back(&cause) {
            Ok(()) => match vm::pending_text(&cause) {
                Some(pending) => {
                    ActionError::new(ACTION, cause, HostState::Left(format!("nothing was reverted; {pending}")))
                }
                None => ActionError::untouched(ACTION, cause),
            },
            Err(undo) => undo_failed(ACTION, cause, undo, lacks_vfs(&self.vm.domain.name)),
        }
    }

    /// The call that reverts the domain failed. The domain may be reverted nevertheless. The VM should have the same
    /// NICs in both cases.
    fn not_reverted(mut self, cause: Cause) -> ActionError {
        if let Some((state, undo)) = self.if_gone() {
            return ActionError::new(ACTION, with_undo(cause, undo), state);
        }
        let noted = self.vm.noted_before();
        match self.arrange().and_then(|()| self.vm.finish_as(noted)) {
            Ok(()) if self.has_changed => {
                let text = format!("{} is reverted nevertheless, and has its VFs", self.vm.domain.name);
                ActionError::new(ACTION, cause, HostState::Left(text))
            }
            Ok(()) if cause.leaves_doubt() => {
                ActionError::new(ACTION, cause, HostState::InDoubt(in_doubt(&self.vm.domain)))
            }
            Ok(()) => ActionError::new(ACTION, cause, HostState::RunsOn),
            Err(undo) => undo_failed(ACTION, cause, undo, lacks_vfs(&self.vm.domain.name)),
        }
    }

    /// The state when the domain is gone, with the error of releasing its claims; `None` when the domain is still
    /// there.
    fn if_gone(&self) -> Option<(HostState, Option<Cause>)> {
        let (host, domain) = (self.vm.host, &self.vm.domain);
        match host.patiently(|| gone::is_gone(host, domain)) {
            Ok(false) => None,
            Ok(true) => {
                let freed = gone::release(host, &self.vm.store, &self.vm.owner(), ACTION);
                let left = format!("{} is gone, its VFs are free", domain.name);
                Some((HostState::Left(left), freed.err().map(Cause::from)))
            }
            Err(undo) => Some((HostState::InDoubt(in_doubt(domain)), Some(undo))),
        }
    }
}

fn with_undo(cause: Cause, undo: Option<Cause>) -> Cause {
    match undo {
        Some(undo) => cause.and_undo(undo),
        None => cause,
    }
}
