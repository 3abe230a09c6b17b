//! The state directory, and its locks.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::lock::{self, VmLock};
use super::shared::FileSystem;
use super::turn::Turn;
use super::{ClaimError, Holder, safe};
use crate::base::{Action, DomainName, RootName};
use crate::os;

/// How long one process may hold the claims' lock. It is held for milliseconds. A process that holds it this long hangs,
/// or was itself stopped (SIGSTOP).
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for the claims' lock while it passes from one process to the next: a thousand actions at once, on a
/// host that is busy.
const LOCK_LONGEST: Duration = Duration::from_secs(120);

/// The state directory of a host: its claims and its locks.
///
/// ```
/// use std::time::Duration;
/// use kvm_sriov::claims::{Backing, ClaimRequest, ClaimStore};
/// use kvm_sriov::{Action, NicKey, Owner, Position, WantedVf};
/// use kvm_sriov::sysfs::Sysfs;
/// use kvm_sriov::config::VfMap;
/// let dir = tempfile::tempdir()?;
/// // Stands for the sysfs of the host.
/// std::fs::create_dir_all(dir.path().join("sys/bus/pci/devices/0000:07:00.1/physfn"))?;
/// let sysfs = Sysfs::at(dir.path().into());
/// let store = ClaimStore::create(&dir.path().join("vf_interfaces"))?;
/// let map = VfMap::parse("ib0".parse()?, "ib0".as_ref(), b"0x07 0x00 0x01\n")?;
/// let owner = Owner { vm: "one-42".parse()?, uuid: None };
/// let nic = NicKey { position: Position::new(0)?, mac: "02:00:0a:00:00:01".parse()? };
/// let vfs = [WantedVf { root: "ib0".parse()?, nic }];
/// let lock = store.lock_vm(&owner.vm, Action::Deploy, Duration::ZERO)?;
/// let request =
///     ClaimRequest { owner: &owner, lock: &lock, vfs: &vfs, maps: &[map], sysfs: &sysfs, refused: &[] };
/// let claims = store.claim_all(&request, &Backing::default())?;
/// assert!(store.dir().join("ib0/0").exists());
/// let error = store.claim_all(&request, &Backing::default()).unwrap_err();
/// assert_eq!(error.to_string(), "no free VF on ib0 for one-42: none of 1 is left (one-42: 1)");
/// store.release(&claims)?;
/// assert!(!store.dir().join("ib0/0").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ClaimStore {
    pub(super) dir: PathBuf,
}

impl ClaimStore {
    /// The state directory at `dir`. It is created with mode 0700 when it does not exist.
    ///
    /// # Errors
    /// The directory can't be created, is a link or a file, belongs to another user, or is on a file system that other
    /// hosts may share. Nothing was changed.
    pub fn create(dir: &Path) -> Result<Self, ClaimError> {
        Self::create_on(dir, FileSystem::of)
    }

    /// Checks whether the state directory can be at `dir`, which need not exist. Creates nothing.
    ///
    /// # Errors
    /// The directory is or would be on a file system that other hosts may share.
    pub fn check_place(dir: &Path) -> Result<(), ClaimError> {
        Self::check_place_on(dir, FileSystem::of)
    }

    /// * `look` - what the kernel reports of the file system of a directory that exists
    fn check_place_on(dir: &Path, look: impl Fn(&Path) -> io::Result<FileSystem>) -> Result<(), ClaimError> {
        let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
        let found = look(there).map_err(ClaimError::file("inspect", there))?;
        match found.shared() {
            Some(kind) => Err(ClaimError::Shared { path: dir.into(), kind: kind.into() }),
            None => Ok(()),
        }
    }

    pub(super) fn create_on(dir: &Path, look: impl Fn(&Path) -> io::Result<FileSystem>) -> Result<Self, ClaimError> {
        // This must come first, so that no directory is left behind when the check fails.
        Self::check_place_on(dir, look)?;
        safe::make_dir(dir)?;
        Ok(Self { dir: dir.into() })
    }

    /// The state directory at `dir`; `None` when it does not exist. Creates nothing.
    ///
    /// # Errors
    /// As [`ClaimStore::create`].
    pub fn open(dir: &Path) -> Result<Option<Self>, ClaimError> {
        match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::check_place(dir).and_then(|()| safe::check_dir(dir)).map(|()| Some(Self { dir: dir.into() })),
        }
    }

    /// The path of the state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn locks_dir(&self) -> PathBuf {
        self.dir.join(".locks")
    }

    /// The directory of the locks. It is created with the first lock, and never by a call that only reads.
    fn locks(&self) -> Result<PathBuf, ClaimError> {
        let dir = self.locks_dir();
        safe::make_dir(&dir)?;
        Ok(dir)
    }

    /// Takes the lock of a VM for an action. Waits at most `timeout` for another action.
    ///
    /// # Errors
    /// [`ClaimError::Busy`] names the action that holds the lock. Nothing was changed.
    pub fn lock_vm(&self, vm: &DomainName, action: Action, timeout: Duration) -> Result<VmLock, ClaimError> {
        VmLock::take(&self.locks()?, vm, action, timeout)
    }

    /// Takes the lock of a VM that was locked before, if no action holds it.
    ///
    /// * returns `None` when the VM was never locked, or is locked now
    ///
    /// # Errors
    /// The lock can't be used. Nothing was changed.
    pub fn lock_vm_again(&self, vm: &DomainName, action: Action) -> Result<Option<VmLock>, ClaimError> {
        match VmLock::take_known(&self.locks_dir(), vm, action) {
            Err(ClaimError::Busy { .. }) => Ok(None),
            taken => taken,
        }
    }

    /// The turn of a probe to repair the host; `None` when another process has the turn, or took it less than `every`
    /// ago.
    ///
    /// # Errors
    /// The file of the turn can't be used. Nothing was changed.
    pub(crate) fn probe_turn(&self, every: Duration) -> Result<Option<Turn>, ClaimError> {
        Turn::take(&self.locks()?.join("probe"), every)
    }

    /// The action that holds the lock of a VM; `None` when no action does.
    ///
    /// # Errors
    /// The lock can't be read. Nothing was changed.
    pub fn vm_holder(&self, vm: &DomainName) -> Result<Option<Holder>, ClaimError> {
        lock::holder(&self.locks_dir(), vm)
    }

    /// Asks the action that holds a VM's lock to end. The action reads this with [`VmLock::cancelled`]. A request that
    /// comes after the action has ended reaches no later action.
    ///
    /// # Errors
    /// The request can't be written. Nothing was changed.
    pub fn request_cancel(&self, vm: &DomainName, holder: &Holder) -> Result<(), ClaimError> {
        lock::request_cancel(&self.locks()?, vm, holder.token)
    }

    /// Removes the files of the locks of VMs that are not here any more.
    ///
    /// * `here` - the VMs that run here, and the VMs that claim VFs
    ///
    /// # Errors
    /// A file can't be removed. It and the files after it still exist.
    pub(crate) fn sweep_locks(&self, here: &[&DomainName]) -> Result<(), ClaimError> {
        lock::sweep(&self.locks()?, here)
    }

    pub(super) fn path(&self, root: &RootName, index: usize) -> PathBuf {
        self.dir.join(root.as_str()).join(index.to_string())
    }

    /// Takes the claims' lock. Waits while others take it in turn, and not for a holder that does not go on.
    pub(super) fn lock(&self) -> Result<fs::File, ClaimError> {
        self.lock_within(LOCK_TIMEOUT)
    }

    /// * `limit` - how long one process may hold the lock
    pub(super) fn lock_within(&self, limit: Duration) -> Result<fs::File, ClaimError> {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let path = self.locks()?.join("claims");
        let (mut waited, mut before) = (Duration::ZERO, None);
        loop {
            if let Some(file) = lock::acquire(&path, limit)? {
                // Who waits sees by this line that the lock is passed on. Each process and each of its turns has its own.
                let line = format!("{:>10} {:>20}\n", os::pid(), TAKEN.fetch_add(1, Ordering::Relaxed));
                if let Err(error) = file.write_all_at(line.as_bytes(), 0) {
                    log::debug!("{}: {error}", path.display());
                }
                return Ok(file);
            }
            waited += limit;
            let now = safe::read(&path).map_err(ClaimError::file("read", &path))?.map(|(line, _)| line);
            if before.as_ref() == Some(&now) || waited >= LOCK_LONGEST {
                return Err(ClaimError::Locked { path, seconds: waited.as_secs() });
            }
            before = Some(now);
        }
    }
}
