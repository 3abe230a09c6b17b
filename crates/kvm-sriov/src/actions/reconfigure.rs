//! `reconfigure`: puts the new contextualization CD into its drive.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::shared::device;
use crate::base::{Action, DomainId};
use crate::error::ActionError;
use crate::host::Host;
use crate::xml::{Medium, VmData};

/// Puts a CD into the empty drive with this target, such as `hda`. Success when it is in the drive already, or when the
/// VM has no such CD: target or path is `None`. The VM keeps its VFs.
///
/// * `iso` - the image: a file or a block device
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// The drive is unchanged, or the error's state says that this is not known.
///
/// # Source
/// OpenNebula's stock `reconfigure`.
pub fn reconfigure(
    host: &Host,
    id: &DomainId,
    target: Option<&str>,
    iso: Option<&Path>,
    data: Option<&VmData>,
) -> Result<(), ActionError> {
    let (Some(target), Some(iso)) = (target, iso) else { return Ok(()) };
    let is_block = iso.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    let medium = Medium { path: iso.to_owned(), is_block };
    let what = format!("insert CDROM {} to {target}", iso.display());
    device::change_medium(
        host,
        Action::Reconfigure,
        id,
        data,
        &device::MediumChange { target, what: &what, medium: Some(&medium) },
    )
}
