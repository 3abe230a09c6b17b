//! One connection to libvirtd, whose every call ends at a deadline.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber, clear_error_callback};
use virt::sys;

use super::error::{LibvirtError, number};
use super::event_loop::LoopUser;
use super::{DomainRef, Events, Hypervisor, Job, Migration, RunState, Snapshots};
use crate::DeployId;
use std::path::Path;

/// libvirtd is asked for a sign of life this often, in seconds ...
const KEEPALIVE_INTERVAL: i32 = 10;
/// ... and a connection is dead after this many without an answer.
const KEEPALIVE_COUNT: u32 = 6;

/// A connection to libvirtd.
///
/// A C call in flight can't be cancelled. So each runs on a thread of its own, and when `call_timeout` passes the caller goes
/// on with [`LibvirtErrorKind::NoAnswer`](super::LibvirtErrorKind::NoAnswer); the thread ends when libvirt returns.
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
    connection: Arc<Connection>,
    call_timeout: Duration,
}

/// What a call in flight keeps alive. The connection is closed before its loop may end: fields drop in this order.
struct Connection {
    connect: Connect,
    _events: Option<LoopUser>,
}

impl Libvirt {
    /// Connects to `uri` and runs libvirt's event loop on a thread of this process until the last connection is closed.
    ///
    /// * `call_timeout` - the longest that any one call, this one included, may take
    ///
    /// # Errors
    /// libvirtd can't be reached, or refuses this user; the text says what to do.
    pub fn open(uri: &str, call_timeout: Duration) -> Result<Self, LibvirtError> {
        Self::connect(uri, call_timeout, Some(LoopUser::start()?))
    }

    /// Connects to `uri` in a program that runs libvirt's event loop itself (`virEventRunDefaultImpl`, or an implementation
    /// of its own). Without a running loop libvirt would close the connection for want of keepalive answers.
    ///
    /// # Errors
    /// As [`Libvirt::open`].
    pub fn open_in_own_loop(uri: &str, call_timeout: Duration) -> Result<Self, LibvirtError> {
        Self::connect(uri, call_timeout, None)
    }

    fn connect(uri: &str, call_timeout: Duration, events: Option<LoopUser>) -> Result<Self, LibvirtError> {
        without_nul(uri)?;
        // libvirt prints every error on stderr unless told otherwise; OpenNebula would show it to a user.
        clear_error_callback();
        let place = uri.to_owned();
        let connection = with_deadline("virConnectOpen", call_timeout, move || {
            let connect = Connect::open(Some(&place)).map_err(|error| LibvirtError::of_open(&error, &place))?;
            if let Err(error) = connect.set_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT) {
                // The test driver and connections without a daemon have none and need none.
                log::debug!("no keepalive on {place}: {}", error.message());
            }
            Ok(Connection { connect, _events: events })
        })?;
        Ok(Self { connection: Arc::new(connection), call_timeout })
    }

    fn call<T, F>(&self, name: &'static str, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> Result<T, LibvirtError> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        with_deadline(name, self.call_timeout, move || work(&connection.connect))
    }

    fn on_domain<T, F>(&self, name: &'static str, domain: &DomainRef, work: F) -> Result<T, LibvirtError>
    where
        T: Send + 'static,
        F: FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    {
        let uuid = domain.uuid.to_string();
        self.call(name, move |connect| Ok(work(&connect.lookup_domain_by_uuid_string(&uuid)?)?))
    }
}

/// Runs a call on its own thread and waits for it until the deadline.
fn with_deadline<T, F>(name: &'static str, timeout: Duration, work: F) -> Result<T, LibvirtError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, LibvirtError> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            // Nobody listens any more after the deadline: the result is dropped, which closes what it holds.
            drop(sender.send(work()));
        })
        .map_err(|error| LibvirtError::other(format!("cannot start a thread for {name}: {error}")))?;
    match receiver.recv_timeout(timeout) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(LibvirtError::no_answer(name, timeout.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err(LibvirtError::other(format!("{name} ended by a panic"))),
    }
}

/// `virt` panics on a NUL in some of its arguments.
fn without_nul(text: &str) -> Result<(), LibvirtError> {
    if text.contains('\0') { Err(LibvirtError::other("a text for libvirt has a NUL byte in it")) } else { Ok(()) }
}

fn reference(domain: &Domain) -> Result<DomainRef, LibvirtError> {
    let (name, uuid) = (domain.name()?, domain.uuid_string()?);
    let odd = |error: crate::ParseError| LibvirtError::other(format!("libvirt names a domain that can't be: {error}"));
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
            connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)?.iter().map(reference).collect()
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
            found(domain, ErrorNumber::NoDomain)?.as_ref().map(reference).transpose()
        })
    }

    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetXMLDesc", move |connect| {
            let text = connect.lookup_domain_by_uuid_string(&uuid).and_then(|domain| domain.xml_desc(0));
            found(text, ErrorNumber::NoDomain)
        })
    }

    fn create(&self, xml: &str) -> Result<DomainRef, LibvirtError> {
        let xml = xml.to_owned();
        self.call("virDomainCreateXML", move |connect| {
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

    fn state(&self, _domain: &DomainRef) -> Result<Option<RunState>, LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn job(&self, _domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn completed_job(&self, _domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn abort_job(&self, _domain: &DomainRef) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn watch(&self, _domain: &DomainRef) -> Result<Events, LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn attach(&self, _domain: &DomainRef, _device_xml: &str) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn detach_alias(&self, _domain: &DomainRef, _alias: &str) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn detach(&self, _domain: &DomainRef, _device_xml: &str) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn save(&self, _domain: &DomainRef, _file: &Path) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn image_xml(&self, _file: &Path) -> Result<String, LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn restore(&self, _file: &Path, _xml: &str, _paused: bool) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn resume(&self, _domain: &DomainRef) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn wake_up(&self, _domain: &DomainRef) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn sync_time(&self, _domain: &DomainRef) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn migrate(&self, _domain: &DomainRef, _migration: &Migration) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn snapshots(&self, _domain: &DomainRef) -> Result<Snapshots, LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn create_snapshot(&self, _domain: &DomainRef, _xml: &str) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn snapshot_xml(&self, _domain: &DomainRef, _name: &str) -> Result<String, LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn revert_snapshot(&self, _domain: &DomainRef, _name: &str) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn delete_snapshot(&self, _domain: &DomainRef, _name: &str, _metadata_only: bool) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }

    fn redefine_snapshot(&self, _domain: &DomainRef, _xml: &str, _current: bool) -> Result<(), LibvirtError> {
        Err(LibvirtError::other("not yet"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::LibvirtErrorKind;

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
