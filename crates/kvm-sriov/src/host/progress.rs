//! What an action does at the moment, for programs that show it.

use std::fmt;
use std::sync::Arc;

use super::Host;
use crate::base::{DomainName, PciAddress};

/// A step of an action, reported when it begins or while it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another action has the lock of the VM, and this one waits for it.
    WaitingForLock {
        /// The VM.
        vm: DomainName,
    },
    /// The guest is asked to release these VFs, all at once.
    Unplugging {
        /// Their addresses on the host.
        vfs: Vec<PciAddress>,
    },
    /// The guest has released a VF.
    Released {
        /// Its address on the host.
        vf: PciAddress,
    },
    /// A VF is plugged into the domain.
    Plugging {
        /// Its address on the host.
        vf: PciAddress,
    },
    /// libvirt writes the guest's memory into a file. Reported about once a second.
    Saving {
        /// The bytes that are written.
        done: u64,
        /// All bytes.
        all: u64,
    },
    /// libvirt copies the guest's memory to another host. Reported about once a second.
    Migrating {
        /// The bytes that are copied. The number may fall while the guest runs and writes.
        done: u64,
        /// All bytes.
        all: u64,
    },
}

/// A program's function that takes every [`Progress`].
#[derive(Clone)]
pub(super) struct Observer(Arc<dyn Fn(Progress) + Send + Sync>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl Host {
    /// Calls `observer` for each step of an action, from the thread that does the step. The action waits until it
    /// returns.
    #[must_use]
    pub fn with_progress(self, observer: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self { progress: Some(Observer(Arc::new(observer))), ..self }
    }

    /// Reports a step, if somebody wants to know.
    pub(crate) fn report(&self, step: impl FnOnce() -> Progress) {
        if let Some(Observer(observer)) = &self.progress {
            observer(step());
        }
    }

    /// Whether somebody wants to know the steps of an action.
    pub(crate) fn is_observed(&self) -> bool {
        self.progress.is_some()
    }
}
