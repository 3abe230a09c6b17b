//! `attach_disk`: plugs a disk into a running VM, or puts a CD into an empty drive.

use super::shared::device::{self, NewDevice};
use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause};
use crate::host::Host;
use crate::reconcile;
use crate::vm;
use crate::vm::dir;
use crate::xml::{DiskPlace, VmData, VmDisk};

const ACTION: Action = Action::AttachDisk;

/// Plugs a disk into a running VM. Success when the VM has it already. The VM keeps its VFs.
///
/// * `disk` - the disk as OpenNebula describes it
/// * `path` - the image in the VM's directory, for a disk that is a file or a device
/// * `target` - the disk's place in the domain, such as `vdb`
/// * `data` - OpenNebula's description of the VM, for a domain that is adopted
///
/// # Errors
/// Nothing was changed, or the error's state says exactly what is left.
///
/// # Source
/// OpenNebula's stock `attach_disk`.
pub fn attach_disk(
    host: &Host,
    id: &DomainId,
    disk: &VmDisk,
    path: &str,
    target: &str,
    data: Option<&VmData>,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(ACTION, cause);
    let place = without_link(disk.place(path));
    // The lock of a VM with VFs is held until this function returns, so its devices do not change meanwhile.
    let found = reconcile::open(host, ACTION, id, data).map_err(untouched)?;
    let domain = found.domain();
    let what = format!("attach {} ({target}) to {}", place.source(), domain.name);
    let live = found.live();
    if live.disk(target).is_some_and(|disk| disk.source.as_deref() == Some(place.source())) {
        log::info!("{} has this disk already", domain.name);
        return Ok(());
    }
    if let Some(other) = live.disk(target).filter(|other| !(other.is_cdrom && place.is_cdrom && other.source.is_none()))
    {
        let found = other.source.clone().unwrap_or_else(|| "an empty drive".into());
        return Err(untouched(Cause::OtherDisk { vm: domain.name.clone(), what, found }));
    }
    let xml = disk.to_xml(&place, target, &live.iothreads, &|name| host.settings().disk_default(name));
    // The target was free before, or an empty drive. So a disk, or a medium in the drive, is the new one.
    let is_drive = live.disk(target).is_some();
    let is_in = || Ok(vm::read(host, domain)?.disk(target).is_some_and(|disk| !is_drive || disk.source.is_some()));
    let device = NewDevice { xml: &xml, what: &what, undo: "detach_disk", memory_kib: 0, is_in: &is_in };
    device::plug(host, ACTION, domain, &device)
}

/// Replaces a link, which some datastores use, by the image that it points to. libvirt must lock and label the image.
fn without_link(place: DiskPlace) -> DiskPlace {
    let file = place.file().map(|file| vec![file.into()]);
    let linked = file.map(dir::linked_disks).and_then(|links| links.into_iter().next());
    match linked.and_then(|(_, target)| target.into_os_string().into_string().ok()) {
        Some(target) => place.with_file(target),
        None => place,
    }
}
