//! Functions that libvirt calls.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::{text, zero};
use crate::base::DomainUuid;
use crate::libvirt::Event;
use crate::libvirt::receivers::{self, Sink};

/// The kinds of events that a watch registers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::libvirt) enum Watched {
    Lifecycle,
    Reboot,
    DeviceRemoved,
    DeviceAdded,
    JobCompleted,
    DeviceRemovalFailed,
}

impl Watched {
    pub(in crate::libvirt) const ALL: [Self; 6] = [
        Self::DeviceRemoved,
        Self::DeviceRemovalFailed,
        Self::DeviceAdded,
        Self::Lifecycle,
        Self::Reboot,
        Self::JobCompleted,
    ];

    fn id(self) -> c_int {
        let id = match self {
            Self::Lifecycle => sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            Self::Reboot => sys::VIR_DOMAIN_EVENT_ID_REBOOT,
            Self::DeviceRemoved => sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            Self::DeviceAdded => sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            Self::JobCompleted => sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
            Self::DeviceRemovalFailed => sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
        };
        id as c_int
    }

    /// The callback for this kind. libvirt takes every callback as a generic one, and calls it with the arguments that
    /// belong to its event's id. C programs use the macro `VIR_DOMAIN_EVENT_CALLBACK` for the cast.
    fn callback(self) -> unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void) {
        match self {
            Self::Reboot => rebooted,
            // SAFETY: only the type changes; libvirt calls the callback of this id as virConnectDomainEventCallback.
            Self::Lifecycle => unsafe { std::mem::transmute::<LifecycleCallback, GenericCallback>(lifecycle) },
            // SAFETY: only the type changes; libvirt calls the callback of this id as
            // virConnectDomainEventDeviceRemovedCallback.
            Self::DeviceRemoved => unsafe { std::mem::transmute::<DeviceCallback, GenericCallback>(device_removed) },
            // SAFETY: only the type changes; libvirt calls the callback of this id as
            // virConnectDomainEventDeviceAddedCallback.
            Self::DeviceAdded => unsafe { std::mem::transmute::<DeviceCallback, GenericCallback>(device_added) },
            // SAFETY: only the type changes; libvirt calls the callback of this id as
            // virConnectDomainEventDeviceRemovalFailedCallback.
            Self::DeviceRemovalFailed => unsafe {
                std::mem::transmute::<DeviceCallback, GenericCallback>(device_removal_failed)
            },
            // SAFETY: only the type changes; libvirt calls the callback of this id as
            // virConnectDomainEventJobCompletedCallback.
            Self::JobCompleted => unsafe { std::mem::transmute::<JobCallback, GenericCallback>(job_completed) },
        }
    }
}

type GenericCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type LifecycleCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type DeviceCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type JobCallback =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, sys::virTypedParameterPtr, c_int, *mut c_void);

/// A callback that is registered with libvirt, until [`deregister`].
#[derive(Debug)]
pub(in crate::libvirt) struct Callback(c_int);

/// Registers a callback that sends the events of this kind and domain into `sink`. The callback runs on the thread of
/// the event loop. A connection accepts the same callback for the same domain only once.
///
/// libvirt holds a reference to `sink` and one to the connection until the callback is deregistered. Then libvirt calls
/// [`release`] once, which drops the reference to `sink`.
///
/// If the registration fails, its reference to `sink` is never dropped, which costs a few dozen bytes. It can't be
/// dropped, because libvirt may still call [`release`]. libvirt does not call it when its own list refuses the
/// callback. When libvirtd refuses the callback while events are dispatched, libvirt only marks the callback as deleted
/// and calls [`release`] after the dispatch, although the registration has failed.
///
/// # Source
/// libvirt `remoteConnectDomainEventCallbackRegisterAny`; `virObjectEventStateDeregisterID`, which passes `doFreeCb`
/// only to `virObjectEventCallbackListRemoveID`; `virObjectEventCallbackListPurgeMarked`.
pub(in crate::libvirt) fn register(
    connect: &Connect,
    domain: &Domain,
    watched: Watched,
    sink: &Arc<Sink>,
) -> Result<Callback, Error> {
    let opaque = Arc::into_raw(Arc::clone(sink)).cast_mut().cast::<c_void>();
    // SAFETY: both objects are alive; the callback has the type that goes with the id; `opaque` is a counted reference
    // to a `Sink`, so it is valid until libvirt calls `release`, which it does once, after the last callback.
    let id = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            domain.as_ptr(),
            watched.id(),
            Some(watched.callback()),
            opaque,
            Some(release),
        )
    };
    if id >= 0 {
        #[cfg(test)]
        receivers::count::REGISTERED.fetch_add(1, Ordering::SeqCst);
        return Ok(Callback(id));
    }
    // The reference in `opaque` is not dropped: see above.
    Err(Error::last_error())
}

/// The domain that the callback [`arrived`] waits for, and where its events go.
struct Arrival {
    uuid: DomainUuid,
    sink: Arc<Sink>,
}

/// Registers a callback that sends the lifecycle events of a domain into `sink`. The domain need not exist yet: libvirt
/// calls the callback for all domains, and the callback drops the events of the others. Otherwise as [`register`], but
/// a connection accepts only one such callback.
pub(in crate::libvirt) fn register_arrival(
    connect: &Connect,
    uuid: &DomainUuid,
    sink: &Arc<Sink>,
) -> Result<Callback, Error> {
    let arrival = Arc::new(Arrival { uuid: uuid.clone(), sink: Arc::clone(sink) });
    let opaque = Arc::into_raw(arrival).cast_mut().cast::<c_void>();
    // SAFETY: the connection is alive; a null domain means all domains; the callback has the type that goes with the
    // id; `opaque` is a counted reference to an `Arrival`, valid until libvirt calls `release_arrival`, which it does
    // once.
    let id = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            ptr::null_mut(),
            sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
            Some(std::mem::transmute::<LifecycleCallback, GenericCallback>(arrived)),
            opaque,
            Some(release_arrival),
        )
    };
    if id >= 0 {
        #[cfg(test)]
        receivers::count::REGISTERED.fetch_add(1, Ordering::SeqCst);
        return Ok(Callback(id));
    }
    // The reference in `opaque` is not dropped, as in `register`. It is a few bytes, and the agent ends after this
    // error.
    Err(Error::last_error())
}

/// libvirt's free function for the data of [`register_arrival`].
unsafe extern "C" fn release_arrival(opaque: *mut c_void) {
    #[cfg(test)]
    receivers::count::FREED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: `opaque` is from `Arc::into_raw` in `register_arrival`; libvirt calls this once, after the last
    // callback.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Arrival>()) });
}

unsafe extern "C" fn arrived(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let mut text = [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: libvirt's domain is alive during the callback; the text has room for a UUID and its NUL, as libvirt asks
    // for.
    let is_read = unsafe { sys::virDomainGetUUIDString(domain, text.as_mut_ptr()) } == 0;
    // SAFETY: libvirt has ended the text with a NUL.
    let uuid = unsafe { CStr::from_ptr(text.as_ptr()) };
    // SAFETY: libvirt's reference keeps the `Arrival` alive while a callback runs; it is shared, never changed in
    // place.
    let arrival = unsafe { &*opaque.cast_const().cast::<Arrival>() };
    let event = receivers::lifecycle(event, detail).filter(|_| is_read && uuid.to_str() == Ok(arrival.uuid.as_str()));
    if let Some(event) = event {
        arrival.sink.send(&event);
    }
    // libvirt ignores this value.
    0
}

/// Deregisters a callback. If the connection is broken, libvirtd can't be told, but libvirt still deletes the callback
/// in this process.
///
/// The callback may be running on the event loop's thread when this returns. It then finds no watcher in its [`Sink`].
///
/// # Source
/// libvirt `remoteConnectDomainEventDeregisterAny`, `virObjectEventStateDeregisterID`.
pub(in crate::libvirt) fn deregister(connect: &Connect, callback: Callback) -> Result<(), Error> {
    // SAFETY: the connection is alive; an id that it does not know is an error.
    zero(unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), callback.0) })
}

/// libvirt's free function for the data of [`register`].
unsafe extern "C" fn release(opaque: *mut c_void) {
    #[cfg(test)]
    receivers::count::FREED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: `opaque` is from `Arc::into_raw` in `register`; libvirt calls this once, after the last
    // callback.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Sink>()) });
}

/// Sends an event from a callback.
///
/// # Safety
/// `opaque` is the pointer that [`register`] passed to libvirt, and libvirt has not called [`release`] for it.
unsafe fn send(opaque: *mut c_void, event: Event) {
    // SAFETY: libvirt's reference keeps the `Sink` alive while a callback runs; it is shared, never changed in place.
    let sink = unsafe { &*opaque.cast_const().cast::<Sink>() };
    sink.send(&event);
}

unsafe extern "C" fn lifecycle(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    if let Some(event) = receivers::lifecycle(event, detail) {
        // SAFETY: libvirt calls this with the `opaque` of the registration, before it releases it.
        unsafe { send(opaque, event) };
    }
    // libvirt ignores this value.
    0
}

unsafe extern "C" fn rebooted(_: sys::virConnectPtr, _: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: libvirt calls this with the `opaque` of the registration, before it releases it.
    unsafe { send(opaque, Event::Rebooted) };
}

unsafe extern "C" fn job_completed(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    _: sys::virTypedParameterPtr,
    _: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with the `opaque` of the registration, before it releases it.
    unsafe { send(opaque, Event::JobCompleted) };
}

unsafe extern "C" fn device_removed(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with an alias and the `opaque` of the registration, before it releases it.
    unsafe { send(opaque, Event::DeviceRemoved(text(alias))) };
}

unsafe extern "C" fn device_removal_failed(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with an alias and the `opaque` of the registration, before it releases it.
    unsafe { send(opaque, Event::DeviceRemovalFailed(text(alias))) };
}

unsafe extern "C" fn device_added(
    _: sys::virConnectPtr,
    _: sys::virDomainPtr,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls this with an alias and the `opaque` of the registration, before it releases it.
    unsafe { send(opaque, Event::DeviceAdded(text(alias))) };
}

/// Registers a callback that calls [`receivers::closed`] when this connection breaks. A connection accepts one such
/// callback. libvirt keeps the connection open while the callback is registered, so call [`unregister_close`] before
/// `connect` is dropped.
///
/// * `number` - the connection's number in `receivers`. The callback gets this number as its data, and no memory:
///   drivers without a daemon, such as the test driver, accept the callback but never call it and never free its data.
pub(in crate::libvirt) fn register_close(connect: &Connect, number: usize) -> Result<(), Error> {
    // SAFETY: the connection is alive; the callback's data is a number that is never used as an address.
    zero(unsafe {
        sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(closed), ptr::without_provenance_mut(number), None)
    })
}

/// Deregisters the callback of [`register_close`], if libvirt still has it.
pub(in crate::libvirt) fn unregister_close(connect: &Connect) -> Result<(), Error> {
    // SAFETY: the connection is alive; a callback that is not registered is an error.
    zero(unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(closed)) })
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, _reason: c_int, number: *mut c_void) {
    receivers::closed(number.addr());
}

/// Puts a mark into libvirt's event loop and wakes the loop. The flag becomes true when the loop has freed everything
/// that was removed from it before.
///
/// The loop frees removed handles and timers in a later round, in the order of their removal. The mark is a timer that
/// never fires and is removed at once, so the loop frees its data last.
pub(in crate::libvirt) fn mark_loop() -> Result<Arc<AtomicBool>, Error> {
    let freed = Arc::new(AtomicBool::new(false));
    let opaque = Arc::into_raw(Arc::clone(&freed)).cast_mut().cast::<c_void>();
    // SAFETY: `opaque` is a counted reference, valid until libvirt calls `marked`, which it does once.
    let timer = unsafe { sys::virEventAddTimeout(-1, Some(never), opaque, Some(marked)) };
    if timer < 0 {
        // libvirt's own loop never refuses a timer. The loop of an embedding program may refuse one, and it is not
        // known whether it then calls `marked`. So the flag stays in memory.
        return Err(Error::last_error());
    }
    // SAFETY: the argument is a number; a number that is no timer is an error.
    zero(unsafe { sys::virEventRemoveTimeout(timer) })?;
    Ok(freed)
}

extern "C" fn never(_timer: c_int, _: *mut c_void) {}

/// libvirt's free function for the data of [`mark_loop`].
unsafe extern "C" fn marked(opaque: *mut c_void) {
    // SAFETY: `opaque` is from `Arc::into_raw` in `mark_loop`; libvirt calls this once.
    unsafe { Arc::from_raw(opaque.cast_const().cast::<AtomicBool>()) }.store(true, Ordering::Release);
}
