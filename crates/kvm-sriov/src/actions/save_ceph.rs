//! `save.ceph`: moves a checkpoint into the Ceph pool of the system datastore.

use std::fs;
use std::path::Path;

use super::shared::ceph::{Ceph, text};
use crate::base::Action;
use crate::error::{ActionError, Cause, HostState};

/// Moves a checkpoint into the pool. Replaces an image of an earlier save, which is of no use because the VM has run
/// since.
///
/// # Errors
/// The checkpoint is still the file, and `restore` takes it from there.
///
/// # Source
/// OpenNebula's stock `save.ceph`.
pub fn save_ceph(ceph: &Ceph, checkpoint: &Path, vm: u32) -> Result<(), ActionError> {
    let failed = |cause| {
        ActionError::new(
            Action::SaveCeph,
            cause,
            HostState::Left(format!("the checkpoint stays {}", checkpoint.display())),
        )
    };
    let image = ceph.image(vm);
    let file = text(checkpoint).map_err(failed)?;
    if ceph.rbd("find the image", &["info", &image]).is_ok() {
        ceph.rbd(&format!("remove the old {image}"), &["rm", "--no-progress", &image]).map_err(failed)?;
    }
    let mut import = vec!["import", "--no-progress"];
    if let Some(format) = &ceph.format {
        import.extend(["--image-format", format]);
    }
    import.extend([file, &image]);
    ceph.rbd(&format!("import the checkpoint into {image}"), &import).map_err(failed)?;
    fs::remove_file(checkpoint).map_err(|error| failed(Cause::file("remove", checkpoint)(error)))
}
