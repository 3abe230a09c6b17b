//! Directories and files that only this user can have made: the state directory may lie in /tmp.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use tempfile::{NamedTempFile, TempPath};

use super::ClaimError;

/// The longest file that is read, in bytes. A claim has about 200.
const LIMIT: u64 = 16 * 1024;

/// How the name of a file begins that has not got its own yet.
pub(super) const UNNAMED: &str = ".new-";

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

/// What tells a file from another one that has its name later. A claim's file is never changed, only replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    /// When it got this name, or was made: in seconds, and nanoseconds more.
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), changed: (metadata.ctime(), metadata.ctime_nsec()), length: metadata.len() }
    }

    /// That of the file at `path`; `None` when there is none, or it can't be looked at.
    pub(super) fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().as_ref().map(Self::of)
    }
}

/// Opens a file for reading; `None` when it is not there.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    // O_NONBLOCK: a named pipe would wait for a writer.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The content of a regular file, with its stamp; `None` when it is not there.
pub(super) fn read(path: &Path) -> io::Result<Option<(Vec<u8>, Stamp)>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(Some((bytes, Stamp::of(&metadata))))
}

/// Opens a lock's file, which is made when it is not there.
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

/// A file that is complete and has not got its name yet. It is gone when it gets none.
pub(super) struct Unnamed(NamedTempFile);

impl Unnamed {
    /// Writes the file that is to become `path`.
    pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<Self, ClaimError> {
        let failed = || ClaimError::file("write", path);
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(UNNAMED).tempfile_in(dir).map_err(failed())?;
        file.write_all(bytes).map_err(failed())?;
        Ok(Self(file))
    }

    /// Makes what is in it outlive a power failure.
    pub(super) fn sync(&self, path: &Path) -> Result<(), ClaimError> {
        self.0.as_file().sync_all().map_err(ClaimError::file("sync", path))
    }

    /// Gives it its name. `replace`: an existing file is replaced; otherwise it is an error.
    pub(super) fn name(self, path: &Path, replace: bool) -> Result<(), ClaimError> {
        let named = if replace { self.0.persist(path) } else { self.0.persist_noclobber(path) };
        named.map(drop).map_err(|error| ClaimError::file("write", path)(error.error))
    }
}

/// Takes a file its name, if it is there. It is removed when this is dropped: that may wait for the disk, which taking the name does not.
pub(super) fn unname(path: &Path) -> Result<Option<TempPath>, ClaimError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unnamed = path.with_file_name(format!("{UNNAMED}{name}-{}", std::process::id()));
    match fs::rename(path, &unnamed) {
        Ok(()) => Ok(Some(TempPath::from_path(unnamed))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ClaimError::file("remove", path)(error)),
    }
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<(), ClaimError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ClaimError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes names of a directory outlive a power failure.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
