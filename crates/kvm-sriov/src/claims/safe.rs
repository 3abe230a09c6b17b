//! Directories and files that no other user can have put there. The state directory may be in /tmp.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use tempfile::{NamedTempFile, TempPath};

use super::ClaimError;
use crate::os;

/// How many bytes of a file are read at most. A claim has about 200.
const LIMIT: u64 = 16 * 1024;

const NOT_REGULAR: &str = "it is not a regular file";

/// The prefix of the names of files that are not finished, or that are being removed.
pub(super) const UNNAMED: &str = ".new-";

/// Creates a directory that only its owner may enter. A directory that exists is checked.
pub(super) fn make_dir(path: &Path) -> Result<(), ClaimError> {
    match DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(ClaimError::file("create", path)(error)),
    }
    check_dir(path)
}

/// Refuses a link, a file, and a directory of another user. Restricts the mode of a directory of this user that others
/// may enter.
pub(super) fn check_dir(path: &Path) -> Result<(), ClaimError> {
    let unsafe_dir =
        |what: String, advice: &str| Err(ClaimError::Unsafe { path: path.into(), what, advice: advice.into() });
    let metadata = fs::symlink_metadata(path).map_err(ClaimError::file("inspect", path))?;
    if metadata.is_symlink() {
        return unsafe_dir("is a link".into(), "set VF_STATE_DIR in kvmrc to a directory that is not a link");
    }
    if !metadata.is_dir() {
        return unsafe_dir(
            "is not a directory".into(),
            "set VF_STATE_DIR in kvmrc to a directory; the driver creates one that does not exist",
        );
    }
    if metadata.uid() != geteuid().as_raw() {
        let what = format!("belongs to user {} instead of {}", metadata.uid(), geteuid());
        return unsafe_dir(
            what,
            "leave it as it is, because it may hold claims of running VMs: run this as its user, or set VF_STATE_DIR in \
             kvmrc to a directory that no other user's driver uses",
        );
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(ClaimError::file("restrict", path))?;
    }
    Ok(())
}

/// Distinguishes a file from a later file with the same name. The file of a claim is never changed, only replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    /// When the file got its name or was created, in seconds and nanoseconds.
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), changed: (metadata.ctime(), metadata.ctime_nsec()), length: metadata.len() }
    }

    /// The stamp of the file at `path`; `None` when the file does not exist or can't be inspected.
    pub(super) fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().as_ref().map(Self::of)
    }
}

/// Opens a file for reading; `None` when it does not exist.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The content and the stamp of a regular file; `None` when it does not exist.
pub(super) fn read(path: &Path) -> io::Result<Option<(Vec<u8>, Stamp)>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other(NOT_REGULAR));
    }
    // Room for all and one byte more, so that one call reads the file and the next one finds its end.
    let mut bytes = Vec::with_capacity(metadata.len().saturating_add(1).min(LIMIT) as usize);
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(Some((bytes, Stamp::of(&metadata))))
}

/// Opens the file of a lock. The file is created when it does not exist. The one who has the lock writes into it, so a
/// file that has another name too is refused.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other(NOT_REGULAR));
    }
    // Without a name it was removed by its last holder.
    if metadata.nlink() > 1 { Err(io::Error::other("it has several names (hard links)")) } else { Ok(file) }
}

/// Whether the path still names this open file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(there.ino() == file.metadata()?.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A complete file that does not have its name yet. It is removed when it is dropped without a name.
pub(super) struct Unnamed(NamedTempFile);

impl Unnamed {
    /// Writes a file that is to become `path`, in the same directory.
    pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<Self, ClaimError> {
        let failed = || ClaimError::file("write", path);
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(UNNAMED).tempfile_in(dir).map_err(failed())?;
        file.write_all(bytes).map_err(failed())?;
        Ok(Self(file))
    }

    /// Syncs the content, so that it outlives a power failure.
    pub(super) fn sync(&self, path: &Path) -> Result<(), ClaimError> {
        self.0.as_file().sync_all().map_err(ClaimError::file("sync", path))
    }

    /// Gives the file its name.
    ///
    /// * `replace` - an existing file with this name is replaced. Otherwise it is an error.
    pub(super) fn name(self, path: &Path, replace: bool) -> Result<(), ClaimError> {
        os::step("file", "name claim");
        let named = if replace { self.0.persist(path) } else { self.0.persist_noclobber(path) };
        named.map(drop).map_err(|error| ClaimError::file("write", path)(error.error))
    }
}

/// Takes the name from a file, if it exists. The file is removed when the result is dropped. Removing it may wait for
/// the disk; taking its name does not.
pub(super) fn unname(path: &Path) -> Result<Option<TempPath>, ClaimError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unnamed = path.with_file_name(format!("{UNNAMED}{name}-{}", os::pid()));
    os::step("file", "unname claim");
    match fs::rename(path, &unnamed) {
        Ok(()) => Ok(Some(TempPath::from_path(unnamed))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ClaimError::file("remove", path)(error)),
    }
}

/// Removes a file, if it exists.
pub(super) fn remove_file(path: &Path) -> Result<(), ClaimError> {
    os::step("file", "remove");
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ClaimError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Syncs the names in a directory, so that they outlive a power failure.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_directory_is_this_users_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        make_dir(&at("a/b")).unwrap();
        assert_eq!((mode(&at("a")), mode(&at("a/b"))), (0o700, 0o700));
        for wide in [0o701, 0o750, 0o777] {
            fs::set_permissions(at("a"), Permissions::from_mode(wide)).unwrap();
            make_dir(&at("a")).unwrap();
            assert_eq!(mode(&at("a")), 0o700, "{wide:o}");
        }
        fs::write(at("file"), "").unwrap();
        symlink(at("a"), at("link")).unwrap();
        for (name, why) in [("file", "is not a directory"), ("link", "is a link")] {
            let error = make_dir(&at(name)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(matches!(make_dir(&at("file/below")), Err(ClaimError::File { verb: "create", .. })));
        // Without root, the root directory is another user's.
        let others = if chown(at("a"), Some(65534), None).is_ok() { at("a") } else { "/".into() };
        let error = make_dir(&others).unwrap_err().to_string();
        assert!(error.contains("belongs to user"), "{error}");
    }

    #[test]
    fn only_a_regular_file_with_one_name_is_read_or_locked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "text").unwrap();
        symlink(at("file"), at("link")).unwrap();
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        assert!(read(&at("absent")).unwrap().is_none());
        assert_eq!(read(&at("file")).unwrap().unwrap().0, b"text");
        assert!(read(&at("link")).is_err());
        assert_eq!(read(&at("pipe")).unwrap_err().to_string(), NOT_REGULAR);
        // A name below a file is an error, and not a file that does not exist.
        assert!(read(&at("file/below")).is_err());
        let lock = open_lock(&at("file")).unwrap();
        assert!(is_at(&lock, &at("file")).unwrap());
        assert!(open_lock(&at("link")).is_err());
        assert_eq!(open_lock(&at("pipe")).unwrap_err().to_string(), NOT_REGULAR);
        fs::hard_link(at("file"), at("name")).unwrap();
        assert!(open_lock(&at("file")).is_err());
        fs::remove_file(at("name")).unwrap();
        fs::remove_file(at("file")).unwrap();
        assert!(!is_at(&lock, &at("file")).unwrap());
        assert!(is_at(&lock, &at("pipe/below")).is_err());
        assert!(!is_at(&lock, &at("pipe")).unwrap());
    }

    #[test]
    fn what_does_not_exist_is_removed_already() {
        let dir = tempfile::tempdir().unwrap();
        let (file, below) = (dir.path().join("file"), dir.path().join("file/below"));
        fs::write(&file, "").unwrap();
        assert!(remove_file(&below).is_err() && unname(&below).is_err());
        assert!(Stamp::at(&file).is_some());
        let unnamed = unname(&file).unwrap().unwrap();
        assert!(!file.exists() && unnamed.exists());
        drop(unnamed);
        assert!(unname(&file).unwrap().is_none());
        remove_file(&file).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
