//! A model host as OpenNebula uses it: the files of VMs, their moves, and the package's udev rule.

use std::fs;
use std::path::PathBuf;

use kvm_sriov::{ActionError, DomainId, actions};
use kvm_sriov_model::agent::OneAgent;
use kvm_sriov_model::host::ModelHost;

use crate::project;
use crate::vm::Vm;

/// The directory of VMs in the deployment files of tests.
const DATASTORE: &str = "/var/lib/one//datastores/0";

/// The files that OpenNebula and the package put on a host, and a move to another one.
pub trait OpenNebulaHost {
    /// The directory of a VM.
    fn vm_dir(&self, vm: &Vm) -> PathBuf;

    /// The path of a VM's deployment file.
    fn deployment_file(&self, vm: &Vm) -> PathBuf;

    /// The deployment file of a VM.
    fn deployment(&self, vm: &Vm) -> String;

    /// Moves a VM to another host, whose agent can't reach this one.
    fn migrate(&self, to: &ModelHost, id: &DomainId) -> Result<(), ActionError>;

    /// Installs the udev rule that gives vfio devices to QEMU's user.
    fn add_vfio_rule(&self);
}

impl OpenNebulaHost for ModelHost {
    fn vm_dir(&self, vm: &Vm) -> PathBuf {
        self.datastore().join(vm.id.to_string())
    }

    fn deployment_file(&self, vm: &Vm) -> PathBuf {
        self.vm_dir(vm).join("deployment.0")
    }

    fn deployment(&self, vm: &Vm) -> String {
        vm.deployment().replace(DATASTORE, &self.datastore().display().to_string())
    }

    fn migrate(&self, to: &ModelHost, id: &DomainId) -> Result<(), ActionError> {
        let name = |host: &ModelHost| host.model().name().parse().unwrap();
        let route = actions::Route { from: Some(name(self)), to: name(to) };
        actions::migrate(&self.host(), id, &route, None, &OneAgent::of(to.host()))
    }

    fn add_vfio_rule(&self) {
        let (rule, rules) = ("80-kvm-sriov-vfio.rules", self.root_dir().join("etc/udev/rules.d"));
        fs::create_dir_all(&rules).unwrap();
        fs::copy(project().join("dist/udev").join(rule), rules.join(rule)).unwrap();
    }
}
