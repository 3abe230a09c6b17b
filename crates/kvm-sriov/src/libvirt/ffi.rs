//! The calls of libvirt's C API that the crate `virt` lacks or gets wrong. All `unsafe` of this package is here.
//!
//! What holds for every block: a `&Connect` or `&Domain` owns a reference to its C object for as long as it is borrowed,
//! and libvirt's objects may be used from any thread. Texts for C are `CStr`s that outlive the call; libvirt copies what it
//! keeps. `virt`'s `Error::last_error` reads the error of the calling thread, so it is asked at once, on the same thread.
//!
//! Callbacks only send: they never panic and never call libvirt, but to read the UUID of the domain that they are called with.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::Event;
use super::watch::{self, Sink};
use crate::base::DomainUuid;

/// The events of a domain that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    Lifecycle,
    Reboot,
    DeviceRemoved,
    DeviceAdded,
    JobCompleted,
    DeviceRemovalFailed,
}

impl Watched {
    pub(super) const ALL: [Self; 6] = [
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

    /// libvirt takes every callback as a generic one and calls it as what its event's id says (its own macro for this is
    /// `VIR_DOMAIN_EVENT_CALLBACK`).
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

/// A callback that libvirt holds; to be given back by [`deregister`].
#[derive(Debug)]
pub(super) struct Callback(c_int);

/// Has libvirt send the events of this kind and domain into `sink`, from the thread that runs the event loop. A connection takes
/// the same callback for the same domain only once.
///
/// libvirt holds a reference to `sink`, and one to the connection, until the callback is deregistered; it gives the first
/// back through [`release`], once.
///
/// A registration that fails keeps its reference to `sink` for ever, a few dozen bytes: it is not known whether libvirt gives it
/// back. It does not where its own list refuses the callback. But where libvirtd refuses it while events are dispatched, libvirt
/// only marks the callback as deleted, and calls [`release`] for it after the dispatch, although the registration has failed.
///
/// # Source
/// libvirt `remoteConnectDomainEventCallbackRegisterAny`; `virObjectEventStateDeregisterID`, which passes `doFreeCb` only to
/// `virObjectEventCallbackListRemoveID`; `virObjectEventCallbackListPurgeMarked`.
pub(super) fn register(
    connect: &Connect,
    domain: &Domain,
    watched: Watched,
    sink: &Arc<Sink>,
) -> Result<Callback, Error> {
    let opaque = Arc::into_raw(Arc::clone(sink)).cast_mut().cast::<c_void>();
    // SAFETY: both objects are alive; the callback has the type that goes with the id; `opaque` is a counted reference to a
    // `Sink`, so it is valid until `release` gives it back, which libvirt calls once and after which it calls no callback.
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
        watch::count::REGISTERED.fetch_add(1, Ordering::SeqCst);
        return Ok(Callback(id));
    }
    // `opaque` stays: see above.
    Err(Error::last_error())
}

/// The domain that a callback for all of them waits for, and where its events go.
struct Arrival {
    uuid: DomainUuid,
    sink: Arc<Sink>,
}

/// Has libvirt send the lifecycle events of a domain that need not be here yet into `sink`: those of all domains come, and
/// all others are dropped. Otherwise as [`register`], but a connection takes only one of these.
pub(super) fn register_arrival(connect: &Connect, uuid: &DomainUuid, sink: &Arc<Sink>) -> Result<Callback, Error> {
    let arrival = Arc::new(Arrival { uuid: uuid.clone(), sink: Arc::clone(sink) });
    let opaque = Arc::into_raw(arrival).cast_mut().cast::<c_void>();
    // SAFETY: the connection is alive, and no domain means all; the callback has the type that goes with the id; `opaque` is
    // a counted reference to an `Arrival`, valid until `release_arrival` gives it back, which libvirt calls once.
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
        watch::count::REGISTERED.fetch_add(1, Ordering::SeqCst);
        return Ok(Callback(id));
    }
    // What libvirt may still hold stays as it is: a few bytes, once in the life of an agent that ends for it.
    Err(Error::last_error())
}

/// libvirt's free callback of [`register_arrival`].
unsafe extern "C" fn release_arrival(opaque: *mut c_void) {
    #[cfg(test)]
    watch::count::FREED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: `opaque` is from `Arc::into_raw` in `register_arrival`; libvirt calls this once, when it needs it no more.
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
    // SAFETY: libvirt's domain is alive during the callback; the text has room for a UUID and its NUL, as libvirt asks for.
    let is_read = unsafe { sys::virDomainGetUUIDString(domain, text.as_mut_ptr()) } == 0;
    // SAFETY: libvirt has ended the text with a NUL.
    let uuid = unsafe { CStr::from_ptr(text.as_ptr()) };
    // SAFETY: libvirt's reference keeps the `Arrival` alive while a callback runs; it is shared, never changed in place.
    let arrival = unsafe { &*opaque.cast_const().cast::<Arrival>() };
    let event = watch::lifecycle(event, detail).filter(|_| is_read && uuid.to_str() == Ok(arrival.uuid.as_str()));
    if let Some(event) = event {
        arrival.sink.send(&event);
    }
    // Not used by libvirt.
    0
}

/// Takes a callback back. Also when the connection is broken, and libvirtd can't be told, libvirt forgets it here.
///
/// One that runs on the loop's thread at this moment may end after this returns: it finds nobody in its [`Sink`].
///
/// # Source
/// libvirt `remoteConnectDomainEventDeregisterAny`, `virObjectEventStateDeregisterID`.
pub(super) fn deregister(connect: &Connect, callback: Callback) -> Result<(), Error> {
    // SAFETY: the connection is alive; an id that it does not know is an error.
    zero(unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), callback.0) })
}

/// libvirt's free callback of [`register`].
unsafe extern "C" fn release(opaque: *mut c_void) {
    #[cfg(test)]
    watch::count::FREED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: `opaque` is from `Arc::into_raw` in `register`; libvirt calls this once, when it needs it no more.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Sink>()) });
}

/// Sends an event from a callback.
///
/// # Safety
/// `opaque` is the one that [`register`] gave to libvirt, and libvirt has not released it.
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
    if let Some(event) = watch::lifecycle(event, detail) {
        // SAFETY: libvirt calls this with the `opaque` of the registration, before it releases it.
        unsafe { send(opaque, event) };
    }
    // Not used by libvirt.
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

/// A copy of libvirt's text; empty for none.
///
/// # Safety
/// `text` is null or a C string that lives during the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: it is a C string, says the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Has libvirt tell [`watch::closed`] when this connection breaks. A connection has room for one such callback, and while it
/// has one libvirt keeps the connection open: [`unregister_close`] comes before the end of `connect`.
///
/// * `number` - the connection's number there. It travels as the callback's data: no memory changes hands, because drivers
///   without a daemon (the test driver) take the callback, never call it, and never free its data either
pub(super) fn register_close(connect: &Connect, number: usize) -> Result<(), Error> {
    // SAFETY: the connection is alive; the callback's data is a number that nobody takes for an address.
    zero(unsafe {
        sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(closed), ptr::without_provenance_mut(number), None)
    })
}

/// Takes it back, if libvirt still has it.
pub(super) fn unregister_close(connect: &Connect) -> Result<(), Error> {
    // SAFETY: the connection is alive; a callback that is not registered is an error.
    zero(unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(closed)) })
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, _reason: c_int, number: *mut c_void) {
    watch::closed(number.addr());
}

/// State and reason of a domain (`virt`'s own form drops the error).
pub(super) fn state(domain: &Domain) -> Result<(c_int, c_int), Error> {
    let (mut state, mut reason) = (0, 0);
    // SAFETY: the domain is alive; both places live during the call.
    zero(unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) })?;
    Ok((state, reason))
}

/// Asks the guest to release the device with this alias.
pub(super) fn detach_alias(domain: &Domain, alias: &CStr) -> Result<(), Error> {
    // SAFETY: the domain and the text are alive.
    zero(unsafe { sys::virDomainDetachDeviceAlias(domain.as_ptr(), alias.as_ptr(), sys::VIR_DOMAIN_AFFECT_LIVE) })
}

/// Saves a domain into a file. libvirtd writes into a file that exists and keeps its owner and mode.
pub(super) fn save(domain: &Domain, file: &CStr) -> Result<(), Error> {
    // SAFETY: the domain and the path are alive; no XML means the domain's own.
    zero(unsafe { sys::virDomainSaveFlags(domain.as_ptr(), file.as_ptr(), ptr::null(), 0) })
}

/// Aborts the job that runs on a domain.
pub(super) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive.
    zero(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })
}

/// Lets a guest that is being moved go on at the destination; the rest of its memory follows.
pub(super) fn start_postcopy(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive.
    zero(unsafe { sys::virDomainMigrateStartPostCopy(domain.as_ptr(), 0) })
}

/// What libvirt tells of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JobStats {
    /// `virDomainJobOperation`, when libvirt told.
    pub(super) operation: Option<c_int>,
    pub(super) remaining: Option<u64>,
    pub(super) all: Option<u64>,
    /// How often the guest's memory was gone through, from 1.
    pub(super) iteration: Option<u64>,
    /// What it was for a completed job, what QEMU may make of it for one that runs.
    pub(super) downtime_ms: Option<u64>,
}

/// The job that runs on a domain or, if `completed`, its last one; `None` when there is none. What is known of a completed
/// job stays known.
pub(super) fn job_stats(domain: &Domain, completed: bool) -> Result<Option<JobStats>, Error> {
    let flags =
        if completed { sys::VIR_DOMAIN_JOB_STATS_COMPLETED | sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED } else { 0 };
    let mut kind = 0;
    let mut parameters = Parameters::new();
    // SAFETY: the domain is alive; libvirt stores an array that it allocated and its length, which `Parameters` frees.
    zero(unsafe {
        sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut parameters.array, &mut parameters.length, flags)
    })?;
    if kind == sys::VIR_DOMAIN_JOB_NONE as c_int {
        return Ok(None);
    }
    Ok(Some(JobStats {
        operation: parameters.int(sys::VIR_DOMAIN_JOB_OPERATION),
        remaining: parameters.unsigned(sys::VIR_DOMAIN_JOB_DATA_REMAINING),
        all: parameters.unsigned(sys::VIR_DOMAIN_JOB_DATA_TOTAL),
        iteration: parameters.unsigned(sys::VIR_DOMAIN_JOB_MEMORY_ITERATION),
        downtime_ms: parameters.unsigned(sys::VIR_DOMAIN_JOB_DOWNTIME),
    }))
}

/// The value of a parameter of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Int(i32),
    Unsigned(u64),
    Text(CString),
}

/// A parameter of a call.
pub(super) type Parameter = (&'static CStr, Value);

/// Moves a domain to where `destination` leads, driven by this process.
pub(super) fn migrate(
    domain: &Domain,
    destination: &Connect,
    parameters: &[Parameter],
    flags: u32,
) -> Result<Domain, Error> {
    let mut list = Parameters::new();
    for (name, value) in parameters {
        list.add(name, value)?;
    }
    // SAFETY: domain and connection are alive; the array has that many parameters and lives during the call.
    let moved = unsafe {
        sys::virDomainMigrate3(domain.as_ptr(), destination.as_ptr(), list.array, list.length.unsigned_abs(), flags)
    };
    if moved.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: the pointer is a new reference to the domain there, and it becomes this object's.
    Ok(unsafe { Domain::from_ptr(moved) })
}

/// Starts copying a disk into the image that `target` describes, which exists already.
pub(super) fn block_copy(domain: &Domain, disk: &CStr, target: &CStr, flags: u32) -> Result<(), Error> {
    // SAFETY: domain and texts are alive; there are no parameters.
    zero(unsafe { sys::virDomainBlockCopy(domain.as_ptr(), disk.as_ptr(), target.as_ptr(), ptr::null_mut(), 0, flags) })
}

/// Bytes done and all bytes of the job on a disk; `None` when there is none.
pub(super) fn block_job(domain: &Domain, disk: &CStr) -> Result<Option<(u64, u64)>, Error> {
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    // SAFETY: domain, text and the place for the answer are alive.
    match unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) } {
        0 => Ok(None),
        found if found > 0 => Ok(Some((info.cur, info.end))),
        _ => Err(Error::last_error()),
    }
}

/// Ends the job on a disk.
pub(super) fn block_job_abort(domain: &Domain, disk: &CStr, flags: u32) -> Result<(), Error> {
    // SAFETY: domain and text are alive.
    zero(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) })
}

/// How large a disk is for the guest, in bytes (`virt` drops the error and returns what was in memory).
pub(super) fn block_capacity(domain: &Domain, disk: &CStr) -> Result<u64, Error> {
    let mut info = sys::virDomainBlockInfo { capacity: 0, allocation: 0, physical: 0 };
    // SAFETY: domain, text and the place for the answer are alive.
    zero(unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) })?;
    Ok(info.capacity)
}

/// Has the agent in a guest carry out a command, with libvirt's own deadline of 5 s (`virt` has only the monitor's counterpart).
pub(super) fn agent_command(domain: &Domain, command: &CStr) -> Result<String, Error> {
    // SAFETY: domain and text are alive; libvirt returns a text that it allocated, or null.
    let answer = unsafe {
        sys::virDomainQemuAgentCommand(domain.as_ptr(), command.as_ptr(), sys::VIR_DOMAIN_QEMU_AGENT_COMMAND_DEFAULT, 0)
    };
    if answer.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: it is a C string of libvirt's.
    let copy = unsafe { text(answer) };
    // SAFETY: libvirt allocates with malloc and leaves this text to the caller; nobody uses it after this.
    unsafe { nix::libc::free(answer.cast()) };
    Ok(copy)
}

/// Puts a mark into libvirt's event loop, and wakes it: true when everything is freed that was removed from the loop before.
///
/// The loop frees what is removed in a later round, one after the other. So the mark is a timer that never fires and is removed
/// at once: its data is freed after that of the ones before.
pub(super) fn mark_loop() -> Result<Arc<AtomicBool>, Error> {
    let freed = Arc::new(AtomicBool::new(false));
    let opaque = Arc::into_raw(Arc::clone(&freed)).cast_mut().cast::<c_void>();
    // SAFETY: `opaque` is a counted reference, valid until `marked` gives it back, which libvirt calls once.
    let timer = unsafe { sys::virEventAddTimeout(-1, Some(never), opaque, Some(marked)) };
    if timer < 0 {
        // libvirt's own loop never refuses a timer. Of a loop that an embedder brought nobody knows whether it has freed what it
        // refused: the flag stays in memory.
        return Err(Error::last_error());
    }
    // SAFETY: takes a number; one that is no timer is an error.
    zero(unsafe { sys::virEventRemoveTimeout(timer) })?;
    Ok(freed)
}

extern "C" fn never(_timer: c_int, _: *mut c_void) {}

/// libvirt's free callback of [`mark_loop`].
unsafe extern "C" fn marked(opaque: *mut c_void) {
    // SAFETY: `opaque` is from `Arc::into_raw` in `mark_loop`; libvirt calls this once.
    unsafe { Arc::from_raw(opaque.cast_const().cast::<AtomicBool>()) }.store(true, Ordering::Release);
}

/// A list of typed parameters in libvirt's memory (`virt`'s form makes a `Vec` of what libvirt allocated, and loses texts
/// when a call fails).
struct Parameters {
    array: sys::virTypedParameterPtr,
    length: c_int,
    room: c_int,
}

impl Parameters {
    fn new() -> Self {
        Self { array: ptr::null_mut(), length: 0, room: 0 }
    }

    fn add(&mut self, name: &CStr, value: &Value) -> Result<(), Error> {
        let (array, length, room) = (&mut self.array, &mut self.length, &mut self.room);
        // SAFETY: the three belong together: libvirt lets the array grow and counts in them. Name and text are copied.
        zero(unsafe {
            match value {
                Value::Int(value) => sys::virTypedParamsAddInt(array, length, room, name.as_ptr(), *value),
                Value::Unsigned(value) => sys::virTypedParamsAddULLong(array, length, room, name.as_ptr(), *value),
                Value::Text(value) => sys::virTypedParamsAddString(array, length, room, name.as_ptr(), value.as_ptr()),
            }
        })
    }

    /// The value; `None` when there is none of this name and type.
    fn int(&self, name: &CStr) -> Option<c_int> {
        let mut value = 0;
        // SAFETY: the array has `length` parameters; name and place live during the call.
        let found = unsafe { sys::virTypedParamsGetInt(self.array, self.length, name.as_ptr(), &mut value) };
        (found == 1).then_some(value)
    }

    /// The value; `None` when there is none of this name and type.
    fn unsigned(&self, name: &CStr) -> Option<u64> {
        let mut value = 0;
        // SAFETY: the array has `length` parameters; name and place live during the call.
        let found = unsafe { sys::virTypedParamsGetULLong(self.array, self.length, name.as_ptr(), &mut value) };
        (found == 1).then_some(value)
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        // SAFETY: the array is null or libvirt's with `length` parameters, and nobody uses it after this.
        unsafe { sys::virTypedParamsFree(self.array, self.length) };
    }
}

/// libvirt's way to say that a call failed.
fn zero(result: c_int) -> Result<(), Error> {
    if result < 0 { Err(Error::last_error()) } else { Ok(()) }
}
