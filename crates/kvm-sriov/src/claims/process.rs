//! Who holds a claim or a lock: processes, their actions, and this host.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::os;

/// A process: its number and its start time. A later process with the same number has another start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    /// This process.
    pub fn this() -> Self {
        let (pid, started) = os::simulated().map_or_else(
            || {
                let pid = std::process::id();
                (pid, start_of(pid).unwrap_or(0))
            },
            |os| os.process(),
        );
        Self { pid, started }
    }

    /// The process with this number and this start time, in the kernel's clock ticks since boot.
    pub fn new(pid: u32, started: u64) -> Self {
        Self { pid, started }
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When the process started, in the kernel's clock ticks since boot.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        let simulated = os::simulated().map(|os| os.is_alive(self.pid, self.started));
        simulated.unwrap_or_else(|| start_of(self.pid) == Some(self.started))
    }

    /// Whether the process still runs, and its program's file has this name.
    ///
    /// # Source
    /// proc(5): `/proc/pid/exe` ends with " (deleted)" when the file was replaced. It can't be read when the process
    /// was started as root. `/proc/pid/comm` can always be read, and has the first 15 bytes of the name.
    pub(super) fn runs(&self, program: &str) -> bool {
        let exe = fs::read_link(format!("/proc/{}/exe", self.pid));
        let is_it = match exe.as_deref().ok().and_then(Path::file_name).and_then(OsStr::to_str) {
            Some(name) => name.strip_suffix(" (deleted)").unwrap_or(name) == program,
            None => fs::read_to_string(format!("/proc/{}/comm", self.pid))
                .is_ok_and(|comm| program.as_bytes().get(..15).unwrap_or(program.as_bytes()) == comm.trim().as_bytes()),
        };
        is_it && self.is_alive()
    }

    /// Kills the process (SIGKILL), if it still runs. Never kills this process.
    pub(super) fn kill(&self) {
        if !self.is_alive() || *self == Self::this() {
            return;
        }
        let ended = i32::try_from(self.pid)
            .map_err(|_| nix::Error::ESRCH)
            .and_then(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        if let Err(error) = ended {
            log::warn!("process {} can't be killed: {error}", self.pid);
        }
    }
}

/// One action of one process. Claims and locks name their holder by it.
///
/// A process may run several actions at once, so it numbers them. The number is the one piece of process-wide state
/// that claims need: a counter.
///
/// A token lives as long as the [`VmLock`](super::VmLock) that it was made for. A claim whose holder does not live is
/// stale, even when its process goes on with other actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    process: Process,
    number: Option<u64>,
}

impl Token {
    /// The token of a new action of this process.
    pub(super) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Self { process: Process::this(), number: Some(number) }
    }

    /// The action with this number; `None` stands for a version before 0.2, which did not number its actions.
    pub fn new(process: Process, number: Option<u64>) -> Self {
        Self { process, number }
    }

    /// The process of the action.
    pub fn process(&self) -> Process {
        self.process
    }

    /// The number of the action in its process; `None` when a version before 0.2 wrote it.
    pub fn number(&self) -> Option<u64> {
        self.number
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

/// When the process with this number started; `None` when there is no such process, or it has ended and its parent has
/// not collected it yet.
///
/// # Source
/// proc(5), `/proc/pid/stat`: field 3 is the state, field 22 the start time. Field 2, the name, may hold any character,
/// and ends with the last `)`.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

/// The id of this boot of the host; empty when the kernel does not report it.
pub(super) fn boot_id() -> String {
    if let Some(os) = os::simulated() {
        return os.boot_id();
    }
    static ID: OnceLock<String> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned());
    ID.get_or_init(|| read().unwrap_or_default()).clone()
}

/// This host, as claims name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ThisHost {
    /// The machine-id; `None` when the host has none yet.
    pub(super) machine: Option<String>,
    /// The id of this boot; empty when the kernel does not report it.
    pub(super) boot: String,
}

impl ThisHost {
    pub(super) fn read() -> Self {
        Self { machine: machine_id(), boot: boot_id() }
    }

    /// Whether a claim with this machine-id and boot id was written on another host. The machine-id of a host may be
    /// made anew while the host runs (systemd-machine-id-setup); its boot id does not change then, and no other host
    /// has it.
    pub(super) fn is_another(&self, machine: Option<&str>, boot: &str) -> bool {
        let is_this_boot = !boot.is_empty() && boot == self.boot;
        let differs = machine.zip(self.machine.as_deref()).is_some_and(|(theirs, ours)| theirs != ours);
        differs && !is_this_boot
    }
}

/// When this host was booted; `None` when the kernel does not report it.
///
/// # Source
/// proc(5), `/proc/stat`: btime, in seconds since 1970.
pub(super) fn booted() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The machine-id of this host; `None` when it has none yet.
///
/// # Source
/// machine-id(5): "uninitialized" on a host whose first boot has not finished.
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
