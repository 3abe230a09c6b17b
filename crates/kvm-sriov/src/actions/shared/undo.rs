//! Failures that could not be undone.

use crate::base::{Action, DomainName};
use crate::error::{ActionError, Cause, HostState};

/// The error of an action that failed, and whose undo failed as well.
///
/// * `left` - the state of the host
pub(crate) fn undo_failed(action: Action, cause: Cause, undo: impl Into<Cause>, left: String) -> ActionError {
    ActionError::new(action, cause.and_undo(undo.into()), HostState::InDoubt(left))
}

/// The state of a VM whose VFs could not be plugged back.
pub(crate) fn lacks_vfs(vm: &DomainName) -> String {
    format!("{vm} may lack VFs; kvm-sriov reconcile, or its next action, plugs them back")
}
