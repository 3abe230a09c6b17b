//! What comes from libvirt by itself, and where it goes: events of domains, and the end of a connection.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use virt::sys;

use super::Event;

/// Where the events of a watched domain go: to all its watchers. libvirt may run a callback a moment longer than a
/// watcher lives; it then finds that watcher no more.
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

    /// Lets events through to `sender`, until [`Sink::remove`] is called with the key that this returns.
    pub(super) fn add(&self, sender: Sender<Event>) -> usize {
        let mut senders = lock(&self.0);
        let key = senders.next;
        senders.next += 1;
        senders.by_key.push((key, sender));
        key
    }

    /// Lets nothing more through. An event that is being sent is in the channel when this returns.
    pub(super) fn remove(&self, key: usize) {
        lock(&self.0).by_key.retain(|(other, _)| *other != key);
    }

    pub(super) fn send(&self, event: &Event) {
        // A receiver that is gone wants no more.
        lock(&self.0).by_key.retain(|(_, sender)| sender.send(event.clone()).is_ok());
    }

    /// Tells the end of the connection, after which nothing comes.
    pub(super) fn disconnect(&self) {
        self.send(&Event::Disconnected);
        lock(&self.0).by_key.clear();
    }
}

/// What a lifecycle event means for a watcher; `None` for what changes nothing for it.
///
/// # Source
/// libvirt `virDomainEventType`. `STARTED` says that QEMU is there, also when its CPUs stand, as on the incoming side
/// of a migration; `RESUMED` follows when they run (qemuProcessHandleResume), except after a wake-up. `SHUTDOWN` only
/// says that the guest powered off; QEMU is still there, and may boot it again.
pub(super) fn lifecycle(event: c_int, detail: c_int) -> Option<Event> {
    match (u32::try_from(event).ok()?, u32::try_from(detail).ok()?) {
        (sys::VIR_DOMAIN_EVENT_STARTED, sys::VIR_DOMAIN_EVENT_STARTED_WAKEUP) => Some(Event::Resumed),
        (sys::VIR_DOMAIN_EVENT_RESUMED, _) => Some(Event::Resumed),
        (sys::VIR_DOMAIN_EVENT_SUSPENDED | sys::VIR_DOMAIN_EVENT_PMSUSPENDED, _) => Some(Event::Suspended),
        (sys::VIR_DOMAIN_EVENT_STOPPED | sys::VIR_DOMAIN_EVENT_CRASHED, _) => Some(Event::Ended),
        _ => None,
    }
}

/// The open connections by number, for the callback that tells the end of one.
static CONNECTIONS: Mutex<Vec<(usize, Weak<Closing>)>> = Mutex::new(Vec::new());

/// The end of one connection, and who wants to know of it. libvirt has room for one callback a connection; here they
/// share it.
pub(super) struct Closing {
    number: usize,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    closed: bool,
    next: usize,
    calls: Vec<(usize, Box<dyn FnOnce() + Send>)>,
}

/// Keeps a wish to know of the end of a connection.
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

    /// The connection's number, for the callback.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.waiting).closed
    }

    /// Calls `call` when the connection ends, and at once if it has ended already. On any thread, with locks of libvirt
    /// held: it may only send.
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

    fn close(&self) {
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
        // What it holds may want the lock itself.
        drop(waiting);
        drop(call);
    }
}

/// The connection with this number has ended.
pub(super) fn closed(number: usize) {
    let connections = lock(&CONNECTIONS);
    let closing = connections.iter().find(|(other, _)| *other == number).and_then(|(_, closing)| closing.upgrade());
    drop(connections);
    if let Some(closing) = closing {
        closing.close();
    }
}

/// A panic elsewhere makes none of these wrong.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often libvirt was given a reference and gave one back.
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
