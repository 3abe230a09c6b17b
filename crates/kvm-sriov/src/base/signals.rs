//! Signals that would interrupt an action halfway.

use nix::sys::signal::{SigSet, Signal};

/// Signals that ask a process to end: from an administrator, at shutdown of the host, or when a connection is lost.
fn ends() -> SigSet {
    [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Signals of the kernel to a process that reaches a limit: the size of a file, or the time on a CPU. Without the
/// first one, the write fails (EFBIG).
fn limits() -> SigSet {
    [Signal::SIGXFSZ, Signal::SIGXCPU].into_iter().collect()
}

/// Makes this process, its threads and the programs that it starts ignore requests to end (SIGTERM, SIGHUP) and the
/// signals of its limits (SIGXFSZ, SIGXCPU). An action then finishes or undoes what it began; its own timeouts end it.
/// Call this before the process starts a thread: threads that exist already are not changed.
///
/// SIGINT still ends the process, so that a person at a terminal can give up. SIGKILL can't be blocked; the next action
/// repairs what it leaves.
pub fn hold() {
    if let Err(error) = ends().thread_block().and_then(|()| limits().thread_block()) {
        log::warn!("signals may interrupt this action: {error}");
    }
}

/// Undoes [`hold`], which the action that started this process called, for the requests to end.
pub(crate) fn release() {
    if let Err(error) = ends().thread_unblock() {
        log::warn!("SIGTERM and SIGHUP do not end this process: {error}");
    }
}
