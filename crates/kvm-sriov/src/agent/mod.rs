//! The agent: the driver's process on the other host of a migration, reached through ssh, and what the two say to each
//! other.
//!
//! * `conversation` - lines both ways, and signs of life
//! * `client` - the end that asks: starts the agent through ssh
//! * `serve` - the end that answers: claims, plugs, and looks what is true when nobody asks any more
//! * `errand` - the move of a VM of the agent's own host, for the front-end
//!
//! docs/reference/agent.md describes the lines. A message is a word and `name=value` pairs; nothing of a value is ever
//! a part of a command line.

mod client;
mod conversation;
mod errand;
mod serve;

pub use client::{Agent, Link, Reach, Ssh, ask_state};
pub use serve::serve;

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::base::ParseError;
use crate::base::{DeployId, DomainName, DomainUuid, HostName, Position};
use crate::error::Cause;
use crate::xml::Wanted;

/// The version of the protocol. Two ends talk to each other only with the same one.
pub(crate) const VERSION: u32 = 2;

/// The first word of the agent's first line: what comes before it is the host's greeting.
const MAGIC: &str = "kvm-sriov-agent";

/// What every question may take besides the agent's calls of libvirt: a lock is waited for, a domain is destroyed.
const MARGIN: Duration = Duration::from_secs(120);

/// The agent's program, beside the actions.
const PROGRAM: &str = "sriov_agent";

/// What is asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentRequest {
    /// A VM is to come: everything it needs is to be checked and claimed, or nothing.
    Prepare(Box<IncomingVm>),
    /// An empty image is to be made for a disk that libvirt copies.
    Image {
        /// Where.
        path: PathBuf,
        /// Its format, such as `qcow2`.
        format: String,
        /// How large the guest sees it, in bytes.
        size: u64,
    },
    /// A symbolic link is to be made.
    Symlink {
        /// Where.
        path: PathBuf,
        /// What it points to, as it is written in the link.
        target: PathBuf,
    },
    /// A snapshot that the VM's disks hold, to be made known when it is there.
    Snapshot {
        /// Whether it is the current one.
        is_current: bool,
        /// Its XML.
        xml: String,
    },
    /// libvirt is about to be asked to move it: from now on it may come, whatever is heard of its source.
    Go,
    /// It is gone from its source. Its CPUs are to run here, and it is to get its VFs, its snapshots and the time.
    Finish {
        /// Which VM, for an agent that was not told of it before.
        uuid: DomainUuid,
        /// Names this one move.
        id: String,
    },
    /// It does not come: what was claimed and made for it is to go, and a domain of it that is there.
    Abort {
        /// Whether a domain that is there is to be destroyed: only when the VM's CPUs run elsewhere.
        destroy: bool,
    },
    /// Where is this VM?
    State(DomainUuid),
    /// The agent is to move a VM of its own host.
    Migrate(Box<MoveOrder>),
}

/// A VM that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IncomingVm {
    pub(crate) name: DomainName,
    pub(crate) uuid: DomainUuid,
    /// Names this one move.
    pub(crate) id: String,
    /// The host that it comes from; `None` when OpenNebula did not say.
    pub(crate) from: Option<HostName>,
    /// What it should have; `None` for a VM without VFs.
    pub(crate) wanted: Option<Wanted>,
    /// The positions of those NICs that have no VF where it comes from.
    pub(crate) lacking: Vec<Position>,
    /// Its directory, when that is not shared and is to be made.
    pub(crate) dir: Option<PathBuf>,
}

/// A move that another host asks this one for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MoveOrder {
    pub(crate) id: DeployId,
    pub(crate) from: Option<HostName>,
    pub(crate) to: HostName,
    /// OpenNebula's description of the VM, if it sent one.
    pub(crate) data: Option<String>,
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentAnswer {
    /// Done.
    Done,
    /// Everything is checked and claimed.
    Ready {
        /// The dummies' bridge there; `None` for a VM without VFs.
        bridge: Option<String>,
    },
    /// Done as far as it goes: what is left for reconciliation.
    Left(String),
    /// Nothing was done, and why.
    Refused(String),
    /// The move it was asked for failed: the cause, and the state it leaves.
    Failed {
        /// Why.
        cause: String,
        /// The state that hosts and VM are left in.
        state: String,
    },
    /// Where the VM is.
    State(Presence),
}

/// Where a VM is, seen from one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Presence {
    /// Not on this host.
    Absent,
    /// It waits for its memory, or libvirt works on it: none of its CPUs has run here, or will run again.
    Incoming,
    /// Its CPUs run here.
    Running,
    /// It is here, whole, and its CPUs stand.
    Paused,
    /// It is ending.
    Ending,
    /// Not on this host any more: its CPUs ran here since the agent began to watch for it, or nobody knows.
    Ended,
}

impl Presence {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Absent, "none"),
        (Self::Incoming, "incoming"),
        (Self::Running, "running"),
        (Self::Paused, "paused"),
        (Self::Ending, "ending"),
        (Self::Ended, "ended"),
    ];
}

impl Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(presence, _)| presence == self).map_or("none", |(_, word)| word))
    }
}

impl FromStr for Presence {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.iter().find(|(_, word)| *word == text).map(|(presence, _)| *presence);
        found.ok_or_else(|| ParseError::new("none, incoming, running, paused, ending or ended", text))
    }
}

/// A line: a word, and values with names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    word: String,
    values: Vec<(String, String)>,
}

impl Message {
    fn new(word: &str) -> Self {
        Self { word: word.to_owned(), values: Vec::new() }
    }

    fn with(mut self, name: &str, value: impl Display) -> Self {
        self.values.push((name.to_owned(), value.to_string()));
        self
    }

    fn with_some(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Paths come from texts: an argument, or XML.
    fn with_path(self, name: &str, path: &std::path::Path) -> Self {
        self.with(name, path.display())
    }

    fn parse(line: &str) -> Result<Self, ParseError> {
        let mut parts = line.split(' ').filter(|part| !part.is_empty());
        let word = parts.next().ok_or_else(|| ParseError::new("a word", line))?.to_owned();
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').ok_or_else(|| ParseError::new("name=value", part))?;
            Ok((name.to_owned(), decode(value)?))
        };
        Ok(Self { word, values: parts.map(pair).collect::<Result<_, ParseError>>()? })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn some<T>(&self, name: &'static str) -> Result<Option<T>, ParseError>
    where
        T: FromStr,
    {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ParseError::new(name, text))
    }

    fn value<T>(&self, name: &'static str) -> Result<T, ParseError>
    where
        T: FromStr,
    {
        self.some(name)?.ok_or_else(|| ParseError::new(name, &self.word))
    }
}

impl Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.word)?;
        self.values.iter().try_for_each(|(name, value)| write!(f, " {name}={}", Encoded(value)))
    }
}

/// A value as it stands in a line: every byte but letters, digits and a few signs as `%xx`.
struct Encoded<'a>(&'a str);

impl Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b':' => {
                write!(f, "{}", char::from(byte))
            }
            _ => write!(f, "%{byte:02x}"),
        })
    }
}

fn decode(text: &str) -> Result<String, ParseError> {
    let wrong = || ParseError::new("a value with %xx for its odd bytes, in UTF-8", text);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit =
            |digit: Option<u8>| char::from(digit.unwrap_or(b'?')).to_digit(16).and_then(|n| u8::try_from(n).ok());
        let (high, low) = (digit(rest.next()).ok_or_else(wrong)?, digit(rest.next()).ok_or_else(wrong)?);
        bytes.push((high << 4) | low);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

impl AgentRequest {
    /// How long the answer is waited for; `None` for a whole move, which takes as long as its copy and ends with its program.
    ///
    /// * `call` - how long each call of libvirt may take there
    pub(crate) fn limit(&self, call: Duration) -> Option<Duration> {
        let calls = match self {
            Self::Migrate(_) => return None,
            Self::Image { .. } | Self::Symlink { .. } | Self::Snapshot { .. } | Self::Go | Self::State(_) => 2,
            Self::Prepare(_) | Self::Abort { .. } => 4,
            // One for each VF that a VM can have, and those around them.
            Self::Finish { .. } => 24,
        };
        Some(MARGIN + call * calls)
    }
}

impl Display for AgentRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = match self {
            Self::Prepare(visitor) => Message::new("prepare")
                .with("vm", &visitor.name)
                .with("uuid", &visitor.uuid)
                .with("id", &visitor.id)
                .with_some("from", visitor.from.as_ref())
                .with_some("wanted", visitor.wanted.as_ref().map(Wanted::to_unqualified_xml))
                .with_some("lacking", listed(&visitor.lacking))
                .with_some("dir", visitor.dir.as_ref().map(|dir| dir.display())),
            Self::Image { path, format, size } => {
                Message::new("image").with_path("path", path).with("format", format).with("size", size)
            }
            Self::Symlink { path, target } => {
                Message::new("symlink").with_path("path", path).with_path("target", target)
            }
            Self::Snapshot { is_current, xml } => Message::new("snapshot").with("current", is_current).with("xml", xml),
            Self::Go => Message::new("go"),
            Self::Finish { uuid, id } => Message::new("finish").with("uuid", uuid).with("id", id),
            Self::Abort { destroy } => Message::new("abort").with("destroy", destroy),
            Self::State(uuid) => Message::new("state").with("uuid", uuid),
            Self::Migrate(order) => Message::new("migrate")
                .with("vm", &order.id)
                .with_some("from", order.from.as_ref())
                .with("to", &order.to)
                .with_some("data", order.data.as_ref()),
        };
        message.fmt(f)
    }
}

impl FromStr for AgentRequest {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let message = Message::parse(line)?;
        Ok(match message.word.as_str() {
            "prepare" => Self::Prepare(Box::new(IncomingVm {
                name: message.value("vm")?,
                uuid: message.value("uuid")?,
                id: message.value("id")?,
                from: message.some("from")?,
                wanted: message.text("wanted").map(wanted).transpose()?,
                lacking: message.text("lacking").map(positions).transpose()?.unwrap_or_default(),
                dir: message.some("dir")?,
            })),
            "image" => Self::Image {
                path: message.value("path")?,
                format: message.value("format")?,
                size: message.value("size")?,
            },
            "symlink" => Self::Symlink { path: message.value("path")?, target: message.value("target")? },
            "snapshot" => Self::Snapshot { is_current: message.value("current")?, xml: message.value("xml")? },
            "go" => Self::Go,
            "finish" => Self::Finish { uuid: message.value("uuid")?, id: message.value("id")? },
            "abort" => Self::Abort { destroy: message.value("destroy")? },
            "state" => Self::State(message.value("uuid")?),
            "migrate" => Self::Migrate(Box::new(MoveOrder {
                id: message.value("vm")?,
                from: message.some("from")?,
                to: message.value("to")?,
                data: message.some("data")?,
            })),
            other => return Err(ParseError::new("a request of this version of the agent", other)),
        })
    }
}

/// Positions as they stand in a line; `None` for none.
fn listed(positions: &[Position]) -> Option<String> {
    let texts: Vec<String> = positions.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(":"))
}

fn positions(text: &str) -> Result<Vec<Position>, ParseError> {
    let position = |digits: &str| Position::new(digits.parse().map_err(|_| ParseError::new("a position", digits))?);
    text.split(':').map(position).collect()
}

/// Metadata of a newer version are refused here, before anything is touched.
fn wanted(text: &str) -> Result<Wanted, ParseError> {
    Wanted::parse(text).map_err(|error| ParseError::new("metadata that this host can read", &error.to_string()))
}

impl Display for AgentAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = match self {
            Self::Done => Message::new("done"),
            Self::Ready { bridge } => Message::new("ready").with_some("bridge", bridge.as_ref()),
            Self::Left(what) => Message::new("left").with("what", what),
            Self::Refused(why) => Message::new("refused").with("why", why),
            Self::Failed { cause, state } => Message::new("failed").with("cause", cause).with("state", state),
            Self::State(presence) => Message::new("state").with("is", presence),
        };
        message.fmt(f)
    }
}

impl FromStr for AgentAnswer {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let message = Message::parse(line)?;
        Ok(match message.word.as_str() {
            "done" => Self::Done,
            "ready" => Self::Ready { bridge: message.some("bridge")? },
            "left" => Self::Left(message.value("what")?),
            "refused" => Self::Refused(message.value("why")?),
            "failed" => Self::Failed { cause: message.value("cause")?, state: message.value("state")? },
            "state" => Self::State(message.value("is")?),
            other => return Err(ParseError::new("an answer of this version of the agent", other)),
        })
    }
}

impl From<&Cause> for AgentAnswer {
    fn from(cause: &Cause) -> Self {
        Self::Refused(cause.to_string())
    }
}

/// The level and the text of a line that one of the driver's programs logged; `None` for any other line.
fn logged<'l>(line: &'l str, program: &str) -> Option<(log::Level, &'l str)> {
    let (severity, text) = line.split_once(": ")?;
    let level = match severity {
        "ERROR" => log::Level::Error,
        "WARN" => log::Level::Warn,
        "INFO" => log::Level::Info,
        "DEBUG" => log::Level::Debug,
        _ => return None,
    };
    Some((level, text.strip_prefix(program).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10";
    const WANTED: &str = "<domain version='1.0'><nic mac='02:00:c0:a8:01:05' root='ib0' mode='hostdev' position='0'/>\
                          </domain>";

    fn requests(text: &str, number: u64, flag: bool) -> Vec<AgentRequest> {
        let path = || PathBuf::from(text);
        vec![
            AgentRequest::Prepare(Box::new(IncomingVm {
                name: "one-42".parse().unwrap(),
                uuid: UUID.parse().unwrap(),
                id: text.to_owned(),
                from: (!flag).then(|| "host1".parse().unwrap()),
                wanted: flag.then(|| Wanted::parse(WANTED).unwrap()),
                lacking: if flag { vec![Position::new(0).unwrap(), Position::new(15).unwrap()] } else { Vec::new() },
                dir: (!flag).then(path),
            })),
            AgentRequest::Image { path: path(), format: text.to_owned(), size: number },
            AgentRequest::Symlink { path: path(), target: path() },
            AgentRequest::Snapshot { is_current: flag, xml: text.to_owned() },
            AgentRequest::Go,
            AgentRequest::Finish { uuid: UUID.parse().unwrap(), id: text.to_owned() },
            AgentRequest::Abort { destroy: flag },
            AgentRequest::State(UUID.parse().unwrap()),
            AgentRequest::Migrate(Box::new(MoveOrder {
                id: UUID.parse().unwrap(),
                from: flag.then(|| "host1".parse().unwrap()),
                to: "host2".parse().unwrap(),
                data: (!flag).then(|| text.to_owned()),
            })),
        ]
    }

    fn answers(text: &str) -> Vec<AgentAnswer> {
        let text = || text.to_owned();
        let states = Presence::ALL.iter().map(|(presence, _)| AgentAnswer::State(*presence));
        vec![
            AgentAnswer::Done,
            AgentAnswer::Ready { bridge: None },
            AgentAnswer::Ready { bridge: Some(text()) },
            AgentAnswer::Left(text()),
            AgentAnswer::Refused(text()),
            AgentAnswer::Failed { cause: text(), state: text() },
        ]
        .into_iter()
        .chain(states)
        .collect()
    }

    #[test]
    fn the_lines_are_those_of_the_document() {
        let document = include_str!("../../../../docs/reference/agent.md");
        let all = requests("", 0, true).iter().map(ToString::to_string).collect::<Vec<_>>();
        for line in all.into_iter().chain(answers("").iter().map(ToString::to_string)) {
            let word = line.split(' ').next().unwrap();
            assert!(document.contains(&format!("`{word}")), "{word} is not in docs/reference/agent.md");
        }
        assert!(document.contains(&format!("{MAGIC} {VERSION} ")));
    }

    #[test]
    fn every_question_but_a_whole_move_has_a_limit() {
        for request in requests("x", 1, true) {
            let limit = request.limit(Duration::from_secs(300));
            assert_eq!(limit.is_none(), matches!(request, AgentRequest::Migrate(_)), "{request}");
            assert!(limit.is_none_or(|limit| limit >= Duration::from_secs(600)), "{request}");
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        for (line, problem) in [
            ("", "expected a word"),
            ("dance", "expected a request of this version of the agent, found \"dance\""),
            ("abort", "expected destroy, found \"abort\""),
            ("abort destroy=perhaps", "expected destroy, found \"perhaps\""),
            ("state uuid=%zz", "expected a value with %xx"),
            ("state uuid", "expected name=value, found \"uuid\""),
            ("migrate vm=one-1 to=-oProxyCommand", "expected to, found \"-oProxyCommand\""),
        ] {
            let error = line.parse::<AgentRequest>().unwrap_err().to_string();
            assert!(error.starts_with(problem), "{line:?}: {error}");
        }
        let newer = Message::new("prepare").with("vm", "one-42").with("uuid", UUID).with("id", "x");
        let newer = newer.with("wanted", WANTED.replace("1.0", "2.0")).to_string();
        assert!(newer.parse::<AgentRequest>().unwrap_err().to_string().contains("a newer kvm-sriov"), "{newer}");
        assert_eq!("go later=1".parse::<AgentRequest>().unwrap(), AgentRequest::Go, "a value of a later version");
    }

    proptest! {
        #[test]
        fn every_message_is_one_line_and_comes_back(text in any::<String>(), number in any::<u64>(), flag in any::<bool>()) {
            for request in requests(&text, number, flag) {
                let line = request.to_string();
                prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
                prop_assert_eq!(line.parse::<AgentRequest>().unwrap(), request);
            }
            for answer in answers(&text) {
                let line = answer.to_string();
                prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
                prop_assert_eq!(line.parse::<AgentAnswer>().unwrap(), answer);
            }
        }

        #[test]
        fn no_line_is_a_panic(line in any::<String>(), word in "(prepare|image|snapshot|go|abort|state|migrate|failed)( [a-z]{2,6}=[%a-f0-9]{0,8}){0,4}") {
            for line in [line, word] {
                drop(line.parse::<AgentRequest>());
                drop(line.parse::<AgentAnswer>());
            }
        }
    }
}
