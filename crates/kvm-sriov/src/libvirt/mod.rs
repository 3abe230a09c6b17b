//! libvirtd, through libvirt's C API. The only module that uses the crate `virt`.
//!
//! The calls are traits by subject, each with its types and with its implementation for [`Libvirt`]. [`Hypervisor`] is
//! all of them, so that a test can replace libvirtd by one that fails.
//!
//! * `hypervisor` - [`Hypervisor`]: all calls together
//! * `domain`, `power`, `device`, `job`, `snapshot`, `disk`, `guest`, `event` - the calls by subject
//! * `connection` - [`Libvirt`]: a connection that is opened again after it broke
//! * `known` - the domains that a connection has seen
//! * `deadline`, `long_call` - how long a call is waited for
//! * `worker` - the threads that make the calls
//! * `event_loop` - the thread that libvirt's keepalive and events need
//! * `subscription`, `receivers` - the ways of events, and of the end of a connection, to those who wait for them
//! * `migration` - [`Migration`]: the options of a migration, in the words of virsh
//! * `error` - [`LibvirtError`]: libvirt's code and text, sorted by what an action does about them
//! * `text` - checks of texts that are passed to C
//! * `ffi` - calls that `virt` lacks or gets wrong; the only module with `unsafe`

mod connection;
mod deadline;
mod device;
mod disk;
mod domain;
mod error;
mod event;
mod event_loop;
mod ffi;
mod guest;
mod hypervisor;
mod job;
mod known;
mod long_call;
mod migration;
mod power;
mod receivers;
mod snapshot;
mod subscription;
#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests;
mod text;
mod worker;

pub use connection::Libvirt;
pub use device::DeviceCalls;
pub use disk::{BlockJob, DiskCalls};
pub use domain::{DomainCalls, DomainRef, RunState, Usage};
pub use error::{LibvirtError, LibvirtErrorKind};
pub use event::{Event, EventCalls, Events};
pub use guest::GuestCalls;
pub use hypervisor::Hypervisor;
pub use job::{Job, JobCalls, JobKind};
pub(crate) use long_call::copy_limit;
pub use migration::{Migration, MigrationOptions};
pub use power::PowerCalls;
pub use snapshot::{SnapshotCalls, Snapshots};
