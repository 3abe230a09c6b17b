//! The connection to libvirtd, opened again after it broke.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, clear_error_callback};

use super::deadline::with_deadline;
use super::event_loop::LoopUser;
use super::known::KnownDomains;
use super::receivers::{Closing, Ticket};
use super::subscription::WatchedDomain;
use super::text::without_nul;
use super::{DomainRef, LibvirtError, LibvirtErrorKind, ffi};
use crate::base::lock;

/// How often libvirt sends a keepalive message, in seconds.
const KEEPALIVE_INTERVAL: i32 = 10;
/// A connection is dead after this many keepalive messages without an answer.
const KEEPALIVE_COUNT: u32 = 6;

/// How long it may take to close a connection or to end a watch.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The same limit when the time for all calls is over.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to libvirtd.
///
/// A C call in flight can't be cancelled. So each call runs on another thread. When `call_timeout` passes, the
/// caller gets [`LibvirtErrorKind::NoAnswer`](super::LibvirtErrorKind::NoAnswer); the thread ends when libvirt returns.
///
/// When libvirtd is restarted, the calls in flight fail with
/// [`LibvirtErrorKind::Disconnected`](super::LibvirtErrorKind::Disconnected), and the next call opens a new connection.
/// A failed call is not repeated: only the caller knows whether it may be made twice.
///
/// ```
/// use std::time::Duration;
/// use kvm_sriov::libvirt::{DomainCalls, Libvirt, PowerCalls};
/// let libvirt = Libvirt::open("test:///default", Duration::from_secs(30))?;
/// let domain = libvirt.find(&"test".parse()?)?.ok_or("the test driver has a domain")?;
/// assert!(libvirt.live_xml(&domain)?.is_some_and(|xml| xml.starts_with("<domain")));
/// libvirt.destroy(&domain)?;
/// assert!(!libvirt.domains()?.contains(&domain));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Libvirt {
    pub(super) connector: Arc<Connector>,
    pub(super) patience: Patience,
}

/// How long this process waits for calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The limit of one call.
    pub(super) call: Duration,
    /// When the time for all calls is over; `None` for never.
    end: Option<Instant>,
}

impl Patience {
    pub(super) fn of(call: Duration) -> Self {
        Self { call, end: None }
    }

    /// How long the next call may take.
    pub(super) fn left(self) -> Duration {
        self.left_of(self.call)
    }

    /// How long the next call may take when it has a limit of its own.
    fn left_of(self, limit: Duration) -> Duration {
        self.end.map_or(limit, |end| limit.min(end.saturating_duration_since(Instant::now())))
    }

    /// How long it may take to close a connection or to end a watch: a little, even when no time is left.
    pub(super) fn last(self) -> Duration {
        self.left().clamp(LAST_TIMEOUT, CLOSE_TIMEOUT)
    }
}

/// Opens connections to one libvirtd, one after the other as they break.
pub(super) struct Connector {
    uri: String,
    pub(super) events: Option<Arc<LoopUser>>,
    connection: Mutex<Option<Arc<Connection>>>,
}

/// One connection. Calls in flight and watches keep it alive. The fields drop in this order, so the connection is
/// closed before the event loop may end.
pub(super) struct Connection {
    pub(super) connect: Connect,
    pub(super) closing: Arc<Closing>,
    /// Is completed when libvirt was asked to report the end.
    pub(super) asked_for_end: Once,
    pub(super) watched: Mutex<BTreeMap<String, WatchedDomain>>,
    pub(super) known: KnownDomains,
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

    /// As [`Libvirt::open`], with a common end for all calls that have a deadline: none is waited for beyond `end`, and
    /// none is begun after it.
    ///
    /// # Errors
    /// As [`Libvirt::open`].
    pub fn open_until(uri: &str, call_timeout: Duration, end: Instant) -> Result<Self, LibvirtError> {
        let patience = Patience { call: call_timeout, end: Some(end) };
        Self::connect(uri, patience, Some(Arc::new(LoopUser::start()?)))
    }

    /// Connects to `uri` in a program that runs libvirt's event loop itself (`virEventRunDefaultImpl`, or an
    /// implementation of its own). Without a running loop no event arrives, and libvirt closes the connection because
    /// it reads no answer to its keepalive messages.
    ///
    /// # Errors
    /// As [`Libvirt::open`].
    pub fn open_in_own_loop(uri: &str, call_timeout: Duration) -> Result<Self, LibvirtError> {
        Self::connect(uri, Patience::of(call_timeout), None)
    }

    fn connect(uri: &str, patience: Patience, events: Option<Arc<LoopUser>>) -> Result<Self, LibvirtError> {
        without_nul(uri)?;
        // Otherwise libvirt prints every error on stderr, and OpenNebula would show it to a user.
        clear_error_callback();
        let libvirt = Self {
            connector: Arc::new(Connector { uri: uri.to_owned(), events, connection: Mutex::new(None) }),
            patience,
        };
        libvirt.connection()?;
        Ok(libvirt)
    }

    pub(super) fn connection(&self) -> Result<Arc<Connection>, LibvirtError> {
        let connector = Arc::clone(&self.connector);
        with_deadline("virConnectOpen", self.patience.left(), move || connector.connection())
    }

    /// Makes a call and waits for it until the deadline. If the connection broke since the last call, a new one is
    /// opened within the same deadline.
    pub(super) fn call<T, F>(&self, name: &'static str, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, LibvirtError> + Send + 'static,
    {
        self.boxed_call(name, self.patience.left(), Box::new(work))
    }

    /// As [`Libvirt::call`], with a limit of its own.
    pub(super) fn call_within<T, F>(&self, limit: Duration, name: &'static str, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, LibvirtError> + Send + 'static,
    {
        self.boxed_call(name, self.patience.left_of(limit), Box::new(work))
    }

    /// The part of [`Libvirt::call`] that is the same for all calls with one result type. It is compiled once per type,
    /// which keeps the programs small: they are copied to every host.
    fn boxed_call<T: Send + 'static>(
        &self,
        name: &'static str,
        limit: Duration,
        work: On<Connection, T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        let connector = Arc::clone(&self.connector);
        with_deadline(name, limit, move || {
            let connection = connector.connection()?;
            work(&connection).map_err(|error| connection.judge(error))
        })
    }

    /// As [`Libvirt::call`], for one domain.
    pub(super) fn on_domain<T, F>(&self, name: &'static str, domain: &DomainRef, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    {
        self.boxed_on_domain(name, self.patience.left(), domain, Box::new(work))
    }

    /// As [`Libvirt::on_domain`], with a limit of its own.
    pub(super) fn on_domain_within<T, F>(
        &self,
        limit: Duration,
        name: &'static str,
        domain: &DomainRef,
        work: F,
    ) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    {
        self.boxed_on_domain(name, self.patience.left_of(limit), domain, Box::new(work))
    }

    fn boxed_on_domain<T: Send + 'static>(
        &self,
        name: &'static str,
        limit: Duration,
        domain: &DomainRef,
        work: On<Domain, T, Error>,
    ) -> Result<T, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.boxed_call(
            name,
            limit,
            Box::new(move |connection| connection.on_domain(&uuid, |domain| Ok(work(domain)?))),
        )
    }

    /// As [`Libvirt::on_domain`]; `None` when libvirt has no such domain.
    pub(super) fn on_domain_if_there<T, F>(
        &self,
        name: &'static str,
        domain: &DomainRef,
        work: F,
    ) -> Result<Option<T>, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    {
        match self.on_domain(name, domain, work) {
            Err(error) if error.kind() == LibvirtErrorKind::NoDomain => Ok(None),
            result => result.map(Some),
        }
    }
}

impl Drop for Libvirt {
    /// Closes the connection. Does not wait for long when libvirtd does not answer.
    fn drop(&mut self) {
        let connector = Arc::clone(&self.connector);
        let closed = with_deadline("virConnectClose", self.patience.last(), move || {
            let connection = lock(&connector.connection).take();
            drop(connection);
            Ok(())
        });
        if let Err(error) = closed {
            log::debug!("{error}");
        }
    }
}

impl Connector {
    /// The current connection, or a new one if it broke.
    pub(super) fn connection(&self) -> Result<Arc<Connection>, LibvirtError> {
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
            // libvirtd answered before, so it may only be restarting.
            Err(error) if place.is_some() => Err(LibvirtError::reopen(&error, &self.uri)),
            Err(error) => Err(LibvirtError::open(&error, &self.uri)),
        }
    }
}

impl Connection {
    pub(super) fn open(uri: &str, events: Option<Arc<LoopUser>>) -> Result<Self, Error> {
        let connect = Connect::open(Some(uri))?;
        // The test driver and other drivers without a daemon support no keepalive, and need none.
        if let Err(error) = connect.set_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT) {
            log::debug!("no keepalive on {uri}: {}", error.message());
        }
        Ok(Self {
            connect,
            closing: Closing::new(),
            asked_for_end: Once::new(),
            watched: Mutex::default(),
            known: KnownDomains::default(),
            _events: events,
        })
    }

    /// Calls `call` when the connection ends, or at once if it has already ended: see [`Closing::tell`].
    ///
    /// This calls libvirtd, the first time, and [`Connection::drop`] then does so too. So only those do this whose wait
    /// may have no other end: watches, and calls that last. Any other call has a deadline, and libvirt ends it when the
    /// connection breaks.
    pub(super) fn tell_of_end(&self, call: Box<dyn FnOnce() + Send>) -> Ticket {
        self.asked_for_end.call_once(|| {
            // Drivers without a daemon, such as the test driver, never report an end.
            if let Err(error) = ffi::register_close(&self.connect, self.closing.number()) {
                log::debug!("no close callback: {}", error.message());
            }
            // libvirt does not report an end that came before.
            if !self.connect.is_alive().unwrap_or(false) {
                self.closing.close();
            }
        });
        self.closing.tell(call)
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.closing.is_closed() && self.connect.is_alive().unwrap_or(false)
    }

    /// Makes a call on the domain with this UUID. The domain is not looked up again when it is known.
    pub(super) fn on_domain<T>(
        &self,
        uuid: &str,
        work: impl FnOnce(&Domain) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        let domain = match self.known.get(uuid) {
            Some(domain) => domain,
            None => self.known.keep(uuid, self.connect.lookup_domain_by_uuid_string(uuid)?),
        };
        work(&domain).inspect_err(|error| {
            if error.kind() == LibvirtErrorKind::NoDomain {
                self.known.forget(uuid);
            }
        })
    }

    /// When the connection is broken, turns an error of kind Other into a disconnection. libvirt reports a broken
    /// connection with many different texts, so the text does not tell.
    pub(super) fn judge(&self, error: LibvirtError) -> LibvirtError {
        if self.is_alive() { error } else { error.by_disconnection() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.asked_for_end.is_completed() {
            return;
        }
        // The callback keeps the connection open. A connection that broke no longer has one.
        if let Err(error) = ffi::unregister_close(&self.connect) {
            log::debug!("no close callback to unregister: {}", error.message());
        }
    }
}

/// A call on one of libvirt's objects.
type On<O, T, E> = Box<dyn FnOnce(&O) -> Result<T, E> + Send>;
