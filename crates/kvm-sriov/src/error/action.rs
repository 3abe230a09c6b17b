//! A failed action, and the state of the host after it.

use std::fmt;

use super::Cause;
use crate::base::Action;

/// A failed action. Prints as one line: `action: cause; state of the host`.
#[derive(Debug)]
pub struct ActionError {
    action: Action,
    cause: Box<Cause>,
    state: HostState,
    exit: u8,
}

/// The state a failed action leaves the host in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostState {
    /// No domain was started and no VF claimed.
    NothingStarted,
    /// Nothing was changed.
    NothingChanged,
    /// The domain runs on as before.
    RunsOn,
    /// The domain was asked to end and may still do so; until an action finds it gone its VFs stay claimed.
    MayEnd,
    /// Nothing was saved, and the domain runs on as before.
    NothingSaved,
    /// Nothing was moved, and the domain runs on as before.
    NothingMoved,
    /// Nothing was restored, and the checkpoint is as it was.
    NothingRestored,
    /// Not everything could be undone: says exactly what is left.
    Left(String),
    /// It is as it was asked for.
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
            Self::Left(text) => text,
            Self::Done => "done",
        })
    }
}

impl ActionError {
    /// A failure of `action` with its cause and the state it leaves.
    pub fn new(action: Action, cause: impl Into<Cause>, state: HostState) -> Self {
        // The stock driver's codes: `exit -1` for deploy and a shutdown that timed out, the number of its tries for a NIC that
        // stays, 1 for the rest. Never 42, which makes OpenNebula copy all drivers again; so that number is always its default.
        let cause = cause.into();
        let exit = match (action, &cause) {
            (Action::Deploy, _) | (_, Cause::ShutdownTimeout { .. }) => 255,
            (Action::DetachNic, cause) if cause.is_not_released() => 3,
            _ => 1,
        };
        Self { action, cause: Box::new(cause), state, exit }
    }

    /// A failure before anything was touched.
    pub fn untouched(action: Action, cause: impl Into<Cause>) -> Self {
        let state = if action == Action::Deploy { HostState::NothingStarted } else { HostState::NothingChanged };
        Self::new(action, cause, state)
    }

    /// Why it failed.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    pub(crate) fn into_cause(self) -> Cause {
        *self.cause
    }

    /// The state the host is left in.
    pub fn state(&self) -> &HostState {
        &self.state
    }

    /// The program's exit code.
    pub fn exit_code(&self) -> u8 {
        self.exit
    }
}

impl fmt::Display for ActionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.action, self.cause, self.state)
    }
}

impl std::error::Error for ActionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.cause)
    }
}
