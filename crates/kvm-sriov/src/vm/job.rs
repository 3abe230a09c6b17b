//! A call to libvirt that lasts, watched while it runs.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::POLL;
use crate::error::Cause;
use crate::host::{Host, Progress};
use crate::libvirt::{DomainRef, LibvirtError};
use crate::os;

/// The time between two reports of a job's progress.
const REPORT: Duration = Duration::from_secs(1);

/// Makes a call that runs a job on a domain. Reports the job's progress, and aborts the job when the host is told to
/// stop.
///
/// * `step` - what is reported, from the bytes that are done and all bytes
///
/// # Errors
/// Those of the call; [`Cause::Stopped`] when it failed after the host was told to stop.
pub(crate) fn watched<T>(
    host: &Host,
    domain: &DomainRef,
    step: fn(u64, u64) -> Progress,
    call: impl FnOnce() -> Result<T, LibvirtError>,
) -> Result<T, Cause> {
    host.check_stop()?;
    if !host.has_stop() && !host.is_observed() {
        return Ok(call()?);
    }
    let result = thread::scope(|scope| {
        // Nothing is sent: the channel closes when the call has returned.
        let (end, ended) = mpsc::channel::<()>();
        let watcher = thread::Builder::new().name("job".into());
        let spawned = watcher.spawn_scoped(scope, move || watch(host, domain, step, &ended));
        if let Err(error) = spawned {
            log::warn!("the job on {} is not watched: {error}", domain.name);
        }
        let result = call();
        drop(end);
        result
    });
    match result {
        Err(error) if host.is_stopped() => {
            log::info!("the job on {} was aborted: {error}", domain.name);
            Err(Cause::Stopped { kept: Vec::new() })
        }
        other => Ok(other?),
    }
}

fn watch(host: &Host, domain: &DomainRef, step: fn(u64, u64) -> Progress, ended: &mpsc::Receiver<()>) {
    let mut reported: Option<Instant> = None;
    while ended.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
        if host.is_stopped() {
            // The job may not have begun, or may have ended: then the abort fails, and is tried again until the call
            // returns.
            if let Err(error) = host.hypervisor().abort_job(domain) {
                log::debug!("cannot abort the job on {}: {error}", domain.name);
            }
        } else if host.is_observed() && reported.is_none_or(|at| os::since(at) >= REPORT) {
            reported = Some(os::now());
            match host.hypervisor().job(domain) {
                Ok(job) => {
                    if let Some((done, all)) = job.and_then(|job| job.progress).filter(|(_, all)| *all > 0) {
                        host.report(|| step(done, all));
                    }
                }
                Err(error) => log::debug!("cannot read the job on {}: {error}", domain.name),
            }
        }
    }
}
