//! Events of a domain that is watched.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::deadline::with_deadline;
use super::subscription::{Arrival, Subscription};
use super::{DomainRef, Libvirt, LibvirtError};
use crate::base::DomainUuid;
use crate::os;

/// An event of a domain that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The device with this alias has left the guest.
    DeviceRemoved(String),
    /// The guest refused to release the device with this alias. Only pSeries guests refuse; an x86 guest does not
    /// answer.
    DeviceRemovalFailed(String),
    /// The device with this alias was plugged.
    DeviceAdded(String),
    /// The CPUs run again: the domain was resumed, or came from a file or another host.
    Resumed,
    /// The CPUs are stopped.
    Suspended,
    /// The guest was reset or rebooted.
    Rebooted,
    /// The domain ended, crashed, or was saved or migrated.
    Ended,
    /// A job of the domain ended.
    JobCompleted,
    /// The connection to libvirtd broke. No more events follow.
    Disconnected,
}

/// The events of one domain, from the moment the watch begins until this is dropped.
pub struct Events {
    receiver: os::Receiver<Event>,
    _subscription: Box<dyn Send>,
}

impl Events {
    /// Events that `receiver` gets while `subscription` lives.
    pub fn new(receiver: mpsc::Receiver<Event>, subscription: Box<dyn Send>) -> Self {
        Self { receiver: receiver.into(), _subscription: subscription }
    }

    /// The next event; `None` when none came within `timeout`. When the source ends, this is [`Event::Disconnected`].
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        match self.receiver.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Disconnected),
        }
    }
}

/// Calls that watch a domain.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait EventCalls: Send + Sync {
    /// Watches a domain. Begin the watch before you ask for the change that you wait for.
    ///
    /// An event is a reason to read the domain's state, not a proof: the first events may be older than the watch, and
    /// libvirt may lose an event. Several watches of one domain each get all events.
    fn watch(&self, domain: &DomainRef) -> Result<Events, LibvirtError>;
    /// Watches for a domain that need not exist yet. Only [`Event::Resumed`], [`Event::Suspended`], [`Event::Ended`]
    /// and [`Event::Disconnected`] are sent; otherwise as [`EventCalls::watch`].
    fn watch_for(&self, uuid: &DomainUuid) -> Result<Events, LibvirtError>;
}

impl EventCalls for Libvirt {
    fn watch(&self, domain: &DomainRef) -> Result<Events, LibvirtError> {
        let uuid = domain.uuid.to_string();
        let (sender, receiver): (_, mpsc::Receiver<Event>) = mpsc::channel();
        let (connector, patience) = (Arc::clone(&self.connector), self.patience);
        let subscription = with_deadline("virConnectDomainEventRegisterAny", patience.left(), move || {
            let connection = connector.connection()?;
            Subscription::new(Arc::clone(&connection), &uuid, sender, patience).map_err(|error| connection.judge(error))
        })?;
        Ok(Events::new(receiver, Box::new(subscription)))
    }

    fn watch_for(&self, uuid: &DomainUuid) -> Result<Events, LibvirtError> {
        let uuid = uuid.clone();
        let (sender, receiver): (_, mpsc::Receiver<Event>) = mpsc::channel();
        let (connector, patience) = (Arc::clone(&self.connector), self.patience);
        let arrival = with_deadline("virConnectDomainEventRegisterAny", patience.left(), move || {
            let connection = connector.connection()?;
            Arrival::new(Arc::clone(&connection), &uuid, sender, patience).map_err(|error| connection.judge(error))
        })?;
        Ok(Events::new(receiver, Box::new(arrival)))
    }
}
