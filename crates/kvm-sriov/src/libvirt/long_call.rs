//! Calls that take as long as a guest's memory or disks take.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virt::domain::Domain;

use super::connection::Connection;
use super::deadline::{Answer, Ending, Signal, panicked, with_deadline};
use super::{DomainRef, Libvirt, LibvirtError, ffi, worker};
use crate::base::lock;
use crate::base::span::{Kind, Span};

/// How long a call may go on after its connection broke. libvirt itself ends such a call at once.
const AFTER_CLOSE: Duration = Duration::from_secs(5);

/// A call that ends within this time needs no report of the end of its connection. That costs two round trips.
const QUICK: Duration = Duration::from_secs(1);

/// How often the progress of a long call is read.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long it may take to copy a GiB of memory into a file or out of one.
const COPY_PER_GIB: Duration = Duration::from_secs(50);

impl Libvirt {
    /// Makes a call without a fixed deadline. The call is given up when its connection breaks, and when `give_up` says
    /// so. Then the error is [`LibvirtErrorKind::NoAnswer`](super::LibvirtErrorKind::NoAnswer), and the call may still
    /// take effect.
    pub(super) fn long_call<T, F>(&self, name: &'static str, give_up: GiveUp, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, LibvirtError> + Send + 'static,
    {
        let connection = self.connection()?;
        let (sender, receiver) = mpsc::channel();
        let closed = sender.clone();
        let _span = Span::begin(Kind::Copy, name);
        let answer = Answer::default();
        let place = answer.clone();
        let worker = Arc::clone(&connection);
        let work = move || place.put(work(&worker).map_err(|error| worker.judge(error)));
        worker::work(name, Box::new(work), Ending(sender))?;
        // Dropped when this returns, or when libvirtd has answered.
        let ticket = Arc::new(Mutex::new(None));
        if receiver.recv_timeout(QUICK.min(give_up.next())) == Err(RecvTimeoutError::Timeout) {
            let (ending, place) = (Arc::clone(&connection), Arc::clone(&ticket));
            let listen = move || {
                *lock(&place) = Some(ending.tell_of_end(Box::new(move || drop(closed.send(Signal::Closed)))));
            };
            // Not waited for: the call may end first.
            if let Err(error) = worker::work("virConnectRegisterCloseCallback", Box::new(listen), ()) {
                log::debug!("{error}");
            }
            wait_for_end(name, &receiver, give_up, &connection)?;
        }
        answer.take().unwrap_or_else(|| {
            let broke = connection.closing.is_closed();
            let text = format!("the connection to libvirtd broke during {name}");
            Err(if broke { LibvirtError::disconnected(text) } else { panicked(name) })
        })
    }

    /// As [`Libvirt::long_call`] for one domain, given up when its job makes no progress.
    pub(super) fn long_on_domain<T, F>(
        &self,
        name: &'static str,
        domain: &DomainRef,
        work: F,
    ) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, LibvirtError> + Send + 'static,
    {
        let uuid = domain.uuid.to_string();
        let give_up = GiveUp::without_progress(uuid.clone(), self.patience.call);
        self.long_call(name, give_up, move |connection| connection.on_domain(&uuid, work))
    }
}

/// Waits until a call has ended, or its connection broke.
fn wait_for_end(
    name: &'static str,
    receiver: &Receiver<Signal>,
    mut give_up: GiveUp,
    connection: &Arc<Connection>,
) -> Result<(), LibvirtError> {
    loop {
        match receiver.recv_timeout(give_up.next()) {
            // libvirt itself ends the call at once, and its error says more than ours.
            Ok(Signal::Closed) => {
                drop(receiver.recv_timeout(AFTER_CLOSE));
                return Ok(());
            }
            Ok(Signal::Ended) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(seconds) = give_up.is_over(connection) {
                    return Err(LibvirtError::no_answer(name, seconds));
                }
            }
        }
    }
}

/// When a long call is given up, although libvirt has not answered.
pub(super) enum GiveUp {
    /// After this time.
    Limit(Duration),
    /// When none of the domain's memory or disks has been copied for too long. This happens when QEMU hangs: libvirtd
    /// still answers.
    NoProgress {
        /// The domain.
        uuid: String,
        /// The job's numbers when they were last read, and since when they have not changed.
        seen: (Option<ffi::JobStats>, Instant),
        /// The shortest time without progress that counts as a hang. Each GiB of memory adds to it: see [`copy_limit`].
        least: Duration,
    },
}

impl GiveUp {
    /// When the job of the domain with this UUID makes no progress.
    pub(super) fn without_progress(uuid: String, least: Duration) -> Self {
        Self::NoProgress { uuid, seen: (None, Instant::now()), least }
    }

    /// How long to wait before the next check.
    fn next(&self) -> Duration {
        match self {
            Self::Limit(limit) => *limit,
            Self::NoProgress { least, .. } => INTERVAL.min(*least),
        }
    }

    /// Checks the call. `Some` when it is to be given up: for how many seconds it has made no progress.
    fn is_over(&mut self, connection: &Arc<Connection>) -> Option<u64> {
        let (uuid, seen, least) = match self {
            Self::Limit(limit) => return Some(limit.as_secs()),
            Self::NoProgress { uuid, seen, least } => (uuid.clone(), seen, *least),
        };
        let connection = Arc::clone(connection);
        let found = with_deadline("virDomainGetJobStats", INTERVAL, move || {
            connection.on_domain(&uuid, |domain| Ok((ffi::job_stats(domain, false)?, domain.info()?.max_mem)))
        });
        // An error counts as no progress. The size of the memory is then unknown.
        let (now, memory_kib) = found.unwrap_or((seen.0, 0));
        if now != seen.0 {
            *seen = (now, Instant::now());
        }
        let quiet = seen.1.elapsed();
        (quiet >= copy_limit(least, memory_kib)).then_some(quiet.as_secs())
    }
}

/// How long it may take to copy memory of this size into a file, out of a file or into a snapshot. libvirt reports no
/// progress of a snapshot. The limit is `call`, plus 50 s for each GiB, which is 20 MiB/s.
pub(crate) fn copy_limit(call: Duration, memory_kib: u64) -> Duration {
    let gib = u32::try_from(memory_kib.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
    call.saturating_add(COPY_PER_GIB.saturating_mul(gib))
}
