//! The host that asks: starts the agent on another host, and talks to it.

use std::time::Duration;

use super::conversation::{Conversation, Heard, Heartbeat};
use super::ssh::SshProcess;
use super::{AgentAnswer, AgentRequest, MAGIC, Presence, Reach, VERSION};
use crate::base::span::{Kind, Span};
use crate::base::{DomainUuid, HostName};
use crate::error::AgentError;
use crate::os;

/// How long an agent may take from the start of ssh to its first line.
const START: Duration = Duration::from_secs(60);

/// The longest greeting of a host, in bytes: what its login prints before the agent's first line.
const GREETING: usize = 64 * 1024;

/// How long one call of libvirt may take on the agent's host, unless [`Agent::with_call_timeout`] sets it. The default
/// of SRIOV_CALL_TIMEOUT.
const CALL: Duration = Duration::from_secs(300);

/// An agent that was started and answers.
pub struct Agent {
    host: HostName,
    // Fields drop in this order: the conversation is closed before ssh is ended.
    conversation: Conversation,
    ssh: Option<SshProcess>,
    call: Duration,
    /// Whether an answer did not come in time, or something else came. A late answer would be taken for that of the next
    /// request, so no request is sent any more.
    is_silent: bool,
}

impl Agent {
    /// Starts the agent on a host and waits for its first line.
    ///
    /// # Errors
    /// The host can't be reached, or its agent speaks another version of the protocol. Nothing was changed there.
    pub fn start(reach: &dyn Reach, host: &HostName) -> Result<Self, AgentError> {
        let _span = Span::begin(Kind::Ssh, "agent");
        let link = reach.start(host)?;
        let conversation = Conversation::new(link.input, link.output, Heartbeat::default())
            .map_err(|error| AgentError::NotStarted { host: host.clone(), why: error.to_string() })?;
        let mut agent = Self { host: host.clone(), conversation, ssh: link.ssh, call: CALL, is_silent: false };
        let end = os::now() + START;
        let mut greeting = 0;
        loop {
            match agent.conversation.next(end.saturating_duration_since(os::now())) {
                Heard::Line(line) => match version(&line) {
                    Some(found) if found == VERSION.to_string() => return Ok(agent),
                    Some(found) => {
                        return Err(AgentError::Version { host: host.clone(), found: found.to_owned(), own: VERSION });
                    }
                    // The host's greeting.
                    None => {
                        log::debug!("{host}: {line}");
                        greeting += line.len() + 1;
                        if greeting > GREETING {
                            let why = format!("it sent {GREETING} bytes, and no line of an agent");
                            return Err(AgentError::NotStarted { host: host.clone(), why });
                        }
                    }
                },
                Heard::Nothing => {
                    let why = format!("no answer for {} s", START.as_secs());
                    return Err(AgentError::NotStarted { host: host.clone(), why });
                }
                Heard::Ended => {
                    let why = agent.ssh.as_mut().and_then(SshProcess::why);
                    let why = why.unwrap_or_else(|| "the connection ended before its first line".into());
                    return Err(AgentError::NotStarted { host: host.clone(), why });
                }
            }
        }
    }

    /// Sets how long one call of libvirt may take on the agent's host. The default is 300 s.
    #[must_use]
    pub fn with_call_timeout(self, call: Duration) -> Self {
        Self { call, ..self }
    }

    /// The host it is on.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Whether the agent has ended, has been silent for too long, or owes an answer. Does not wait.
    pub fn is_lost(&self) -> bool {
        self.is_silent || self.conversation.is_over()
    }

    /// Where a VM is, seen from the agent's host.
    ///
    /// # Errors
    /// The agent was lost, or its libvirtd does not answer. Nothing was changed there.
    pub fn state(&mut self, uuid: &DomainUuid) -> Result<Presence, AgentError> {
        match self.ask(&AgentRequest::State(uuid.clone()))? {
            AgentAnswer::State(presence) => Ok(presence),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sends a request and waits for its answer: as long as the agent is alive, and at most the request's own limit.
    pub(crate) fn ask(&mut self, request: &AgentRequest) -> Result<AgentAnswer, AgentError> {
        let _span = Span::begin(Kind::Asked, "agent");
        if self.is_silent {
            return Err(self.lost());
        }
        // A line that came unasked would be taken for the answer.
        if let Heard::Line(line) = self.conversation.next(Duration::ZERO) {
            return Err(self.unexpected(&line));
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

    /// The error that the agent was lost, with what ssh said last.
    pub(crate) fn lost(&mut self) -> AgentError {
        let why = self.ssh.as_mut().and_then(SshProcess::why);
        AgentError::Lost { host: self.host.clone(), why: why.map(|why| format!(": {why}")).unwrap_or_default() }
    }

    /// The error that the agent said something else than an answer to the request. No other request is sent: its answer
    /// could be another one's.
    pub(crate) fn unexpected(&mut self, line: &impl ToString) -> AgentError {
        self.is_silent = true;
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
/// The host can't be reached, or its libvirtd does not answer. Nothing was changed there.
pub fn ask_state(reach: &dyn Reach, host: &HostName, uuid: &DomainUuid) -> Result<Presence, AgentError> {
    Agent::start(reach, host)?.state(uuid)
}
