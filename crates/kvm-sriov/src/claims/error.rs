//! Failures around claims.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Holder;
use crate::base::{DomainName, PciAddress, RootName};
use crate::config::{AlsoListed, NoVfs};
use crate::sysfs::NoVf;

/// A failure of a call on claims. What the call wrote before it failed was removed again, unless the call's
/// documentation says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The state directory, or a directory in it, may have been put there by another user.
    #[error("{} {what}; {advice}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        advice: String,
    },
    /// The state directory is on a file system that other hosts may have mounted too. The hosts would free each other's
    /// claims.
    #[error(
        "{} is on {kind}, which other hosts may share, and hosts must not free each other's VFs: set VF_STATE_DIR in kvmrc to a directory of this host alone, such as /var/lib/kvm-sriov", path.display()
    )]
    Shared {
        /// The directory.
        path: PathBuf,
        /// The file system.
        kind: String,
    },
    /// A file with the name of a claim has other content.
    #[error("{} can't be read as a claim ({why}): its VF counts as used; read the file, then remove it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file with the name of a claim is a claim of another host.
    #[error(
        "{} is a claim of {vm} on another host (machine-id {host}): give each host a state directory of its own (VF_STATE_DIR in kvmrc), then remove the file", path.display()
    )]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// The VM that it is a claim of.
        vm: DomainName,
        /// The machine-id of the other host.
        host: String,
    },
    /// A file can't be read or written.
    #[error("cannot {verb} {}: {error}", path.display())]
    File {
        /// What was to be done with the file, such as `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// Another action works on the VM and did not end in time.
    #[error("{vm} is busy: {holder}")]
    Busy {
        /// The VM.
        vm: DomainName,
        /// The action that holds the VM's lock.
        holder: Holder,
    },
    /// The claims' lock was not free in time. It should never be held for more than milliseconds.
    #[error("the lock {} has been held by another process for {seconds} s", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long this process has waited for it, in seconds.
        seconds: u64,
    },
    /// No VF of a map is free.
    #[error("no free VF on {root} for {vm}: {}", Spent { total: *total, users, no_vfs })]
    Exhausted {
        /// The root.
        root: RootName,
        /// The VM that needs a VF.
        vm: DomainName,
        /// How many VFs of this host its map lists.
        total: usize,
        /// How many of them each VM has.
        users: BTreeMap<String, usize>,
        /// The lines of its map that are not a VF of this host.
        no_vfs: Vec<(PciAddress, NoVf)>,
    },
    /// The maps of the request do not include the map of a root, or that map does not list the VF.
    #[error("the request for a VF of {root} came without the map of {root}")]
    NoMap {
        /// The root.
        root: RootName,
    },
}

/// Why no VF of a map is free.
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
        write!(f, "none of {} is left ({}){}", self.total, users.join(", "), AlsoListed(self.no_vfs))
    }
}

impl ClaimError {
    /// A function for `map_err`: the failure to `verb` the file at `path`.
    pub(super) fn file(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { verb, path, error }
    }
}
