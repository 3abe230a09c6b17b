//! The clock of a guest that was stopped. The guest agent sets it from the hardware clock.

use std::time::Duration;

use crate::base::DomainId;
use crate::error::Cause;
use crate::host::Host;
use crate::host::detached;
use crate::libvirt::{DomainRef, LibvirtErrorKind};
use crate::os;

/// How many times the guest agent is asked, and the time between two tries, in which the agent may start.
///
/// # Source
/// OpenNebula's stock driver: four tries, 5 s apart.
const TRIES: usize = 4;
const BETWEEN: Duration = Duration::from_secs(5);

/// Starts the program that sets the clock, if SYNC_TIME asks for it. It is a program of its own because the agent may
/// need some time to answer.
pub(crate) fn start(host: &Host, domain: &DomainRef) {
    if host.settings().sync_time {
        detached::start(host, detached::CLOCK, domain);
    }
}

/// Sets a guest's clock. Tries for about 15 s. A guest without an agent keeps its clock.
///
/// # Errors
/// libvirtd does not answer. Nothing was changed.
pub fn sync_clock(host: &Host, id: &DomainId) -> Result<(), Cause> {
    for number in 1..=TRIES {
        let Some(domain) = host.hypervisor().find(id)? else { return Ok(()) };
        match host.hypervisor().sync_time(&domain) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == LibvirtErrorKind::NoDomain => return Ok(()),
            Err(error) => log::debug!("the clock of {} was not set: {error}", domain.name),
        }
        if number < TRIES {
            os::sleep(BETWEEN);
        }
    }
    Ok(())
}
