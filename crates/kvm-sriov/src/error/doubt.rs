//! Why reconciliation leaves a VM as it is, or leaves it to a person.

use std::fmt;

use crate::base::Position;

/// Why nothing is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// An action works on the VM.
    Locked,
    /// libvirt works on the VM.
    Job,
    /// The domain is ending.
    Ending,
    /// A later version began the operation.
    Newer,
    /// The image that the claims name can't be read.
    Unreadable,
    /// Something is to leave the guest at this position, and a guest that stands can't answer.
    GuestPaused(Position),
}

/// Why a person must say where a VM lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doubt {
    /// A move was cut off when the CPUs stood here: they may run at the other end.
    Migration,
    /// A save was cut off and the host was booted since: OpenNebula may have started the VM elsewhere.
    BeforeBoot,
    /// A restore was cut off and its checkpoint is gone: the CPUs may have run.
    NoCheckpoint,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("an action works on it"),
            Self::Job => f.write_str("libvirt works on it"),
            Self::Ending => f.write_str("it is ending"),
            Self::Newer => f.write_str("a newer kvm-sriov began the operation, and is to end it"),
            Self::Unreadable => f.write_str("the image that its claims name can't be read"),
            Self::GuestPaused(position) => {
                write!(f, "what is at position {position} is not wanted, but a guest that stands can't release it")
            }
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migration => "a move was cut off when its CPUs stood here: they may run at the other end",
            Self::BeforeBoot => {
                "a save was cut off before this host was booted: OpenNebula may have started it elsewhere since"
            }
            Self::NoCheckpoint => "a restore was cut off and its checkpoint is gone: nobody can tell whether it ran",
        })
    }
}
