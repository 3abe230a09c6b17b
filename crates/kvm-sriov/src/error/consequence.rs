//! What a program can conclude from a failure: whether to try again, and whether to look first.

use std::io;

use super::{ActionError, AgentError, Cause, HostState, Obstacle, UnplugOutcome};
use crate::claims::ClaimError;
use crate::libvirt::{LibvirtError, LibvirtErrorKind};

impl ActionError {
    /// Whether the same call may succeed later although nobody changes the host's configuration: something was busy,
    /// away or too slow, or no VF was free.
    ///
    /// A call may be made again after any failure: an action first repairs what an earlier one left. `false` only says
    /// that it will fail in the same way.
    ///
    /// ```
    /// # use kvm_sriov::{ActionError, Action, Cause, HostState};
    /// let error = ActionError::untouched(Action::Save, Cause::Stopped { kept: Vec::new() });
    /// assert!(error.is_retryable() && !error.leaves_doubt() && !error.changed_anything());
    /// ```
    pub fn is_retryable(&self) -> bool {
        self.cause().is_retryable()
    }

    /// Whether it is unknown what the failed action has done, or still will do. Read the domain again (for example with
    /// [`Host::explain`](crate::Host::explain)) before you rely on anything.
    pub fn leaves_doubt(&self) -> bool {
        match self.state() {
            HostState::MayEnd | HostState::InDoubt(_) => true,
            _ => self.cause().is_about_doubt(),
        }
    }

    /// Whether the failed action may have changed anything that lasts. `false` means that the domain and its claims are
    /// as before, except that a VF which was unplugged and plugged back may have another address on the host, and that
    /// work of an earlier action may have been finished.
    pub fn changed_anything(&self) -> bool {
        match self.state() {
            HostState::NothingStarted
            | HostState::NothingChanged
            | HostState::RunsOn
            | HostState::NothingSaved
            | HostState::NothingMoved
            | HostState::NothingRestored => false,
            HostState::MayEnd | HostState::Left(_) | HostState::InDoubt(_) | HostState::Done => true,
        }
    }
}

impl Cause {
    /// Whether the same call may succeed later although nobody changes the host's configuration.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Libvirt(error) | Self::Call { source: error, .. } => is_temporary(error),
            Self::Claims(ClaimError::Exhausted { total, .. }) => *total > 0,
            Self::Claims(error) => matches!(error, ClaimError::Busy { .. } | ClaimError::Locked { .. }),
            Self::Agent(error) => {
                matches!(error, AgentError::NotStarted { .. } | AgentError::Lost { .. } | AgentError::NoAnswer { .. })
            }
            Self::OpenOperation { why, .. } => matches!(why, Obstacle::Locked | Obstacle::Job | Obstacle::Ending),
            Self::NotReleased { kept, .. } => kept.iter().all(|(.., outcome)| may_be_released(outcome)),
            Self::DeviceNotReleased { outcome, .. } => may_be_released(outcome),
            Self::File { source, .. } => source.kind() == io::ErrorKind::WouldBlock,
            Self::Twice { cause, .. } => cause.is_retryable(),
            Self::ShutdownTimeout { .. }
            | Self::StillThere { .. }
            | Self::JobRuns { .. }
            | Self::TooFew { .. }
            | Self::Stopped { .. } => true,
            _ => false,
        }
    }

    /// Whether the VM of the action was in doubt before, or is in doubt now.
    fn is_about_doubt(&self) -> bool {
        match self {
            Self::UnknownThere { .. } | Self::Unresolved { .. } => true,
            Self::Twice { cause, undo } => cause.is_about_doubt() || undo.is_about_doubt(),
            _ => false,
        }
    }

    /// Whether a call to libvirt failed because libvirtd was away, so that the call can be made again at once.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Libvirt(source) | Self::Call { source, .. } => source.is_passing(),
            _ => false,
        }
    }

    /// Whether a guest keeps what it was to release.
    pub(super) fn is_not_released(&self) -> bool {
        match self {
            Self::NotReleased { .. } | Self::DeviceNotReleased { .. } | Self::NotRunning { .. } => true,
            Self::Twice { cause, .. } => cause.is_not_released(),
            _ => false,
        }
    }

    /// Whether a call to libvirt may have taken effect, or still may, although it failed.
    pub(crate) fn leaves_doubt(&self) -> bool {
        match self {
            Self::Libvirt(source) | Self::Call { source, .. } => {
                matches!(source.kind(), LibvirtErrorKind::NoAnswer | LibvirtErrorKind::Disconnected)
            }
            _ => false,
        }
    }
}

/// Whether a failure of libvirt passes by itself.
fn is_temporary(error: &LibvirtError) -> bool {
    use LibvirtErrorKind::{
        ActiveBlockJob, Disconnected, DomainBusy, GuestBusy, NoAnswer, NoThread, NoTime, UnplugInProgress, Unreachable,
    };
    matches!(
        error.kind(),
        ActiveBlockJob
            | Disconnected
            | DomainBusy
            | GuestBusy
            | NoAnswer
            | NoThread
            | NoTime
            | Unreachable
            | UnplugInProgress
    )
}

fn may_be_released(outcome: &UnplugOutcome) -> bool {
    !matches!(outcome, UnplugOutcome::Refused(_))
}
