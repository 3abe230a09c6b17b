//! The user of a process: a program that runs as root becomes the user that owns the driver.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, geteuid, initgroups, setgid, setuid};

use crate::error::Cause;

/// Makes a process that runs as root run as the owner of `path`, with that user's groups. Does nothing in a process of
/// another user, and when `path` can't be read or belongs to root.
///
/// # Errors
/// [`Cause::Identity`]: the process still runs as root, and nothing was changed.
pub fn become_owner_of(path: &Path) -> Result<(), Cause> {
    let Ok(metadata) = path.metadata() else { return Ok(()) };
    if !geteuid().is_root() || metadata.uid() == 0 {
        return Ok(());
    }
    let uid = Uid::from_raw(metadata.uid());
    change_to(uid).map_err(|source| Cause::Identity { path: path.to_owned(), uid: uid.as_raw(), source })
}

/// Why a command can't run as the driver's user. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotTheDriversUser {
    /// There is no driver in this directory.
    #[error(
        "there is no driver in {} ({error}): OpenNebula copies it to a host (onehost sync -f), and --driver names another \
         place; nothing was changed",
        path.display()
    )]
    NoDriver {
        /// The directory.
        path: PathBuf,
        /// Why it can't be read.
        error: io::Error,
    },
    /// The driver belongs to root, but OpenNebula never runs as root.
    #[error(
        "the driver in {} belongs to root, and OpenNebula would find files of root's that it can't use: let OpenNebula's \
         user copy it (onehost sync -f); nothing was changed",
        path.display()
    )]
    Roots {
        /// Where it is.
        path: PathBuf,
    },
    /// The caller is neither root nor the driver's user.
    #[error("the driver in {} belongs to user {owner}: run this as root or as that user; nothing was changed", path.display())]
    Stranger {
        /// Where it is.
        path: PathBuf,
        /// The user that owns it.
        owner: u32,
    },
    /// The process can't become that user.
    #[error(transparent)]
    Change(#[from] Cause),
}

/// Makes a command run as the user that owns the driver in `path`. The driver could not use a state directory, for
/// example, that another user created.
///
/// # Errors
/// There is no driver, it belongs to root, or the caller is neither root nor the driver's user.
pub fn become_drivers_user(path: &Path) -> Result<(), NotTheDriversUser> {
    let found = path
        .metadata()
        .and_then(|found| if found.is_dir() { Ok(found) } else { Err(io::ErrorKind::NotADirectory.into()) });
    let owner = found.map_err(|error| NotTheDriversUser::NoDriver { path: path.into(), error })?.uid();
    if owner == 0 {
        return Err(NotTheDriversUser::Roots { path: path.into() });
    }
    become_owner_of(path)?;
    if geteuid().as_raw() == owner { Ok(()) } else { Err(NotTheDriversUser::Stranger { path: path.into(), owner }) }
}

fn change_to(uid: Uid) -> io::Result<()> {
    let user = User::from_uid(uid)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such user"))?;
    let name = CString::new(user.name)?;
    initgroups(&name, user.gid)?;
    setgid(user.gid)?;
    setuid(user.uid)?;
    Ok(())
}
