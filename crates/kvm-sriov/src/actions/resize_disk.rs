//! `resize_disk`: makes a disk of a running VM larger.

use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::reconcile;
use crate::vm::block_job;
use crate::xml::VmData;

const ACTION: Action = Action::ResizeDisk;

const MIB: u64 = 1024 * 1024;

/// Makes a disk larger, and tells the guest its new size. Success when it has that size already. The VM keeps its VFs.
///
/// * `disk` - OpenNebula's DISK_ID, for messages
/// * `target` - the disk's place in the domain, such as `vdb`
/// * `mib` - the new size, in MiB
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// The disk has its old size, or the error's state says what is not known. A larger image is never cut, because the
/// guest's data there would be lost.
///
/// # Source
/// OpenNebula's stock `resize_disk`: `virDomainBlockResize`.
pub fn resize_disk(
    host: &Host,
    id: &DomainId,
    disk: u32,
    target: &str,
    mib: u64,
    data: Option<&VmData>,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // The lock of a VM with VFs is held until this function returns: a save must not run while the disk grows.
    let found = reconcile::open(host, ACTION, id, data).map_err(untouched)?;
    let domain = found.domain();
    let what = format!("resize disk {disk} on {}", domain.name);
    let Some(there) = found.live().disk(target) else {
        return Err(untouched(Cause::NoDisk { vm: domain.name.clone(), target: target.to_owned(), what }));
    };
    let hypervisor = host.hypervisor();
    let bytes = mib.saturating_mul(MIB);
    let capacity = || host.patiently(|| Ok(hypervisor.disk_capacity(domain, target)?));
    let before = capacity().map_err(untouched)?;
    // A device may be larger than requested, because it consists of whole extents.
    if before > bytes && there.file.is_some() {
        let why = format!("it has {before} bytes, which are more than {mib} MiB");
        return Err(untouched(Cause::NoRoom { what, why }));
    }
    // Called even when the size is right already: QEMU may not know yet that a device has grown.
    let resized = block_job::wait_out(&domain.name, || hypervisor.resize_disk(domain, target, bytes));
    let Err(source) = resized else { return Ok(()) };
    let cause = Cause::Call { what, source };
    // The call's error does not decide: the size of the disk tells.
    match capacity() {
        Ok(now) if now >= bytes && before < bytes => Ok(()),
        Ok(_) if !cause.leaves_doubt() => Err(untouched(cause)),
        Ok(_) | Err(_) => {
            let text = format!("disk {disk} may have its new size already, or get it later");
            Err(ActionError::new(ACTION, cause, HostState::InDoubt(text)))
        }
    }
}
