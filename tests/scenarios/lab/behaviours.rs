//! Runs the list of behaviours, which the model follows, against real libvirtds and QEMUs.

use std::path::PathBuf;
use std::time::Duration;

use kvm_sriov::PciAddress;
use kvm_sriov::libvirt::{DomainRef, Hypervisor, Libvirt, PowerCalls};
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::behaviours::{self, Rig};
use kvm_sriov_tests::rig_host::{ForwardedLibvirt, RigHost, SOON};
use kvm_sriov_tests::vm::Vm;

use super::moves::second_host;
use super::suspend::shows;
use super::{GUEST_BOOT, map};

/// The limit of one call to a libvirtd of the lab.
const CALL: Duration = Duration::from_secs(120);

/// A lab host, alone or with another one.
struct LabRig {
    // This connection is dropped before the forwarding below it: fields drop in this order.
    libvirt: Libvirt,
    way: ForwardedLibvirt,
    host: RigHost,
    other: Option<Box<LabRig>>,
}

impl LabRig {
    fn new(host: RigHost, other: Option<LabRig>) -> Self {
        let way = host.forward_libvirt();
        let libvirt = Libvirt::open(&way.uri(), CALL).unwrap();
        Self { libvirt, way, host, other: other.map(Box::new) }
    }
}

impl Rig for LabRig {
    fn libvirt(&self) -> &dyn Hypervisor {
        &self.libvirt
    }

    fn start(&self, vm: &Vm) -> DomainRef {
        let domain = self.libvirt.create(&vm.deployment(), CALL_LIMIT).unwrap();
        if vm.has_guest() {
            shows(self.host, vm, 1, GUEST_BOOT);
        }
        domain
    }

    fn vfs(&self) -> [PciAddress; 3] {
        let all: Vec<PciAddress> = map(self.host, "pf0").iter().map(|vf| vf.parse().unwrap()).collect();
        all[..3].try_into().unwrap()
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = format!("{}/{name}", Vm::new(61).dir());
        self.host.root(&format!("install -D -o oneadmin -g oneadmin -m 666 /dev/null {path}")).ok();
        self.host.write_bytes(&path, content);
        path.into()
    }

    fn patience(&self) -> Duration {
        SOON
    }

    fn pause(&self, domain: &DomainRef) {
        self.host.oneadmin(&format!("virsh -q -c qemu:///system suspend {}", domain.name)).ok();
    }

    fn restart_daemon(&self) {
        self.host.restart_libvirtd();
    }

    fn other(&self) -> Option<(&dyn Rig, String)> {
        let other = self.other.as_deref()?;
        Some((other, other.way.uri()))
    }
}

pub(super) fn a_host_behaves_as_the_model_does(host: RigHost) {
    behaviours::run(&LabRig::new(host, None), &behaviours::ON_A_HOST);
}

pub(super) fn two_hosts_behave_as_the_model_does(host1: RigHost) {
    let host2 = LabRig::new(second_host(), None);
    behaviours::run(&LabRig::new(host1, Some(host2)), &behaviours::BETWEEN_HOSTS);
}
