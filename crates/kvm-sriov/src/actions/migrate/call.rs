//! The call to libvirt that moves a domain, watched while it runs.

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::Departure;
use crate::error::Cause;
use crate::host::{self, Host};
use crate::libvirt::{DomainRef, LibvirtError, LibvirtErrorKind};
use crate::os::{self, Side};

/// The time between two reads of a running copy's progress.
const LOOK: Duration = Duration::from_secs(1);

impl Departure<'_> {
    /// Has libvirt move the domain. Aborts the move when there is a reason to stop.
    pub(super) fn call(&mut self) -> Result<(), Cause> {
        self.go()?;
        let domain = self.found.domain().clone();
        let (hypervisor, migration, mover) = (self.host.shared_hypervisor(), self.migration.clone(), domain.clone());
        let (end, ended) = os::channel();
        let what = format!("migrate {} to {}", domain.name, self.agent.host());
        // Nobody receives an answer that comes too late.
        let call = move || drop(end.send(hypervisor.migrate(&mover, &migration)));
        if let Err(error) = os::spawn("migrate", Side::Process, call) {
            return Err(Cause::Call { what, source: LibvirtError::no_thread("virDomainMigrate3", &error) });
        }
        self.is_under_way = true;
        let mut progress = CopyLog::default();
        let mut stopped: Option<(Instant, Cause)> = None;
        let timeout = self.host.settings().call_timeout;
        loop {
            let answer = match ended.recv_timeout(LOOK) {
                Ok(answer) => Some(answer),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    Some(Err(LibvirtError::new(LibvirtErrorKind::Other, 0, "the call that moves it panicked")))
                }
            };
            if let Some(answer) = answer {
                return answer.map_err(|source| stopped.map_or(Cause::Call { what, source }, |(_, cause)| cause));
            }
            match &stopped {
                Some((since, _)) if os::since(*since) >= timeout => {
                    let text = format!("libvirt has not ended the aborted move for {} s", timeout.as_secs());
                    return Err(Cause::Call { what, source: LibvirtError::new(LibvirtErrorKind::NoAnswer, 0, text) });
                }
                // libvirt may still have been connecting to the destination. Its job begins later, and is aborted then.
                Some(_) => self.abort_job(&domain, log::Level::Debug),
                None => {
                    progress.look(self.host, &domain);
                    stopped = self.reason_to_stop().map(|cause| (os::now(), cause));
                    if let Some((_, cause)) = &stopped {
                        log::warn!("{cause}; the move is aborted");
                        self.abort_job(&domain, log::Level::Warn);
                    }
                }
            }
        }
    }

    fn abort_job(&self, domain: &DomainRef, level: log::Level) {
        if let Err(error) = self.host.hypervisor().abort_job(domain) {
            log::log!(level, "the move of {} could not be aborted: {error}", domain.name);
        }
    }
}

/// Log lines about a copy that runs.
#[derive(Default)]
struct CopyLog {
    said: usize,
}

impl CopyLog {
    /// How much is copied when a line is due, in percent.
    const LINES: [u64; 4] = [10, 25, 50, 75];

    fn look(&mut self, host: &Host, domain: &DomainRef) {
        let Ok(Some(job)) = host.hypervisor().job(domain) else { return };
        let Some((done, all)) = job.progress.filter(|(_, all)| *all > 0) else { return };
        host.report(|| host::Progress::Migrating { done, all });
        let percent = done.saturating_mul(100) / all;
        let passed = Self::LINES.iter().filter(|line| percent >= **line).count();
        if passed > self.said {
            self.said = passed;
            log::info!("{}: {percent} % of {} MiB copied", domain.name, all >> 20);
        }
    }
}
