//! A libvirtd of a test, with libvirt's test driver: its domains outlive the program that started them.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::Libvirt;
use tempfile::TempDir;

use crate::NOBODY;

/// How long libvirtd may take to listen and to answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The time between two checks of the socket.
const LOOK: Duration = Duration::from_millis(20);

/// A libvirtd. It ends when this value is dropped.
pub struct Daemon {
    dir: TempDir,
    child: Child,
    /// The test driver forgets its domains when nobody is connected.
    libvirt: Option<Libvirt>,
}

impl Daemon {
    /// Starts one. It has one domain, `test`.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let place = path.display();
        let conf = format!("unix_sock_dir = \"{place}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n");
        fs::write(path.join("conf"), conf).unwrap();
        let mut command = Command::new("/usr/sbin/libvirtd");
        command.arg("-f").arg(path.join("conf")).arg("-p").arg(path.join("pid")).stdin(Stdio::null());
        for variable in ["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env(variable, path);
        }
        // It must not touch the libvirtd of this machine.
        if is_handed_over(path) {
            command.uid(NOBODY).gid(NOBODY);
        }
        let child = command.stderr(fs::File::create(path.join("log")).unwrap()).spawn().unwrap();
        let mut daemon = Self { dir, child, libvirt: None };
        let deadline = Instant::now() + TIMEOUT;
        while UnixStream::connect(daemon.socket()).is_err() {
            assert!(Instant::now() < deadline, "libvirtd does not listen: {}", daemon.log());
            thread::sleep(LOOK);
        }
        daemon.libvirt = Some(Libvirt::open(&daemon.uri(), TIMEOUT).unwrap());
        daemon
    }

    /// The URI of its test driver.
    pub fn uri(&self) -> String {
        format!("test+unix:///default?socket={}", self.socket())
    }

    /// The connection that keeps its domains.
    pub fn libvirt(&self) -> &Libvirt {
        self.libvirt.as_ref().unwrap()
    }

    fn socket(&self) -> String {
        self.dir.path().join("libvirt-sock").display().to_string()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

/// Whether this process is root. If it is, nobody becomes the owner of the directory.
fn is_handed_over(path: &Path) -> bool {
    chown(path, Some(NOBODY), Some(NOBODY)).is_ok()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.libvirt = None;
        // It may have ended by itself.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}
