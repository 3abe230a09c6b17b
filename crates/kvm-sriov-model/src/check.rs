//! What must be true of model hosts. A check panics with the first fact that is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use kvm_sriov::claims::Process;
use kvm_sriov::libvirt::{DiskCalls, DomainCalls, JobCalls};
use kvm_sriov::xml::{LiveDomain, OperationKind, Wanted, dummy_alias_of};
use kvm_sriov::{NicMode, PciAddress, VfState};

use super::element::Element;
use super::host::ModelHost;

/// One or several hosts of one world, on which an action runs.
pub trait Stage {
    /// The hosts. Faults are injected on the first.
    fn hosts(&self) -> Vec<&ModelHost>;

    /// No VF is in two domains, the VF of a domain is claimed for it, no VM runs on two hosts. This must be true even
    /// when an action could not undo everything.
    fn check_safe(&self) {
        let hosts = self.hosts();
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for host in &hosts {
            assert_eq!(host.model().violations(), [""; 0]);
            let mut users: BTreeMap<PciAddress, String> = BTreeMap::new();
            let claimed = host.claimed();
            for live in host.domains() {
                for vf in live.vfs() {
                    let shared = users.insert(vf, live.name.to_string());
                    assert_eq!(shared, None, "{vf} is in two domains");
                    if live.wanted.as_ref().is_ok_and(Option::is_some) {
                        let claim = claimed.get(&vf).map(String::as_str);
                        assert_eq!(claim, Some(live.uuid.as_str()), "the claim of {vf}, which {} has", live.name);
                    }
                }
                places.entry(live.name.to_string()).or_default().push(host.model().name());
            }
        }
        for (name, places) in places {
            assert_eq!(places.len(), 1, "{name} is on {places:?}");
        }
    }

    /// As [`check_safe`](Self::check_safe). Besides, every domain has the VFs it wants, no other VF is claimed, and no
    /// operation is unfinished.
    fn check(&self) {
        self.check_safe();
        for host in self.hosts() {
            host.check_complete();
        }
    }

    /// The hosts' state as lines of text: domains, claims, files. An action that changed nothing leaves it as it was.
    fn portrait(&self) -> Vec<String> {
        self.hosts().iter().flat_map(|host| host.describe()).collect()
    }
}

impl Stage for ModelHost {
    fn hosts(&self) -> Vec<&ModelHost> {
        vec![self]
    }
}

impl Stage for [ModelHost; 2] {
    fn hosts(&self) -> Vec<&ModelHost> {
        self.iter().collect()
    }
}

impl ModelHost {
    /// The running domains.
    fn domains(&self) -> Vec<LiveDomain> {
        // The first call after a restart of libvirtd fails.
        let domains = self.model().domains().or_else(|_| self.model().domains()).unwrap_or_default();
        domains.iter().filter_map(|domain| self.domain(domain.name.as_str())).collect()
    }

    /// The UUID of the claimant of every VF that is claimed.
    fn claimed(&self) -> BTreeMap<PciAddress, String> {
        let Some(store) = self.host().existing_claims().unwrap() else { return BTreeMap::new() };
        let claimants = store.claimants().unwrap();
        let claims = claimants.iter().flat_map(|claimant| &claimant.claims);
        let uuid = |claim: &kvm_sriov::claims::Claim| claim.owner.uuid.as_ref().map(ToString::to_string);
        claims.map(|claim| (claim.vf, uuid(claim).unwrap_or_default())).collect()
    }

    fn check_complete(&self) {
        let mut used = BTreeSet::new();
        for live in self.domains() {
            used.extend(live.vfs());
            if let Some(wanted) = live.wanted.clone().unwrap() {
                check_domain(&live, &wanted);
                self.check_claims(&live, &wanted);
            }
        }
        let claimed: BTreeSet<PciAddress> = self.claimed().into_keys().collect();
        let leaked: Vec<_> = claimed.difference(&used).collect();
        assert!(leaked.is_empty(), "claims without a domain: {leaked:?}");
        if let Some(store) = self.host().existing_claims().unwrap() {
            for claimant in store.claimants().unwrap() {
                assert!(!claimant.held, "an action holds the claims of {}", claimant.owner.vm);
                assert_eq!(claimant.image, None, "the image of {}", claimant.owner.vm);
            }
        }
        // The action has ended, but its process goes on: the claim would count as stale.
        let this = Process::this();
        let holder = format!("\nholder={} {}\n", this.pid(), this.started());
        let held: Vec<_> = self.claims().into_iter().filter(|(_, text)| text.contains(&holder)).collect();
        assert!(held.is_empty(), "claims that name a process: {held:?}");
        let odd: Vec<_> = self.claims().into_keys().filter(|name| name.contains(".new-")).collect();
        assert!(odd.is_empty(), "unfinished claims: {odd:?}");
        assert_eq!(self.model().open_watches(), 0, "watches that are still open");
        // The library's own view.
        for vf in self.host().vfs().unwrap() {
            let is_settled = matches!(
                vf.state,
                VfState::Free
                    | VfState::Used { .. }
                    | VfState::Unclaimed { .. }
                    | VfState::Missing { vm: None }
                    | VfState::NotVf { vm: None }
            );
            assert!(is_settled, "{} of {}: {}", vf.address, vf.root, vf.state);
        }
    }

    /// The claim of each VF names the NIC that uses it.
    fn check_claims(&self, live: &LiveDomain, wanted: &Wanted) {
        let store = self.host().existing_claims().unwrap().unwrap();
        let claimants = store.claimants().unwrap();
        for nic in &wanted.nics {
            let device = live.device_of(nic).unwrap();
            let claim =
                claimants.iter().flat_map(|claimant| &claimant.claims).find(|claim| claim.vf == device.vf).unwrap();
            assert!(claim.is_for(&nic.key()), "{}: {claim:?} is not for {nic:?}", live.name);
        }
    }

    fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for domain in self.model().domains().or_else(|_| self.model().domains()).unwrap_or_default() {
            let mut line = format!("{}: {} ", self.model().name(), domain.name);
            let (state, job) = (self.model().state(&domain).unwrap(), self.model().job(&domain).unwrap());
            write!(line, "{state:?} {job:?}").unwrap();
            lines.push(line);
            // None: the domain has just ended.
            let Some(live) = self.model().live_xml(&domain).unwrap() else { continue };
            let live = Element::parse(&live).unwrap();
            for name in ["metadata", "vcpu", "memory", "currentMemory"] {
                lines.extend(live.child(name).map(ToString::to_string));
            }
            for disk in LiveDomain::parse(&live.to_string()).unwrap().disks {
                let capacity = self.model().disk_capacity(&domain, &disk.target).unwrap();
                lines.push(format!("{}: {capacity} bytes", disk.target));
            }
            let devices = live.child("devices").unwrap();
            // The order of the elements in a device has no meaning.
            let sorted = |device: &Element| {
                let text = device.to_string();
                let mut lines: Vec<&str> = text.lines().collect();
                lines.sort_unstable();
                lines.join("\n")
            };
            let mut devices: Vec<String> = devices.children().map(sorted).collect();
            devices.sort();
            lines.extend(devices);
        }
        lines.extend(self.claims().into_iter().map(|(name, text)| format!("{name}: {text}")));
        let files = self.vm_files().into_iter();
        lines.extend(files.map(|(path, bytes)| format!("{}: {}", path.display(), String::from_utf8_lossy(&bytes))));
        lines
    }
}

/// A domain has each wanted VF at its guest address, in order, with its dummy or with its MAC and VLAN, and no operation
/// is open.
fn check_domain(live: &LiveDomain, wanted: &Wanted) {
    let name = &live.name;
    // A pending unplug is a note that the guest may still release a VF. Nothing is to be repaired.
    let is_open = |kind: &OperationKind| !matches!(kind, OperationKind::PendingUnplug { .. });
    let open = wanted.operation.as_ref().map(|operation| &operation.kind).filter(|kind| is_open(kind));
    assert_eq!(open, None, "{name} has an open operation");
    let mut guests = Vec::new();
    for nic in &wanted.nics {
        let device = live.device_of(nic).unwrap_or_else(|| panic!("{name} has no VF for {}", nic.mac));
        assert!(nic.guest.is_none() || nic.guest == device.guest, "{name}: {device:?} is not at {:?}", nic.guest);
        guests.push((nic.position, device.guest.unwrap()));
        let dummy = dummy_alias_of(nic.position);
        let has_dummy = live.interfaces.iter().any(|interface| interface.alias.as_deref() == Some(&*dummy));
        assert_eq!(has_dummy, nic.has_dummy(), "{name}: the dummy of {}", nic.mac);
        if nic.mode == NicMode::Ethernet {
            assert_eq!((device.mac, device.vlan), (Some(nic.mac), nic.port_vlan()), "{name}: {device:?}");
        }
    }
    guests.sort_unstable();
    assert!(guests.is_sorted_by_key(|(_, guest)| *guest), "{name}: its VFs are out of order: {guests:?}");
    let ours = live.hostdevs.iter().filter(|device| device.is_ours()).count();
    assert_eq!(ours, wanted.nics.len(), "{name} has VFs that it does not want");
}
