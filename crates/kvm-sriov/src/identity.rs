//! Who we are: run as root, a program becomes the user the driver belongs to.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Uid, User, geteuid, initgroups, setgid, setuid};

use crate::error::Cause;

/// Run as root, becomes the owner of `path` with that user's groups; otherwise does nothing. A `path` that can't be
/// looked at, or that is root's, changes nothing either.
///
/// # Errors
/// [`Cause::Identity`]: the process is still root, and nothing was touched.
pub fn become_owner_of(path: &Path) -> Result<(), Cause> {
    let Ok(metadata) = path.metadata() else { return Ok(()) };
    if !geteuid().is_root() || metadata.uid() == 0 {
        return Ok(());
    }
    let uid = Uid::from_raw(metadata.uid());
    change_to(uid).map_err(|source| Cause::Identity { path: path.to_owned(), uid: uid.as_raw(), source })
}

fn change_to(uid: Uid) -> io::Result<()> {
    let user = User::from_uid(uid)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such user"))?;
    let name = CString::new(user.name)?;
    initgroups(&name, user.gid)?;
    setgid(user.gid)?;
    setuid(user.uid)?;
    Ok(())
}
