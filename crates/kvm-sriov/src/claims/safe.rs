//! Directories and files that only this user can have made: the state directory may lie in /tmp.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use tempfile::NamedTempFile;

use super::ClaimError;

/// The longest file that is read, in bytes. A claim has about 200.
const LIMIT: u64 = 16 * 1024;

/// Makes a directory that only its owner may enter; one that is there must be such a one.
pub(super) fn make_dir(path: &Path) -> Result<(), ClaimError> {
    match DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(ClaimError::file("make", path)(error)),
    }
    check_dir(path)
}

/// Refuses a directory that is a link, somebody else's, or none; closes one of ours that others may enter.
pub(super) fn check_dir(path: &Path) -> Result<(), ClaimError> {
    let unsafe_dir =
        |what: String, advice: &str| Err(ClaimError::Unsafe { path: path.into(), what, advice: advice.into() });
    let metadata = fs::symlink_metadata(path).map_err(ClaimError::file("look at", path))?;
    if metadata.is_symlink() {
        return unsafe_dir("is a link".into(), "set VF_STATE_DIR in kvmrc to a directory that is none");
    }
    if !metadata.is_dir() {
        return unsafe_dir(
            "is no directory".into(),
            "set VF_STATE_DIR in kvmrc to a directory; one that is not there is made",
        );
    }
    if metadata.uid() != geteuid().as_raw() {
        let what = format!("belongs to user {} instead of {}", metadata.uid(), geteuid());
        return unsafe_dir(
            what,
            "leave it as it is, because VMs that run may be noted in it: run this as its user, or set VF_STATE_DIR in kvmrc \
             to a directory that no other user's driver has",
        );
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(ClaimError::file("close to others", path))?;
    }
    Ok(())
}

/// The content of a regular file, with its inode; `None` when it is not there.
pub(super) fn read(path: &Path) -> io::Result<Option<(Vec<u8>, u64)>> {
    // O_NONBLOCK: a named pipe would wait for a writer.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(Some((bytes, metadata.ino())))
}

/// Opens a lock's file, which is made when it is not there and never removed.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits())
        .open(path)
}

/// Whether the open file is still the one that the path names.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(there.ino() == file.metadata()?.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file so that its name never shows an incomplete one. `replace`: an existing one is replaced; otherwise it is an
/// error.
pub(super) fn write(path: &Path, bytes: &[u8], replace: bool) -> Result<(), ClaimError> {
    let failed = || ClaimError::file("write", path);
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(failed())?;
    file.write_all(bytes).map_err(failed())?;
    file.as_file().sync_all().map_err(failed())?;
    persist(file, path, replace).map_err(failed())?;
    sync(dir).map_err(failed())
}

fn persist(file: NamedTempFile, path: &Path, replace: bool) -> io::Result<()> {
    let persisted = if replace { file.persist(path) } else { file.persist_noclobber(path) };
    persisted.map(drop).map_err(|error| error.error)
}

/// Makes names of a directory outlive a power failure.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
