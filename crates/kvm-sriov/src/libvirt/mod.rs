//! libvirtd, through libvirt's C API. The only place that names the crate `virt`.
//!
//! * `connection` - [`Libvirt`]: calls that end at a deadline, over a connection that is opened anew when it broke
//! * `event_loop` - the thread that libvirt's keepalive and events need
//! * `watch` - where events and the end of a connection go
//! * `worker` - the threads that calls are made on
//! * `migration` - [`Migration`]: how a domain is moved, in virsh's words
//! * `error` - [`LibvirtError`]: libvirt's code and text, sorted by what an action does about them
//! * `ffi` - calls that `virt` lacks or gets wrong; the only module with `unsafe`
//!
//! What an action needs is the trait [`Hypervisor`], so that error paths can be shown without a libvirtd that fails.

mod connection;
mod error;
mod event_loop;
mod ffi;
mod migration;
#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests;
mod watch;
mod worker;

pub use connection::Libvirt;
pub(crate) use connection::copy_limit;
pub use error::{LibvirtError, LibvirtErrorKind};
pub use migration::{Migration, MigrationOptions};

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::base::{DeployId, DomainName, DomainUuid, Owner};

/// A domain, as it was when it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRef {
    /// Its name, such as `one-42`.
    pub name: DomainName,
    /// Its UUID: the one thing that no other domain ever has.
    pub uuid: DomainUuid,
    /// libvirt's number; `None` when it does not run.
    pub id: Option<u32>,
}

impl DomainRef {
    /// It, as the owner of claims.
    pub fn owner(&self) -> Owner {
        Owner { vm: self.name.clone(), uuid: Some(self.uuid.clone()) }
    }
}

/// How a domain runs, as far as an action treats it differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunState {
    /// Its CPUs run.
    Running,
    /// Its user, or its administrator, paused it.
    PausedByUser,
    /// It is not whole yet, or not any more: it is being started, it waits for its memory (the incoming side of a migration, a
    /// restore that is not resumed), or it has sent its memory and waits for the end of its migration.
    PausedForMigration,
    /// It is paused for another reason, such as an I/O error.
    PausedOtherwise,
    /// The guest suspended itself to memory.
    PmSuspended,
    /// It is ending, or QEMU is gone.
    Ending,
}

impl RunState {
    /// Whether its CPUs may execute.
    pub fn runs(self) -> bool {
        self == Self::Running
    }
}

/// A job that libvirt works on for a domain; while one runs, devices can't be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Job {
    /// What it does.
    pub kind: JobKind,
    /// Bytes of the guest that need no more copying and all its bytes, as far as QEMU tells. A guest that goes on writing lets
    /// the first go down, too.
    pub progress: Option<(u64, u64)>,
    /// How long the guest stood still at the end, in milliseconds, when the job is completed and QEMU told.
    pub downtime_ms: Option<u64>,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum JobKind {
    /// The domain goes into a file.
    Save,
    /// The domain comes from another host. libvirt tells no more of it on this side.
    MigrationIn,
    /// The domain goes to another host.
    MigrationOut,
    /// Anything else.
    #[default]
    Other,
}

/// A job on a disk, such as a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockJob {
    /// Bytes done. The guest goes on writing, so this and `all` may grow.
    pub done: u64,
    /// All bytes; 0 while QEMU has not begun.
    pub all: u64,
}

impl BlockJob {
    /// Whether the copy is equal to the disk and can take its place.
    ///
    /// # Source
    /// libvirt `qemuBlockJobInfoTranslate`: the two are equal only when QEMU says that the job is ready.
    pub fn is_ready(self) -> bool {
        self.all > 0 && self.done == self.all
    }
}

/// What libvirt says of a domain while it is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The device with this alias has left the guest.
    DeviceRemoved(String),
    /// The guest refused to release the device with this alias (pSeries only; on x86 refusal is silence).
    DeviceRemovalFailed(String),
    /// The device with this alias came in.
    DeviceAdded(String),
    /// Its CPUs run again: it was resumed, or came from a file or another host.
    Resumed,
    /// Its CPUs stand.
    Suspended,
    /// The guest was reset or rebooted.
    Rebooted,
    /// The domain ended, crashed or went elsewhere.
    Ended,
    /// A job of the domain ended.
    JobCompleted,
    /// The connection to libvirtd broke; nothing more will come.
    Disconnected,
}

/// What happens to one domain, from the moment it is watched until this is dropped.
pub struct Events {
    receiver: Receiver<Event>,
    _subscription: Box<dyn Send>,
}

impl Events {
    /// Events that come through `receiver` as long as `subscription` is alive.
    pub fn new(receiver: Receiver<Event>, subscription: Box<dyn Send>) -> Self {
        Self { receiver, _subscription: subscription }
    }

    /// The next event; `None` when none came within `timeout`. An end of the source is [`Event::Disconnected`].
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        match self.receiver.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Disconnected),
        }
    }
}

/// The snapshots of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshots {
    /// Their names, parents before children.
    pub names: Vec<String>,
    /// The one the domain is based on.
    pub current: Option<String>,
}

/// What a domain has used, from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Time on the host's CPUs, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that it may have, in KiB.
    pub memory_kib: u64,
    /// Bytes that its interfaces have received.
    pub received: u64,
    /// Bytes that its interfaces have sent.
    pub sent: u64,
    /// Bytes and requests that its disks have read.
    pub read: (u64, u64),
    /// Bytes and requests that its disks have written.
    pub written: (u64, u64),
    /// Whether its CPUs stand.
    pub is_paused: bool,
    /// Whether it stands for a reason that does not pass by itself: its user, an error of its storage, its watchdog, a crash.
    pub is_stuck: bool,
}

/// What the actions ask of libvirtd. Every call looks its domain up anew, by UUID.
///
/// # Errors
/// Every method: libvirt's refusal; [`LibvirtErrorKind::NoAnswer`] when the call did not return in time, or
/// [`LibvirtErrorKind::Disconnected`] when libvirtd went away under it: then it is not known whether it took effect. After
/// `Disconnected` a caller may ask again, as long as it likes to wait for libvirtd; nothing is repeated inside.
///
/// Calls whose time is that of a guest's memory or disks (`save`, `restore`, `migrate`, taking, reverting and deleting snapshots)
/// have no deadline: they end when libvirt is done, when [`Hypervisor::abort_job`] stops the job, or when the connection
/// breaks.
#[allow(clippy::missing_errors_doc)]
pub trait Hypervisor: Send + Sync {
    /// The running domains.
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError>;
    /// The running domain that OpenNebula means; `None` when there is none. A definition that is shut off, as a snapshot's
    /// revert or `--persistent` may leave it, is none.
    fn find(&self, id: &DeployId) -> Result<Option<DomainRef>, LibvirtError>;
    /// The XML of the domain as it runs, without passwords; `None` when it is gone.
    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError>;
    /// The XML of the domain as a libvirtd on another host takes it, with passwords.
    fn migratable_xml(&self, domain: &DomainRef) -> Result<String, LibvirtError>;
    /// Creates and starts a transient domain. Without validation: OpenNebula writes several `<devices>` blocks, which
    /// libvirt reads and its schema does not allow.
    ///
    /// * `limit` - how long it may take, such as [`Host::call_limit`](crate::Host::call_limit) of the domain's memory
    fn create(&self, xml: &str, limit: Duration) -> Result<DomainRef, LibvirtError>;
    /// Ends a domain at once.
    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Presses the power button.
    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Asks the guest to reboot.
    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Presses the reset button.
    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// The element of this namespace in the metadata of a running domain; `None` when it has none.
    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError>;
    /// Sets or, with `None`, removes the element of this namespace in the metadata of a running domain.
    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError>;
    /// How a running domain runs; `None` when it is gone.
    fn state(&self, domain: &DomainRef) -> Result<Option<RunState>, LibvirtError>;
    /// The job that runs on a domain; `None` when none does, or the domain is gone.
    fn job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError>;
    /// What is known of the last job of a domain that was completed: on a migration's destination, that migration.
    fn completed_job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError>;
    /// Aborts the job that runs on a domain. `Ok` means "asked".
    fn abort_job(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Watches a domain. To be called before what is to be seen is asked for.
    ///
    /// An event is a reason to look, not a proof: the first ones may be from the moment before, and libvirt may lose one. Several
    /// watchers of a domain each get all of them.
    fn watch(&self, domain: &DomainRef) -> Result<Events, LibvirtError>;
    /// Watches for a domain that need not be here yet, as [`Hypervisor::watch`]; only whether it runs, stands or has ended.
    fn watch_for(&self, uuid: &DomainUuid) -> Result<Events, LibvirtError>;
    /// Plugs a device into a running domain. `Ok` means "done", and is to be verified.
    ///
    /// * `limit` - how long it may take, such as [`Host::call_limit`](crate::Host::call_limit) of the memory that QEMU pins for the
    ///   device: all of the domain's for a host device
    fn attach(&self, domain: &DomainRef, device_xml: &str, limit: Duration) -> Result<(), LibvirtError>;
    /// Asks the guest to release the device with this alias. `Ok` means "asked".
    ///
    /// * `limit` - how long it may take; never longer than any other call. libvirt waits 30 s for a domain that is busy, then 5 s for the
    ///   guest
    fn detach_alias(&self, domain: &DomainRef, alias: &str, limit: Duration) -> Result<(), LibvirtError>;
    /// Takes out the device that this XML describes, for devices that have no alias of their own to name.
    fn detach(&self, domain: &DomainRef, device_xml: &str) -> Result<(), LibvirtError>;
    /// Changes the medium of a drive, as this XML of its `<disk>` says, even while the guest has locked it.
    fn change_medium(&self, domain: &DomainRef, disk_xml: &str) -> Result<(), LibvirtError>;
    /// Saves a domain into a file that exists already (libvirtd keeps its owner and mode), and ends it.
    fn save(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError>;
    /// The domain XML in a save image, with its passwords.
    fn image_xml(&self, file: &Path) -> Result<String, LibvirtError>;
    /// Starts a domain from a save image, with this XML in place of the image's own. `paused`: its CPUs stand until
    /// [`Hypervisor::resume`]; otherwise they run, or stand if they did when it was saved.
    ///
    /// * `limit` - how long it may take, such as [`Host::copy_limit`](crate::Host::copy_limit) of the domain's memory
    fn restore(&self, file: &Path, xml: &str, paused: bool, limit: Duration) -> Result<(), LibvirtError>;
    /// Lets the CPUs of a paused domain run.
    fn resume(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Wakes a guest that suspended itself to memory.
    fn wake_up(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Asks the guest's agent to set the clock from the hardware's.
    fn sync_time(&self, domain: &DomainRef) -> Result<(), LibvirtError>;
    /// Moves a running domain to another host. This process is connected to both libvirtds and drives the move.
    ///
    /// # Errors
    /// [`LibvirtErrorKind::Unreachable`] when it is the destination's libvirtd that can't be reached or was lost.
    fn migrate(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError>;
    /// The names of a domain's snapshots, parents before children, and which one is current.
    fn snapshots(&self, domain: &DomainRef) -> Result<Snapshots, LibvirtError>;
    /// Takes a snapshot of disks and memory.
    fn create_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError>;
    /// The XML of a snapshot, with passwords.
    fn snapshot_xml(&self, domain: &DomainRef, name: &str) -> Result<String, LibvirtError>;
    /// Brings a domain back to a snapshot, also where libvirt must end QEMU for it.
    fn revert_snapshot(&self, domain: &DomainRef, name: &str) -> Result<(), LibvirtError>;
    /// Deletes a snapshot, or only what libvirt knows of it.
    fn delete_snapshot(&self, domain: &DomainRef, name: &str, metadata_only: bool) -> Result<(), LibvirtError>;
    /// Makes a snapshot known that the domain's disks hold already, and if `current` the current one.
    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str, current: bool) -> Result<(), LibvirtError>;
    /// Starts copying a disk of a running domain into an image that exists already. `Ok` means "begun".
    ///
    /// * `disk` - its target, such as `vda`
    /// * `target_xml` - a `<disk>` that names the image and its format
    /// * `shallow` - only the top image is copied; the new one has a backing file already
    fn block_copy(&self, domain: &DomainRef, disk: &str, target_xml: &str, shallow: bool) -> Result<(), LibvirtError>;
    /// The job that runs on a disk; `None` when none does.
    fn block_job(&self, domain: &DomainRef, disk: &str) -> Result<Option<BlockJob>, LibvirtError>;
    /// Ends the job on a disk. `pivot`: the domain goes on with the copy, which must be ready; otherwise with the disk it has,
    /// and the copy is worth nothing.
    fn finish_block_job(&self, domain: &DomainRef, disk: &str, pivot: bool) -> Result<(), LibvirtError>;
    /// How large a disk of a running domain is for its guest, in bytes.
    fn disk_capacity(&self, domain: &DomainRef, disk: &str) -> Result<u64, LibvirtError>;
    /// Makes a disk of a running domain as large as this, in bytes.
    fn resize_disk(&self, domain: &DomainRef, disk: &str, bytes: u64) -> Result<(), LibvirtError>;
    /// Asks the guest's balloon to leave it this much memory, in KiB. `Ok` means "asked".
    fn set_memory(&self, domain: &DomainRef, kib: u64) -> Result<(), LibvirtError>;
    /// Gives a running domain this many virtual CPUs; only those that can be plugged come and go.
    fn set_vcpus(&self, domain: &DomainRef, number: u32) -> Result<(), LibvirtError>;
    /// Has the agent in a guest carry out a command of its protocol, which is JSON, and returns its answer, which is, too.
    fn ask_agent(&self, domain: &DomainRef, command: &str) -> Result<String, LibvirtError>;
    /// What a running domain has used so far; `None` when it is gone.
    ///
    /// * `interfaces` - devices on the host, such as `one-42-0`; `disks` - targets
    fn usage(&self, domain: &DomainRef, interfaces: &[String], disks: &[String])
    -> Result<Option<Usage>, LibvirtError>;
}
