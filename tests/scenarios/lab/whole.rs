//! What must be true of a host after everything that goes wrong: no VF is lost, and none is shared.

use std::collections::BTreeMap;

use kvm_sriov_tests::rig_host::{RigHost, SOON};
use kvm_sriov_tests::vm::Vm;

use super::suspend::reconciled;
use super::{STATE, children, is_at_rest, plugged};

/// What a host says about its VFs.
pub(super) struct Facts {
    /// The live XML of each domain, by name.
    domains: BTreeMap<String, String>,
    /// The domains whose CPUs do not run.
    paused: Vec<String>,
    /// The claims: `<root>/<index>`, and the VM of each.
    claims: BTreeMap<String, String>,
    /// The VFs of the maps: address to `<root>/<index>`.
    places: BTreeMap<String, String>,
    /// The checkpoints in the datastores, under every name that a save or a restore gives them.
    images: Vec<String>,
}

impl Facts {
    /// Asks the host, by one command: libvirt first, then the claims.
    pub(super) fn of(host: RigHost) -> Self {
        let said = host.root(&format!(
            "for d in $(virsh -q list --name); do xml=$(virsh -q dumpxml $d 2>&-) && echo \"$xml\" && echo END; done; echo PART; \
             virsh -q list --state-paused --name; echo PART; \
             (cd {STATE} 2>&- && grep -Hs ^vm= pf*/[0-9]*); echo PART; \
             cd /etc/kvm-sriov/vf_maps && awk '{{print FILENAME \"/\" FNR - 1, $1, $2, $3}}' *; echo PART; \
             ls /var/lib/one/datastores/*/*/checkpoint* 2>&- || true"
        ));
        let said = said.ok();
        let parts: Vec<&str> = said.split("PART\n").collect();
        let [domains, paused, claims, maps, images] = parts[..] else { panic!("{said}") };
        let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        let claim = |line: &str| line.split_once(":vm=").map(|(claim, vm)| (claim.to_owned(), vm.to_owned()));
        let place = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let byte: Vec<u8> = words[1..].iter().map(|b| u8::from_str_radix(&b[2..], 16).unwrap()).collect();
            (format!("{:02x}:{:02x}.{:x}", byte[0], byte[1], byte[2]), words[0].to_owned())
        };
        Self {
            domains: domains.split("END\n").filter(|xml| !xml.is_empty()).map(|xml| (name(xml), xml.into())).collect(),
            paused: lines(paused),
            claims: claims.lines().filter_map(claim).collect(),
            places: maps.lines().map(place).collect(),
            images: lines(images),
        }
    }

    /// The live XML of a VM.
    pub(super) fn live(&self, vm: &Vm) -> Option<&str> {
        self.domains.get(&vm.name()).map(String::as_str)
    }

    /// Whether the datastores have an image of a VM.
    pub(super) fn has_image(&self, vm: &Vm) -> bool {
        self.images.iter().any(|path| path.contains(&format!("/{}/", vm.id)))
    }

    /// What is wrong: a VF of two domains, a VF without its claim, a claim without its VF, a NIC without a VF, an
    /// operation that is open, or a VM that is paused.
    pub(super) fn wrong(&self) -> Option<String> {
        let mut claims = self.claims.clone();
        for (name, live) in &self.domains {
            let vfs = plugged(live);
            let wanted = live.matches("<sriov:nic ").count();
            if vfs.len() != wanted {
                return Some(format!("{name} has {} of {wanted} VFs", vfs.len()));
            }
            if !is_at_rest(live) {
                return Some(format!("{name} has an open operation"));
            }
            for vf in vfs {
                let Some(place) = self.places.get(&vf.host) else { return Some(format!("{} is in no map", vf.host)) };
                // A VF of a second domain finds its claim gone.
                match claims.remove(place) {
                    Some(vm) if vm == *name => {}
                    other => return Some(format!("{name} has {place}, which is claimed by {other:?}")),
                }
            }
        }
        if !claims.is_empty() {
            return Some(format!("claims without a VF: {claims:?}"));
        }
        (!self.paused.is_empty()).then(|| format!("paused: {:?}", self.paused))
    }
}

/// The name of a domain.
fn name(live: &str) -> String {
    let document = roxmltree::Document::parse(live.trim()).unwrap();
    children(document.root_element(), "name").next().unwrap().text().unwrap().to_owned()
}

/// Waits until no VF of this host is lost or shared and every VM has what it wants. Watchers may be at work.
#[track_caller]
pub(super) fn is_whole(host: RigHost, after: &str) -> Facts {
    let mut facts = Facts::of(host);
    host.wait_or(SOON, |host| {
        let is_so = facts.wrong().is_none();
        if !is_so {
            facts = Facts::of(host);
        }
        is_so
    });
    if let Some(wrong) = facts.wrong() {
        panic!("{} is not whole: {wrong}; {after}", host.name());
    }
    facts
}

/// Reconciles this host once. Then no VF may be lost or shared.
#[track_caller]
pub(super) fn is_whole_after_one_reconcile(host: RigHost, after: &str) -> Facts {
    let said = reconciled(host);
    assert_eq!(said.code, 0, "{after}: {said:?}");
    is_whole(host, after)
}
