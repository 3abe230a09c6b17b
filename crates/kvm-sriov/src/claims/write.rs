//! Claims are held, committed and released.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use super::entries::{Entries, Entry};
use super::process::ThisHost;
use super::record::{Content, Record};
use super::safe::{self, Unnamed};
use super::take::map_of;
use super::{Claim, ClaimError, ClaimStore, Token, VmLock};
use crate::base::{Owner, PciAddress, RootName};
use crate::config::VfMap;

impl ClaimStore {
    /// Marks all claims of a VM as held by the action that holds `lock`, and records the file that the VM is being
    /// saved into. Returns the claims.
    ///
    /// # Errors
    /// A claim can't be written. The claims before it are held by the action, which changes nothing for others.
    pub fn hold(&self, lock: &VmLock, owner: &Owner, image: Option<&Path>) -> Result<Vec<Claim>, ClaimError> {
        let this = ThisHost::read();
        // After a power failure during the save, the file may be the only copy of the VM's memory. So it must be found.
        self.rewrite(owner, image.is_some(), |record| {
            record.holder = Some(lock.token());
            record.host = this.machine.clone().or(record.host.take());
            record.boot.clone_from(&this.boot);
            record.image = image.map(Path::to_owned);
            false
        })
    }

    /// Writes the VM's claims of these VFs anew, except those that the action with this lock holds. A reconciliation
    /// that read a claim before then takes it for another one, and does not free it. Returns the claims of the VM as
    /// they are then. A claim that is missing was freed before.
    ///
    /// # Errors
    /// A claim can't be written. All claims are as they were.
    pub(crate) fn renew(&self, lock: &VmLock, owner: &Owner, vfs: &[PciAddress]) -> Result<Vec<Claim>, ClaimError> {
        self.rewrite(owner, false, |record| vfs.contains(&record.vf) && record.holder != Some(lock.token()))
    }

    /// Marks all claims of a VM as held by no action: its running domain backs them. Returns the claims.
    ///
    /// # Errors
    /// A claim can't be written. It and those after it are still held.
    pub fn settle(&self, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
        self.rewrite(owner, false, |record| {
            record.holder = None;
            record.image = None;
            false
        })
    }

    /// Changes the claims of a VM.
    ///
    /// * `change` - changes a record; returns whether it is written even if it is the same
    /// * `lasts` - whether the change must outlive a power failure. A change that is void after a boot need not.
    fn rewrite(
        &self,
        owner: &Owner,
        lasts: bool,
        change: impl Fn(&mut Record) -> bool,
    ) -> Result<Vec<Claim>, ClaimError> {
        let changed = |entry: &Entry| match &entry.content {
            Content::Ours(old) if entry.is_of(owner) => {
                let mut record = old.clone();
                let is_new = change(&mut record) || record != *old;
                Some((is_new, record))
            }
            _ => None,
        };
        let write = |entry: &Entry, record: &Record| {
            let path = self.path(&entry.root, entry.index);
            let file = Unnamed::write(&path, record.to_text().as_bytes())?;
            if lasts { file.sync(&path).map(|()| file) } else { Ok(file) }
        };
        // The files are written and synced before the lock is taken, so that others can claim meanwhile. With the lock
        // held they only get their names.
        let seen = self.files()?;
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

    /// Marks claims as held by no action: their running domain backs them. A claim that is gone is written again.
    ///
    /// * `maps` - the maps that the VFs were claimed from. They may have been changed since: a claim is found by the
    ///   address of its VF.
    ///
    /// # Errors
    /// A claim can't be written. It and those after it are still held.
    pub fn commit(&self, claims: &[Claim], maps: &[VfMap]) -> Result<(), ClaimError> {
        let seen = self.files()?;
        let write = |claim| self.prepare(&self.place(claim, maps, &seen)?, claim, None, &seen);
        let files: Vec<_> = claims.iter().map(write).collect::<Result<_, _>>()?;
        let _lock = self.lock()?;
        let mut unreadable = Vec::new();
        for (claim, file) in claims.iter().zip(files) {
            // Read for each claim, because the one before may have got a new file.
            let present = Entries::read(&self.dir, &seen)?;
            unreadable.extend(present.unreadable);
            if let Some(at) = unreadable.iter().position(|(root, _)| *root == claim.root) {
                return Err(unreadable.swap_remove(at).1);
            }
            file.name(&self.place(claim, maps, &present.all)?, true)?;
        }
        Ok(())
    }

    /// The file for a claim of a VF. It is the file that claims this VF now or, when there is none, the one with the
    /// number of the VF's line in its map. If that file claims another VF, the map was changed meanwhile: then it is a
    /// file after all others, which [`ClaimStore::recover`] renames.
    fn place(&self, claim: &Claim, maps: &[VfMap], present: &[Entry]) -> Result<PathBuf, ClaimError> {
        let in_root = || present.iter().filter(|entry| entry.root == claim.root);
        let of_vf = || in_root().filter(|entry| entry.vf() == Some(claim.vf));
        if let Some(entry) = of_vf().find(|entry| entry.is_of(&claim.owner)).or_else(|| of_vf().next()) {
            return Ok(self.path(&entry.root, entry.index));
        }
        let map = map_of(maps, &claim.root)?;
        let index = map.index_of(claim.vf).ok_or_else(|| ClaimError::NoMap { root: claim.root.clone() })?;
        let path = self.path(&claim.root, index);
        match in_root().find(|entry| entry.index == index).map(|entry| &entry.content) {
            Some(Content::Elsewhere(Record { vm, host, .. })) => {
                Err(ClaimError::Elsewhere { path, vm: vm.clone(), host: host.clone().unwrap_or_default() })
            }
            Some(Content::Ours(_) | Content::Unreadable { .. }) => {
                let last = in_root().map(|entry| entry.index).max().unwrap_or(index);
                Ok(self.path(&claim.root, last.saturating_add(1).max(map.vfs().len())))
            }
            Some(Content::Original) | None => Ok(path),
        }
    }

    /// Releases claims. A claim that is already gone, or whose VF another VM claims now, is left alone.
    ///
    /// # Errors
    /// A file can't be removed. It and the files after it still exist.
    pub fn release(&self, claims: &[Claim]) -> Result<(), ClaimError> {
        // This is dropped after the lock: the files are removed while others may claim.
        let mut released = Vec::new();
        let _lock = self.lock()?;
        for claim in claims {
            released.extend(self.unname(claim)?);
        }
        Ok(())
    }

    /// Releases all claims of a VM and returns them.
    ///
    /// # Errors
    /// A file can't be removed. It and the files after it still exist.
    pub fn release_domain(&self, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
        let seen = self.files()?;
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

    /// Writes the file of a claim that is to become `path`. The file has no name yet.
    ///
    /// * `seen` - the claims of now. What a later version wrote into the claim of this VF is kept.
    pub(super) fn prepare(
        &self,
        path: &Path,
        claim: &Claim,
        holder: Option<Token>,
        seen: &[Entry],
    ) -> Result<Unnamed, ClaimError> {
        safe::make_dir(&self.dir.join(claim.root.as_str()))?;
        let mut record = Record::of(claim, holder);
        let old = seen.iter().find_map(|entry| match &entry.content {
            Content::Ours(old) if old.vf == claim.vf && entry.root == claim.root && entry.is_of(&claim.owner) => {
                Some(old)
            }
            _ => None,
        });
        record.unknown = old.map(|old| old.unknown.clone()).unwrap_or_default();
        Unnamed::write(path, record.to_text().as_bytes())
    }

    /// Takes the name from the file of a claim, whatever number the file has by now. Call this with the claims' lock
    /// held.
    ///
    /// * returns the files, which are removed when this is dropped
    pub(super) fn unname(&self, claim: &Claim) -> Result<Vec<TempPath>, ClaimError> {
        let this = ThisHost::read();
        let is_it = |path: &Path| match safe::read(path) {
            Ok(Some((bytes, _))) => match Content::parse(&bytes, &this) {
                Content::Ours(record) => record.vf == claim.vf && record.owner().is(&claim.owner),
                _ => false,
            },
            _ => false,
        };
        if let Some(path) = claim.index.map(|index| self.path(&claim.root, index)).filter(|path| is_it(path)) {
            return Ok(safe::unname(&path)?.into_iter().collect());
        }
        let mut files = Vec::new();
        for entry in self.files()? {
            if entry.root == claim.root && entry.vf() == Some(claim.vf) && entry.is_of(&claim.owner) {
                files.extend(safe::unname(&self.path(&entry.root, entry.index))?);
            }
        }
        Ok(files)
    }
}

/// Logs the roots whose claims can't be read.
fn warn(unreadable: &[(RootName, ClaimError)]) {
    for (root, error) in unreadable {
        log::warn!("{error}; the claims of {root} are skipped");
    }
}
