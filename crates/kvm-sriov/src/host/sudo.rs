//! The commands that OpenNebula's sudoers rules allow its user to run as root. Each of them is optional on a host.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::base::{DomainUuid, program};

/// The commands that `sudo` allows this user.
pub(crate) struct Sudo {
    allowed: &'static str,
}

impl Sudo {
    /// Asks `sudo -l`, once in each process. Without sudo, or without rules for this user, nothing is allowed.
    pub(crate) fn ask() -> Self {
        static ALLOWED: OnceLock<String> = OnceLock::new();
        let ask = || {
            let listed = Command::new("sudo").args(["-n", "-l"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
            listed.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default()
        };
        Self { allowed: ALLOWED.get_or_init(ask) }
    }

    fn allows(&self, command: &str) -> bool {
        self.allowed.contains(command)
    }

    /// Makes the kernel drop its caches and compact memory, as CLEANUP_MEMORY_ON_START and _ON_STOP ask.
    pub(crate) fn compact_memory(&self) {
        if self.allows("sysctl") {
            run(["sysctl", "vm.drop_caches=3", "vm.compact_memory=1"]);
        }
    }

    /// Creates or removes the mediated devices of a VM. `verb` is CREATE or DELETE.
    pub(crate) fn vgpu(&self, remotes: Option<&Path>, verb: &str, vm_xml: &Path) {
        let Some(remotes) = remotes else { return };
        if self.allows("vgpu") && vm_xml.exists() {
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

/// Runs a command. A failure is only logged, because no action depends on these commands.
fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) {
    let mut command = Command::new("sudo");
    command.arg("-n").args(args);
    if let Err(error) = program::run(&mut command) {
        log::warn!("{command:?} failed: {error}");
    }
}
