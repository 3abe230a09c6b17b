//! Calls that are waited for until a deadline, and no longer.
//!
//! A C call in flight can't be cancelled. So each call runs on a thread of its own. When the deadline passes, the
//! caller goes on with an error; the thread ends when libvirt returns.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::LibvirtError;
use super::worker::{self, Work};
use crate::base::lock;
use crate::base::span::{Kind, Span};

/// Runs a call on a thread of its own and waits for it until the deadline.
pub(super) fn with_deadline<T, F>(name: &'static str, timeout: Duration, work: F) -> Result<T, LibvirtError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, LibvirtError> + Send + 'static,
{
    let answer = Answer::default();
    let place = answer.clone();
    wait_for(name, timeout, Box::new(move || place.put(work())))?;
    answer.take().unwrap_or_else(|| Err(panicked(name)))
}

/// The part of [`with_deadline`] that is the same for every type. It is compiled once, which keeps the programs small:
/// they are copied to every host.
fn wait_for(name: &'static str, timeout: Duration, work: Work) -> Result<(), LibvirtError> {
    if timeout.is_zero() {
        return Err(LibvirtError::no_time(name));
    }
    let _span = Span::begin(Kind::Call, name);
    let (sender, receiver) = mpsc::channel();
    worker::work(name, work, Ending(sender))?;
    match receiver.recv_timeout(timeout) {
        Err(RecvTimeoutError::Timeout) => Err(LibvirtError::no_answer(name, timeout.as_secs())),
        Ok(_) | Err(RecvTimeoutError::Disconnected) => Ok(()),
    }
}

/// What the thread of a call reports to the one that waits for it.
#[derive(PartialEq, Eq)]
pub(super) enum Signal {
    /// The thread has ended.
    Ended,
    /// The connection broke.
    Closed,
}

/// Sends [`Signal::Ended`] when it is dropped: when the call on a thread has ended or panicked.
pub(super) struct Ending(pub(super) Sender<Signal>);

impl Drop for Ending {
    fn drop(&mut self) {
        // After the deadline nobody listens any more.
        drop(self.0.send(Signal::Ended));
    }
}

/// Where the thread of a call puts its result. A result that comes after the deadline is dropped, which closes what it
/// holds.
pub(super) struct Answer<T>(Arc<Mutex<Option<Result<T, LibvirtError>>>>);

impl<T> Answer<T> {
    pub(super) fn put(&self, result: Result<T, LibvirtError>) {
        *lock(&self.0) = Some(result);
    }

    pub(super) fn take(&self) -> Option<Result<T, LibvirtError>> {
        lock(&self.0).take()
    }
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }
}

/// The error of a call that panicked.
pub(super) fn panicked(call: &str) -> LibvirtError {
    LibvirtError::other(format!("{call} ended by a panic"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::libvirt::LibvirtErrorKind;

    #[test]
    fn a_call_that_does_not_return_is_left_behind() {
        let begin = std::time::Instant::now();
        let error = with_deadline("virSlow", Duration::from_millis(50), || {
            thread::sleep(Duration::from_secs(600));
            Ok(())
        })
        .unwrap_err();
        assert_eq!(error.kind(), LibvirtErrorKind::NoAnswer);
        assert!(error.to_string().contains("virSlow"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(300));
    }
}
