//! The calls of libvirt's C API that the crate `virt` lacks or gets wrong. All `unsafe` of this package is here.
//!
//! * `calls` - calls on domains
//! * `callbacks` - functions that libvirt calls: for events, the end of a connection, and timers
//! * `parameters` - libvirt's lists of typed parameters
//!
//! These facts hold for every `unsafe` block:
//!
//! * A `&Connect` or a `&Domain` owns a reference to its C object while it is borrowed. libvirt's objects may be used
//!   from any thread.
//! * Texts for C are `CStr`s that outlive the call. libvirt copies what it keeps.
//! * `virt`'s `Error::last_error` reads the error of the calling thread. So it is called at once, on the same thread.
//! * Callbacks only send. They never panic, and they call libvirt only to read the UUID of the domain that they get.

#![allow(unsafe_code)]

mod callbacks;
mod calls;
mod parameters;

use std::ffi::{CStr, c_char, c_int};

use virt::error::Error;

pub(super) use callbacks::{
    Callback, Watched, deregister, mark_loop, register, register_arrival, register_close, unregister_close,
};
pub(super) use calls::{
    JobStats, abort_job, agent_command, block_capacity, block_copy, block_job, block_job_abort, detach_alias,
    job_stats, migrate, save, start_postcopy, state,
};
pub(super) use parameters::{Parameter, Value};

/// The error of a call that returns a negative number when it fails.
fn zero(result: c_int) -> Result<(), Error> {
    if result < 0 { Err(Error::last_error()) } else { Ok(()) }
}

/// A copy of libvirt's text; empty for a null pointer.
///
/// # Safety
/// `text` is null or a C string that lives during the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller promises that it is a C string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
