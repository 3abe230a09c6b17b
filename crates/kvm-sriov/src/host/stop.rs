//! A token that tells actions to end early.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::Host;
use crate::error::Cause;
use crate::os;

/// Tells the actions of a [`Host`] to end early. Its clones are one token, for other threads.
///
/// An action looks at the token wherever it waits, and before each step. When the token is set, the action undoes what
/// it began, or finishes what can't be undone, and fails with [`Cause::Stopped`]. A request to release a device can't
/// be withdrawn; the domain then records it, so that a VF which the guest releases later is plugged back.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// use kvm_sriov::{Host, Stop};
/// # let host = Host::builder().uri("test:///default").journal(false).open()?;
/// let stop = Stop::new();
/// let host = host.with_stop(stop.clone());
/// // In another thread, or in a handler of a signal:
/// stop.stop();
/// assert!(stop.is_set());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Stop {
    since: Arc<OnceLock<Instant>>,
}

impl Stop {
    /// A token that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the token. It stays set.
    pub fn stop(&self) {
        self.since.get_or_init(os::now);
    }

    /// Whether the token is set.
    pub fn is_set(&self) -> bool {
        self.since().is_some()
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since.get().copied()
    }
}

impl Host {
    /// Gives the host a token that ends its actions early. A clone of the host with a token of its own serves one
    /// action.
    #[must_use]
    pub fn with_stop(self, stop: Stop) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// Whether this host has a token, so that a wait must look at it.
    pub(crate) fn has_stop(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether actions are to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(Stop::is_set)
    }

    /// Refuses the next step of an action when the token is set.
    ///
    /// # Errors
    /// [`Cause::Stopped`].
    pub(crate) fn check_stop(&self) -> Result<(), Cause> {
        if self.is_stopped() { Err(Cause::Stopped { kept: Vec::new() }) } else { Ok(()) }
    }
}
