//! `detach_disk`: takes a disk out of a running VM.

use super::shared::device;
use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause};
use crate::host::Host;
use crate::reconcile;

use crate::xml::VmData;

const ACTION: Action = Action::DetachDisk;

/// Takes out the disk with this target, such as `vdb`, and waits until the guest has released it. The VM keeps its VFs.
///
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// The disk stays. A guest that did not answer in time may release it later, and the error's state says so. A missing
/// disk is an error, as with the stock driver.
///
/// # Source
/// OpenNebula's stock `detach_disk`.
pub fn detach_disk(host: &Host, id: &DomainId, target: &str, data: Option<&VmData>) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    // The lock of a VM with VFs is held until this function returns, so its devices do not change meanwhile.
    let found = reconcile::open(host, ACTION, id, data).map_err(untouched)?;
    let domain = found.domain();
    let Some(alias) = found.live().disk(target).and_then(|disk| disk.alias.as_deref()) else {
        let what = format!("detach {target} from {}", domain.name);
        return Err(untouched(Cause::NoDisk { vm: domain.name.clone(), target: target.to_owned(), what }));
    };
    device::unplug(host, ACTION, domain, format!("disk {target}"), alias)
}
