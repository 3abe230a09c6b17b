//! Why reconciliation does not repair a VM, or leaves the decision to a person.

use std::fmt;

use crate::base::Position;

/// What keeps reconciliation from repairing a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// Another action works on the VM.
    Locked,
    /// A job of libvirt runs on the VM.
    Job,
    /// The domain is ending.
    Ending,
    /// A newer version of kvm-sriov began the operation.
    Newer,
    /// The save image that the claims name can't be read.
    Unreadable,
    /// A device at this position is not wanted, but the guest is paused and can't release it.
    GuestPaused(Position),
}

/// Why a person must say on which host a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doubt {
    /// A migration was interrupted while the VM's CPUs were stopped on this host, so the VM may run on the other host.
    Migration,
    /// A save was interrupted, and the host has booted since: OpenNebula may have started the VM elsewhere.
    BeforeBoot,
    /// A restore was interrupted, and its checkpoint is gone: the VM may have run since.
    NoCheckpoint,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("another action works on it"),
            Self::Job => f.write_str("a job of libvirt runs on it"),
            Self::Ending => f.write_str("it is ending"),
            Self::Newer => f.write_str("a newer version of kvm-sriov began the operation and must finish it"),
            Self::Unreadable => f.write_str("the save image that its claims name can't be read"),
            Self::GuestPaused(position) => {
                write!(f, "the device at position {position} is not wanted, but a paused guest can't release it")
            }
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migration => {
                "a migration was interrupted while the VM's CPUs were stopped on this host, so the VM may run on the other host"
            }
            Self::BeforeBoot => {
                "a save was interrupted and this host has booted since: OpenNebula may have started the VM elsewhere"
            }
            Self::NoCheckpoint => {
                "a restore was interrupted and its checkpoint is gone: nobody can tell whether the VM ran"
            }
        })
    }
}
