//! Where a VM is, seen from one host.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::base::{DomainId, DomainUuid, ParseError};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::{DomainRef, JobKind, RunState};

/// Where a VM is, seen from one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Presence {
    /// The VM is not on this host.
    Absent,
    /// The VM waits for its memory, or libvirt still works on it. None of its CPUs has run here, or will run again.
    Incoming,
    /// The VM's CPUs run here.
    Running,
    /// The whole VM is here, and its CPUs are paused.
    Paused,
    /// The VM is ending.
    Ending,
    /// The VM is no longer on this host. Its CPUs ran here since the agent began to watch it, or may have run.
    Ended,
}

impl Presence {
    pub(super) const ALL: [(Self, &'static str); 6] = [
        (Self::Absent, "none"),
        (Self::Incoming, "incoming"),
        (Self::Running, "running"),
        (Self::Paused, "paused"),
        (Self::Ending, "ending"),
        (Self::Ended, "ended"),
    ];

    /// Where a VM is now, and its domain if it has one here. Never [`Presence::Ended`]: one look can't tell.
    ///
    /// # Errors
    /// libvirtd does not answer.
    pub(super) fn on(host: &Host, uuid: &DomainUuid) -> Result<(Self, Option<DomainRef>), Cause> {
        let hypervisor = host.hypervisor();
        let Some(domain) = hypervisor.find(&DomainId::Uuid(uuid.clone()))? else { return Ok((Self::Absent, None)) };
        let comes_in = hypervisor.job(&domain)?.is_some_and(|job| job.kind == JobKind::MigrationIn);
        let presence = match hypervisor.state(&domain)? {
            None => return Ok((Self::Absent, None)),
            Some(RunState::Ending) => Self::Ending,
            Some(RunState::PausedForMigration) => Self::Incoming,
            Some(_) if comes_in => Self::Incoming,
            Some(RunState::Running) => Self::Running,
            Some(_) => Self::Paused,
        };
        Ok((presence, Some(domain)))
    }
}

/// The word of the protocol.
impl Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(presence, _)| presence == self).map_or("none", |(_, word)| word))
    }
}

impl FromStr for Presence {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.iter().find(|(_, word)| *word == text).map(|(presence, _)| *presence);
        found.ok_or_else(|| ParseError::new("none, incoming, running, paused, ending or ended", text))
    }
}
