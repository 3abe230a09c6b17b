//! The connection to libvirtd: every call on a thread of its own, and a new connection when the old one broke.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{CString, c_int};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::error::{Error, ErrorNumber, clear_error_callback};
use virt::sys;

use super::error::{LibvirtError, number};
use super::event_loop::LoopUser;
use super::ffi::{self, Callback, Watched};
use super::migration::Postcopy;
use super::watch::{Closing, Sink, Ticket, lock};
use super::worker::{self, Work};
use super::{BlockJob, DomainRef, Event, Events, Hypervisor, Job, JobKind, Migration, RunState, Snapshots, Usage};
use crate::base::span::{Kind, Span};
use crate::base::{DeployId, DomainUuid};

/// libvirtd is asked for a sign of life this often, in seconds ...
const KEEPALIVE_INTERVAL: i32 = 10;
/// ... and a connection is dead after this many without an answer.
const KEEPALIVE_COUNT: u32 = 6;

/// How long a call without a deadline may go on after its connection broke: libvirt itself ends it at once.
const AFTER_CLOSE: Duration = Duration::from_secs(5);

/// Between two looks at a call that copies.
const LOOK: Duration = Duration::from_secs(10);

/// How long a GiB of memory may take on its way into a file or out of it.
const COPY_PER_GIB: Duration = Duration::from_secs(50);

/// How long the end of a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The same when there is no time left.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to libvirtd.
///
/// A C call in flight can't be cancelled. So each runs on a thread of its own, and when `call_timeout` passes the caller goes
/// on with [`LibvirtErrorKind::NoAnswer`](super::LibvirtErrorKind::NoAnswer); the thread ends when libvirt returns.
///
/// When libvirtd is restarted, the calls in flight fail with
/// [`LibvirtErrorKind::Disconnected`](super::LibvirtErrorKind::Disconnected), and the next call opens a new connection. Nothing
/// is repeated here: the caller knows whether it may ask twice, and how long it wants to try.
///
/// ```
/// use std::time::Duration;
/// use kvm_sriov::libvirt::{Hypervisor, Libvirt};
/// let libvirt = Libvirt::open("test:///default", Duration::from_secs(30))?;
/// let domain = libvirt.find(&"test".parse()?)?.ok_or("the test driver has a domain")?;
/// assert!(libvirt.live_xml(&domain)?.is_some_and(|xml| xml.starts_with("<domain")));
/// libvirt.destroy(&domain)?;
/// assert!(!libvirt.domains()?.contains(&domain));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Libvirt {
    line: Arc<Line>,
    patience: Patience,
}

/// How long calls are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Each of them.
    call: Duration,
    /// All of them.
    end: Option<Instant>,
}

impl Patience {
    pub(super) fn of(call: Duration) -> Self {
        Self { call, end: None }
    }

    /// How long the next call may take.
    fn left(self) -> Duration {
        self.left_of(self.call)
    }

    /// How long a call may take that has its own limit.
    fn left_of(self, limit: Duration) -> Duration {
        self.end.map_or(limit, |end| limit.min(end.saturating_duration_since(Instant::now())))
    }

    /// How long it may take to let something go.
    fn last(self) -> Duration {
        self.left().clamp(LAST_TIMEOUT, CLOSE_TIMEOUT)
    }
}

/// The way to one libvirtd, over connections that may break.
struct Line {
    uri: String,
    events: Option<Arc<LoopUser>>,
    connection: Mutex<Option<Arc<Connection>>>,
}

/// One connection, kept alive by what uses it: calls in flight and subscriptions. It is closed before its loop may end:
/// fields drop in this order.
pub(super) struct Connection {
    connect: Connect,
    pub(super) closing: Arc<Closing>,
    watched: Mutex<BTreeMap<String, WatchedDomain>>,
    _events: Option<Arc<LoopUser>>,
}

impl Libvirt {
    /// Connects to `uri` and runs libvirt's event loop on a thread of this process until the last connection is closed.
    ///
    /// * `call_timeout` - the longest that any one call, this one included, may take
    ///
    /// # Errors
    /// libvirtd can't be reached, or refuses this user; the text says what to do.
    pub fn open(uri: &str, call_timeout: Duration) -> Result<Self, LibvirtError> {
        Self::connect(uri, Patience::of(call_timeout), Some(Arc::new(LoopUser::start()?)))
    }

    /// As [`Libvirt::open`], but at `end` no call with a deadline is waited for any more, and none is begun after it.
    ///
    /// # Errors
    /// As [`Libvirt::open`].
    pub fn open_until(uri: &str, call_timeout: Duration, end: Instant) -> Result<Self, LibvirtError> {
        let patience = Patience { call: call_timeout, end: Some(end) };
        Self::connect(uri, patience, Some(Arc::new(LoopUser::start()?)))
    }

    /// Connects to `uri` in a program that runs libvirt's event loop itself (`virEventRunDefaultImpl`, or an implementation
    /// of its own). Without a running loop libvirt would close the connection for want of keepalive answers, and no event
    /// would ever come.
    ///
    /// # Errors
    /// As [`Libvirt::open`].
    pub fn open_in_own_loop(uri: &str, call_timeout: Duration) -> Result<Self, LibvirtError> {
        Self::connect(uri, Patience::of(call_timeout), None)
    }

    fn connect(uri: &str, patience: Patience, events: Option<Arc<LoopUser>>) -> Result<Self, LibvirtError> {
        without_nul(uri)?;
        // libvirt prints every error on stderr unless told otherwise; OpenNebula would show it to a user.
        clear_error_callback();
        let libvirt =
            Self { line: Arc::new(Line { uri: uri.to_owned(), events, connection: Mutex::new(None) }), patience };
        libvirt.connection()?;
        Ok(libvirt)
    }

    pub(super) fn connection(&self) -> Result<Arc<Connection>, LibvirtError> {
        let line = Arc::clone(&self.line);
        with_deadline("virConnectOpen", self.patience.left(), move || line.connection())
    }

    /// A call that ends at the deadline. A connection that broke since the last call is opened anew in the same time.
    fn call<T, F>(&self, name: &'static str, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, LibvirtError> + Send + 'static,
    {
        self.boxed_call(name, self.patience.left(), Box::new(work))
    }

    /// As [`Libvirt::call`], with a limit of its own.
    fn call_within<T, F>(&self, limit: Duration, name: &'static str, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, LibvirtError> + Send + 'static,
    {
        self.boxed_call(name, self.patience.left_of(limit), Box::new(work))
    }

    /// The part of [`Libvirt::call`] that is the same for all calls of one type: programs are copied to every host, so they are
    /// kept small.
    fn boxed_call<T: Send + 'static>(
        &self,
        name: &'static str,
        limit: Duration,
        work: On<Connect, T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        let line = Arc::clone(&self.line);
        with_deadline(name, limit, move || {
            let connection = line.connection()?;
            work(&connection.connect).map_err(|error| connection.judge(error))
        })
    }

    fn on_domain<T, F>(&self, name: &'static str, domain: &DomainRef, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    {
        self.boxed_on_domain(name, domain, Box::new(work))
    }

    fn boxed_on_domain<T: Send + 'static>(
        &self,
        name: &'static str,
        domain: &DomainRef,
        work: On<Domain, T, Error>,
    ) -> Result<T, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call(name, move |connect| Ok(work(&connect.lookup_domain_by_uuid_string(&uuid)?)?))
    }

    /// A call that takes as long as a guest's memory or disks take. It ends early when its connection breaks, and when its watch
    /// says so: then [`LibvirtErrorKind::NoAnswer`](super::LibvirtErrorKind::NoAnswer), and the call may still take effect.
    pub(super) fn long_call<T, F>(&self, name: &'static str, mut watch: Watch, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, LibvirtError> + Send + 'static,
    {
        let connection = self.connection()?;
        let _span = Span::begin(Kind::Copy, name);
        let (sender, receiver) = mpsc::channel();
        let closed = sender.clone();
        let _ticket = connection.closing.tell(Box::new(move || drop(closed.send(Signal::Closed))));
        let answer = Answer::default();
        let place = answer.clone();
        let worker = Arc::clone(&connection);
        let work = move || place.put(work(&worker.connect).map_err(|error| worker.judge(error)));
        worker::work(name, Box::new(work), Ending(sender))?;
        loop {
            match receiver.recv_timeout(watch.next()) {
                // libvirt itself ends the call at once: it may still have something to say.
                Ok(Signal::Closed) => {
                    drop(receiver.recv_timeout(AFTER_CLOSE));
                    break;
                }
                Ok(Signal::Ended) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(seconds) = watch.is_over(&connection) {
                        return Err(LibvirtError::no_answer(name, seconds));
                    }
                }
            }
        }
        answer.take().unwrap_or_else(|| {
            let broke = connection.closing.is_closed();
            let text = format!("the connection to libvirtd broke during {name}");
            Err(if broke { LibvirtError::disconnected(text) } else { panicked(name) })
        })
    }

    fn long_on_domain<T, F>(&self, name: &'static str, domain: &DomainRef, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, LibvirtError> + Send + 'static,
    {
        let uuid = domain.uuid.to_string();
        let watch = Watch::progress_of(uuid.clone(), self.patience.call);
        self.long_call(name, watch, move |connect| work(&connect.lookup_domain_by_uuid_string(&uuid)?))
    }
}

/// When a long call is not waited for any longer.
pub(super) enum Watch {
    /// After this time.
    Limit(Duration),
    /// When nothing of the domain's memory or disks has moved for too long: QEMU stands still, and libvirtd answers all the same.
    Progress {
        uuid: String,
        /// How much was left at the last look, and since when it has not changed.
        seen: (Option<ffi::JobStats>, Instant),
        /// How long that may be, whatever memory the domain has.
        least: Duration,
    },
}

impl Watch {
    pub(super) fn progress_of(uuid: String, least: Duration) -> Self {
        Self::Progress { uuid, seen: (None, Instant::now()), least }
    }

    /// How long nothing is looked at.
    fn next(&self) -> Duration {
        match self {
            Self::Limit(limit) => *limit,
            Self::Progress { least, .. } => LOOK.min(*least),
        }
    }

    /// Looks. For how many seconds nothing has moved, when that is too long.
    fn is_over(&mut self, connection: &Arc<Connection>) -> Option<u64> {
        let (uuid, seen, least) = match self {
            Self::Limit(limit) => return Some(limit.as_secs()),
            Self::Progress { uuid, seen, least } => (uuid.clone(), seen, *least),
        };
        let connection = Arc::clone(connection);
        let looked = with_deadline("virDomainGetJobStats", LOOK, move || {
            let domain = connection.connect.lookup_domain_by_uuid_string(&uuid)?;
            Ok((ffi::job_stats(&domain, false)?, domain.info()?.max_mem))
        });
        // What can't be seen has not moved, and of the memory nothing is known.
        let (now, memory_kib) = looked.unwrap_or((seen.0, 0));
        if now != seen.0 {
            *seen = (now, Instant::now());
        }
        let quiet = seen.1.elapsed();
        (quiet >= copy_limit(least, memory_kib)).then_some(quiet.as_secs())
    }
}

/// How long memory of this size may take on its way into a file or out of one, or into a snapshot, of which libvirt tells nothing:
/// a call's time, and 50 s for each GiB, which is 20 MiB/s.
pub(crate) fn copy_limit(call: Duration, memory_kib: u64) -> Duration {
    let gib = u32::try_from(memory_kib.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
    call.saturating_add(COPY_PER_GIB.saturating_mul(gib))
}

impl Drop for Libvirt {
    /// Closes the connection, but does not wait for ever for a libvirtd that does not answer.
    fn drop(&mut self) {
        let line = Arc::clone(&self.line);
        let closed = with_deadline("virConnectClose", self.patience.last(), move || {
            let connection = lock(&line.connection).take();
            drop(connection);
            Ok(())
        });
        if let Err(error) = closed {
            log::debug!("{error}");
        }
    }
}

impl Line {
    /// The connection, opened anew if it broke.
    fn connection(&self) -> Result<Arc<Connection>, LibvirtError> {
        let mut place = lock(&self.connection);
        if let Some(connection) = place.as_ref() {
            if connection.is_alive() {
                return Ok(Arc::clone(connection));
            }
            log::debug!("the connection to {} broke; opening a new one", self.uri);
        }
        let opened = Connection::open(&self.uri, self.events.clone());
        match opened {
            Ok(connection) => {
                let connection = Arc::new(connection);
                let old = place.replace(Arc::clone(&connection));
                drop(place);
                drop(old);
                Ok(connection)
            }
            // Who was connected before may just wait for libvirtd to come back.
            Err(error) if place.is_some() => Err(LibvirtError::reopen(&error, &self.uri)),
            Err(error) => Err(LibvirtError::open(&error, &self.uri)),
        }
    }
}

impl Connection {
    fn open(uri: &str, events: Option<Arc<LoopUser>>) -> Result<Self, Error> {
        let connect = Connect::open(Some(uri))?;
        // The test driver and connections without a daemon have none of these and need none.
        if let Err(error) = connect.set_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT) {
            log::debug!("no keepalive on {uri}: {}", error.message());
        }
        let closing = Closing::new();
        if let Err(error) = ffi::register_close(&connect, closing.number()) {
            log::debug!("no close callback on {uri}: {}", error.message());
        }
        Ok(Self { connect, closing, watched: Mutex::default(), _events: events })
    }

    fn is_alive(&self) -> bool {
        !self.closing.is_closed() && self.connect.is_alive().unwrap_or(false)
    }

    /// A failure that no other kind fits is the connection's if that is broken: libvirt's texts for it are many.
    pub(super) fn judge(&self, error: LibvirtError) -> LibvirtError {
        if self.is_alive() { error } else { error.by_disconnection() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The callback keeps the connection open. A connection that broke has none any more.
        if let Err(error) = ffi::unregister_close(&self.connect) {
            log::debug!("no close callback to take back: {}", error.message());
        }
    }
}

/// What a call on its own thread says of itself.
enum Signal {
    /// The thread has ended.
    Ended,
    /// The connection broke.
    Closed,
}

/// Tells the end of a thread, also when it panics.
struct Ending(Sender<Signal>);

impl Drop for Ending {
    fn drop(&mut self) {
        // After the deadline nobody listens any more.
        drop(self.0.send(Signal::Ended));
    }
}

/// A call on one of libvirt's objects.
type On<O, T, E> = Box<dyn FnOnce(&O) -> Result<T, E> + Send>;

/// Where a call on its own thread puts its result. What comes after the deadline is dropped, which closes what it holds.
struct Answer<T>(Arc<Mutex<Option<Result<T, LibvirtError>>>>);

impl<T> Answer<T> {
    fn put(&self, result: Result<T, LibvirtError>) {
        *lock(&self.0) = Some(result);
    }

    fn take(&self) -> Option<Result<T, LibvirtError>> {
        lock(&self.0).take()
    }
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }
}

fn panicked(call: &str) -> LibvirtError {
    LibvirtError::other(format!("{call} ended by a panic"))
}

/// The callbacks for one domain of a connection, which all its watchers share: libvirt takes each only once.
struct WatchedDomain {
    watchers: usize,
    sink: Arc<Sink>,
    callbacks: Vec<Callback>,
    _ticket: Ticket,
}

impl Connection {
    /// Registers all callbacks for a domain, or none.
    fn register(&self, domain: &Domain) -> Result<WatchedDomain, LibvirtError> {
        let sink = Sink::new();
        let ending = Arc::clone(&sink);
        let ticket = self.closing.tell(Box::new(move || ending.disconnect()));
        let mut callbacks = Vec::new();
        for watched in Watched::ALL {
            match ffi::register(&self.connect, domain, watched, &sink) {
                Ok(callback) => callbacks.push(callback),
                Err(error) => {
                    self.deregister(callbacks);
                    return Err(error.into());
                }
            }
        }
        Ok(WatchedDomain { watchers: 0, sink, callbacks, _ticket: ticket })
    }

    fn deregister(&self, callbacks: Vec<Callback>) {
        for callback in callbacks {
            if let Err(error) = ffi::deregister(&self.connect, callback) {
                log::debug!("libvirtd was not told that a callback is gone: {}", error.message());
            }
        }
    }
}

/// One watcher of a domain.
pub(super) struct Subscription {
    connection: Arc<Connection>,
    uuid: String,
    sink: Arc<Sink>,
    key: usize,
    patience: Patience,
}

impl Subscription {
    pub(super) fn new(
        connection: Arc<Connection>,
        uuid: &str,
        sender: Sender<Event>,
        patience: Patience,
    ) -> Result<Self, LibvirtError> {
        let domain = connection.connect.lookup_domain_by_uuid_string(uuid)?;
        let (sink, key) = {
            // Held across libvirt's calls, so that the callbacks of the last watcher are gone before new ones come. libvirt's
            // callbacks do not take it.
            let mut all = lock(&connection.watched);
            let watched = match all.entry(uuid.to_owned()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(connection.register(&domain)?),
            };
            watched.watchers += 1;
            (Arc::clone(&watched.sink), watched.sink.add(sender))
        };
        let subscription = Self { connection, uuid: uuid.to_owned(), sink, key, patience };
        // It may have broken before the sender was there.
        if subscription.connection.closing.is_closed() {
            subscription.sink.disconnect();
        }
        Ok(subscription)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // From here on nothing comes out, whatever libvirt still calls.
        self.sink.remove(self.key);
        let (connection, uuid) = (Arc::clone(&self.connection), std::mem::take(&mut self.uuid));
        let done = with_deadline("virConnectDomainEventDeregisterAny", self.patience.last(), move || {
            let mut all = lock(&connection.watched);
            if let Entry::Occupied(mut entry) = all.entry(uuid) {
                entry.get_mut().watchers -= 1;
                if entry.get().watchers == 0 {
                    connection.deregister(entry.remove().callbacks);
                }
            }
            drop(all);
            Ok(())
        });
        if let Err(error) = done {
            log::debug!("{error}");
        }
    }
}

/// The one who waits for a domain that need not be here yet.
struct Arrival {
    connection: Arc<Connection>,
    sink: Arc<Sink>,
    key: usize,
    callback: Option<Callback>,
    patience: Patience,
    _ticket: Ticket,
}

impl Arrival {
    fn new(
        connection: Arc<Connection>,
        uuid: &DomainUuid,
        sender: Sender<Event>,
        patience: Patience,
    ) -> Result<Self, LibvirtError> {
        let sink = Sink::new();
        let key = sink.add(sender);
        let ending = Arc::clone(&sink);
        let ticket = connection.closing.tell(Box::new(move || ending.disconnect()));
        let callback = Some(ffi::register_arrival(&connection.connect, uuid, &sink)?);
        Ok(Self { connection, sink, key, callback, patience, _ticket: ticket })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // From here on nothing comes out, whatever libvirt still calls.
        self.sink.remove(self.key);
        let (connection, callback) = (Arc::clone(&self.connection), self.callback.take());
        let done = with_deadline("virConnectDomainEventDeregisterAny", self.patience.last(), move || {
            connection.deregister(callback.into_iter().collect());
            Ok(())
        });
        if let Err(error) = done {
            log::debug!("{error}");
        }
    }
}

/// Runs a call on its own thread and waits for it until the deadline.
fn with_deadline<T, F>(name: &'static str, timeout: Duration, work: F) -> Result<T, LibvirtError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, LibvirtError> + Send + 'static,
{
    let answer = Answer::default();
    let place = answer.clone();
    wait_for(name, timeout, Box::new(move || place.put(work())))?;
    answer.take().unwrap_or_else(|| Err(panicked(name)))
}

/// The part of [`with_deadline`] that is the same for every type: programs are copied to every host, so they are kept small.
fn wait_for(name: &'static str, timeout: Duration, work: Work) -> Result<(), LibvirtError> {
    if timeout.is_zero() {
        return Err(LibvirtError::no_time(name));
    }
    let _span = Span::begin(Kind::Call, name);
    let (sender, receiver) = mpsc::channel();
    worker::work(name, work, Ending(sender))?;
    match receiver.recv_timeout(timeout) {
        Err(RecvTimeoutError::Timeout) => Err(LibvirtError::no_answer(name, timeout.as_secs())),
        Ok(_) | Err(RecvTimeoutError::Disconnected) => Ok(()),
    }
}

/// `virt` panics on a NUL in some of its arguments.
fn without_nul(text: &str) -> Result<(), LibvirtError> {
    if text.contains('\0') { Err(LibvirtError::other("a text for libvirt has a NUL byte in it")) } else { Ok(()) }
}

fn c_text(text: &str) -> Result<CString, LibvirtError> {
    without_nul(text)?;
    CString::new(text).map_err(|error| LibvirtError::other(error.to_string()))
}

/// libvirt writes paths into XML, which has room for text only.
fn path_text(path: &Path) -> Result<&str, LibvirtError> {
    let text = path.to_str().ok_or_else(|| {
        LibvirtError::other(format!("the path {} is not UTF-8, libvirt can't take it", path.display()))
    })?;
    without_nul(text)?;
    Ok(text)
}

/// # Source
/// libvirt `virDomainState`, `virDomainPausedReason`.
fn run_state(state: c_int, reason: c_int) -> RunState {
    let (Ok(state), Ok(reason)) = (u32::try_from(state), u32::try_from(reason)) else {
        return RunState::PausedOtherwise;
    };
    match (state, reason) {
        (sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED, _) => RunState::Running,
        (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_USER) => RunState::PausedByUser,
        (
            sys::VIR_DOMAIN_PAUSED,
            sys::VIR_DOMAIN_PAUSED_MIGRATION
            | sys::VIR_DOMAIN_PAUSED_STARTING_UP
            | sys::VIR_DOMAIN_PAUSED_POSTCOPY
            | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        ) => RunState::PausedForMigration,
        (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN) => RunState::Ending,
        (sys::VIR_DOMAIN_PMSUSPENDED, _) => RunState::PmSuspended,
        (sys::VIR_DOMAIN_SHUTDOWN | sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_CRASHED, _) => RunState::Ending,
        _ => RunState::PausedOtherwise,
    }
}

/// An interface or a disk of which libvirt knows nothing has used nothing.
fn usage(domain: &Domain, interfaces: &[String], disks: &[String]) -> Result<Usage, Error> {
    let (state, reason) = ffi::state(domain)?;
    let info = domain.info()?;
    let mut usage = Usage {
        cpu_ns: info.cpu_time,
        memory_kib: info.max_mem,
        is_paused: state == sys::VIR_DOMAIN_PAUSED as c_int,
        is_stuck: is_stuck(state, reason),
        ..Usage::default()
    };
    let count = |sum: &mut u64, more: i64| *sum = sum.saturating_add(u64::try_from(more).unwrap_or(0));
    for stats in interfaces.iter().filter_map(|device| domain.interface_stats(device).ok()) {
        count(&mut usage.received, stats.rx_bytes);
        count(&mut usage.sent, stats.tx_bytes);
    }
    for stats in disks.iter().filter_map(|disk| domain.block_stats(disk).ok()) {
        count(&mut usage.read.0, stats.rd_bytes);
        count(&mut usage.read.1, stats.rd_req);
        count(&mut usage.written.0, stats.wr_bytes);
        count(&mut usage.written.1, stats.wr_req);
    }
    Ok(usage)
}

/// # Source
/// OpenNebula's `poll` of 5.8 to 5.10; libvirt `virDomainState`, `virDomainPausedReason`.
fn is_stuck(state: c_int, reason: c_int) -> bool {
    match (u32::try_from(state), u32::try_from(reason)) {
        (Ok(sys::VIR_DOMAIN_CRASHED | sys::VIR_DOMAIN_PMSUSPENDED), _) => true,
        (Ok(sys::VIR_DOMAIN_PAUSED), Ok(reason)) => matches!(
            reason,
            sys::VIR_DOMAIN_PAUSED_UNKNOWN
                | sys::VIR_DOMAIN_PAUSED_USER
                | sys::VIR_DOMAIN_PAUSED_IOERROR
                | sys::VIR_DOMAIN_PAUSED_WATCHDOG
                | sys::VIR_DOMAIN_PAUSED_CRASHED
                | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED
        ),
        _ => false,
    }
}

fn job(stats: ffi::JobStats) -> Job {
    let kind = match stats.operation.and_then(|operation| u32::try_from(operation).ok()) {
        Some(sys::VIR_DOMAIN_JOB_OPERATION_SAVE) => JobKind::Save,
        Some(sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN) => JobKind::MigrationIn,
        Some(sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT) => JobKind::MigrationOut,
        _ => JobKind::Other,
    };
    // What was sent tells nothing: zero pages cost no bytes, and changed ones are sent again.
    let progress = stats.remaining.zip(stats.all).map(|(remaining, all)| (all.saturating_sub(remaining), all));
    Job { kind, progress, downtime_ms: stats.downtime_ms }
}

/// Suspends a domain when its move has not ended in time, which lets the copy catch up: `virsh migrate --timeout`.
fn suspend_later(domain: Domain, after: Duration, end: Receiver<()>) -> Result<(), LibvirtError> {
    let suspend = move || {
        if end.recv_timeout(after) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        match domain.suspend() {
            Ok(()) => log::info!("the guest is suspended: its move has not ended in {} s", after.as_secs()),
            Err(error) => log::warn!("the guest can't be suspended for its move: {}", error.message()),
        }
    };
    worker::work("virDomainSuspend", Box::new(suspend), ())
}

/// Between two looks at how far a copy is that is to go over to post-copy.
const ITERATION_LOOK: Duration = Duration::from_millis(200);

/// Has a move go over to post-copy when its time has come: `virsh migrate --postcopy-after-precopy`, `--timeout-postcopy`.
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
        while end.recv_timeout(ITERATION_LOOK) == Err(RecvTimeoutError::Timeout) {
            if is_due(&domain) {
                match ffi::start_postcopy(&domain) {
                    Ok(()) => log::info!("the move goes over to post-copy"),
                    Err(error) => log::warn!("the move can't go over to post-copy: {}", error.message()),
                }
                return;
            }
        }
    };
    worker::work("virDomainMigrateStartPostCopy", Box::new(start), ())
}

fn reference(domain: &Domain) -> Result<DomainRef, LibvirtError> {
    let (name, uuid) = (domain.name()?, domain.uuid_string()?);
    let odd =
        |error: crate::base::ParseError| LibvirtError::other(format!("libvirt names a domain that can't be: {error}"));
    Ok(DomainRef { name: name.parse().map_err(odd)?, uuid: uuid.parse().map_err(odd)?, id: domain.id() })
}

/// `None` for what libvirt does not have.
fn found<T>(result: Result<T, Error>, absent: ErrorNumber) -> Result<Option<T>, LibvirtError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if number(&error) == Some(absent) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Hypervisor for Libvirt {
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError> {
        self.call("virConnectListAllDomains", |connect| {
            let all = connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)?;
            // One that ended meanwhile, or whose name none of ours can have, keeps nobody from the others.
            let known = |domain: &Domain| {
                reference(domain).inspect_err(|error| log::warn!("a domain is passed over: {error}")).ok()
            };
            Ok(all.iter().filter_map(known).collect())
        })
    }

    fn find(&self, id: &DeployId) -> Result<Option<DomainRef>, LibvirtError> {
        let id = id.clone();
        self.call("virDomainLookup", move |connect| {
            let domain = match &id {
                DeployId::Uuid(uuid) => connect.lookup_domain_by_uuid_string(uuid.as_str()),
                DeployId::Id(id) => connect.lookup_domain_by_id(*id),
                DeployId::Name(name) => connect.lookup_domain_by_name(name.as_str()),
            };
            let found = found(domain, ErrorNumber::NoDomain)?.as_ref().map(reference).transpose()?;
            Ok(found.filter(|domain| domain.id.is_some()))
        })
    }

    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetXMLDesc", move |connect| {
            let text = connect.lookup_domain_by_uuid_string(&uuid).and_then(|domain| domain.xml_desc(0));
            found(text, ErrorNumber::NoDomain)
        })
    }

    fn migratable_xml(&self, domain: &DomainRef) -> Result<String, LibvirtError> {
        self.on_domain("virDomainGetXMLDesc", domain, |domain| {
            domain.xml_desc(sys::VIR_DOMAIN_XML_MIGRATABLE | sys::VIR_DOMAIN_XML_SECURE)
        })
    }

    fn create(&self, xml: &str, limit: Duration) -> Result<DomainRef, LibvirtError> {
        let xml = xml.to_owned();
        self.call_within(limit, "virDomainCreateXML", move |connect| {
            reference(&connect.create_domain_xml(&xml, sys::VIR_DOMAIN_NONE)?)
        })
    }

    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainDestroy", domain, Domain::destroy)
    }

    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainShutdown", domain, Domain::shutdown)
    }

    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainReboot", domain, |domain| domain.reboot(sys::VIR_DOMAIN_REBOOT_DEFAULT))
    }

    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainReset", domain, Domain::reset)
    }

    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError> {
        without_nul(uri)?;
        let uri = uri.to_owned();
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetMetadata", move |connect| {
            let domain = connect.lookup_domain_by_uuid_string(&uuid)?;
            let element = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
            found(domain.metadata(element, Some(&uri), sys::VIR_DOMAIN_AFFECT_LIVE), ErrorNumber::NoDomainMetadata)
        })
    }

    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError> {
        for text in [xml.unwrap_or_default(), prefix, uri] {
            without_nul(text)?;
        }
        let (xml, prefix, uri) = (xml.map(str::to_owned), prefix.to_owned(), uri.to_owned());
        self.on_domain("virDomainSetMetadata", domain, move |domain| {
            let element = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
            domain.set_metadata(element, xml.as_deref(), Some(&prefix), Some(&uri), sys::VIR_DOMAIN_AFFECT_LIVE)
        })
    }

    fn state(&self, domain: &DomainRef) -> Result<Option<RunState>, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetState", move |connect| {
            let found_state = connect.lookup_domain_by_uuid_string(&uuid).and_then(|domain| ffi::state(&domain));
            Ok(found(found_state, ErrorNumber::NoDomain)?.map(|(state, reason)| run_state(state, reason)))
        })
    }

    fn job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetJobStats", move |connect| {
            let Some(domain) = found(connect.lookup_domain_by_uuid_string(&uuid), ErrorNumber::NoDomain)? else {
                return Ok(None);
            };
            match ffi::job_stats(&domain, false) {
                Ok(stats) => Ok(stats.map(|stats| Job { downtime_ms: None, ..job(stats) })),
                // The test driver has no jobs.
                Err(error) if number(&error) == Some(ErrorNumber::NoSupport) => Ok(None),
                // qemuDomainGetJobStatsInternal refuses a domain that does not run, with the first code, and one that comes in,
                // by version with either: "migration statistics are available only on the source host".
                Err(error)
                    if matches!(
                        number(&error),
                        Some(ErrorNumber::OperationInvalid | ErrorNumber::OperationUnsupported)
                    ) =>
                {
                    let active = found(domain.is_active(), ErrorNumber::NoDomain)?.unwrap_or(false);
                    Ok(active.then(|| Job { kind: JobKind::MigrationIn, ..Job::default() }))
                }
                Err(error) => found(Err(error), ErrorNumber::NoDomain),
            }
        })
    }

    fn completed_job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetJobStats", move |connect| {
            let stats = connect.lookup_domain_by_uuid_string(&uuid).and_then(|domain| ffi::job_stats(&domain, true));
            Ok(found(stats, ErrorNumber::NoDomain)?.flatten().map(job))
        })
    }

    fn abort_job(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainAbortJob", domain, ffi::abort_job)
    }

    fn watch(&self, domain: &DomainRef) -> Result<Events, LibvirtError> {
        let uuid = domain.uuid.to_string();
        let (sender, receiver): (_, Receiver<Event>) = mpsc::channel();
        let (line, patience) = (Arc::clone(&self.line), self.patience);
        let subscription = with_deadline("virConnectDomainEventRegisterAny", patience.left(), move || {
            let connection = line.connection()?;
            Subscription::new(Arc::clone(&connection), &uuid, sender, patience).map_err(|error| connection.judge(error))
        })?;
        Ok(Events::new(receiver, Box::new(subscription)))
    }

    fn watch_for(&self, uuid: &DomainUuid) -> Result<Events, LibvirtError> {
        let uuid = uuid.clone();
        let (sender, receiver): (_, Receiver<Event>) = mpsc::channel();
        let (line, patience) = (Arc::clone(&self.line), self.patience);
        let arrival = with_deadline("virConnectDomainEventRegisterAny", patience.left(), move || {
            let connection = line.connection()?;
            Arrival::new(Arc::clone(&connection), &uuid, sender, patience).map_err(|error| connection.judge(error))
        })?;
        Ok(Events::new(receiver, Box::new(arrival)))
    }

    fn attach(&self, domain: &DomainRef, device_xml: &str, limit: Duration) -> Result<(), LibvirtError> {
        let (uuid, xml) = (domain.uuid.to_string(), device_xml.to_owned());
        self.call_within(limit, "virDomainAttachDeviceFlags", move |connect| {
            let domain = connect.lookup_domain_by_uuid_string(&uuid)?;
            Ok(domain.attach_device_flags(&xml, sys::VIR_DOMAIN_AFFECT_LIVE)?)
        })
    }

    fn detach_alias(&self, domain: &DomainRef, alias: &str, limit: Duration) -> Result<(), LibvirtError> {
        let alias = c_text(alias)?;
        let (uuid, limit) = (domain.uuid.to_string(), limit.min(self.patience.call));
        self.call_within(limit, "virDomainDetachDeviceAlias", move |connect| {
            Ok(ffi::detach_alias(&connect.lookup_domain_by_uuid_string(&uuid)?, &alias)?)
        })
    }

    fn detach(&self, domain: &DomainRef, device_xml: &str) -> Result<(), LibvirtError> {
        let xml = device_xml.to_owned();
        self.on_domain("virDomainDetachDeviceFlags", domain, move |domain| {
            domain.detach_device_flags(&xml, sys::VIR_DOMAIN_AFFECT_LIVE)
        })
    }

    fn change_medium(&self, domain: &DomainRef, disk_xml: &str) -> Result<(), LibvirtError> {
        without_nul(disk_xml)?;
        let xml = disk_xml.to_owned();
        self.on_domain("virDomainUpdateDeviceFlags", domain, move |domain| {
            let flags = sys::VIR_DOMAIN_DEVICE_MODIFY_LIVE | sys::VIR_DOMAIN_DEVICE_MODIFY_FORCE;
            domain.update_device_flags(&xml, flags).map(drop)
        })
    }

    fn save(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError> {
        let file = c_text(path_text(file)?)?;
        self.long_on_domain("virDomainSaveFlags", domain, move |domain| Ok(ffi::save(domain, &file)?))
    }

    fn image_xml(&self, file: &Path) -> Result<String, LibvirtError> {
        let file = path_text(file)?.to_owned();
        self.call("virDomainSaveImageGetXMLDesc", move |connect| {
            Ok(connect.save_image_xml_desc(&file, sys::VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)?)
        })
    }

    fn restore(&self, file: &Path, xml: &str, paused: bool, limit: Duration) -> Result<(), LibvirtError> {
        without_nul(xml)?;
        let (file, xml) = (path_text(file)?.to_owned(), xml.to_owned());
        let flags = if paused { sys::VIR_DOMAIN_SAVE_PAUSED } else { 0 };
        self.long_call("virDomainRestoreFlags", Watch::Limit(limit), move |connect| {
            Ok(connect.restore_domain_flags(&file, Some(&xml), flags)?)
        })
    }

    fn resume(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainResume", domain, Domain::resume)
    }

    fn wake_up(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainPMWakeup", domain, |domain| domain.pm_wakeup(0))
    }

    fn sync_time(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.on_domain("virDomainSetTime", domain, |domain| domain.set_time(0, 0, sys::VIR_DOMAIN_TIME_SYNC))
    }

    fn migrate(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError> {
        without_nul(&migration.destination)?;
        let (parameters, flags) = migration.parameters()?;
        let (uri, events) = (migration.destination.clone(), self.line.events.clone());
        let destination = {
            // libvirt starts an ssh of its own, unless it is told otherwise.
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

    fn snapshots(&self, domain: &DomainRef) -> Result<Snapshots, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainListAllSnapshots", move |connect| {
            let domain = connect.lookup_domain_by_uuid_string(&uuid)?;
            let list = domain.list_all_snapshots(sys::VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)?;
            let names = list.iter().map(DomainSnapshot::name).collect::<Result<_, _>>()?;
            let current = found(domain.current_snapshot(0), ErrorNumber::NoDomainSnapshot)?;
            Ok(Snapshots { names, current: current.map(|snapshot| snapshot.name()).transpose()? })
        })
    }

    fn create_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError> {
        let xml = xml.to_owned();
        self.long_on_domain("virDomainSnapshotCreateXML", domain, move |domain| {
            domain.create_snapshot_xml(&xml, 0)?;
            Ok(())
        })
    }

    fn snapshot_xml(&self, domain: &DomainRef, name: &str) -> Result<String, LibvirtError> {
        let name = name.to_owned();
        self.on_domain("virDomainSnapshotGetXMLDesc", domain, move |domain| {
            Domain::lookup_snapshot_by_name(domain, &name, 0)?.xml_desc(sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        })
    }

    fn revert_snapshot(&self, domain: &DomainRef, name: &str) -> Result<(), LibvirtError> {
        let name = name.to_owned();
        self.long_on_domain("virDomainRevertToSnapshot", domain, move |domain| {
            let snapshot = Domain::lookup_snapshot_by_name(domain, &name, 0)?;
            Ok(snapshot.revert(sys::VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)?)
        })
    }

    fn delete_snapshot(&self, domain: &DomainRef, name: &str, metadata_only: bool) -> Result<(), LibvirtError> {
        let name = name.to_owned();
        let flags = if metadata_only { sys::VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY } else { 0 };
        self.long_on_domain("virDomainSnapshotDelete", domain, move |domain| {
            Ok(Domain::lookup_snapshot_by_name(domain, &name, 0)?.delete(flags)?)
        })
    }

    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str, current: bool) -> Result<(), LibvirtError> {
        let xml = xml.to_owned();
        let flags = if current { sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT } else { 0 };
        self.on_domain("virDomainSnapshotCreateXML", domain, move |domain| {
            domain.create_snapshot_xml(&xml, sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | flags).map(drop)
        })
    }

    fn block_copy(&self, domain: &DomainRef, disk: &str, target_xml: &str, shallow: bool) -> Result<(), LibvirtError> {
        let (disk, target) = (c_text(disk)?, c_text(target_xml)?);
        let mut flags = sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB;
        if shallow {
            flags |= sys::VIR_DOMAIN_BLOCK_COPY_SHALLOW;
        }
        self.on_domain("virDomainBlockCopy", domain, move |domain| ffi::block_copy(domain, &disk, &target, flags))
    }

    fn block_job(&self, domain: &DomainRef, disk: &str) -> Result<Option<BlockJob>, LibvirtError> {
        let disk = c_text(disk)?;
        self.on_domain("virDomainGetBlockJobInfo", domain, move |domain| {
            Ok(ffi::block_job(domain, &disk)?.map(|(done, all)| BlockJob { done, all }))
        })
    }

    fn finish_block_job(&self, domain: &DomainRef, disk: &str, pivot: bool) -> Result<(), LibvirtError> {
        let disk = c_text(disk)?;
        let flags = if pivot { sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT } else { 0 };
        self.on_domain("virDomainBlockJobAbort", domain, move |domain| ffi::block_job_abort(domain, &disk, flags))
    }

    fn disk_capacity(&self, domain: &DomainRef, disk: &str) -> Result<u64, LibvirtError> {
        let disk = c_text(disk)?;
        self.on_domain("virDomainGetBlockInfo", domain, move |domain| ffi::block_capacity(domain, &disk))
    }

    fn resize_disk(&self, domain: &DomainRef, disk: &str, bytes: u64) -> Result<(), LibvirtError> {
        without_nul(disk)?;
        let disk = disk.to_owned();
        self.on_domain("virDomainBlockResize", domain, move |domain| {
            domain.block_resize(&disk, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        })
    }

    fn set_memory(&self, domain: &DomainRef, kib: u64) -> Result<(), LibvirtError> {
        self.on_domain("virDomainSetMemoryFlags", domain, move |domain| {
            domain.set_memory_flags(kib, sys::VIR_DOMAIN_MEM_LIVE)
        })
    }

    fn set_vcpus(&self, domain: &DomainRef, number: u32) -> Result<(), LibvirtError> {
        self.on_domain("virDomainSetVcpusFlags", domain, move |domain| {
            domain.set_vcpus_flags(number, sys::VIR_DOMAIN_VCPU_LIVE | sys::VIR_DOMAIN_VCPU_HOTPLUGGABLE)
        })
    }

    fn ask_agent(&self, domain: &DomainRef, command: &str) -> Result<String, LibvirtError> {
        let command = c_text(command)?;
        self.on_domain("virDomainQemuAgentCommand", domain, move |domain| ffi::agent_command(domain, &command))
    }

    fn usage(
        &self,
        domain: &DomainRef,
        interfaces: &[String],
        disks: &[String],
    ) -> Result<Option<Usage>, LibvirtError> {
        for text in interfaces.iter().chain(disks) {
            without_nul(text)?;
        }
        let (uuid, interfaces, disks) = (domain.uuid.to_string(), interfaces.to_vec(), disks.to_vec());
        self.call("virDomainGetInfo", move |connect| {
            let usage =
                connect.lookup_domain_by_uuid_string(&uuid).and_then(|domain| usage(&domain, &interfaces, &disks));
            found(usage, ErrorNumber::NoDomain)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::libvirt::LibvirtErrorKind;

    #[test]
    fn states_are_sorted_by_what_an_action_may_do() {
        use RunState::*;
        for (state, reason, expected) in [
            (sys::VIR_DOMAIN_RUNNING, sys::VIR_DOMAIN_RUNNING_UNPAUSED, Running),
            (sys::VIR_DOMAIN_BLOCKED, 0, Running),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_USER, PausedByUser),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_MIGRATION, PausedForMigration),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_STARTING_UP, PausedForMigration),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_UNKNOWN, PausedOtherwise),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_IOERROR, PausedOtherwise),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN, Ending),
            (sys::VIR_DOMAIN_PAUSED, 4711, PausedOtherwise),
            (sys::VIR_DOMAIN_SHUTDOWN, 0, Ending),
            (sys::VIR_DOMAIN_SHUTOFF, sys::VIR_DOMAIN_SHUTOFF_SAVED, Ending),
            (sys::VIR_DOMAIN_CRASHED, 0, Ending),
            (sys::VIR_DOMAIN_PMSUSPENDED, 0, PmSuspended),
            (sys::VIR_DOMAIN_NOSTATE, 0, PausedOtherwise),
        ] {
            assert_eq!(run_state(state as c_int, reason as c_int), expected, "{state} {reason}");
        }
        assert_eq!(run_state(-1, -1), PausedOtherwise);
    }

    #[test]
    fn a_pause_that_passes_is_not_stuck() {
        for (state, reason, expected) in [
            (sys::VIR_DOMAIN_RUNNING, 0, false),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_USER, true),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_IOERROR, true),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_MIGRATION, false),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_SAVE, false),
            (sys::VIR_DOMAIN_PMSUSPENDED, 0, true),
            (sys::VIR_DOMAIN_CRASHED, 0, true),
        ] {
            assert_eq!(is_stuck(state as c_int, reason as c_int), expected, "{state} {reason}");
        }
    }

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

    #[test]
    fn a_call_that_does_not_return_is_left_behind() {
        let begin = std::time::Instant::now();
        let error = with_deadline("virSlow", Duration::from_millis(50), || {
            thread::sleep(Duration::from_secs(600));
            Ok(())
        })
        .unwrap_err();
        assert_eq!(error.kind(), LibvirtErrorKind::NoAnswer);
        assert!(error.to_string().contains("virSlow"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(300));
    }
}
