//! A failed action, and the state of the host after it.

use std::fmt;

use super::Cause;
use crate::base::{Action, escaped};

/// A failed action. Prints as one line: `action: cause; state of the host`.
///
/// The line contains the text of every error below it, so [`source`](std::error::Error::source) returns `None`.
/// [`ActionError::cause`] and [`ActionError::state`] are for programs, and so are [`ActionError::is_retryable`],
/// [`ActionError::leaves_doubt`] and [`ActionError::changed_anything`].
#[derive(Debug)]
pub struct ActionError {
    action: Action,
    cause: Box<Cause>,
    state: HostState,
    exit: u8,
}

/// The state in which a failed action leaves the host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostState {
    /// No domain was started and no VF is claimed.
    NothingStarted,
    /// Nothing was changed.
    NothingChanged,
    /// The domain runs as before.
    RunsOn,
    /// The domain was asked to end and may still do so. Its VFs stay claimed until an action finds that it is gone.
    MayEnd,
    /// Nothing was saved, and the domain runs as before.
    NothingSaved,
    /// Nothing was moved, and the domain runs as before.
    NothingMoved,
    /// Nothing was restored, and the checkpoint is as before.
    NothingRestored,
    /// Not everything could be undone. The text says exactly what is left.
    Left(String),
    /// It is unknown what was done, or what will still happen. The text says what is unknown.
    InDoubt(String),
    /// The action has done all that it was asked for.
    Done,
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NothingStarted => "nothing was started",
            Self::NothingChanged => "nothing was changed",
            Self::RunsOn => "the domain runs on",
            Self::MayEnd => "the domain may still end; its VFs are freed by the next action that finds it gone",
            Self::NothingSaved => "nothing was saved, the domain runs on",
            Self::NothingMoved => "nothing was moved, the domain runs on",
            Self::NothingRestored => "nothing was restored, the checkpoint is as it was",
            Self::Left(text) | Self::InDoubt(text) => text,
            Self::Done => "done",
        })
    }
}

impl ActionError {
    /// A failure of `action`, with its cause and the state in which it leaves the host.
    pub fn new(action: Action, cause: impl Into<Cause>, state: HostState) -> Self {
        let cause = cause.into();
        // The codes of OpenNebula's stock driver: `exit -1` for deploy and for a shutdown that timed out, the number of
        // its tries for a NIC that stays, and 1 for all others. A cause never chooses the code, so it is never 42:
        // that code makes OpenNebula copy all drivers again.
        let exit = match (action, &cause) {
            (Action::Deploy, _) | (_, Cause::ShutdownTimeout { .. }) => 255,
            (Action::DetachNic, cause) if cause.is_not_released() => 3,
            _ => 1,
        };
        Self { action, cause: Box::new(cause), state, exit }
    }

    /// A failure before the action changed anything.
    pub fn untouched(action: Action, cause: impl Into<Cause>) -> Self {
        let state = if action == Action::Deploy { HostState::NothingStarted } else { HostState::NothingChanged };
        Self::new(action, cause, state)
    }

    /// The action that failed.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Why it failed.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    pub(crate) fn into_cause(self) -> Cause {
        *self.cause
    }

    /// The state in which the host is left.
    pub fn state(&self) -> &HostState {
        &self.state
    }

    /// The exit code with which OpenNebula's program of this action ends.
    pub fn exit_code(&self) -> u8 {
        self.exit
    }
}

impl fmt::Display for ActionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.action, escaped(&self.cause.to_string()), escaped(&self.state.to_string()))
    }
}

impl std::error::Error for ActionError {}
