//! The receivers of what libvirt reports by itself: events of domains, and the end of a connection.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, Weak};

use virt::sys;

use super::Event;
use crate::base::lock;

/// The senders to all watchers of one domain. libvirt may still run a callback when a watcher is gone. The callback
/// then no longer finds that watcher here.
pub(super) struct Sink(Mutex<Senders>);

#[derive(Default)]
struct Senders {
    next: usize,
    by_key: Vec<(usize, Sender<Event>)>,
}

impl Sink {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// Sends events to `sender` until [`Sink::remove`] is called with the key that this returns.
    pub(super) fn add(&self, sender: Sender<Event>) -> usize {
        let mut senders = lock(&self.0);
        let key = senders.next;
        senders.next += 1;
        senders.by_key.push((key, sender));
        key
    }

    /// Stops sending to a watcher. An event that was being sent is in the channel when this returns.
    pub(super) fn remove(&self, key: usize) {
        lock(&self.0).by_key.retain(|(other, _)| *other != key);
    }

    pub(super) fn send(&self, event: &Event) {
        // A receiver that is gone is removed.
        lock(&self.0).by_key.retain(|(_, sender)| sender.send(event.clone()).is_ok());
    }

    /// Sends the end of the connection to all watchers, and removes them.
    pub(super) fn disconnect(&self) {
        self.send(&Event::Disconnected);
        lock(&self.0).by_key.clear();
    }
}

/// The event for a watcher; `None` when the lifecycle event does not matter to a watcher.
///
/// # Source
/// libvirt `virDomainEventType`. `STARTED` says that QEMU runs, even when the CPUs are stopped, as on the incoming side
/// of a migration. `RESUMED` follows when the CPUs run (qemuProcessHandleResume), except after a wake-up. `SHUTDOWN`
/// only says that the guest powered off: QEMU still runs and may boot the guest again.
pub(super) fn lifecycle(event: c_int, detail: c_int) -> Option<Event> {
    match (u32::try_from(event).ok()?, u32::try_from(detail).ok()?) {
        (sys::VIR_DOMAIN_EVENT_STARTED, sys::VIR_DOMAIN_EVENT_STARTED_WAKEUP) => Some(Event::Resumed),
        (sys::VIR_DOMAIN_EVENT_RESUMED, _) => Some(Event::Resumed),
        (sys::VIR_DOMAIN_EVENT_SUSPENDED | sys::VIR_DOMAIN_EVENT_PMSUSPENDED, _) => Some(Event::Suspended),
        (sys::VIR_DOMAIN_EVENT_STOPPED | sys::VIR_DOMAIN_EVENT_CRASHED, _) => Some(Event::Ended),
        _ => None,
    }
}

/// The open connections of this process by number, for the callback that reports the end of one.
static CONNECTIONS: Mutex<Vec<(usize, Weak<Closing>)>> = Mutex::new(Vec::new());

/// The end of one connection, and the functions to call then. libvirt accepts one callback for each connection; all who
/// wait for the end share it here.
pub(super) struct Closing {
    number: usize,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    closed: bool,
    next: usize,
    calls: Vec<(usize, Box<dyn FnOnce() + Send>)>,
}

/// A registration with [`Closing::tell`], until it is dropped.
pub(super) struct Ticket {
    closing: Arc<Closing>,
    key: usize,
}

impl Closing {
    pub(super) fn new() -> Arc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting { closed: false, next: 0, calls: Vec::new() };
        let closing = Arc::new(Self { number, waiting: Mutex::new(waiting) });
        lock(&CONNECTIONS).push((number, Arc::downgrade(&closing)));
        closing
    }

    /// The connection's number, for libvirt's callback.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.waiting).closed
    }

    /// Calls `call` when the connection ends, or at once if it has already ended. `call` may run on any thread, with
    /// locks of libvirt held, so it may only send.
    pub(super) fn tell(self: &Arc<Self>, call: Box<dyn FnOnce() + Send>) -> Ticket {
        let mut waiting = lock(&self.waiting);
        let key = waiting.next;
        waiting.next += 1;
        if waiting.closed {
            drop(waiting);
            call();
        } else {
            waiting.calls.push((key, call));
        }
        Ticket { closing: Arc::clone(self), key }
    }

    /// Notes the end of the connection and tells all who wait for it.
    pub(super) fn close(&self) {
        let calls = {
            let mut waiting = lock(&self.waiting);
            waiting.closed = true;
            std::mem::take(&mut waiting.calls)
        };
        for (_, call) in calls {
            call();
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        lock(&CONNECTIONS).retain(|(other, _)| *other != self.number);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = lock(&self.closing.waiting);
        let at = waiting.calls.iter().position(|(key, _)| *key == self.key);
        let call = at.map(|at| waiting.calls.swap_remove(at));
        // Dropping `call` may take the same lock.
        drop(waiting);
        drop(call);
    }
}

/// Reports that the connection with this number has ended.
pub(super) fn closed(number: usize) {
    let connections = lock(&CONNECTIONS);
    let closing = connections.iter().find(|(other, _)| *other == number).and_then(|(_, closing)| closing.upgrade());
    drop(connections);
    if let Some(closing) = closing {
        closing.close();
    }
}

/// How many references libvirt was given, and how many it has released.
#[cfg(test)]
pub(super) mod count {
    use std::sync::atomic::AtomicUsize;

    pub(crate) static REGISTERED: AtomicUsize = AtomicUsize::new(0);
    pub(crate) static FREED: AtomicUsize = AtomicUsize::new(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifecycle_event_tells_whether_the_cpus_run() {
        for (event, detail, expected) in [
            (sys::VIR_DOMAIN_EVENT_RESUMED, 0, Some(Event::Resumed)),
            (sys::VIR_DOMAIN_EVENT_STARTED, sys::VIR_DOMAIN_EVENT_STARTED_RESTORED, None),
            (sys::VIR_DOMAIN_EVENT_STARTED, sys::VIR_DOMAIN_EVENT_STARTED_WAKEUP, Some(Event::Resumed)),
            (sys::VIR_DOMAIN_EVENT_STARTED, sys::VIR_DOMAIN_EVENT_STARTED_MIGRATED, None),
            (sys::VIR_DOMAIN_EVENT_SUSPENDED, 0, Some(Event::Suspended)),
            (sys::VIR_DOMAIN_EVENT_PMSUSPENDED, 0, Some(Event::Suspended)),
            (sys::VIR_DOMAIN_EVENT_STOPPED, sys::VIR_DOMAIN_EVENT_STOPPED_SAVED, Some(Event::Ended)),
            (sys::VIR_DOMAIN_EVENT_CRASHED, 0, Some(Event::Ended)),
            (sys::VIR_DOMAIN_EVENT_SHUTDOWN, 0, None),
            (sys::VIR_DOMAIN_EVENT_DEFINED, 0, None),
            (4711, 0, None),
        ] {
            assert_eq!(lifecycle(event as c_int, detail as c_int), expected, "{event} {detail}");
        }
        assert_eq!(lifecycle(-1, 0), None);
    }
}
