//! `prereconfigure`: takes the contextualization CD out of its drive, so that OpenNebula can write a new one.

use super::shared::device;
use crate::base::{Action, DomainId};
use crate::error::ActionError;
use crate::host::Host;
use crate::xml::VmData;

/// Ejects the CD from the drive with this target, such as `hda`, even if the guest has locked it. Success when the
/// drive is empty, or the VM has no such CD (`None`). The VM keeps its VFs.
///
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// The CD is still in, or the error's state says that this is not known.
///
/// # Source
/// OpenNebula's stock `prereconfigure`.
pub fn prereconfigure(
    host: &Host,
    id: &DomainId,
    target: Option<&str>,
    data: Option<&VmData>,
) -> Result<(), ActionError> {
    let Some(target) = target else { return Ok(()) };
    let what = format!("eject CDROM {target}");
    device::change_medium(
        host,
        Action::Prereconfigure,
        id,
        data,
        &device::MediumChange { target, what: &what, medium: None },
    )
}
