//! How other hosts are reached: through ssh.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::lines::Lines;
use super::{PROGRAM, logged};
use crate::base::{HostName, lock, program};
use crate::error::AgentError;

/// How long the listener may still read ssh's standard error after ssh has ended. A program that ssh started may live
/// on and keep that pipe open.
const LAST_WORDS_TIME: Duration = Duration::from_secs(2);

/// rsync gives up a copy after this many seconds in which nothing arrived.
const COPY_SILENCE: &str = "--timeout=120";

/// How many of ssh's last lines are quoted when it failed, and how many bytes of each.
const LAST_WORDS: usize = 3;
const LONGEST_WORD: u64 = 1024;

/// How many of an agent's log lines are logged here.
const LOG_LINES: usize = 200;

/// These override the user's configuration: ssh asks nobody for a password, notices a dead connection within a minute,
/// and shares no connection that somebody else may close.
const SSH_OPTIONS: [&str; 6] = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=6",
    "ControlMaster=no",
    "ControlPath=none",
];

/// How other hosts are reached.
pub trait Reach: Send + Sync {
    /// Starts the agent on a host.
    ///
    /// # Errors
    /// The agent could not be started. Nothing was changed on that host.
    fn start(&self, host: &HostName) -> Result<Link, AgentError>;

    /// Copies files and directories into a directory of a host, under their own names.
    ///
    /// # Errors
    /// The copy was cut off. Some of the files may be there, whole or in part.
    fn copy(&self, files: &[PathBuf], host: &HostName, dir: &Path) -> Result<(), AgentError>;
}

/// Both directions of a connection to an agent, and the ssh process that carries them.
pub struct Link {
    pub(super) input: Box<dyn Read + Send>,
    pub(super) output: Box<dyn Write + Send>,
    pub(super) ssh: Option<SshProcess>,
}

impl Link {
    /// A connection without ssh, such as one to an agent that runs on a thread.
    pub fn new(input: impl Read + Send + 'static, output: impl Write + Send + 'static) -> Self {
        Self { input: Box::new(input), output: Box::new(output), ssh: None }
    }
}

/// Reaches other hosts through ssh, and copies files with rsync.
#[derive(Debug, Clone)]
pub struct Ssh {
    program: PathBuf,
    agent: String,
    forward: bool,
}

impl Ssh {
    /// From a host to another one. The driver must be in `driver_dir` on both.
    pub fn new(driver_dir: &Path) -> Self {
        Self { program: "ssh".into(), agent: driver_dir.join(PROGRAM).display().to_string(), forward: false }
    }

    /// From the front-end to a host. Forwards the keys of this user's ssh agent, because the host connects to another
    /// one.
    ///
    /// * `driver_dir` - where the driver is in the front-end's own remotes directory
    ///
    /// # Source
    /// OpenNebula's `/var/lib/one/config` beside its remotes: SCRIPTS_REMOTE_DIR, `/var/tmp/one` when it is not set.
    pub fn from_front_end(driver_dir: &Path) -> Self {
        let config = std::fs::read_to_string(driver_dir.join("../../../config")).unwrap_or_default();
        let set = config.lines().find_map(|line| line.trim().strip_prefix("SCRIPTS_REMOTE_DIR="));
        let remotes = set.map(|value| value.trim_matches(['"', '\''])).filter(|value| value.starts_with('/'));
        let name = driver_dir.file_name().unwrap_or("kvm-sriov".as_ref());
        let there = Path::new(remotes.unwrap_or("/var/tmp/one")).join("vmm").join(name);
        Self { forward: true, ..Self::new(&there) }
    }

    /// Also forwards the keys of this user's ssh agent, if there is one: the other host may have to connect to this
    /// one.
    #[must_use]
    pub fn forwarding(self) -> Self {
        Self { forward: true, ..self }
    }

    /// Starts another program in place of `ssh`.
    #[must_use]
    pub fn with_program(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    fn options(&self) -> impl Iterator<Item = &'static str> {
        let forward = if self.forward { "ForwardAgent=yes" } else { "ForwardAgent=no" };
        SSH_OPTIONS.into_iter().chain([forward]).flat_map(|option| ["-o", option])
    }
}

impl Reach for Ssh {
    fn start(&self, host: &HostName) -> Result<Link, AgentError> {
        let failed = |why: String| AgentError::NotStarted { host: host.clone(), why };
        // ssh passes the path to a shell on the other host, so it must have no character that a shell would interpret.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-');
        if !self.agent.bytes().all(plain) {
            return Err(failed(format!("its path {} has characters that a shell would interpret", self.agent)));
        }
        let mut child = Command::new(&self.program)
            .args(self.options())
            .arg("--")
            .arg(host.as_str())
            .arg(&self.agent)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", self.program.display())))?;
        let (Some(output), Some(input), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("no pipes".into()));
        };
        let ssh = SshProcess::new(child, errors, host).map_err(|error| failed(error.to_string()))?;
        Ok(Link { input: Box::new(input), output: Box::new(output), ssh: Some(ssh) })
    }

    fn copy(&self, files: &[PathBuf], host: &HostName, dir: &Path) -> Result<(), AgentError> {
        if files.is_empty() {
            return Ok(());
        }
        let failed = |why: String| {
            let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            AgentError::Copy { host: host.clone(), what: names.join(", "), why }
        };
        let shell: Vec<&str> = self.options().collect();
        // --protect-args: rsync sends the names through the connection, so no shell on the other host reads them.
        let out = Command::new("rsync")
            .args(["-az", "--protect-args", COPY_SILENCE, "-e"])
            .arg(format!("{} {}", self.program.display(), shell.join(" ")))
            .arg("--")
            .args(files)
            .arg(format!("{host}:{}/", dir.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(|error| failed(format!("rsync: {error}")))?;
        program::check(&out).map_err(|error| failed(error.to_string()))
    }
}

/// The ssh process that carries a conversation. A thread reads its standard error: it logs the agent's log lines with
/// the host's name, and keeps ssh's own last lines, which tell why ssh failed.
pub(super) struct SshProcess {
    child: Child,
    /// Disconnected when the thread ends.
    listening: Receiver<()>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

impl SshProcess {
    fn new(child: Child, errors: impl Read + Send + 'static, host: &HostName) -> io::Result<Self> {
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let (words, host) = (Arc::clone(&last_words), host.clone());
        let (listens, listening) = mpsc::channel::<()>();
        // Built before the thread starts: if the thread can't be started, the drop ends ssh.
        let process = Self { child, listening, last_words };
        thread::Builder::new().spawn(move || {
            let _listens = listens;
            let mut number = 0;
            for line in Lines::new(errors, LONGEST_WORD) {
                if let Some((level, text)) = logged(&line.text, PROGRAM) {
                    number += 1;
                    match LOG_LINES.cmp(&number) {
                        Ordering::Greater => log::log!(level, "{host}: {text}"),
                        Ordering::Equal => log::warn!("{host}: more lines are left out"),
                        Ordering::Less => {}
                    }
                    continue;
                }
                let mut words = lock(&words);
                words.push_back(line.text.trim().to_owned());
                if words.len() > LAST_WORDS {
                    words.pop_front();
                }
            }
        })?;
        Ok(process)
    }

    fn end(&mut self) {
        // ssh may have ended by itself: then this only collects its exit status.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            log::debug!("ssh: {error}");
        }
    }

    /// Ends ssh. Returns its last lines, or `None` if it wrote none.
    pub(super) fn why(&mut self) -> Option<String> {
        self.end();
        // The thread never sends: the channel disconnects when the thread ends.
        if self.listening.recv_timeout(LAST_WORDS_TIME) == Err(RecvTimeoutError::Timeout) {
            log::debug!("ssh has ended, but a program that it started keeps its standard error open");
        }
        let words = lock(&self.last_words).iter().cloned().collect::<Vec<_>>().join(" ");
        (!words.is_empty()).then_some(words)
    }
}

impl Drop for SshProcess {
    fn drop(&mut self) {
        self.end();
    }
}
