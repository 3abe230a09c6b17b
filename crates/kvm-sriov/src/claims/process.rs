//! A process that holds a claim or a lock, told apart from a later one with the same number.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process: its number and when it started, which no later process with that number shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    /// This process.
    pub fn this() -> Self {
        let pid = std::process::id();
        Self { pid, started: start_of(pid).unwrap_or(0) }
    }

    /// A process by its number and its start, in the kernel's clock ticks since boot.
    pub fn new(pid: u32, started: u64) -> Self {
        Self { pid, started }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in the kernel's clock ticks since boot.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        start_of(self.pid) == Some(self.started)
    }

    /// Whether it still runs, and runs a program whose file has this name.
    ///
    /// # Source
    /// proc(5): `/proc/pid/exe` ends with " (deleted)" when the file was replaced, and can't be read of a process that was root;
    /// `/proc/pid/comm` always can, and has the first 15 bytes of the name.
    pub(super) fn runs(&self, program: &str) -> bool {
        let exe = fs::read_link(format!("/proc/{}/exe", self.pid));
        let is_it = match exe.as_deref().ok().and_then(Path::file_name).and_then(OsStr::to_str) {
            Some(name) => name.strip_suffix(" (deleted)").unwrap_or(name) == program,
            None => fs::read_to_string(format!("/proc/{}/comm", self.pid))
                .is_ok_and(|comm| program.as_bytes().get(..15).unwrap_or(program.as_bytes()) == comm.trim().as_bytes()),
        };
        is_it && self.is_alive()
    }

    /// Ends it, if it still runs (SIGKILL).
    pub(super) fn kill(&self) {
        if !self.is_alive() || *self == Self::this() {
            return;
        }
        let ended = i32::try_from(self.pid)
            .map_err(|_| nix::Error::ESRCH)
            .and_then(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        if let Err(error) = ended {
            log::warn!("process {} can't be ended: {error}", self.pid);
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

/// When the process with this number started; `None` when there is none, or only what its parent has not yet collected.
///
/// # Source
/// proc(5), `/proc/pid/stat`: field 3 is the state, field 22 the start. Field 2, the name, may hold anything but ends
/// with the last `)`.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

/// The id of this boot of the host; empty when the kernel does not say.
pub(super) fn boot_id() -> String {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned());
    ID.get_or_init(|| read().unwrap_or_default()).clone()
}

/// When this host was booted; `None` when the kernel does not say.
///
/// # Source
/// proc(5), `/proc/stat`: btime, in seconds since 1970.
pub(super) fn booted() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The id of this host; `None` when it has none yet.
///
/// # Source
/// machine-id(5): "uninitialized" on a host that has not been booted to its end.
pub(super) fn machine_id() -> Option<String> {
    let id = fs::read_to_string("/etc/machine-id").ok()?.trim().to_owned();
    (!id.is_empty() && id != "uninitialized").then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_known_by_its_start() {
        assert!(Process::this().is_alive());
        assert!(!Process::new(std::process::id(), 1).is_alive());
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::new(child.id(), start_of(child.id()).unwrap());
        Process::new(child.id(), process.started() + 1).kill();
        assert!(process.is_alive(), "another process was ended");
        process.kill();
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
