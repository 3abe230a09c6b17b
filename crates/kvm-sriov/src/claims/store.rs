//! The claims of a host: made, released and repaired under one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempPath;

use super::entries::{Entries, Entry};
use super::lock::{self, Holder, Turn, VmLock};
use super::record::{Content, Record};
use super::safe::Unnamed;
use super::shared::FileSystem;
use super::{Backing, Claim, ClaimError, Claimant, Owner, Process, Repair, Request, process, safe};
use crate::base::{Action, DomainName, DomainUuid, PciAddress, RootName, WantedVf};
use crate::config::{NoVfs, Supply, VfMap};

/// The claims' lock is held for milliseconds; who can't have it in this time waits for a process that is stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The driver of 2013 makes its empty files before it starts a domain, and says nowhere that it is still alive.
const ORIGINAL_GRACE: Duration = Duration::from_secs(600);

/// The state directory.
///
/// ```
/// use kvm_sriov::Position;
/// use kvm_sriov::claims::{Backing, ClaimStore, Request};
/// use kvm_sriov::{NicKey, Owner, WantedVf};
/// use kvm_sriov::sysfs::Sysfs;
/// use kvm_sriov::config::VfMap;
/// let dir = tempfile::tempdir()?;
/// // In place of the host's kernel.
/// std::fs::create_dir_all(dir.path().join("sys/bus/pci/devices/0000:07:00.1/physfn"))?;
/// let sysfs = Sysfs::at(dir.path().into());
/// let store = ClaimStore::create(&dir.path().join("vf_interfaces"))?;
/// let map = VfMap::parse("ib0".parse()?, "ib0".as_ref(), b"0x07 0x00 0x01\n")?;
/// let owner = Owner { vm: "one-42".parse()?, uuid: None };
/// let nic = NicKey { position: Position::new(0)?, mac: "02:00:0a:00:00:01".parse()? };
/// let vfs = [WantedVf { root: "ib0".parse()?, nic }];
/// let request = Request { owner: &owner, vfs: &vfs, maps: &[map], sysfs: &sysfs, refused: &[] };
/// let claims = store.claim_all(&request, &Backing::default())?;
/// assert!(store.dir().join("ib0/0").exists());
/// let error = store.claim_all(&request, &Backing::default()).unwrap_err();
/// assert_eq!(error.to_string(), "no free VF on ib0 for one-42: all 1 in use (one-42: 1)");
/// store.release(&claims)?;
/// assert!(!store.dir().join("ib0/0").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ClaimStore {
    dir: PathBuf,
}

/// The claims, judged by what libvirt says.
struct Judged {
    /// To be freed.
    stale: Vec<Entry>,
    /// All others.
    kept: Vec<Entry>,
    /// To be made.
    missing: Vec<Claim>,
}

impl Judged {
    /// * `stale`, `kept` - the claims of now
    /// * `seen` - the claims of before libvirt was asked
    fn new(stale: Vec<Entry>, kept: Vec<Entry>, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Self {
        // A VF that is in two maps is claimed once.
        let first = |root: &RootName, vf| {
            maps.iter().find(|map| map.index_of(vf).is_some()).is_some_and(|map| map.root() == root)
        };
        let claimed: BTreeSet<PciAddress> = kept.iter().filter_map(|entry| entry.vf_by(maps)).collect();
        let has = |entries: &[Entry], claim: &Claim| {
            entries.iter().any(|entry| entry.vf() == Some(claim.vf) && entry.is_of(&claim.owner))
        };
        let vfs = maps.iter().flat_map(|map| map.vfs().iter().map(move |vf| (map.root(), *vf)));
        let of = |(root, vf): (&RootName, PciAddress)| {
            let owner = backing.user(vf)?.clone();
            Some(match backing.nics.get(&vf) {
                Some(nic) => Claim::new(owner, root.clone(), vf, *nic),
                None => Claim { root: root.clone(), vf, owner, position: None, mac: None, index: None },
            })
        };
        let missing = vfs
            .filter(|(_, vf)| !claimed.contains(vf))
            .filter_map(|(root, vf)| first(root, vf).then(|| of((root, vf)))?)
            // A claim that was there and is gone was released since: the domain that libvirt spoke of has gone, too.
            .filter(|claim| !has(seen, claim) || has(&stale, claim))
            .collect();
        Self { stale, kept, missing }
    }

    /// The claims whose VF has another place in its map than their file says.
    fn astray<'a>(&'a self, maps: &'a [VfMap]) -> impl Iterator<Item = &'a Entry> {
        let place = |entry: &Entry| maps.iter().find(|map| *map.root() == entry.root)?.index_of(entry.vf()?);
        self.kept.iter().filter(move |entry| place(entry).is_some_and(|place| place != entry.index))
    }
}

impl Record {
    pub(super) fn owner(&self) -> Owner {
        Owner { vm: self.vm.clone(), uuid: self.uuid.clone() }
    }

    /// Whether the process that works on it still does.
    fn is_held(&self) -> bool {
        self.boot == process::boot_id() && self.holder.is_some_and(|holder| holder.is_alive())
    }

    fn of(claim: &Claim, holder: Option<Process>) -> Self {
        Self {
            vm: claim.owner.vm.clone(),
            uuid: claim.owner.uuid.clone(),
            position: claim.position,
            mac: claim.mac,
            vf: claim.vf,
            host: process::machine_id(),
            boot: process::boot_id(),
            holder,
            image: None,
            unknown: Vec::new(),
        }
    }

    /// The claim in the file with this number.
    fn claim(&self, root: &RootName, index: usize) -> Claim {
        let (root, index) = (root.clone(), Some(index));
        Claim { root, vf: self.vf, owner: self.owner(), position: self.position, mac: self.mac, index }
    }
}

impl ClaimStore {
    /// The state directory at `dir`, made (mode 0700) when it is not there.
    ///
    /// # Errors
    /// It can't be made, is a link, a file, or somebody else's, or is on a file system that other hosts may share. Nothing was
    /// changed.
    pub fn create(dir: &Path) -> Result<Self, ClaimError> {
        Self::create_on(dir, FileSystem::of)
    }

    /// Looks whether the state directory can be at `dir`, which need not be there. Makes nothing.
    ///
    /// # Errors
    /// It is, or would be, on a file system that other hosts may share.
    pub fn check_place(dir: &Path) -> Result<(), ClaimError> {
        Self::check_place_on(dir, FileSystem::of)
    }

    /// * `look` - what the kernel says of the file system below a directory that is there
    fn check_place_on(dir: &Path, look: impl Fn(&Path) -> io::Result<FileSystem>) -> Result<(), ClaimError> {
        let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
        let found = look(there).map_err(ClaimError::file("look at", there))?;
        match found.shared() {
            Some(kind) => Err(ClaimError::Shared { path: dir.into(), kind: kind.into() }),
            None => Ok(()),
        }
    }

    fn create_on(dir: &Path, look: impl Fn(&Path) -> io::Result<FileSystem>) -> Result<Self, ClaimError> {
        // Before it is made: nothing of ours is left where it can't be.
        Self::check_place_on(dir, look)?;
        safe::make_dir(dir)?;
        Ok(Self { dir: dir.into() })
    }

    /// The state directory at `dir`; `None` when it is not there. Makes nothing.
    ///
    /// # Errors
    /// As [`ClaimStore::create`].
    pub fn open(dir: &Path) -> Result<Option<Self>, ClaimError> {
        match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::check_place(dir).and_then(|()| safe::check_dir(dir)).map(|()| Some(Self { dir: dir.into() })),
        }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn locks_dir(&self) -> PathBuf {
        self.dir.join(".locks")
    }

    /// The directory of the locks, made by whoever takes the first one: who only looks makes nothing.
    fn locks(&self) -> Result<PathBuf, ClaimError> {
        let dir = self.locks_dir();
        safe::make_dir(&dir)?;
        Ok(dir)
    }

    /// Takes the lock of a VM for an action, waiting at most `timeout` for another action.
    ///
    /// # Errors
    /// [`ClaimError::Busy`] names the action that has it. Nothing was changed.
    pub fn lock_vm(&self, vm: &DomainName, action: Action, timeout: Duration) -> Result<VmLock, ClaimError> {
        VmLock::take(&self.locks()?, vm, action, timeout)
    }

    /// Takes the lock of a VM that has been locked before, if nobody has it.
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

    /// The turn of a probe at putting the host right; `None` when another one has it, or had it less than `every` ago.
    ///
    /// # Errors
    /// Its file can't be used; nothing was changed.
    pub(crate) fn probe_turn(&self, every: Duration) -> Result<Option<Turn>, ClaimError> {
        Turn::take(&self.locks()?.join("probe"), every)
    }

    /// Who holds the lock of a VM.
    ///
    /// # Errors
    /// The lock can't be read. Nothing was changed.
    pub fn vm_holder(&self, vm: &DomainName) -> Result<Option<Holder>, ClaimError> {
        lock::holder(&self.locks_dir(), vm)
    }

    /// Records the wish that the action of this holder ends: see [`VmLock::cancelled`].
    ///
    /// # Errors
    /// The wish can't be written. Nothing was changed.
    pub fn request_cancel(&self, vm: &DomainName, holder: &Holder) -> Result<(), ClaimError> {
        lock::wish(&self.locks()?, vm, holder.process)
    }

    /// Removes the files that the locks of VMs left which are not here any more.
    ///
    /// * `here` - the VMs that are, and those that claim VFs
    ///
    /// # Errors
    /// A file can't be removed; it and those after it are still there.
    pub(crate) fn sweep_locks(&self, here: &[&DomainName]) -> Result<(), ClaimError> {
        lock::sweep(&self.locks()?, here)
    }

    /// Every claim, by root and index.
    ///
    /// # Errors
    /// The state directory can't be read. Nothing was changed. The directory of a root that can't be read, or is not safe, is passed
    /// over.
    pub fn entries(&self) -> Result<Vec<Entry>, ClaimError> {
        Ok(Entries::read(&self.dir, &[])?.all)
    }

    /// What there can't be read, or is another host's: it keeps nothing else from being used.
    ///
    /// # Errors
    /// The state directory can't be read. Nothing was changed.
    pub fn problems(&self) -> Result<Vec<ClaimError>, ClaimError> {
        let Entries { all, unreadable } = Entries::read(&self.dir, &[])?;
        let of = |entry: Entry| {
            let path = self.path(&entry.root, entry.index);
            match entry.content {
                Content::Unreadable { why } => Some(ClaimError::Unreadable { path, why }),
                Content::Elsewhere(Record { vm, host, .. }) => {
                    Some(ClaimError::Elsewhere { path, vm, host: host.unwrap_or_default() })
                }
                Content::Ours(_) | Content::Original => None,
            }
        };
        Ok(all.into_iter().filter_map(of).chain(unreadable.into_iter().map(|(_, error)| error)).collect())
    }

    /// Whether a VM claims anything.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn has_any(&self, owner: &Owner) -> Result<bool, ClaimError> {
        Ok(self.entries()?.iter().any(|entry| entry.is_of(owner)))
    }

    /// The VM with this UUID, if it claims anything.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn owner_with(&self, uuid: &DomainUuid) -> Result<Option<Owner>, ClaimError> {
        let of = |entry: &Entry| match &entry.content {
            Content::Ours(record) if record.uuid.as_ref() == Some(uuid) => Some(record.owner()),
            _ => None,
        };
        Ok(self.entries()?.iter().find_map(of))
    }

    /// Claims a free VF for every NIC, the one with the lowest index; or none at all. The claims are held by this process
    /// until [`ClaimStore::commit`]. A line of a map that is no VF of this host is skipped.
    ///
    /// * `backing` - what libvirt says of every running domain: a VF there is not free
    ///
    /// # Errors
    /// Nothing is claimed: [`ClaimError::Exhausted`] says who has the VFs; others, what can't be written.
    pub fn claim_all(&self, request: &Request<'_>, backing: &Backing) -> Result<Vec<Claim>, ClaimError> {
        let supplies = supplies(request)?;
        let seen = self.entries()?;
        let _lock = self.lock()?;
        let Entries { all: entries, unreadable } = Entries::read(&self.dir, &seen)?;
        for (root, error) in unreadable {
            if supplies.contains_key(&root) {
                return Err(error);
            }
        }
        let mut users: BTreeMap<PciAddress, String> = BTreeMap::new();
        users.extend(request.refused.iter().map(|vf| (*vf, "refused by libvirt".to_owned())));
        users.extend(backing.devices.iter().map(|(vf, owner)| (*vf, owner.vm.to_string())));
        users.extend(entries.iter().filter_map(|entry| Some((entry.vf_by(request.maps)?, entry.user()))));
        let mut chosen = Vec::new();
        for WantedVf { root, nic } in request.vfs {
            let supply = supplies.get(root).ok_or_else(|| ClaimError::NoMap { root: root.clone() })?;
            let free = supply.vfs.iter().find(|vf| !users.contains_key(vf));
            let vf = free.ok_or_else(|| exhausted(root, supply, request, &users))?;
            users.insert(*vf, request.owner.vm.to_string());
            let index = map_of(request.maps, root)?.index_of(*vf);
            chosen.push(Claim { index, ..Claim::new(request.owner.clone(), root.clone(), *vf, *nic) });
        }
        self.put_in_place(&entries, request.maps)?;
        for (written, claim) in chosen.iter().enumerate() {
            let made = self.prepare(claim, Some(Process::this()), request.maps, false);
            if let Err(error) = made.and_then(|(path, file)| file.name(&path, false)) {
                for claim in chosen.iter().take(written) {
                    drop(self.unname(claim)?);
                }
                return Err(error);
            }
        }
        Ok(chosen)
    }

    /// Marks everything that a VM claims as held by this process, and notes the file that it is being saved into. Returns
    /// the claims.
    ///
    /// # Errors
    /// A claim can't be written; those before it are held by this process, which changes nothing for others.
    pub fn hold(&self, owner: &Owner, image: Option<&Path>) -> Result<Vec<Claim>, ClaimError> {
        // A power failure during the save may leave that file as the only copy of the VM's memory: it must be found again.
        self.rewrite(owner, image.is_some(), |record| {
            record.holder = Some(Process::this());
            record.boot = process::boot_id();
            record.image = image.map(Path::to_owned);
        })
    }

    /// Marks everything that a VM claims as held by nobody: its running domain backs it.
    ///
    /// # Errors
    /// A claim can't be written; it is still there, held by this process.
    pub fn settle(&self, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
        self.rewrite(owner, false, |record| {
            record.holder = None;
            record.image = None;
        })
    }

    /// Changes what the claims of a VM say.
    ///
    /// * `lasts` - whether it must outlive a power failure; what a new boot voids need not
    fn rewrite(&self, owner: &Owner, lasts: bool, change: impl Fn(&mut Record)) -> Result<Vec<Claim>, ClaimError> {
        let changed = |entry: &Entry| match &entry.content {
            Content::Ours(old) if entry.is_of(owner) => {
                let mut record = old.clone();
                change(&mut record);
                Some((record != *old, record))
            }
            _ => None,
        };
        let write = |entry: &Entry, record: &Record| {
            let path = self.path(&entry.root, entry.index);
            let file = Unnamed::write(&path, record.to_text().as_bytes())?;
            if lasts { file.sync(&path).map(|()| file) } else { Ok(file) }
        };
        // Written and synced while others may claim: with the lock in hand they only get their names.
        let seen = self.entries()?;
        let mut ready = Vec::new();
        for entry in &seen {
            if let Some((true, record)) = changed(entry) {
                ready.push((entry, write(entry, &record)?));
            }
        }
        let mut claims = Vec::new();
        let lock = self.lock()?;
        for entry in Entries::read(&self.dir, &seen)?.all {
            let Some((is_new, record)) = changed(&entry) else { continue };
            if is_new {
                let file = match ready.iter().position(|(before, _)| **before == entry) {
                    Some(at) => ready.swap_remove(at).1,
                    None => write(&entry, &record)?,
                };
                file.name(&self.path(&entry.root, entry.index), true)?;
            }
            claims.push(record.claim(&entry.root, entry.index));
        }
        drop(lock);
        if lasts {
            let roots: BTreeSet<PathBuf> = claims.iter().map(|claim| self.dir.join(claim.root.as_str())).collect();
            for dir in roots.iter().chain([&self.dir]) {
                safe::sync(dir).map_err(ClaimError::file("sync", dir))?;
            }
        }
        Ok(claims)
    }

    /// Every VM that claims VFs.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn claimants(&self) -> Result<Vec<Claimant>, ClaimError> {
        let mut claimants: Vec<Claimant> = Vec::new();
        for entry in self.entries()? {
            let Content::Ours(record) = &entry.content else { continue };
            let claim = record.claim(&entry.root, entry.index);
            match claimants.iter_mut().find(|claimant| claimant.owner.is(&claim.owner)) {
                Some(claimant) => {
                    claimant.held |= record.is_held();
                    claimant.this_boot &= record.boot == process::boot_id();
                    claimant.image = claimant.image.take().or_else(|| record.image.clone());
                    claimant.claims.push(claim);
                }
                None => claimants.push(Claimant {
                    owner: claim.owner.clone(),
                    claims: vec![claim],
                    image: record.image.clone(),
                    held: record.is_held(),
                    this_boot: record.boot == process::boot_id(),
                }),
            }
        }
        Ok(claimants)
    }

    /// What a VM claims.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn claims_of(&self, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
        let entries = self.entries()?;
        let of = |entry: &Entry| match &entry.content {
            Content::Ours(record) if entry.is_of(owner) => Some(record.claim(&entry.root, entry.index)),
            _ => None,
        };
        Ok(entries.iter().filter_map(of).collect())
    }

    /// Marks claims as backed by their running domain: no process holds them any more.
    ///
    /// # Errors
    /// A claim can't be written; it is still there, held by this process.
    pub fn commit(&self, claims: &[Claim], maps: &[VfMap]) -> Result<(), ClaimError> {
        let files: Vec<_> =
            claims.iter().map(|claim| self.prepare(claim, None, maps, true)).collect::<Result<_, _>>()?;
        let _lock = self.lock()?;
        files.into_iter().try_for_each(|(path, file)| file.name(&path, true))
    }

    /// Releases claims. One that is gone already, or is another VM's now, is left alone.
    ///
    /// # Errors
    /// A file can't be removed; it and those after it are still there.
    pub fn release(&self, claims: &[Claim]) -> Result<(), ClaimError> {
        // Dropped after the lock is: what is released is removed while others may claim.
        let mut released = Vec::new();
        let _lock = self.lock()?;
        for claim in claims {
            released.extend(self.unname(claim)?);
        }
        Ok(())
    }

    /// Releases everything that a VM claims, and returns it.
    ///
    /// # Errors
    /// A file can't be removed; it and those after it are still there.
    pub fn release_domain(&self, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
        let seen = self.entries()?;
        let (mut released, mut files) = (Vec::new(), Vec::new());
        let _lock = self.lock()?;
        let Entries { all, unreadable } = Entries::read(&self.dir, &seen)?;
        warn(&unreadable);
        for entry in all {
            if let (true, Content::Ours(record)) = (entry.is_of(owner), &entry.content) {
                files.push(safe::unname(&self.path(&entry.root, entry.index))?);
                released.push(record.claim(&entry.root, entry.index));
            }
        }
        Ok(released)
    }

    /// Puts the claims right: frees stale ones, gives a claim to a VF that a domain has without one, and moves files whose
    /// map was reordered.
    ///
    /// * `seen` - the claims, read BEFORE `backing` was asked for: a claim that was made since can't be judged by it
    /// * `backing` - what libvirt says of every running domain
    /// * `maps` - the maps whose VFs matter
    ///
    /// # Errors
    /// A file can't be read, written or removed. What was put right until then is right.
    pub fn recover(&self, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Result<Vec<Repair>, ClaimError> {
        // Nearly always there is nothing to do: then nobody is kept waiting.
        let at_first = self.judge(seen.to_vec(), seen, backing, maps);
        if at_first.stale.is_empty() && at_first.missing.is_empty() && at_first.astray(maps).next().is_none() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let mut repairs = Vec::new();
        let Entries { all, unreadable } = Entries::read(&self.dir, seen)?;
        let Judged { stale, kept, mut missing } = self.judge(all, seen, backing, maps);
        missing.retain(|claim| unreadable.iter().all(|(root, _)| *root != claim.root));
        for entry in &stale {
            safe::remove_file(&self.path(&entry.root, entry.index))?;
            if let Content::Ours(record) = &entry.content {
                repairs.push(Repair::Freed(record.claim(&entry.root, entry.index)));
            }
        }
        repairs.extend(self.put_in_place(&kept, maps)?);
        for claim in missing {
            let (path, file) = self.prepare(&claim, None, maps, false)?;
            file.name(&path, false)?;
            repairs.push(Repair::Adopted(claim));
        }
        Ok(repairs)
    }

    /// What [`ClaimStore::recover`] would put right. Changes nothing.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn inspect(&self, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Result<Vec<Repair>, ClaimError> {
        let judged = self.judge(self.entries()?, seen, backing, maps);
        let of = |entry: &Entry| match &entry.content {
            Content::Ours(record) => Some(record.claim(&entry.root, entry.index)),
            _ => None,
        };
        let mut repairs: Vec<Repair> = judged.stale.iter().filter_map(of).map(Repair::Freed).collect();
        repairs.extend(judged.astray(maps).filter_map(of).map(Repair::Moved));
        repairs.extend(judged.missing.into_iter().map(Repair::Adopted));
        Ok(repairs)
    }

    fn judge(&self, now: Vec<Entry>, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Judged {
        let (stale, kept) = now.into_iter().partition(|entry| self.is_stale(entry, seen, backing, maps));
        Judged::new(stale, kept, seen, backing, maps)
    }

    /// Neither a domain nor a living process backs it, and it did not change since before libvirt was asked.
    fn is_stale(&self, entry: &Entry, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> bool {
        let stale = match &entry.content {
            // An image that was not finished may hold the VM: reconciliation looks at it first.
            Content::Ours(record) => {
                record.image.is_none() && !backing.backs(&record.claim(&entry.root, entry.index)) && !record.is_held()
            }
            // It names no VM: one that can't be read may have the VF.
            Content::Original => {
                backing.unreadable.is_empty()
                    && self.is_old(entry)
                    && entry.vf_by(maps).is_some_and(|vf| backing.user(vf).is_none())
            }
            Content::Elsewhere(_) | Content::Unreadable { .. } => false,
        };
        stale && seen.contains(entry)
    }

    fn is_old(&self, entry: &Entry) -> bool {
        let written =
            fs::symlink_metadata(self.path(&entry.root, entry.index)).and_then(|metadata| metadata.modified());
        // An empty file of an earlier boot may be one of ours as well, whose content a power failure took.
        let is_old = |at: SystemTime| SystemTime::now().duration_since(at).is_ok_and(|age| age > ORIGINAL_GRACE);
        written.is_ok_and(|at| is_old(at) || process::booted().is_some_and(|booted| at < booted))
    }

    /// Gives every claim whose VF is elsewhere in its map now the name of its place. A name that is taken is left first by
    /// who has it, for a number after the map's last; so being killed in between loses no claim.
    fn put_in_place(&self, entries: &[Entry], maps: &[VfMap]) -> Result<Vec<Repair>, ClaimError> {
        let mut moved = Vec::new();
        for map in maps {
            let mut taken: Vec<(usize, &Entry)> =
                entries.iter().filter(|entry| entry.root == *map.root()).map(|entry| (entry.index, entry)).collect();
            let is_taken = |taken: &[(usize, &Entry)], wanted| taken.iter().any(|(index, _)| *index == wanted);
            let place = |entry: &Entry| entry.vf().map(|vf| map.index_of(vf));
            let astray: Vec<(usize, &Entry)> = taken
                .iter()
                .filter(|(index, entry)| {
                    place(entry).is_some_and(|place| place.map_or(*index < map.vfs().len(), |p| p != *index))
                })
                .copied()
                .collect();
            // First out of the way, then to their places.
            let mut waiting = Vec::new();
            for (index, entry) in astray {
                let free = (map.vfs().len()..).find(|free| !is_taken(&taken, *free)).unwrap_or(usize::MAX);
                self.rename(map.root(), index, free)?;
                taken.retain(|(old, _)| *old != index);
                taken.push((free, entry));
                waiting.push((free, entry));
            }
            for (index, entry) in waiting {
                if let (Some(Some(place)), Content::Ours(record)) = (place(entry), &entry.content) {
                    if !is_taken(&taken, place) {
                        self.rename(map.root(), index, place)?;
                        taken.retain(|(old, _)| *old != index);
                        taken.push((place, entry));
                        moved.push(Repair::Moved(record.claim(map.root(), place)));
                    }
                }
            }
        }
        Ok(moved)
    }

    fn rename(&self, root: &RootName, from: usize, to: usize) -> Result<(), ClaimError> {
        let (from, to) = (self.path(root, from), self.path(root, to));
        fs::rename(&from, &to).map_err(ClaimError::file("rename", from))
    }

    /// Writes the file of a claim, which has yet to get the name that is returned with it.
    ///
    /// * `replace` - what a later version wrote into a claim of the VM that is there stays in it
    fn prepare(
        &self,
        claim: &Claim,
        holder: Option<Process>,
        maps: &[VfMap],
        replace: bool,
    ) -> Result<(PathBuf, Unnamed), ClaimError> {
        let index = map_of(maps, &claim.root)?.index_of(claim.vf);
        let index = index.ok_or_else(|| ClaimError::NoMap { root: claim.root.clone() })?;
        let path = self.path(&claim.root, index);
        safe::make_dir(&self.dir.join(claim.root.as_str()))?;
        let mut record = Record::of(claim, holder);
        if let (true, Ok(Some((bytes, _)))) = (replace, safe::read(&path)) {
            match Content::parse(&bytes, process::machine_id().as_deref()) {
                Content::Ours(old) if old.owner().is(&claim.owner) => record.unknown = old.unknown,
                Content::Elsewhere(Record { vm, host, .. }) => {
                    return Err(ClaimError::Elsewhere { path, vm, host: host.unwrap_or_default() });
                }
                _ => {}
            }
        }
        let file = Unnamed::write(&path, record.to_text().as_bytes())?;
        Ok((path, file))
    }

    /// Takes the file of a claim its name, whatever number it has by now. To be called with the lock.
    ///
    /// * returns what is removed when it is dropped
    fn unname(&self, claim: &Claim) -> Result<Vec<TempPath>, ClaimError> {
        let is_it = |path: &Path| match safe::read(path) {
            Ok(Some((bytes, _))) => match Content::parse(&bytes, process::machine_id().as_deref()) {
                Content::Ours(record) => record.vf == claim.vf && record.owner().is(&claim.owner),
                _ => false,
            },
            _ => false,
        };
        if let Some(path) = claim.index.map(|index| self.path(&claim.root, index)).filter(|path| is_it(path)) {
            return Ok(safe::unname(&path)?.into_iter().collect());
        }
        let mut files = Vec::new();
        for entry in self.entries()? {
            if entry.root == claim.root && entry.vf() == Some(claim.vf) && entry.is_of(&claim.owner) {
                files.extend(safe::unname(&self.path(&entry.root, entry.index))?);
            }
        }
        Ok(files)
    }

    fn path(&self, root: &RootName, index: usize) -> PathBuf {
        self.dir.join(root.as_str()).join(index.to_string())
    }

    fn lock(&self) -> Result<fs::File, ClaimError> {
        let path = self.locks()?.join("claims");
        lock::acquire(&path, LOCK_TIMEOUT)?.ok_or(ClaimError::Locked { path, seconds: LOCK_TIMEOUT.as_secs() })
    }
}

/// What each of the roots that are asked for can give.
fn supplies(request: &Request<'_>) -> Result<BTreeMap<RootName, Supply>, ClaimError> {
    let mut supplies = BTreeMap::new();
    for WantedVf { root, .. } in request.vfs {
        if !supplies.contains_key(root) {
            let supply = map_of(request.maps, root)?.supply(request.sysfs);
            if !supply.no_vfs.is_empty() {
                log::warn!("{root}: skipped what no VM can have: {}", NoVfs(&supply.no_vfs));
            }
            supplies.insert(root.clone(), supply);
        }
    }
    Ok(supplies)
}

/// Names roots whose claims are not known.
fn warn(unreadable: &[(RootName, ClaimError)]) {
    for (root, error) in unreadable {
        log::warn!("{error}; the claims of {root} are passed over");
    }
}

fn exhausted(
    root: &RootName,
    supply: &Supply,
    request: &Request<'_>,
    users: &BTreeMap<PciAddress, String>,
) -> ClaimError {
    let mut counted = BTreeMap::new();
    for user in supply.vfs.iter().filter_map(|vf| users.get(vf)) {
        let count = counted.entry(user.clone()).or_insert(0_usize);
        *count = count.saturating_add(1);
    }
    ClaimError::Exhausted {
        root: root.clone(),
        vm: request.owner.vm.clone(),
        total: supply.vfs.len(),
        users: counted,
        no_vfs: supply.no_vfs.clone(),
    }
}

fn map_of<'a>(maps: &'a [VfMap], root: &RootName) -> Result<&'a VfMap, ClaimError> {
    maps.iter().find(|map| map.root() == root).ok_or_else(|| ClaimError::NoMap { root: root.clone() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods)]

    use super::super::NicKey;
    use super::*;
    use crate::base::Position;

    #[test]
    fn what_was_released_since_libvirt_was_asked_is_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
        let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), b"0x07 0x00 0x01\n").unwrap()];
        let owner = Owner { vm: "one-42".parse().unwrap(), uuid: None };
        let nic = NicKey { position: Position::new(0).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
        let vfs = [WantedVf { root: "ib0".parse().unwrap(), nic }];
        std::fs::create_dir_all(dir.path().join("sys/bus/pci/devices/0000:07:00.1/physfn")).unwrap();
        let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
        let request = Request { owner: &owner, vfs: &vfs, maps: &maps, sysfs: &sysfs, refused: &[] };
        let claims = store.claim_all(&request, &Backing::default()).unwrap();
        store.commit(&claims, &maps).unwrap();
        let devices = claims.iter().map(|claim| (claim.vf, owner.clone())).collect();
        let backing = Backing { devices, ..Backing::default() };

        let seen = store.entries().unwrap();
        store.release(&claims).unwrap();
        assert_eq!(store.inspect(&seen, &backing, &maps).unwrap(), []);
        assert_eq!(store.recover(&seen, &backing, &maps).unwrap(), []);
        assert_eq!(store.entries().unwrap(), []);

        let repairs = store.recover(&[], &backing, &maps).unwrap();
        let [Repair::Adopted(claim)] = &repairs[..] else { panic!("{repairs:?}") };
        assert_eq!((claim.vf, &claim.owner), (claims[0].vf, &owner));
    }

    #[test]
    fn a_claim_is_for_the_nic_at_its_position() {
        let dir = tempfile::tempdir().unwrap();
        let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
        let text = b"0x07 0x00 0x01\n0x07 0x00 0x02\n0x07 0x00 0x03\n0x07 0x00 0x04\n";
        let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), text).unwrap()];
        let owner = Owner { vm: "one-42".parse().unwrap(), uuid: None };
        let mac = "02:00:0a:00:00:01".parse().unwrap();
        let at = |number| NicKey { position: Position::new(number).unwrap(), mac };
        let vfs = [0, 1, 2].map(|number| WantedVf { root: "ib0".parse().unwrap(), nic: at(number) });
        for vf in maps.iter().flat_map(|map| map.vfs()) {
            std::fs::create_dir_all(dir.path().join(format!("sys/bus/pci/devices/{vf}/physfn"))).unwrap();
        }
        let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
        let request = Request { owner: &owner, vfs: &vfs, maps: &maps, sysfs: &sysfs, refused: &[] };
        let claims = store.claim_all(&request, &Backing::default()).unwrap();
        store.commit(&claims, &maps).unwrap();

        // The first shows its VF, the second waits for one, the third is not wanted any more: all have one MAC.
        let devices = BTreeMap::from([(claims[0].vf, owner.clone())]);
        let nics = BTreeMap::from([(claims[0].vf, at(0))]);
        let backing = Backing { devices, nics, wanting: vec![(owner.clone(), at(1))], ..Backing::default() };
        let repairs = store.recover(&store.entries().unwrap(), &backing, &maps).unwrap();
        assert_eq!(repairs, [Repair::Freed(claims[2].clone())]);
        assert_eq!(store.claims_of(&owner).unwrap(), claims[..2]);

        // As a version wrote it that knew NICs by their MAC; and a line of a later one.
        let path = store.dir().join("ib0/1");
        let text = fs::read_to_string(&path).unwrap();
        let old = text.replace("position=1\n", "later=x\n");
        assert_ne!(old, text);
        fs::write(&path, old).unwrap();
        assert_eq!(store.recover(&store.entries().unwrap(), &backing, &maps).unwrap(), []);
        let claim = store.claims_of(&owner).unwrap().remove(1);
        assert_eq!((claim.position, claim.mac), (None, Some(mac)));
        store.commit(&claims[..2], &maps).unwrap();
        assert_eq!(store.claims_of(&owner).unwrap(), claims[..2]);
        assert!(fs::read_to_string(&path).unwrap().contains("later=x\n"));
    }

    #[test]
    fn a_file_system_that_hosts_share_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("one/vf_interfaces");
        let nfs = |_: &Path| Ok(FileSystem { magic: 0x6969, name: None });
        let error = ClaimStore::create_on(&state, nfs).unwrap_err().to_string();
        let start = format!("{} is on NFS, which other hosts may share", state.display());
        assert!(error.starts_with(&start) && error.contains("VF_STATE_DIR"), "{error}");
        assert!(!dir.path().join("one").exists());
        // One that is there, and was good when it was made, is no better.
        fs::create_dir_all(&state).unwrap();
        assert!(matches!(ClaimStore::create_on(&state, nfs), Err(ClaimError::Shared { .. })));
        assert!(!state.join(".locks").exists());
    }

    #[test]
    fn a_claim_of_another_host_is_neither_freed_nor_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
        let text = b"0x07 0x00 0x01\n0x07 0x00 0x02\n";
        let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), text).unwrap()];
        let owner = Owner { vm: "one-42".parse().unwrap(), uuid: None };
        let nic = NicKey { position: Position::new(0).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
        let vfs = [WantedVf { root: "ib0".parse().unwrap(), nic }];
        for vf in maps[0].vfs() {
            std::fs::create_dir_all(dir.path().join(format!("sys/bus/pci/devices/{vf}/physfn"))).unwrap();
        }
        let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
        let request = Request { owner: &owner, vfs: &vfs, maps: &maps, sysfs: &sysfs, refused: &[] };
        // The same VM, which moved from there: the two hosts have their VFs at other addresses.
        let path = store.dir().join("ib0/0");
        let theirs =
            "kvm-sriov-claim 1\nvm=one-42\nposition=0\nmac=02:00:0a:00:00:01\nvf=0000:81:00.1\nhost=other\nboot=x\n";
        fs::create_dir(store.dir().join("ib0")).unwrap();
        fs::write(&path, theirs).unwrap();

        assert_eq!(store.claimants().unwrap(), []);
        assert_eq!(store.release_domain(&owner).unwrap(), []);
        assert_eq!(store.recover(&store.entries().unwrap(), &Backing::default(), &maps).unwrap(), []);
        let claims = store.claim_all(&request, &Backing::default()).unwrap();
        assert_eq!(claims[0].vf.to_string(), "0000:07:00.2", "its file's place was given away");
        let error = store.claim_all(&request, &Backing::default()).unwrap_err().to_string();
        assert!(error.contains("one-42 of another host: 1"), "{error}");
        let ours = Claim { vf: maps[0].vfs()[0], ..claims[0].clone() };
        assert!(matches!(store.commit(&[ours], &maps), Err(ClaimError::Elsewhere { .. })));
        store.release_domain(&owner).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
    }

    /// A store with four VFs on one root, all free.
    struct Four {
        dir: tempfile::TempDir,
        store: ClaimStore,
        maps: [VfMap; 1],
        sysfs: crate::sysfs::Sysfs,
    }

    impl Four {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
            let text = b"0x07 0x00 0x01\n0x07 0x00 0x02\n0x07 0x00 0x03\n0x07 0x00 0x04\n";
            let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), text).unwrap()];
            for vf in maps[0].vfs() {
                fs::create_dir_all(dir.path().join(format!("sys/bus/pci/devices/{vf}/physfn"))).unwrap();
            }
            let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
            Self { dir, store, maps, sysfs }
        }

        fn claim(&self, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
            let nic = NicKey { position: Position::new(0).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
            let vfs = [WantedVf { root: "ib0".parse().unwrap(), nic }];
            let request = Request { owner, vfs: &vfs, maps: &self.maps, sysfs: &self.sysfs, refused: &[] };
            self.store.claim_all(&request, &Backing::default())
        }
    }

    fn one(number: u32) -> Owner {
        Owner { vm: DomainName::of_vm(number), uuid: None }
    }

    #[test]
    fn nobody_waits_for_a_look_that_finds_nothing_to_do() {
        let four = Four::new();
        let claims = four.claim(&one(42)).unwrap();
        let _held = four.store.lock().unwrap();
        let seen = four.store.entries().unwrap();
        assert_eq!(four.store.recover(&seen, &Backing::default(), &four.maps).unwrap(), []);
        assert_eq!(four.store.claims_of(&one(42)).unwrap(), claims);
    }

    #[test]
    fn a_release_reads_its_own_file_alone() {
        let four = Four::new();
        let [first, second, third] = [40, 41, 42].map(|number| four.claim(&one(number)).unwrap());
        // The others can't even be listed.
        std::os::unix::fs::symlink(four.dir.path(), four.store.dir().join("ib1")).unwrap();
        fs::write(four.store.dir().join("ib0/1"), "garbage").unwrap();
        four.store.release(&first).unwrap();
        assert!(!four.store.dir().join("ib0/0").exists());
        // What is another VM's by now stays; a claim whose file was moved is found.
        four.store.release(&second).unwrap();
        assert!(four.store.dir().join("ib0/1").exists());
        fs::rename(four.store.dir().join("ib0/2"), four.store.dir().join("ib0/9")).unwrap();
        four.store.release(&third).unwrap();
        assert!(!four.store.dir().join("ib0/9").exists());
    }

    #[test]
    fn no_vf_is_given_twice_however_many_ask() {
        let four = Four::new();
        let given = std::sync::Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (four, given) = (&four, &given);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let claims = match four.claim(&one(number)) {
                            Ok(claims) => claims,
                            Err(ClaimError::Exhausted { .. }) => continue,
                            Err(error) => panic!("{error}"),
                        };
                        assert!(given.lock().unwrap().insert(claims[0].vf), "{} is given twice", claims[0].vf);
                        four.store.commit(&claims, &four.maps).unwrap();
                        four.store.hold(&one(number), Some(Path::new("/x"))).unwrap();
                        four.store.settle(&one(number)).unwrap();
                        assert!(given.lock().unwrap().remove(&claims[0].vf));
                        four.store.release(&claims).unwrap();
                    }
                });
            }
        });
        assert_eq!(four.store.entries().unwrap(), []);
        let left = fs::read_dir(four.store.dir().join("ib0")).unwrap().count();
        assert_eq!(left, 0, "unfinished files are left");
    }

    #[test]
    fn what_a_power_failure_emptied_is_freed_after_the_boot() {
        let four = Four::new();
        let claims = four.claim(&one(42)).unwrap();
        let path = four.store.dir().join("ib0/0");
        fs::write(&path, "").unwrap();
        let look = || four.store.recover(&four.store.entries().unwrap(), &Backing::default(), &four.maps).unwrap();
        look();
        assert!(path.exists(), "the driver of 2013 may be about to start the domain");
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(process::booted().unwrap() - Duration::from_secs(1)).unwrap();
        look();
        assert!(!path.exists());
        assert_eq!(four.claim(&one(43)).unwrap()[0].vf, claims[0].vf);
    }
}
