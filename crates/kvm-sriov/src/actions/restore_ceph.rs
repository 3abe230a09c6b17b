//! `restore.ceph`: moves a checkpoint from the Ceph pool of the system datastore back into its file.

use std::fs;
use std::path::Path;

use super::shared::ceph::{Ceph, text};
use crate::base::Action;
use crate::error::{ActionError, Cause, HostState};
use crate::vm::checkpoint;

/// Moves a checkpoint from the pool back into its file. The file gets its name only when it is complete.
///
/// # Errors
/// The checkpoint is still in the pool.
///
/// # Source
/// OpenNebula's stock `restore.ceph`.
pub fn restore_ceph(ceph: &Ceph, checkpoint: &Path, vm: u32) -> Result<(), ActionError> {
    let image = ceph.image(vm);
    let failed = |cause| {
        ActionError::new(Action::RestoreCeph, cause, HostState::Left(format!("the checkpoint stays in {image}")))
    };
    let mut name = std::ffi::OsString::from(".");
    name.push(checkpoint.file_name().unwrap_or_default());
    name.push(".ceph");
    let unfinished = checkpoint.with_file_name(name);
    let file = text(&unfinished).map_err(failed)?;
    // An interrupted process may have left this file.
    checkpoint::remove(&unfinished).map_err(failed)?;
    let exported = ceph
        .rbd(&format!("export the checkpoint from {image}"), &["export", "--no-progress", &image, file])
        .and_then(|()| match checkpoint::is_complete(&unfinished) {
            Ok(true) => fs::rename(&unfinished, checkpoint).map_err(Cause::file("rename", &unfinished)),
            Ok(false) => Err(Cause::BadImage { path: unfinished.clone() }),
            Err(error) => Err(Cause::file("read", &unfinished)(error)),
        });
    if let Err(cause) = exported {
        return Err(failed(match checkpoint::remove(&unfinished) {
            Ok(()) => cause,
            Err(undo) => cause.and_undo(undo),
        }));
    }
    if let Err(cause) = ceph.rbd(&format!("remove {image}"), &["rm", "--no-progress", &image]) {
        log::warn!("{cause}; the checkpoint is {} now, the next save removes the image", checkpoint.display());
    }
    Ok(())
}
