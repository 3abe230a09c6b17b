//! Jobs: what libvirt does with a whole domain for a longer time, such as a save or a migration.

use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;

use super::connection::Connection;
use super::deadline::with_deadline;
use super::error::{found, number};
use super::long_call::GiveUp;
use super::migration::Postcopy;
use super::text::{c_text, path_text, without_nul};
use super::{DomainRef, Libvirt, LibvirtError, LibvirtErrorKind, Migration, ffi, worker};
use crate::base::span::{Kind, Span};

/// A job that libvirt runs on a domain. While a job runs, the domain's devices can't be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Job {
    /// What the job does.
    pub kind: JobKind,
    /// Bytes of the guest that are copied for good, and all its bytes, when QEMU tells. The first number may fall while
    /// the guest goes on writing.
    pub progress: Option<(u64, u64)>,
    /// How long the guest was stopped at the end of a completed job, in milliseconds, when QEMU tells.
    pub downtime_ms: Option<u64>,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum JobKind {
    /// The domain is saved into a file.
    Save,
    /// The domain comes from another host. libvirt tells no more about such a job on the destination.
    MigrationIn,
    /// The domain goes to another host.
    MigrationOut,
    /// Anything else.
    #[default]
    Other,
}

/// Calls that save, restore and migrate domains, and that read and abort such jobs.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait JobCalls: Send + Sync {
    /// The job that runs on a domain; `None` when no job runs, or the domain is gone.
    fn job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError>;
    /// The last completed job of a domain, as far as libvirt remembers it. On the destination of a migration, this is
    /// that migration.
    fn completed_job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError>;
    /// Aborts the job that runs on a domain. `Ok` means that libvirt was asked.
    fn abort_job(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Saves a domain into a file and ends the domain. The file must exist; libvirtd keeps its owner and mode.
    fn save(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError>;
    /// The domain XML in a save image, with passwords.
    fn image_xml(&self, file: &Path) -> Result<String, LibvirtError>;
    /// Starts a domain from a save image, with `xml` in place of the image's own XML.
    ///
    /// * `paused` - the CPUs stay stopped until [`PowerCalls::resume`](super::PowerCalls::resume). Otherwise the domain
    ///   runs, or stays paused if it was paused when it was saved.
    /// * `limit` - the deadline of the call, such as [`Host::copy_limit`](crate::Host::copy_limit) of the domain's
    ///   memory
    fn restore(&self, file: &Path, xml: &str, paused: bool, limit: Duration) -> Result<(), LibvirtError>;
    /// Migrates a running domain to another host. This process is connected to both libvirtds and drives the migration.
    ///
    /// # Errors
    /// [`LibvirtErrorKind::Unreachable`](super::LibvirtErrorKind::Unreachable) when the destination's libvirtd can't be
    /// reached, or its connection was lost.
    fn migrate(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError>;
}

impl JobCalls for Libvirt {
    fn job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        let uuid = domain.uuid.to_string();
        let job = self.call("virDomainGetJobStats", move |connection| {
            connection.on_domain(&uuid, |domain| match ffi::job_stats(domain, false) {
                Ok(stats) => Ok(stats.map(|stats| Job { downtime_ms: None, ..job(stats) })),
                // The test driver does not support jobs.
                Err(error) if number(&error) == Some(ErrorNumber::NoSupport) => Ok(None),
                // qemuDomainGetJobStatsInternal refuses a domain that does not run, with the first code, and an
                // incoming domain, with either code depending on the version: "migration statistics are available only
                // on the source host".
                Err(error)
                    if matches!(
                        number(&error),
                        Some(ErrorNumber::OperationInvalid | ErrorNumber::OperationUnsupported)
                    ) =>
                {
                    Ok(domain.is_active()?.then(|| Job { kind: JobKind::MigrationIn, ..Job::default() }))
                }
                Err(error) => Err(error.into()),
            })
        });
        match job {
            Err(error) if error.kind() == LibvirtErrorKind::NoDomain => Ok(None),
            job => job,
        }
    }

    fn completed_job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetJobStats", move |connection| {
            // Looked up again: libvirt's test driver only says that it supports no jobs, even if the domain is gone.
            let stats =
                connection.connect.lookup_domain_by_uuid_string(&uuid).and_then(|domain| ffi::job_stats(&domain, true));
            Ok(found(stats, ErrorNumber::NoDomain)?.flatten().map(job))
        })
    }

    fn abort_job(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainAbortJob", domain, ffi::abort_job)
    }

    fn save(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError> {
        let file = c_text(path_text(file)?)?;
        self.long_on_domain("virDomainSaveFlags", domain, move |domain| Ok(ffi::save(domain, &file)?))
    }

    fn image_xml(&self, file: &Path) -> Result<String, LibvirtError> {
        let file = path_text(file)?.to_owned();
        self.call("virDomainSaveImageGetXMLDesc", move |connection| {
            Ok(connection.connect.save_image_xml_desc(&file, sys::VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)?)
        })
    }

    fn restore(&self, file: &Path, xml: &str, paused: bool, limit: Duration) -> Result<(), LibvirtError> {
        without_nul(xml)?;
        let (file, xml) = (path_text(file)?.to_owned(), xml.to_owned());
        let flags = if paused { sys::VIR_DOMAIN_SAVE_PAUSED } else { 0 };
        self.long_call("virDomainRestoreFlags", GiveUp::Limit(limit), move |connection| {
            Ok(connection.connect.restore_domain_flags(&file, Some(&xml), flags)?)
        })
    }

    fn migrate(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError> {
        without_nul(&migration.destination)?;
        let (parameters, flags) = migration.parameters()?;
        let (uri, events) = (migration.destination.clone(), self.connector.events.clone());
        let destination = {
            // libvirt starts its own ssh, unless the URI says otherwise.
            let _span = Span::begin(Kind::Ssh, "virConnectOpen");
            with_deadline("virConnectOpen", self.patience.left(), move || {
                Connection::open(&uri, events).map_err(|error| LibvirtError::open_destination(&error, &uri))
            })?
        };
        let (suspend_after, postcopy) = (migration.options.suspend_after(), migration.options.postcopy());
        let uri = migration.destination.clone();
        self.long_on_domain("virDomainMigrate3", domain, move |domain| {
            let (_ended, end) = mpsc::channel::<()>();
            if let Some(after) = suspend_after {
                suspend_later(domain.clone(), after, end)?;
            } else if let Some(when) = postcopy {
                postcopy_later(domain.clone(), when, end)?;
            }
            match ffi::migrate(domain, &destination.connect, &parameters, flags) {
                Ok(_moved) => Ok(()),
                Err(error) if !destination.is_alive() => Err(LibvirtError::lost_destination(&error, &uri)),
                Err(error) => Err(error.into()),
            }
        })
    }
}

/// The job with these numbers of libvirt.
fn job(stats: ffi::JobStats) -> Job {
    let kind = match stats.operation.and_then(|operation| u32::try_from(operation).ok()) {
        Some(sys::VIR_DOMAIN_JOB_OPERATION_SAVE) => JobKind::Save,
        Some(sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN) => JobKind::MigrationIn,
        Some(sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT) => JobKind::MigrationOut,
        _ => JobKind::Other,
    };
    // The bytes that were sent do not show the progress: pages of zeros need no bytes, and changed pages are sent
    // again.
    let progress = stats.remaining.zip(stats.all).map(|(remaining, all)| (all.saturating_sub(remaining), all));
    Job { kind, progress, downtime_ms: stats.downtime_ms }
}

/// Suspends a domain when its migration has not ended after this time, so that the copy catches up: `virsh migrate
/// --timeout`.
///
/// * `end` - is disconnected when the migration has ended
fn suspend_later(domain: Domain, after: Duration, end: Receiver<()>) -> Result<(), LibvirtError> {
    let suspend = move || {
        if end.recv_timeout(after) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        match domain.suspend() {
            Ok(()) => log::info!("the guest is suspended: its migration has not ended in {} s", after.as_secs()),
            Err(error) => log::warn!("the guest can't be suspended for its migration: {}", error.message()),
        }
    };
    worker::work("virDomainSuspend", Box::new(suspend), ())
}

/// How often the progress of a migration is read that may switch to post-copy.
const ITERATION_INTERVAL: Duration = Duration::from_millis(200);

/// Switches a migration to post-copy when `when` says so: `virsh migrate --postcopy-after-precopy`,
/// `--timeout-postcopy`.
///
/// # Source
/// libvirt `tools/virsh-domain.c`, `virshMigrateIteration`: at the second iteration.
fn postcopy_later(domain: Domain, when: Postcopy, end: Receiver<()>) -> Result<(), LibvirtError> {
    let begin = Instant::now();
    let is_due = move |domain: &Domain| {
        let is_late = when.after.is_some_and(|after| begin.elapsed() >= after);
        let iteration = || ffi::job_stats(domain, false).ok().flatten().and_then(|stats| stats.iteration);
        is_late || (when.after_first_pass && iteration().is_some_and(|iteration| iteration >= 2))
    };
    let start = move || {
        while end.recv_timeout(ITERATION_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if is_due(&domain) {
                match ffi::start_postcopy(&domain) {
                    Ok(()) => log::info!("the migration switches to post-copy"),
                    Err(error) => log::warn!("the migration can't switch to post-copy: {}", error.message()),
                }
                return;
            }
        }
    };
    worker::work("virDomainMigrateStartPostCopy", Box::new(start), ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_what_libvirt_tells_of_it() {
        let (iteration, downtime_ms) = (Some(2), Some(148));
        let stats = ffi::JobStats { operation: Some(5), remaining: Some(3), all: Some(10), iteration, downtime_ms };
        let moved = Job { kind: JobKind::MigrationOut, progress: Some((7, 10)), downtime_ms: Some(148) };
        assert_eq!(job(stats), moved);
        let unknown =
            ffi::JobStats { operation: None, remaining: Some(1), all: None, iteration: None, downtime_ms: None };
        assert_eq!(job(unknown), Job::default());
    }
}
