//! Save images. An image is written under another name, and gets its name when it is complete.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::Cause;
use crate::os;

/// The first bytes of a complete save image.
///
/// # Source
/// libvirt `src/qemu/qemu_saveimage.h`: QEMU_SAVE_MAGIC, QEMU_SAVE_PARTIAL.
const COMPLETE: &[u8; 16] = b"LibvirtQemudSave";

/// The file of a save, and its names: while it is written, when it is complete, and when it was used.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    checkpoint: PathBuf,
}

impl Checkpoint {
    /// The checkpoint that OpenNebula knows by this path.
    pub(crate) fn at(checkpoint: &Path) -> Self {
        Self { checkpoint: checkpoint.to_owned() }
    }

    /// The checkpoint whose image has this path while it is written; `None` for any other path.
    pub(crate) fn of_unfinished(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(UNFINISHED)?;
        Some(Self { checkpoint: path.with_file_name(name) })
    }

    /// The path of the complete image, until a domain runs from it.
    pub(crate) fn checkpoint(&self) -> &Path {
        &self.checkpoint
    }

    /// The path of the image while it is written.
    pub(crate) fn unfinished(&self) -> PathBuf {
        self.sibling(".", UNFINISHED)
    }

    /// The path of the image when a domain runs from it, or is about to. The image must never be used again, because
    /// the disks have changed since.
    pub(crate) fn used(&self) -> PathBuf {
        self.sibling("", ".used")
    }

    fn sibling(&self, before: &str, after: &str) -> PathBuf {
        let mut name = OsString::from(before);
        name.push(self.checkpoint.file_name().unwrap_or_default());
        name.push(after);
        self.checkpoint.with_file_name(name)
    }

    /// Creates the empty file that libvirt writes into. Replaces a file that a dead process left.
    pub(crate) fn prepare(&self) -> Result<PathBuf, Cause> {
        let path = self.unfinished();
        self.discard()?;
        make_empty(&path)?;
        Ok(path)
    }

    /// Removes the image while it is written.
    pub(crate) fn discard(&self) -> Result<(), Cause> {
        remove(&self.unfinished())
    }

    /// Whether the image that was written is complete.
    pub(crate) fn is_written(&self) -> bool {
        is_complete(&self.unfinished()).unwrap_or(false)
    }

    /// Keeps an older checkpoint of this name as `<name>.<seconds since 1970>`, as the stock driver does.
    pub(crate) fn keep_older(&self) -> Result<(), Cause> {
        if self.checkpoint.exists() {
            let now = os::time_of_day().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let kept = self.sibling("", &format!(".{now}"));
            log::info!("{} is there already: it is now {}", self.checkpoint.display(), kept.display());
            os::step("file", "keep checkpoint");
            fs::rename(&self.checkpoint, &kept).map_err(Cause::file("rename", &self.checkpoint))?;
        }
        Ok(())
    }

    /// Gives a complete image its name. Keeps an older checkpoint of that name.
    pub(crate) fn commit(&self) -> Result<(), Cause> {
        let path = self.unfinished();
        if !is_complete(&path).map_err(Cause::file("read", &path))? {
            return Err(Cause::BadImage { path });
        }
        File::open(&path).and_then(|file| file.sync_all()).map_err(Cause::file("sync", &path))?;
        self.keep_older()?;
        os::step("file", "commit checkpoint");
        fs::rename(&path, &self.checkpoint).map_err(Cause::file("rename", &path))?;
        self.sync_directory();
        Ok(())
    }

    /// Marks the image as used. From then on a domain may run from it.
    pub(crate) fn spend(&self) -> Result<(), Cause> {
        os::step("file", "spend checkpoint");
        fs::rename(&self.checkpoint, self.used()).map_err(Cause::file("rename", &self.checkpoint))?;
        self.sync_directory();
        Ok(())
    }

    /// Whether a domain runs from the image, or is about to.
    pub(crate) fn is_spent(&self) -> bool {
        self.used().exists() && !self.checkpoint.exists()
    }

    /// Removes an image that was used.
    pub(crate) fn remove_used(&self) -> Result<(), Cause> {
        remove(&self.used())
    }

    /// Writes the directory to disk. A failure is only logged: the file has its name, and some file systems can't sync
    /// a directory.
    fn sync_directory(&self) {
        let dir = self.checkpoint.parent().unwrap_or(Path::new("."));
        if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
            log::warn!("{}: {error}; should the host lose its power now, it may show old names", dir.display());
        }
    }
}

const UNFINISHED: &str = ".kvm-sriov";

/// Creates the empty file that libvirt writes an image into. libvirt keeps the owner of an existing file, so the file's
/// mode lets any user's QEMU write into it.
pub(crate) fn make_empty(path: &Path) -> Result<(), Cause> {
    let made = OpenOptions::new().write(true).create_new(true).open(path);
    // The mode is set afterwards, because `open` subtracts the umask.
    made.and_then(|file| file.set_permissions(Permissions::from_mode(0o666))).map_err(Cause::file("make", path))
}

/// Whether a file is a complete save image.
pub(crate) fn is_complete(path: &Path) -> io::Result<bool> {
    let mut magic = Vec::new();
    File::open(path)?.take(COMPLETE.len() as u64).read_to_end(&mut magic)?;
    Ok(magic == COMPLETE)
}

/// Removes a file. Success when there is no such file.
pub(crate) fn remove(path: &Path) -> Result<(), Cause> {
    os::step("file", "remove image");
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Cause::file("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_there_only_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let image = Checkpoint::at(&dir.path().join("checkpoint"));
        fs::write(image.checkpoint(), "old").unwrap();
        let path = image.prepare().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        fs::write(&path, "LibvirtQemudPart and half of it").unwrap();
        assert!(!image.is_written());
        assert!(matches!(image.commit(), Err(Cause::BadImage { .. })));
        assert_eq!(fs::read(image.checkpoint()).unwrap(), b"old");
        fs::write(&path, "LibvirtQemudSave and all of it").unwrap();
        image.commit().unwrap();
        assert!(!path.exists() && fs::read(image.checkpoint()).unwrap().starts_with(COMPLETE));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the older one is kept");
        image.spend().unwrap();
        assert!(image.is_spent());
        image.remove_used().unwrap();
        assert!(!image.is_spent());
        assert_eq!(Checkpoint::of_unfinished(&path).unwrap().checkpoint(), image.checkpoint());
    }
}
