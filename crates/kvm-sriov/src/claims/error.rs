//! Failures around claims.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Holder;
use crate::base::{DomainName, PciAddress, RootName};
use crate::config::{AlsoListed, NoVfs};
use crate::sysfs::NoVf;

/// A failure around claims. Whatever the call had written is gone again, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The state directory, or one in it, could be somebody else's trap.
    #[error("{} {what}; {advice}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        advice: String,
    },
    /// The state directory is on a file system that other hosts may have mounted, too: they would free each other's claims.
    #[error(
        "{} is on {kind}, which other hosts may share, and hosts must not free each other's VFs: set VF_STATE_DIR in kvmrc to a directory of this host alone, such as /var/lib/kvm-sriov", path.display()
    )]
    Shared {
        /// The directory.
        path: PathBuf,
        /// The file system.
        kind: String,
    },
    /// A file in the place of a claim says something else.
    #[error("{} can't be read as a claim ({why}): its VF counts as used; look at it, then remove it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// In the place of a claim is one that another host made.
    #[error(
        "{} is a claim of {vm} on another host (machine-id {host}): give each host a state directory of its own (VF_STATE_DIR in kvmrc), then remove the file", path.display()
    )]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// Whose claim it is.
        vm: DomainName,
        /// The other host.
        host: String,
    },
    /// A file can't be read or written.
    #[error("cannot {verb} {}: {error}", path.display())]
    File {
        /// "read", "write" ...
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Another action of the VM runs, and did not end in time.
    #[error("{vm} is busy: {holder}")]
    Busy {
        /// The VM.
        vm: DomainName,
        /// Who holds its lock.
        holder: Holder,
    },
    /// The claims' lock was not free in time, although nobody should hold it for long.
    #[error("the lock {} is held by another process for {seconds} s", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// There is no free VF.
    #[error("no free VF on {root} for {vm}: {}", Spent { total: *total, users, no_vfs })]
    Exhausted {
        /// The root.
        root: RootName,
        /// Who asked.
        vm: DomainName,
        /// How many VFs its map has.
        total: usize,
        /// How many of them each has.
        users: BTreeMap<String, usize>,
        /// What else its map lists.
        no_vfs: Vec<(PciAddress, NoVf)>,
    },
    /// The request names a root without its map.
    #[error("the request for a VF of {root} came without its map")]
    NoMap {
        /// The root.
        root: RootName,
    },
}

/// Why a map has nothing to give.
struct Spent<'a> {
    total: usize,
    users: &'a BTreeMap<String, usize>,
    no_vfs: &'a [(PciAddress, NoVf)],
}

impl fmt::Display for Spent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total == 0 {
            return write!(f, "its map lists no VF of this host: {}", NoVfs(self.no_vfs));
        }
        let users: Vec<String> = self.users.iter().map(|(user, count)| format!("{user}: {count}")).collect();
        write!(f, "all {} in use ({}){}", self.total, users.join(", "), AlsoListed(self.no_vfs))
    }
}

impl ClaimError {
    /// For `map_err`: a failure to `verb` the file at `path`.
    pub(super) fn file(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { verb, path, error }
    }
}
