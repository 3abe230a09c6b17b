//! `resize_disk`: a disk of a running VM grows.

use crate::base::{Action, DeployId};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::reconcile;
use crate::vm::block_job;
use crate::xml::VmData;

const ACTION: Action = Action::ResizeDisk;

const MIB: u64 = 1024 * 1024;

/// Makes a disk as large as OpenNebula says, for the guest too. Success when it is so large already. VFs stay where they are.
///
/// * `disk` - OpenNebula's DISK_ID, for messages
/// * `target` - the disk's place in the domain, such as `vdb`
/// * `mib` - the new size, in MiB
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// The disk is as large as before, or the error's state says what is not known. An image that is larger is never cut off: it
/// would lose what the guest has written there.
///
/// # Source
/// OpenNebula's stock `resize_disk`: `virDomainBlockResize`.
pub fn resize_disk(
    host: &Host,
    id: &DeployId,
    disk: u32,
    target: &str,
    mib: u64,
    data: Option<&VmData>,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // The lock of a VM with VFs is held until this returns: a save would stop the disk while it grows.
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
    // A device may well be larger than what was asked for: it has whole extents.
    if before > bytes && there.file.is_some() {
        let why = format!("it has {before} bytes, which are more than {mib} MiB");
        return Err(untouched(Cause::NoRoom { what, why }));
    }
    // Also when it seems to be so large: of a device QEMU may not know yet that it has grown.
    let resized = block_job::wait_out(&domain.name, || hypervisor.resize_disk(domain, target, bytes));
    let Err(source) = resized else { return Ok(()) };
    let cause = Cause::Call { what, source };
    // Whatever the call said: only the disk tells.
    match capacity() {
        Ok(now) if now >= bytes && before < bytes => Ok(()),
        Ok(_) if !cause.leaves_doubt() => Err(untouched(cause)),
        Ok(_) | Err(_) => {
            let text = format!("disk {disk} may have its new size already, or get it later");
            Err(ActionError::new(ACTION, cause, HostState::InDoubt(text)))
        }
    }
}
