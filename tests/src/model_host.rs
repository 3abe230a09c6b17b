//! A model host as OpenNebula uses it: the files of VMs, and the package's udev rule.

use std::fs;
use std::path::PathBuf;

use kvm_sriov_model::host::ModelHost;

use crate::project;
use crate::vm::Vm;

/// The directory of VMs in the deployment files of tests.
const DATASTORE: &str = "/var/lib/one//datastores/0";

/// The files that OpenNebula and the package put on a host.
pub trait OpenNebulaHost {
    /// The directory of a VM.
    fn vm_dir(&self, vm: &Vm) -> PathBuf;

    /// The path of a VM's deployment file.
    fn deployment_file(&self, vm: &Vm) -> PathBuf;

    /// The deployment file of a VM.
    fn deployment(&self, vm: &Vm) -> String;

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

    fn add_vfio_rule(&self) {
        let (rule, rules) = ("80-kvm-sriov-vfio.rules", self.root_dir().join("etc/udev/rules.d"));
        fs::create_dir_all(&rules).unwrap();
        fs::copy(project().join("dist/udev").join(rule), rules.join(rule)).unwrap();
    }
}
