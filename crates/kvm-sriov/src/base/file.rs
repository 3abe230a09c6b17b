//! Files that people and other programs write. Anything may stand in such a file's place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a file for reading.
///
/// # Errors
/// The file can't be opened, or is a named pipe, whose reader would wait for a writer.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.file_type().is_fifo() { Err(io::Error::other("it is a named pipe")) } else { Ok(file) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    #[test]
    fn a_named_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        for (link, target) in [("link", "file"), ("link to pipe", "pipe")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        assert!(open(&at("file")).is_ok() && open(&at("link")).is_ok() && open(Path::new("/dev/null")).is_ok());
        for pipe in ["pipe", "link to pipe"] {
            assert_eq!(open(&at(pipe)).unwrap_err().to_string(), "it is a named pipe");
        }
        assert_eq!(open(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
