//! Calls on domains.

use std::ffi::{CStr, c_int};
use std::ptr;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

use super::parameters::{Parameter, Parameters};
use super::{text, zero};

/// State and reason of a domain. `virt`'s own function drops the error.
pub(in crate::libvirt) fn state(domain: &Domain) -> Result<(c_int, c_int), Error> {
    let (mut state, mut reason) = (0, 0);
    // SAFETY: the domain is alive; both places live during the call.
    zero(unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) })?;
    Ok((state, reason))
}

/// Asks the guest to release the device with this alias.
pub(in crate::libvirt) fn detach_alias(domain: &Domain, alias: &CStr) -> Result<(), Error> {
    // SAFETY: the domain and the text are alive.
    zero(unsafe { sys::virDomainDetachDeviceAlias(domain.as_ptr(), alias.as_ptr(), sys::VIR_DOMAIN_AFFECT_LIVE) })
}

/// Saves a domain into a file. If the file exists, libvirtd writes into it and keeps its owner and mode.
pub(in crate::libvirt) fn save(domain: &Domain, file: &CStr) -> Result<(), Error> {
    // SAFETY: the domain and the path are alive; without XML libvirt saves the domain's own.
    zero(unsafe { sys::virDomainSaveFlags(domain.as_ptr(), file.as_ptr(), ptr::null(), 0) })
}

/// Aborts the job that runs on a domain.
pub(in crate::libvirt) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive.
    zero(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })
}

/// Switches a migration to post-copy: the guest goes on at the destination, and the rest of its memory follows.
pub(in crate::libvirt) fn start_postcopy(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive.
    zero(unsafe { sys::virDomainMigrateStartPostCopy(domain.as_ptr(), 0) })
}

/// What libvirt reports of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::libvirt) struct JobStats {
    /// A `virDomainJobOperation`, when libvirt reports it.
    pub(in crate::libvirt) operation: Option<c_int>,
    pub(in crate::libvirt) remaining: Option<u64>,
    pub(in crate::libvirt) all: Option<u64>,
    /// The number of the current pass over the guest's memory, from 1.
    pub(in crate::libvirt) iteration: Option<u64>,
    /// The downtime of a completed job, or the downtime that QEMU expects of a running one.
    pub(in crate::libvirt) downtime_ms: Option<u64>,
}

/// The job that runs on a domain or, if `completed`, its last completed job; `None` when there is none. libvirt keeps
/// the numbers of a completed job.
pub(in crate::libvirt) fn job_stats(domain: &Domain, completed: bool) -> Result<Option<JobStats>, Error> {
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

/// Migrates a domain to the host of `destination`. This process drives the migration.
pub(in crate::libvirt) fn migrate(
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
    // SAFETY: the pointer is a new reference to the domain at the destination, and this object takes it over.
    Ok(unsafe { Domain::from_ptr(moved) })
}

/// Starts copying a disk into the image that `target` describes, which exists already.
pub(in crate::libvirt) fn block_copy(domain: &Domain, disk: &CStr, target: &CStr, flags: u32) -> Result<(), Error> {
    // SAFETY: domain and texts are alive; there are no parameters.
    zero(unsafe { sys::virDomainBlockCopy(domain.as_ptr(), disk.as_ptr(), target.as_ptr(), ptr::null_mut(), 0, flags) })
}

/// Bytes done and all bytes of the job on a disk; `None` when there is none.
pub(in crate::libvirt) fn block_job(domain: &Domain, disk: &CStr) -> Result<Option<(u64, u64)>, Error> {
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    // SAFETY: domain, text and the place for the answer are alive.
    match unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) } {
        0 => Ok(None),
        found if found > 0 => Ok(Some((info.cur, info.end))),
        _ => Err(Error::last_error()),
    }
}

/// Ends the job on a disk.
pub(in crate::libvirt) fn block_job_abort(domain: &Domain, disk: &CStr, flags: u32) -> Result<(), Error> {
    // SAFETY: domain and text are alive.
    zero(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) })
}

/// The size of a disk as its guest sees it, in bytes. `virt` drops the error and returns uninitialized numbers.
pub(in crate::libvirt) fn block_capacity(domain: &Domain, disk: &CStr) -> Result<u64, Error> {
    let mut info = sys::virDomainBlockInfo { capacity: 0, allocation: 0, physical: 0 };
    // SAFETY: domain, text and the place for the answer are alive.
    zero(unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) })?;
    Ok(info.capacity)
}

/// Sends a command to the agent in a guest, with libvirt's own deadline of 5 s. `virt` only has the same function for
/// QEMU's monitor.
pub(in crate::libvirt) fn agent_command(domain: &Domain, command: &CStr) -> Result<String, Error> {
    // SAFETY: domain and text are alive; libvirt returns a text that it allocated, or null.
    let answer = unsafe {
        sys::virDomainQemuAgentCommand(domain.as_ptr(), command.as_ptr(), sys::VIR_DOMAIN_QEMU_AGENT_COMMAND_DEFAULT, 0)
    };
    if answer.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: it is a C string that libvirt allocated.
    let copy = unsafe { text(answer) };
    // SAFETY: libvirt allocates with malloc and the caller frees this text; it is not used afterwards.
    unsafe { nix::libc::free(answer.cast()) };
    Ok(copy)
}
