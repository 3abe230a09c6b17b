//! Many VMs at once on one host: no VF has two users, nothing is left behind, and no VM waits for the guest of another.
//!
//! KVM_SRIOV_LOAD sets the number of actions (default: 640). `./check long` makes 10 000.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fastrand::Rng;
use kvm_sriov::claims::ClaimError;
use kvm_sriov::{ActionError, Cause, DomainId, Host, MacAddress, PciAddress, VfState, actions};
use kvm_sriov_model::Guest;
use kvm_sriov_model::host::{ModelHost, ROOTS};
use kvm_sriov_tests::until;

/// How many VMs act at once, each as an OpenNebula action does: with a connection and locks of its own.
const VMS: usize = 64;

/// The VFs of each of the two roots.
const VFS: usize = 64;

/// The VFs that a VM wants at most. All VMs together want more than there are.
const MOST: usize = 4;

/// Limits that no action reaches, however slow this machine is.
const PATIENT: &str =
    "SRIOV_LOCK_TIMEOUT=3600\nSRIOV_CALL_TIMEOUT=3600\nSRIOV_UNPLUG_TIMEOUT=3600\nSHUTDOWN_TIMEOUT=3600\n";

fn number_of_actions() -> usize {
    env::var("KVM_SRIOV_LOAD").map_or(640, |number| number.parse().unwrap())
}

/// The VFs in use, as the actions saw them: each with its VM.
#[derive(Default)]
struct InUse(Mutex<BTreeMap<PciAddress, String>>);

impl InUse {
    /// An action returned with this VF in this VM.
    fn take(&self, vf: PciAddress, vm: &str) {
        if let Some(other) = self.0.lock().unwrap().insert(vf, vm.to_owned()) {
            panic!("{vf} of {vm} is in {other} too");
        }
    }

    /// An action that may give this VF back is about to begin.
    fn give(&self, vf: PciAddress, vm: &str) {
        assert_eq!(self.0.lock().unwrap().remove(&vf).as_deref(), Some(vm));
    }
}

/// A VM and what it does, one action after the other.
struct Actor<'w> {
    model: &'w ModelHost,
    in_use: &'w InUse,
    name: String,
    host: Host,
    random: Rng,
    /// Its VFs by the MACs of their NICs.
    vfs: BTreeMap<MacAddress, PciAddress>,
    macs: u8,
}

impl Actor<'_> {
    fn id(&self) -> DomainId {
        self.name.parse().unwrap()
    }

    fn act(&mut self) {
        match self.random.u8(..8) {
            0..4 if self.vfs.len() < MOST => self.plug(),
            0..6 => self.unplug(),
            6 => self.save_and_restore(),
            _ => self.reconcile(),
        }
    }

    fn plug(&mut self) {
        let root = self.random.choice(ROOTS).unwrap().parse().unwrap();
        self.macs = self.macs.wrapping_add(1);
        let number: u8 = self.name.trim_start_matches("vm-").parse().unwrap();
        let mac: MacAddress = format!("02:00:00:00:{number:02x}:{:02x}", self.macs).parse().unwrap();
        match self.host.plug(&self.id(), &root, mac) {
            Ok(plugged) => {
                self.in_use.take(plugged.vf, &self.name);
                assert_eq!(self.vfs.insert(mac, plugged.vf), None);
            }
            Err(error) => assert!(is_spent(&error), "{error}"),
        }
    }

    fn unplug(&mut self) {
        let macs: Vec<MacAddress> = self.vfs.keys().copied().collect();
        let Some(mac) = self.random.choice(macs) else { return };
        self.in_use.give(self.vfs.remove(&mac).unwrap(), &self.name);
        self.host.unplug(&self.id(), mac).unwrap();
    }

    /// A restore finds other VFs, as far as there are free ones.
    fn save_and_restore(&mut self) {
        let file = self.model.datastore().join(format!("{}.save", self.name));
        for vf in self.vfs.values() {
            self.in_use.give(*vf, &self.name);
        }
        self.host.save(&self.id(), &file).unwrap();
        loop {
            match self.host.restore(&file) {
                Ok(()) => break,
                // The others give VFs back: each of them saves and unplugs too.
                Err(error) => assert!(is_spent(&error), "{error}"),
            }
        }
        let live = self.model.domain(&self.name).unwrap();
        let wanted = live.wanted.clone().unwrap().unwrap_or_default();
        let found = wanted.nics.iter().map(|nic| (nic.mac, live.device_of(nic).unwrap().vf)).collect();
        let before: BTreeSet<MacAddress> = self.vfs.keys().copied().collect();
        self.vfs = found;
        assert_eq!(self.vfs.keys().copied().collect::<BTreeSet<_>>(), before);
        for vf in self.vfs.values() {
            self.in_use.take(*vf, &self.name);
        }
    }

    fn reconcile(&self) {
        let report = self.host.reconcile(&kvm_sriov::reconcile::Options::default()).unwrap();
        assert_eq!(report.problems.len(), 0, "{:?}", report.problems);
    }
}

/// Whether an action failed because no VF was free.
fn is_spent(error: &ActionError) -> bool {
    matches!(error.cause(), Cause::Claims(ClaimError::Exhausted { .. }) | Cause::TooFew { .. })
}

#[test]
fn vms_that_act_at_once_share_no_vf_and_leave_none_behind() {
    let (model, in_use, done) = (ModelHost::with_vfs(VFS), InUse::default(), AtomicUsize::new(0));
    model.set_kvmrc(PATIENT);
    let number = number_of_actions();
    thread::scope(|scope| {
        for vm in 0..VMS {
            let (model, in_use, done) = (&model, &in_use, &done);
            scope.spawn(move || {
                let name = format!("vm-{vm}");
                model.start_domain(&name).unwrap();
                let random = Rng::with_seed(u64::try_from(vm).unwrap());
                let mut actor =
                    Actor { model, in_use, name, host: model.host(), random, vfs: BTreeMap::new(), macs: 0 };
                while done.fetch_add(1, Ordering::Relaxed) < number {
                    actor.act();
                }
                for vf in actor.vfs.values() {
                    in_use.give(*vf, &actor.name);
                }
                actions::cancel(&actor.host, &actor.id(), None).unwrap();
            });
        }
    });
    assert!(in_use.0.lock().unwrap().is_empty());
    // An action that saw a VF in a domain, and comes to claim it when the domain has ended, leaves a stale claim.
    model.reconcile().unwrap();
    let vfs = model.host().vfs().unwrap();
    assert_eq!(vfs.len(), 2 * VFS);
    let used: Vec<_> = vfs.iter().filter(|vf| vf.state != VfState::Free).collect();
    assert!(used.is_empty(), "{used:?}");
    assert_eq!((model.claims().len(), model.model().open_watches()), (0, 0));
    assert_eq!(model.model().violations(), [""; 0]);
}

#[test]
fn no_vm_waits_for_the_guest_of_another() {
    let model = ModelHost::with_vfs(VFS);
    model.set_kvmrc(PATIENT);
    let mac = |vm: usize| -> MacAddress { format!("02:00:00:00:01:{vm:02x}").parse().unwrap() };
    let (slow, root) = ("slow".parse().unwrap(), ROOTS[0].parse().unwrap());
    model.model().set_guest("slow", Guest::Silent);
    model.start_domain("slow").unwrap();
    let plugged = model.host().plug(&slow, &root, mac(99)).unwrap();
    thread::scope(|scope| {
        let unplug = scope.spawn(|| model.host().unplug(&slow, mac(99)));
        let asked = model.faults().count("detach_alias");
        until("its guest is asked", || model.faults().count("detach_alias") > asked || unplug.is_finished());
        let others: Vec<_> = (0..16)
            .map(|vm| {
                let (model, root) = (&model, &root);
                scope.spawn(move || {
                    let (host, id) = (model.host(), format!("vm-{vm}").parse().unwrap());
                    model.start_domain(&format!("vm-{vm}")).unwrap();
                    for _ in 0..3 {
                        assert_ne!(host.plug(&id, root, mac(vm)).unwrap().vf, plugged.vf);
                        host.unplug(&id, mac(vm)).unwrap();
                    }
                    actions::cancel(&host, &id, None).unwrap();
                })
            })
            .collect();
        others.into_iter().for_each(|other| other.join().unwrap());
        model.host().reconcile(&kvm_sriov::reconcile::Options::default()).unwrap();
        assert!(!unplug.is_finished(), "the slow guest has not answered");
        model.model().end_domain("slow");
        drop(unplug.join().unwrap());
    });
    model.reconcile().unwrap();
    assert!(model.host().vfs().unwrap().iter().all(|vf| vf.state == VfState::Free));
}
