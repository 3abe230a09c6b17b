//! Watches of domains: libvirt's callbacks, shared by all watchers of a domain.

use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use virt::domain::Domain;

use super::connection::{Connection, Patience};
use super::deadline::with_deadline;
use super::ffi::{self, Callback, Watched};
use super::receivers::{Sink, Ticket};
use super::{Event, LibvirtError};
use crate::base::{DomainUuid, lock};

/// The callbacks for one domain of a connection. All watchers of the domain share them: libvirt takes each callback
/// only once.
pub(super) struct WatchedDomain {
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
        let ticket = self.tell_of_end(Box::new(move || ending.disconnect()));
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
            // This lock is held across libvirt's calls, so that the callbacks of the last watcher are gone before new
            // ones are registered. libvirt's callbacks do not take this lock.
            let mut all = lock(&connection.watched);
            let watched = match all.entry(uuid.to_owned()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(connection.register(&domain)?),
            };
            watched.watchers += 1;
            (Arc::clone(&watched.sink), watched.sink.add(sender))
        };
        let subscription = Self { connection, uuid: uuid.to_owned(), sink, key, patience };
        // The connection may have broken before the sender was added.
        if subscription.connection.closing.is_closed() {
            subscription.sink.disconnect();
        }
        Ok(subscription)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // From here on the watcher gets no event, even if libvirt still runs a callback.
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

/// A watcher of a domain that need not exist yet.
pub(super) struct Arrival {
    connection: Arc<Connection>,
    sink: Arc<Sink>,
    key: usize,
    callback: Option<Callback>,
    patience: Patience,
    _ticket: Ticket,
}

impl Arrival {
    pub(super) fn new(
        connection: Arc<Connection>,
        uuid: &DomainUuid,
        sender: Sender<Event>,
        patience: Patience,
    ) -> Result<Self, LibvirtError> {
        let sink = Sink::new();
        let key = sink.add(sender);
        let ending = Arc::clone(&sink);
        let ticket = connection.tell_of_end(Box::new(move || ending.disconnect()));
        let callback = Some(ffi::register_arrival(&connection.connect, uuid, &sink)?);
        Ok(Self { connection, sink, key, callback, patience, _ticket: ticket })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // From here on the watcher gets no event, even if libvirt still runs a callback.
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
