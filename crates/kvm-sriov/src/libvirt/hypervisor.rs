//! Everything that the actions ask of libvirtd, as one trait.

use super::{DeviceCalls, DiskCalls, DomainCalls, EventCalls, GuestCalls, JobCalls, PowerCalls, SnapshotCalls};

/// A libvirtd: all calls that the actions make, by subject.
///
/// A type that implements the eight traits is a `Hypervisor`. The methods of a `&dyn Hypervisor` can be called without
/// importing the traits. [`Libvirt`](super::Libvirt) makes the calls; the crate `kvm-sriov-model` simulates them.
///
/// libvirtd finds the domain of each call by its UUID, so a [`DomainRef`](super::DomainRef) does not keep a domain alive.
///
/// # Errors
/// All methods of the eight traits return libvirt's refusal, or one of these kinds of
/// [`LibvirtErrorKind`](super::LibvirtErrorKind):
///
/// * `NoAnswer` - the call did not return in time. It may still take effect.
/// * `Disconnected` - the connection to libvirtd broke during the call. The call may have taken effect. The caller may
///   make the call again, and may repeat it for as long as it wants to wait for libvirtd. No method repeats a call
///   itself.
///
/// # Deadlines
/// Calls whose duration depends on a guest's memory or disks have no fixed deadline: `save`, `migrate`, and those that
/// create, revert and delete snapshots. They end when libvirt is done, when [`JobCalls::abort_job`] stops the job, when
/// the job has made no progress for too long, or when the connection breaks.
pub trait Hypervisor:
    DomainCalls + PowerCalls + DeviceCalls + JobCalls + SnapshotCalls + DiskCalls + GuestCalls + EventCalls
{
}

impl<T> Hypervisor for T where
    T: DomainCalls + PowerCalls + DeviceCalls + JobCalls + SnapshotCalls + DiskCalls + GuestCalls + EventCalls
{
}
