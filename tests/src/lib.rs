//! The harness of the tests and the demo: the built driver installed as OpenNebula does it, hosts to call it on, and
//! VMs in OpenNebula's form.

// A test stops at the first surprise.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod behaviours;
pub mod caller;
pub mod daemon;
pub mod explore;
pub mod faults;
pub mod guest;
mod guest_cpu;
pub mod model_host;
pub mod remotes;
pub mod rig_host;
pub mod runner;
pub mod site;
pub mod vm;

use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The limit for anything that takes milliseconds.
const MOMENT: Duration = Duration::from_secs(60);

/// The limit for a call to libvirt that a test makes itself.
pub const CALL_LIMIT: Duration = MOMENT;

/// Waits until a condition is true, which takes milliseconds. After a minute the test fails and names the condition.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < MOMENT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// When a test runs as root, its programs run as this user.
pub(crate) const NOBODY: u32 = 65534;

/// Makes nobody the owner of a directory and everything in it, if this process is root.
pub fn hand_over(dir: &Path) {
    if lchown(dir, Some(NOBODY), Some(NOBODY)).is_ok() && dir.is_dir() && !dir.is_symlink() {
        fs::read_dir(dir).unwrap().for_each(|entry| hand_over(&entry.unwrap().path()));
    }
}

/// The project's directory.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    /// Directories that an OpenNebula host has, or had in older versions.
    const OF_A_HOST: [&str; 8] = [
        "/run/one",
        "/run/libvirt",
        "/var/lib/one",
        "/var/tmp/one",
        "/etc/one",
        "/etc/kvm-sriov",
        "/tmp/vf_interfaces",
        "/dev/shm/vf_interfaces",
    ];

    #[test]
    fn no_test_sees_or_changes_what_this_machine_has() {
        for dir in OF_A_HOST {
            let found = fs::read_dir(dir).map_or(0, Iterator::count);
            assert_eq!(found, 0, "{dir}: was the test started by cargo, which runs it through tests/alone?");
        }
        for dir in ["/", "/run", "/etc", "/tmp", "/var/tmp", "/var/lib", "/usr/local"] {
            let kind = fs::write(Path::new(dir).join("kvm-sriov-test"), "").unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied), "{dir}: {kind}");
        }
        assert!(UnixStream::connect("/dev/log").is_err(), "the journal");
        let sudo = Command::new("sudo").args(["-n", "-l"]).output();
        assert!(!sudo.is_ok_and(|out| out.status.success()), "sudo");
        assert!(tempfile::tempdir().is_ok());
    }
}
