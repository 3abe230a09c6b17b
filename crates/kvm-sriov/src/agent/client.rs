//! The end that asks: starts the agent on another host, and talks to it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::conversation::{Conversation, Heard, Pulse};
use super::{AgentAnswer, AgentRequest, MAGIC, PROGRAM, Presence, VERSION, logged};
use crate::base::span::{Kind, Span};
use crate::base::{DomainUuid, HostName, program};
use crate::error::AgentError;

/// How long an agent may take from ssh to its first line.
const START: Duration = Duration::from_secs(60);

/// How long each call of libvirt may take there, unless [`Agent::with_call_timeout`] says otherwise: SRIOV_CALL_TIMEOUT's default.
const CALL: Duration = Duration::from_secs(300);

/// How long what ssh has said last is waited for when ssh has ended: what it started may live on, and keep its standard error
/// open.
const LAST_WORDS_TIME: Duration = Duration::from_secs(2);

/// After this time in which nothing arrived, in seconds, a copy of files is given up.
const COPY_SILENCE: &str = "--timeout=120";

/// How many of the last lines of ssh tell why it failed.
const LAST_WORDS: usize = 3;

/// Ours, not the user's: nobody is asked for a password, a dead connection is known in a minute, and none is shared with
/// somebody who may close it.
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
    /// It could not be started; nothing was touched there.
    fn start(&self, host: &HostName) -> Result<Link, AgentError>;

    /// Copies files and directories into a directory of a host, under their own names.
    ///
    /// # Errors
    /// Not all of them are there.
    fn copy(&self, files: &[PathBuf], host: &HostName, dir: &Path) -> Result<(), AgentError>;
}

/// Both directions of a connection to an agent, and what keeps it.
pub struct Link {
    input: Box<dyn Read + Send>,
    output: Box<dyn Write + Send>,
    ssh: Option<SshProcess>,
}

impl Link {
    /// A connection to an agent that is served elsewhere, such as on a thread.
    pub fn new(input: impl Read + Send + 'static, output: impl Write + Send + 'static) -> Self {
        Self { input: Box::new(input), output: Box::new(output), ssh: None }
    }
}

/// Other hosts are reached through ssh.
#[derive(Debug, Clone)]
pub struct Ssh {
    program: PathBuf,
    agent: String,
    forward: bool,
}

impl Ssh {
    /// From a host with the driver in `driver_dir`: on the other host it lies in the same place.
    pub fn new(driver_dir: &Path) -> Self {
        Self { program: "ssh".into(), agent: driver_dir.join(PROGRAM).display().to_string(), forward: false }
    }

    /// From the front-end to a host, with the keys of this user's ssh agent forwarded: the host goes on to another one.
    ///
    /// * `driver_dir` - where the driver lies in the front-end's own remotes directory
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

    /// The same, with the keys of this user's ssh agent forwarded, if there is one: the other host may have to ask this one.
    #[must_use]
    pub fn forwarding(self) -> Self {
        Self { forward: true, ..self }
    }

    /// The same with another program in place of `ssh`.
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
        // The one thing that a shell over there reads.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-');
        if !self.agent.bytes().all(plain) {
            return Err(failed(format!("its path {} is none that a shell takes as it is", self.agent)));
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
        // --protect-args: names travel inside of the connection, and no shell over there reads them.
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

/// The ssh that carries a conversation. What the agent logs is logged here, with the host's name; other lines are ssh's own and
/// tell why it failed.
struct SshProcess {
    child: Child,
    /// Ends with the thread that listens.
    listening: Receiver<()>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

impl SshProcess {
    fn new(child: Child, errors: impl Read + Send + 'static, host: &HostName) -> io::Result<Self> {
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let (words, host) = (Arc::clone(&last_words), host.clone());
        let (listens, listening) = mpsc::channel::<()>();
        // Dropped, and so ended, when there is no thread for it.
        let process = Self { child, listening, last_words };
        thread::Builder::new().spawn(move || {
            let _listens = listens;
            for line in BufReader::new(errors).lines().map_while(io::Result::ok) {
                if let Some((level, text)) = logged(&line, PROGRAM) {
                    log::log!(level, "{host}: {text}");
                    continue;
                }
                let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
                words.push_back(line.trim().to_owned());
                if words.len() > LAST_WORDS {
                    words.pop_front();
                }
            }
        })?;
        Ok(process)
    }

    fn end(&mut self) {
        // It may have ended by itself; then only its status is to be collected.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            log::debug!("ssh: {error}");
        }
    }

    /// What ssh said before it ended.
    fn why(&mut self) -> String {
        self.end();
        // Nothing is sent: the channel ends with the one who listens.
        if self.listening.recv_timeout(LAST_WORDS_TIME) == Err(RecvTimeoutError::Timeout) {
            log::debug!("ssh has ended, and what it started keeps its standard error open");
        }
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        words.iter().cloned().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for SshProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// An agent that was started and answers.
pub struct Agent {
    host: HostName,
    // Closed before ssh is ended: fields drop in this order.
    conversation: Conversation,
    ssh: Option<SshProcess>,
    call: Duration,
    /// Whether it owes an answer that is waited for no more: what it says now would be taken for another one.
    is_silent: bool,
}

impl Agent {
    /// Starts the agent on a host and waits for its first line.
    ///
    /// # Errors
    /// It can't be reached, or is of another version; nothing was touched there.
    pub fn start(reach: &dyn Reach, host: &HostName) -> Result<Self, AgentError> {
        let _span = Span::begin(Kind::Ssh, "agent");
        let link = reach.start(host)?;
        let conversation = Conversation::new(link.input, link.output, Pulse::default())
            .map_err(|error| AgentError::NotStarted { host: host.clone(), why: error.to_string() })?;
        let mut agent = Self { host: host.clone(), conversation, ssh: link.ssh, call: CALL, is_silent: false };
        let end = Instant::now() + START;
        loop {
            match agent.conversation.next(end.saturating_duration_since(Instant::now())) {
                Heard::Line(line) => match version(&line) {
                    Some(found) if found == VERSION.to_string() => return Ok(agent),
                    Some(found) => {
                        return Err(AgentError::Version { host: host.clone(), found: found.to_owned(), own: VERSION });
                    }
                    // A greeting of the host.
                    None => log::debug!("{host}: {line}"),
                },
                Heard::Nothing => {
                    let why = format!("no answer for {} s", START.as_secs());
                    return Err(AgentError::NotStarted { host: host.clone(), why });
                }
                Heard::Ended => {
                    let why = agent.ssh.as_mut().map(SshProcess::why).filter(|why| !why.is_empty());
                    let why = why.unwrap_or_else(|| "the connection ended before its first line".into());
                    return Err(AgentError::NotStarted { host: host.clone(), why });
                }
            }
        }
    }

    /// The same, and each of its calls of libvirt may take so long.
    #[must_use]
    pub fn with_call_timeout(self, call: Duration) -> Self {
        Self { call, ..self }
    }

    /// The host it is on.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Whether it is gone, or can't be heard of any more. Does not wait.
    pub fn is_lost(&self) -> bool {
        self.is_silent || self.conversation.is_over()
    }

    /// Where a VM is, seen from there.
    ///
    /// # Errors
    /// The agent was lost, or its libvirtd does not answer.
    pub fn state(&mut self, uuid: &DomainUuid) -> Result<Presence, AgentError> {
        match self.ask(&AgentRequest::State(uuid.clone()))? {
            AgentAnswer::State(presence) => Ok(presence),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks, and waits for the answer as long as the agent is alive, and not longer than the question may take.
    pub(crate) fn ask(&mut self, request: &AgentRequest) -> Result<AgentAnswer, AgentError> {
        let _span = Span::begin(Kind::Asked, "agent");
        if self.is_silent {
            return Err(self.lost());
        }
        self.conversation.say(request);
        let limit = request.limit(self.call);
        let line = match self.conversation.wait_for(limit) {
            Heard::Line(line) => line,
            Heard::Ended => return Err(self.lost()),
            Heard::Nothing => {
                self.is_silent = true;
                let seconds = limit.map_or(0, |limit| limit.as_secs());
                let asked = request.to_string().split(' ').next().unwrap_or_default().to_owned();
                return Err(AgentError::NoAnswer { host: self.host.clone(), asked, seconds });
            }
        };
        match line.parse() {
            Ok(AgentAnswer::Refused(why)) => Err(AgentError::Refused { host: self.host.clone(), why }),
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.unexpected(&line)),
        }
    }

    /// The failure that it is lost.
    pub(crate) fn lost(&mut self) -> AgentError {
        let why = self.ssh.as_mut().map(SshProcess::why).filter(|why| !why.is_empty());
        AgentError::Lost { host: self.host.clone(), why: why.map(|why| format!(": {why}")).unwrap_or_default() }
    }

    pub(crate) fn unexpected(&self, line: &impl ToString) -> AgentError {
        AgentError::Unexpected { host: self.host.clone(), what: format!("\"{}\"", line.to_string().escape_debug()) }
    }
}

/// The version in the first line of an agent; `None` for any other line.
fn version(line: &str) -> Option<&str> {
    line.strip_prefix(MAGIC)?.strip_prefix(' ')?.split(' ').next()
}

/// Asks a host where a VM is.
///
/// # Errors
/// The host can't be reached, or its libvirtd does not answer. Nothing was touched.
pub fn ask_state(reach: &dyn Reach, host: &HostName, uuid: &DomainUuid) -> Result<Presence, AgentError> {
    Agent::start(reach, host)?.state(uuid)
}
