//! Disks of running domains, and the copies of disks.

use virt::sys;

use super::text::{c_text, without_nul};
use super::{DomainRef, Libvirt, LibvirtError, ffi};

/// A job on a disk, such as a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockJob {
    /// Bytes done. This and `all` may grow while the guest goes on writing.
    pub done: u64,
    /// All bytes; 0 while QEMU has not begun.
    pub all: u64,
}

impl BlockJob {
    /// Whether the copy is equal to the disk and can replace it.
    ///
    /// # Source
    /// libvirt `qemuBlockJobInfoTranslate`: the two numbers are equal only when QEMU reports that the job is ready.
    pub fn is_ready(self) -> bool {
        self.all > 0 && self.done == self.all
    }
}

/// Calls on the disks of a running domain. A disk is named by its target, such as `vda`.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait DiskCalls: Send + Sync {
    /// Starts to copy a disk of a running domain into an image that exists. `Ok` means that the copy has begun.
    ///
    /// * `target_xml` - a `<disk>` that names the image and its format
    /// * `shallow` - only the top image is copied; the new image already has a backing file
    fn block_copy(&self, domain: &DomainRef, disk: &str, target_xml: &str, shallow: bool) -> Result<(), LibvirtError>;
    /// The job that runs on a disk; `None` when no job runs.
    fn block_job(&self, domain: &DomainRef, disk: &str) -> Result<Option<BlockJob>, LibvirtError>;
    /// Ends the job on a disk.
    ///
    /// * `pivot` - the domain goes on with the copy, which must be ready. Otherwise it keeps its disk, and the copy is
    ///   useless.
    fn finish_block_job(&self, domain: &DomainRef, disk: &str, pivot: bool) -> Result<(), LibvirtError>;
    /// The size of a disk as its guest sees it, in bytes.
    fn disk_capacity(&self, domain: &DomainRef, disk: &str) -> Result<u64, LibvirtError>;
    /// Resizes a disk to this many bytes.
    fn resize_disk(&self, domain: &DomainRef, disk: &str, bytes: u64) -> Result<(), LibvirtError>;
}

impl DiskCalls for Libvirt {
    fn block_copy(&self, domain: &DomainRef, disk: &str, target_xml: &str, shallow: bool) -> Result<(), LibvirtError> {
        let (disk, target) = (c_text(disk)?, c_text(target_xml)?);
        let mut flags = sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB;
        if shallow {
            flags |= sys::VIR_DOMAIN_BLOCK_COPY_SHALLOW;
        }
        self.on_domain("virDomainBlockCopy", domain, move |domain| ffi::block_copy(domain, &disk, &target, flags))
    }

    fn block_job(&self, domain: &DomainRef, disk: &str) -> Result<Option<BlockJob>, LibvirtError> {
        let disk = c_text(disk)?;
        self.on_domain("virDomainGetBlockJobInfo", domain, move |domain| {
            Ok(ffi::block_job(domain, &disk)?.map(|(done, all)| BlockJob { done, all }))
        })
    }

    fn finish_block_job(&self, domain: &DomainRef, disk: &str, pivot: bool) -> Result<(), LibvirtError> {
        let disk = c_text(disk)?;
        let flags = if pivot { sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT } else { 0 };
        self.on_domain("virDomainBlockJobAbort", domain, move |domain| ffi::block_job_abort(domain, &disk, flags))
    }

    fn disk_capacity(&self, domain: &DomainRef, disk: &str) -> Result<u64, LibvirtError> {
        let disk = c_text(disk)?;
        self.on_domain("virDomainGetBlockInfo", domain, move |domain| ffi::block_capacity(domain, &disk))
    }

    fn resize_disk(&self, domain: &DomainRef, disk: &str, bytes: u64) -> Result<(), LibvirtError> {
        without_nul(disk)?;
        let disk = disk.to_owned();
        self.on_domain("virDomainBlockResize", domain, move |domain| {
            domain.block_resize(&disk, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        })
    }
}
