//! A domain as libvirt shows it: read, waited for, resumed.

use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::{DomainRef, JobKind, RunState};
use crate::os;
use crate::xml::LiveDomain;

/// Reads the live XML of a domain.
///
/// # Errors
/// The domain has ended, libvirtd does not answer, or the XML can't be read.
pub(crate) fn read(host: &Host, domain: &DomainRef) -> Result<LiveDomain, Cause> {
    LiveDomain::parse(&read_text(host, domain)?)
        .map_err(|source| Cause::Xml { what: format!("the live XML of {}", domain.name), source })
}

/// Reads the live XML of a domain as text.
///
/// # Errors
/// The domain has ended, or libvirtd does not answer.
pub(crate) fn read_text(host: &Host, domain: &DomainRef) -> Result<String, Cause> {
    host.hypervisor().live_xml(domain)?.ok_or_else(|| Cause::Absent { id: domain.name.to_string() })
}

/// Refuses an action that needs an answer of the guest when the guest's CPUs are stopped.
///
/// # Errors
/// [`Cause::NotRunning`], or libvirtd does not answer. Nothing was changed.
pub(crate) fn check_answers(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    let how = match host.hypervisor().state(domain)? {
        Some(RunState::Running) | None => return Ok(()),
        Some(RunState::PmSuspended) => "suspended by itself",
        Some(_) => "paused",
    };
    Err(Cause::NotRunning { vm: domain.name.clone(), how })
}

/// Waits until no job of libvirt runs on a domain. A job may go on although the call that began it has failed.
///
/// * `what` - the job: "its migration" ...
///
/// # Errors
/// [`Cause::JobRuns`] when the job goes on after `limit`, or libvirtd does not answer.
pub(crate) fn wait_for_job(host: &Host, domain: &DomainRef, limit: Duration, what: &'static str) -> Result<(), Cause> {
    let is_free = || Ok(host.hypervisor().job(domain)?.is_none());
    if host.wait_until(Some(os::now() + limit), is_free)? {
        Ok(())
    } else {
        Err(Cause::JobRuns { vm: domain.name.clone(), what })
    }
}

/// Lets the CPUs of a paused domain run.
///
/// # Errors
/// The CPUs are stopped, or libvirtd does not answer. A call whose answer was lost is no error when the CPUs run.
pub(crate) fn resume(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    let hypervisor = host.hypervisor();
    host.patiently(|| {
        let Err(error) = hypervisor.resume(domain) else { return Ok(()) };
        if hypervisor.state(domain)?.is_some_and(RunState::runs) { Ok(()) } else { Err(error.into()) }
    })
}

/// Aborts a save that libvirt goes on with although the call has failed. The save may have ended before that: then the
/// domain is gone.
///
/// # Errors
/// [`Cause::JobRuns`] when the save goes on until `end`, because QEMU does not answer; or libvirtd does not answer.
pub(crate) fn abort_save(host: &Host, domain: &DomainRef, end: Instant) -> Result<(), Cause> {
    let hypervisor = host.hypervisor();
    let mut is_aborted = false;
    let has_ended = host.wait_until(Some(end), || {
        if hypervisor.job(domain)?.is_none_or(|job| job.kind != JobKind::Save) {
            return Ok(true);
        }
        if !is_aborted {
            match hypervisor.abort_job(domain) {
                Ok(()) => is_aborted = true,
                // The save may have ended just now. The next read of the job tells.
                Err(error) => log::debug!("cannot abort the save of {}: {error}", domain.name),
            }
        }
        Ok(false)
    })?;
    if has_ended { Ok(()) } else { Err(Cause::JobRuns { vm: domain.name.clone(), what: "its save" }) }
}
