//! Claims are repaired: stale ones are freed, missing ones are made, and files are renamed after a map was changed.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use super::entries::{Entries, Entry};
use super::record::Content;
use super::{Backing, Claim, ClaimError, ClaimRepair, ClaimStore, process, safe};
use crate::base::{PciAddress, RootName};
use crate::config::VfMap;

/// How long an empty file counts as a claim without a domain. The driver of 2013 creates its files before it starts a
/// domain, and records nowhere whether it still runs.
const ORIGINAL_GRACE: Duration = Duration::from_secs(600);

/// The claims, compared with what libvirt reports.
struct Judged {
    /// The claims to free.
    stale: Vec<Entry>,
    /// The other claims.
    kept: Vec<Entry>,
    /// The claims to make.
    missing: Vec<Claim>,
}

impl Judged {
    /// * `stale`, `kept` - the claims now
    /// * `seen` - the claims before libvirt was asked
    fn new(stale: Vec<Entry>, kept: Vec<Entry>, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Self {
        // A VF that two maps list is claimed once.
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
            // A claim that was seen and is gone was released since. So the domain that libvirt reported has ended.
            .filter(|claim| !has(seen, claim) || has(&stale, claim))
            .collect();
        Self { stale, kept, missing }
    }

    /// The claims whose file has another number than their VF has in its map.
    fn astray<'a>(&'a self, maps: &'a [VfMap]) -> impl Iterator<Item = &'a Entry> {
        let place = |entry: &Entry| maps.iter().find(|map| *map.root() == entry.root)?.index_of(entry.vf()?);
        self.kept.iter().filter(move |entry| place(entry).is_some_and(|place| place != entry.index))
    }
}

impl ClaimStore {
    /// Repairs the claims: frees stale claims, claims the VFs that domains have without a claim, and renames files
    /// whose map was reordered.
    ///
    /// * `seen` - the claims, read BEFORE `backing`. What libvirt reported says nothing about a claim that was made
    ///   later.
    /// * `backing` - what libvirt reports of all running domains
    /// * `maps` - the maps whose VFs are repaired
    ///
    /// # Errors
    /// A file can't be read, written or removed. The repairs before it are done.
    pub fn recover(&self, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Result<Vec<ClaimRepair>, ClaimError> {
        // Nearly always there is nothing to do. Then the lock is not taken, and no other process waits.
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
                repairs.push(ClaimRepair::Freed(record.claim(&entry.root, entry.index)));
            }
        }
        repairs.extend(self.put_in_place(&kept, maps)?);
        for claim in missing {
            self.make(&claim, None, maps)?;
            repairs.push(ClaimRepair::Adopted(claim));
        }
        Ok(repairs)
    }

    /// What [`ClaimStore::recover`] would repair. Changes nothing.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn inspect(&self, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Result<Vec<ClaimRepair>, ClaimError> {
        let judged = self.judge(self.files()?, seen, backing, maps);
        let of = |entry: &Entry| match &entry.content {
            Content::Ours(record) => Some(record.claim(&entry.root, entry.index)),
            _ => None,
        };
        let mut repairs: Vec<ClaimRepair> = judged.stale.iter().filter_map(of).map(ClaimRepair::Freed).collect();
        repairs.extend(judged.astray(maps).filter_map(of).map(ClaimRepair::Moved));
        repairs.extend(judged.missing.into_iter().map(ClaimRepair::Adopted));
        Ok(repairs)
    }

    fn judge(&self, now: Vec<Entry>, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> Judged {
        let (stale, kept) = now.into_iter().partition(|entry| self.is_stale(entry, seen, backing, maps));
        Judged::new(stale, kept, seen, backing, maps)
    }

    /// Whether no domain backs a claim, no action held it before libvirt was asked, and it has not changed since. It does
    /// not matter whether an action holds it now: one that did may have plugged the VF after libvirt answered, and been
    /// killed.
    fn is_stale(&self, entry: &Entry, seen: &[Entry], backing: &Backing, maps: &[VfMap]) -> bool {
        let stale = match &entry.content {
            // The image may be the only copy of the VM's memory. Reconciliation reads it first.
            Content::Ours(record) => record.image.is_none() && !backing.backs(&record.claim(&entry.root, entry.index)),
            // An empty file names no VM. A domain that can't be read may have the VF.
            Content::Original => {
                backing.unreadable.is_empty()
                    && self.is_old(entry)
                    && entry.vf_by(maps).is_some_and(|vf| backing.user(vf).is_none())
            }
            Content::Elsewhere(_) | Content::Unreadable { .. } => false,
        };
        stale && seen.iter().any(|before| before == entry && !before.was_held)
    }

    fn is_old(&self, entry: &Entry) -> bool {
        let written =
            fs::symlink_metadata(self.path(&entry.root, entry.index)).and_then(|metadata| metadata.modified());
        // An empty file of an earlier boot may also be a claim whose content was lost in a power failure.
        let is_old = |at: SystemTime| SystemTime::now().duration_since(at).is_ok_and(|age| age > ORIGINAL_GRACE);
        written.is_ok_and(|at| is_old(at) || process::booted().is_some_and(|booted| at < booted))
    }

    /// Renames each file whose VF has another place in its map now. All these files first get numbers after the map's
    /// last line, and then their new numbers. So no file is overwritten, even if the process is killed in between.
    pub(super) fn put_in_place(&self, entries: &[Entry], maps: &[VfMap]) -> Result<Vec<ClaimRepair>, ClaimError> {
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
            // First to numbers after the last line, then to their places.
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
                        moved.push(ClaimRepair::Moved(record.claim(map.root(), place)));
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
}
