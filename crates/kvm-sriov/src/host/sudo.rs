//! The commands that OpenNebula's sudoers rules allow its user to run as root. Each of them is optional on a host.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::base::{DomainUuid, program};

/// The commands that `sudo` allows this user.
pub(crate) struct Sudo(());

impl Sudo {
    /// Nothing is asked before there is something to run: `sudo -l` takes as long as several calls of libvirt.
    pub(crate) fn ask() -> Self {
        Self(())
    }

    /// Asks `sudo -l`, once in each process. Without sudo, or without rules for this user, nothing is allowed.
    fn allows(&self, command: &str) -> bool {
        static ALLOWED: OnceLock<String> = OnceLock::new();
        let ask = || {
            let listed = Command::new("sudo").args(["-n", "-l"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
            listed.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default()
        };
        ALLOWED.get_or_init(ask).contains(command)
    }

    /// Makes the kernel drop its caches and compact memory, as CLEANUP_MEMORY_ON_START and _ON_STOP ask.
    pub(crate) fn compact_memory(&self) {
        if self.allows("sysctl") {
            run(["sysctl", "vm.drop_caches=3", "vm.compact_memory=1"]);
        }
    }

    /// Creates or removes the mediated devices of a VM. `verb` is CREATE or DELETE. OpenNebula's program works on PCI
    /// devices only, and has monitoring read those of the host again.
    pub(crate) fn vgpu(&self, remotes: Option<&Path>, verb: &str, vm_xml: &Path) {
        let Some(remotes) = remotes else { return };
        if has_pci_devices(vm_xml) && self.allows("vgpu") {
            run([remotes.join("vgpu").as_os_str(), OsStr::new(verb), vm_xml.as_os_str()]);
        }
    }

    /// Copies a VM's TPM state between its directory and libvirt's. `verb` is recover or backup.
    pub(crate) fn vtpm(&self, remotes: Option<&Path>, verb: &str, uuid: &DomainUuid, vm_dir: &Path) {
        let Some(remotes) = remotes else { return };
        if self.allows("vtpm_setup") {
            run([
                remotes.join("vtpm_setup").as_os_str(),
                OsStr::new(verb),
                OsStr::new(uuid.as_str()),
                vm_dir.as_os_str(),
            ]);
        }
    }
}

/// Whether a VM has PCI devices, by OpenNebula's description of it.
fn has_pci_devices(vm_xml: &Path) -> bool {
    fs::read(vm_xml).is_ok_and(|text| text.windows(4).any(|window| window == b"<PCI"))
}

/// Runs a command. A failure is only logged, because no action depends on these commands.
fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) {
    let mut command = Command::new("sudo");
    command.arg("-n").args(args);
    if let Err(error) = program::run(&mut command) {
        log::warn!("{command:?} failed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vm_with_pci_devices_has_mediated_ones() {
        let dir = tempfile::tempdir().unwrap();
        let vm_xml = dir.path().join("vm.xml");
        assert!(!has_pci_devices(&vm_xml));
        for (template, expected) in [
            ("", false),
            ("<NIC><NAME>PCI</NAME></NIC>", false),
            ("<PCI><UUID><![CDATA[7f1c]]></UUID></PCI>", true),
            ("<PCI>\n<ADDRESS>1:2</ADDRESS></PCI>", true),
        ] {
            fs::write(&vm_xml, format!("<VM><TEMPLATE>{template}</TEMPLATE></VM>")).unwrap();
            assert_eq!(has_pci_devices(&vm_xml), expected, "{template}");
        }
    }
}
