//! What the tests and the demo share: the built driver laid out as OpenNebula does, a lab host to call it on, and
//! deployment files in OpenNebula's form.

// A test may stop at the first surprise.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod behaviours;
pub mod caller;
pub mod daemon;
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

/// How long something may take that takes milliseconds.
const MOMENT: Duration = Duration::from_secs(60);

/// How long a call to libvirt may take that a test makes itself.
pub const CALL_LIMIT: Duration = MOMENT;

/// Waits until something is so that is so in a moment: a test that waits in vain fails, and says what for.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < MOMENT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The user that programs work as when the test is root's, who is no user of OpenNebula's.
pub(crate) const NOBODY: u32 = 65534;

/// Gives a directory and all that is in it to nobody, if this process is root.
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

    /// What a host of OpenNebula has, or has had.
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
