//! The model behaves like libvirt and QEMU. The same list runs against the lab (tests/scenarios/lab/behaviours.rs).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use kvm_sriov::PciAddress;
use kvm_sriov::libvirt::{DomainRef, Hypervisor};
use kvm_sriov_model::Guest;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::behaviours::{self, Rig};
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

/// A model host, alone or with a second one.
struct ModelRig {
    host: ModelHost,
    other: Option<Box<ModelRig>>,
}

impl Rig for ModelRig {
    fn libvirt(&self) -> &dyn Hypervisor {
        self.host.model()
    }

    fn start(&self, vm: &Vm) -> DomainRef {
        let guest = if vm.has_guest() { Guest::default() } else { Guest::Silent };
        self.host.model().set_guest(&vm.name(), guest);
        self.libvirt().create(&self.host.deployment(vm), CALL_LIMIT).unwrap()
    }

    fn vfs(&self) -> [PciAddress; 3] {
        self.host.vfs("ib0")[..3].try_into().unwrap()
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.host.vm_dir(&Vm::new(61)).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn pause(&self, domain: &DomainRef) {
        self.host.model().pause(domain.name.as_str());
    }

    fn restart_daemon(&self) {
        self.host.model().restart_daemon();
    }

    fn other(&self) -> Option<(&dyn Rig, String)> {
        let other = self.other.as_deref()?;
        Some((other, format!("qemu+ssh://{}/system", other.host.model().name())))
    }
}

#[test]
fn the_model_behaves_as_libvirt_does() {
    let host = ModelHost::default();
    let other = ModelRig { host: host.beside("host2", 4), other: None };
    let rig = ModelRig { host, other: Some(Box::new(other)) };
    behaviours::run(&rig, &behaviours::ON_A_HOST);
    behaviours::run(&rig, &behaviours::BETWEEN_HOSTS);
}
