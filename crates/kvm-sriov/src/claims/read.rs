//! Claims are read.

use super::entries::{Entries, Entry};
use super::record::{Content, Record};
use super::{Claim, ClaimError, ClaimStore, Claimant, lock, process};
use crate::base::{DomainUuid, Owner};

impl ClaimStore {
    /// All claims, in the order of roots and indexes, each with whether an action holds it. The directory of a root that
    /// can't be read or is not safe is left out.
    ///
    /// # Errors
    /// The state directory can't be read.
    pub fn entries(&self) -> Result<Vec<Entry>, ClaimError> {
        let mut all = self.files()?;
        for entry in &mut all {
            entry.was_held = matches!(&entry.content, Content::Ours(record) if self.is_held(record));
        }
        Ok(all)
    }

    /// As [`ClaimStore::entries`], without a look at who holds them.
    pub(super) fn files(&self) -> Result<Vec<Entry>, ClaimError> {
        Ok(Entries::read(&self.dir, &[])?.all)
    }

    /// The files and directories that can't be read, and the claims of other hosts. They do not prevent the use of the
    /// other claims.
    ///
    /// # Errors
    /// The state directory can't be read.
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

    /// Whether a VM has a claim.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn has_any(&self, owner: &Owner) -> Result<bool, ClaimError> {
        Ok(self.files()?.iter().any(|entry| entry.is_of(owner)))
    }

    /// The VM with this UUID, if it has a claim.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn owner_with(&self, uuid: &DomainUuid) -> Result<Option<Owner>, ClaimError> {
        let of = |entry: &Entry| match &entry.content {
            Content::Ours(record) if record.uuid.as_ref() == Some(uuid) => Some(record.owner()),
            _ => None,
        };
        Ok(self.files()?.iter().find_map(of))
    }

    /// The VMs that have claims.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn claimants(&self) -> Result<Vec<Claimant>, ClaimError> {
        let mut claimants: Vec<Claimant> = Vec::new();
        for entry in self.files()? {
            let Content::Ours(record) = &entry.content else { continue };
            let claim = record.claim(&entry.root, entry.index);
            match claimants.iter_mut().find(|claimant| claimant.owner.is(&claim.owner)) {
                Some(claimant) => {
                    claimant.held |= self.is_held(record);
                    claimant.this_boot &= record.boot == process::boot_id();
                    claimant.image = claimant.image.take().or_else(|| record.image.clone());
                    claimant.claims.push(claim);
                }
                None => claimants.push(Claimant {
                    owner: claim.owner.clone(),
                    claims: vec![claim],
                    image: record.image.clone(),
                    held: self.is_held(record),
                    this_boot: record.boot == process::boot_id(),
                }),
            }
        }
        Ok(claimants)
    }

    /// The claims of a VM.
    ///
    /// # Errors
    /// As [`ClaimStore::entries`].
    pub fn claims_of(&self, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
        let entries = self.files()?;
        let of = |entry: &Entry| match &entry.content {
            Content::Ours(record) if entry.is_of(owner) => Some(record.claim(&entry.root, entry.index)),
            _ => None,
        };
        Ok(entries.iter().filter_map(of).collect())
    }

    /// Whether the action that holds a claim may still work.
    pub(super) fn is_held(&self, record: &Record) -> bool {
        record.boot == process::boot_id()
            && record.holder.is_some_and(|holder| lock::may_work(&self.locks_dir(), &record.vm, holder))
    }
}
