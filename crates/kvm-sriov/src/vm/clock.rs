//! The clock of a guest that stood still: set from the hardware's, through the guest's agent.

use std::thread;
use std::time::Duration;

use crate::base::DeployId;
use crate::error::Cause;
use crate::host::Host;
use crate::host::detached;
use crate::libvirt::{DomainRef, LibvirtErrorKind};

/// How often the guest's agent is asked, and how long it is given to come up in between.
///
/// # Source
/// OpenNebula's stock driver: up to four tries, 5 s apart.
const TRIES: usize = 4;
const BETWEEN: Duration = Duration::from_secs(5);

/// Has the clock set by a program of its own, if SYNC_TIME asks for it: the agent may need a while to answer.
pub(crate) fn start(host: &Host, domain: &DomainRef) {
    if host.settings().sync_time {
        detached::start(host, detached::CLOCK, domain);
    }
}

/// Sets a guest's clock, trying for about 15 s. A guest without agent keeps its clock.
///
/// # Errors
/// libvirtd does not answer. Nothing was changed.
pub fn sync_clock(host: &Host, id: &DeployId) -> Result<(), Cause> {
    for number in 1..=TRIES {
        let Some(domain) = host.hypervisor().find(id)? else { return Ok(()) };
        match host.hypervisor().sync_time(&domain) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == LibvirtErrorKind::NoDomain => return Ok(()),
            Err(error) => log::debug!("the clock of {} was not set: {error}", domain.name),
        }
        if number < TRIES {
            thread::sleep(BETWEEN);
        }
    }
    Ok(())
}
