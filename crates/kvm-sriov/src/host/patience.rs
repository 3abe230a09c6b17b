//! How long a host waits: for libvirtd, for a call, for udev, for the lock of a VM.

use std::time::{Duration, Instant};

use super::{Host, Progress};
use crate::base::{Action, DomainName, POLL};
use crate::claims::{ClaimError, ClaimStore, VmLock};
use crate::error::Cause;
use crate::libvirt::{LibvirtError, copy_limit};
use crate::os;
use crate::sysfs::denied_vfio_device;

/// What a call that pins memory may take for each GiB, in addition to SRIOV_CALL_TIMEOUT.
///
/// # Source
/// libvirt `src/qemu/qemu_process.c`, qemuConnectMonitor up to 9.x: one second more for each GiB, because the kernel
/// fills all of it with zeros. Pinning takes more time, page by page and in one thread (Linux
/// `drivers/vfio/vfio_iommu_type1.c`). Measured: 0.3 s for a GiB of 4 KiB pages to fill and lock, 2.1 s in a virtual
/// machine whose own host had to find the pages.
const PER_GIB: Duration = Duration::from_secs(2);

/// How many times a call is made when QEMU is not allowed to open the VF although a udev rule gives it to QEMU.
const UDEV_TRIES: usize = 4;

/// How long udev may take to handle its events.
///
/// # Source
/// udevadm(8): `settle` waits 120 s. udev needs milliseconds, except on a host that is overloaded.
const UDEV: Duration = Duration::from_secs(30);

/// How long libvirtd is waited for after the host's [`Stop`](super::Stop) was set: an undo needs it.
const AFTER_STOP: Duration = Duration::from_secs(10);

impl Host {
    /// How long a call to libvirt may take when QEMU touches or pins memory for it: the start of a domain, or the plug
    /// of a VF. SRIOV_CALL_TIMEOUT, and 2 s for each GiB: 1324 s with 512 GiB and the default of 300 s.
    ///
    /// * `memory_kib` - the memory of the domain, in KiB
    pub fn call_limit(&self, memory_kib: u64) -> Duration {
        let gib = u32::try_from(memory_kib.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
        self.settings().call_timeout.saturating_add(PER_GIB.saturating_mul(gib))
    }

    /// How long a domain may take to start from a save image: SRIOV_CALL_TIMEOUT, and 50 s for each GiB.
    ///
    /// * `memory_kib` - the memory of the domain, in KiB
    pub fn copy_limit(&self, memory_kib: u64) -> Duration {
        copy_limit(self.settings().call_timeout, memory_kib)
    }

    /// Repeats work that fails because libvirtd is away, until it succeeds, it fails for another reason, or
    /// SRIOV_CALL_TIMEOUT has passed. The work must be safe to do twice.
    pub(crate) fn patiently<T>(&self, work: impl FnMut() -> Result<T, Cause>) -> Result<T, Cause> {
        self.patiently_for(self.settings().call_timeout, work)
    }

    /// As [`Host::patiently`], but not longer than `limit`.
    pub(crate) fn patiently_for<T>(
        &self,
        limit: Duration,
        mut work: impl FnMut() -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let end = os::now() + limit;
        let end = self.end.map_or(end, |last| last.min(end));
        loop {
            let stopped = self.stop.as_ref().and_then(super::Stop::since);
            let end = stopped.map_or(end, |since| end.min(since + AFTER_STOP));
            match work() {
                Err(cause) if cause.is_passing() && os::now() < end => os::sleep(POLL),
                other => return other,
            }
        }
    }

    /// Waits until `is_done`, which is asked again and again: for a state that libvirt announces by no event. It is
    /// asked at least once, and waits for a libvirtd that is away.
    ///
    /// * `end` - when the wait ends at the latest; `None` waits as long as it takes
    /// * returns whether it is done
    ///
    /// # Errors
    /// Those of `is_done`, or libvirtd does not answer.
    pub(crate) fn wait_until(
        &self,
        end: Option<Instant>,
        mut is_done: impl FnMut() -> Result<bool, Cause>,
    ) -> Result<bool, Cause> {
        loop {
            let limit = end.map_or(self.settings().call_timeout, |end| end.saturating_duration_since(os::now()));
            if self.patiently_for(limit.min(self.settings().call_timeout), &mut is_done)? {
                return Ok(true);
            }
            if end.is_some_and(|end| os::now() >= end) {
                return Ok(false);
            }
            os::sleep(POLL);
        }
    }

    /// Makes a call that gives a domain a VF, and makes it again when udev was too slow. libvirt creates the VF's vfio
    /// device and has QEMU open it at once, while udev gives the device to QEMU's user. On a busy host udev may come
    /// too late, and libvirt has then removed the device. A host without a udev rule for vfio does not wait.
    ///
    /// # Errors
    /// Those of the call.
    pub(crate) fn past_udev<T>(&self, call: impl Fn() -> Result<T, LibvirtError>) -> Result<T, LibvirtError> {
        for _ in 1..UDEV_TRIES {
            match call() {
                Err(error) if denied_vfio_device(error.text()).is_some() && self.sysfs().has_vfio_rule() => {
                    log::info!("{}: waiting for udev, then trying again", error.text());
                    self.sysfs().wait_for_udev(UDEV);
                }
                other => return other,
            }
        }
        call()
    }

    /// Takes the lock of a VM, and waits for it as long as SRIOV_LOCK_TIMEOUT says.
    ///
    /// # Errors
    /// Another action has the lock, the host was told to stop, or the lock can't be used. Nothing was changed.
    pub(crate) fn lock_vm(&self, store: &ClaimStore, vm: &DomainName, action: Action) -> Result<VmLock, Cause> {
        let timeout = self.settings().lock_timeout;
        if self.stop.is_none() && self.progress.is_none() {
            return Ok(store.lock_vm(vm, action, timeout)?);
        }
        self.check_stop()?;
        match store.lock_vm(vm, action, Duration::ZERO) {
            Err(ClaimError::Busy { .. }) => self.report(|| Progress::WaitingForLock { vm: vm.clone() }),
            other => return Ok(other?),
        }
        if self.stop.is_none() {
            return Ok(store.lock_vm(vm, action, timeout)?);
        }
        let end = os::now() + timeout;
        loop {
            match store.lock_vm(vm, action, Duration::ZERO) {
                Err(ClaimError::Busy { .. }) if os::now() < end => {
                    self.check_stop()?;
                    os::sleep(POLL);
                }
                other => return Ok(other?),
            }
        }
    }
}
