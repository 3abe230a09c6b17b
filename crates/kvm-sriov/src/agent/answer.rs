//! What an agent answers.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::Presence;
use super::message::Message;
use crate::base::ParseError;
use crate::error::Cause;

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentAnswer {
    /// The request was carried out.
    Done,
    /// Everything is checked and claimed.
    Ready {
        /// The bridge of the dummies on the agent's host; `None` for a VM without VFs.
        bridge: Option<String>,
    },
    /// The VM runs there; the text says what is left to reconciliation.
    Left(String),
    /// Nothing was changed; the text says why.
    Refused(String),
    /// The migration that the agent was asked to run failed.
    Failed {
        /// Why it failed.
        cause: String,
        /// The state in which it left the hosts and the VM.
        state: String,
    },
    /// Where the VM is.
    State(Presence),
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
