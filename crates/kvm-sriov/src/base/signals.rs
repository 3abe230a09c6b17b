//! Signals that would cut an action in two.

use nix::sys::signal::{SigSet, Signal};

/// What ends a process from outside: an administrator, a host that goes down, a connection that is lost.
fn ends() -> SigSet {
    [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// From now on this process, its threads and the programs that it starts go on when they are told to end (SIGTERM, SIGHUP): an action
/// finishes or undoes what it began, and its own deadlines end it. To be called before there is a thread.
///
/// SIGINT stays what it is, so that a person at a terminal can give up; SIGKILL can't be held, and what it leaves is put right
/// by the next action.
pub fn hold() {
    if let Err(error) = ends().thread_block() {
        log::warn!("SIGTERM and SIGHUP may cut this action off: {error}");
    }
}

/// Takes back what [`hold`] did in the action that started this process.
pub(crate) fn release() {
    if let Err(error) = ends().thread_unblock() {
        log::warn!("SIGTERM and SIGHUP do not end this process: {error}");
    }
}
