//! The files in the state directory. They are read without the claims' lock first. With the lock held, only files that
//! have changed are read again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::ClaimError;
use super::process::ThisHost;
use super::record::Content;
use super::safe::{self, Stamp};
use crate::base::{Owner, PciAddress, RootName, ascending};
use crate::config::VfMap;

/// The file of a claim, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub(super) root: RootName,
    pub(super) index: usize,
    pub(super) content: Content,
    bytes: Vec<u8>,
    /// `None` for a file that can't be opened.
    stamp: Option<Stamp>,
    /// Whether an action held the claim then; `false` where nobody looked.
    pub(super) was_held: bool,
}

impl Entry {
    /// The root that the file belongs to.
    pub fn root(&self) -> &RootName {
        &self.root
    }

    /// The number in the file's name.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The VF that the file claims; `None` when the file does not name one of this host.
    pub fn vf(&self) -> Option<PciAddress> {
        match &self.content {
            Content::Ours(record) => Some(record.vf),
            Content::Original | Content::Elsewhere(_) | Content::Unreadable { .. } => None,
        }
    }

    /// The VM that has the claim, as a text for a person.
    pub fn user(&self) -> String {
        match &self.content {
            Content::Ours(record) => record.vm.to_string(),
            Content::Original => "a VM of the driver of 2013".into(),
            Content::Elsewhere(record) => format!("{} of another host", record.vm),
            Content::Unreadable { why } => format!("{}/{}, which can't be read: {why}", self.root, self.index),
        }
    }

    /// The VF that the file claims. If the file does not name one, it is the VF at the file's place in the map.
    pub(super) fn vf_by(&self, maps: &[VfMap]) -> Option<PciAddress> {
        let by_map = || maps.iter().find(|map| *map.root() == self.root)?.vfs().get(self.index).copied();
        self.vf().or_else(by_map)
    }

    pub(super) fn is_of(&self, owner: &Owner) -> bool {
        matches!(&self.content, Content::Ours(record) if record.owner().is(owner))
    }
}

/// The claims of all roots.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// All claims, in the order of roots and indexes.
    pub(super) all: Vec<Entry>,
    /// The roots whose directory can't be read or is not safe. It is not known which VMs have their VFs.
    pub(super) unreadable: Vec<(RootName, ClaimError)>,
}

impl Entries {
    /// Reads the claims below the state directory.
    ///
    /// * `seen` - the claims as they were read before. A file that is still the same is not read again.
    pub(super) fn read(state: &Path, seen: &[Entry]) -> Result<Self, ClaimError> {
        let mut entries = Self::default();
        let this = ThisHost::read();
        let seen: BTreeMap<_, _> = seen.iter().map(|entry| ((&entry.root, entry.index), entry)).collect();
        for name in names(state)? {
            let dir = state.join(&name);
            // The driver of 2013 has a file `lock` here. A directory whose name is not a root's has no claims.
            if let (Ok(root), false) = (name.parse::<RootName>(), dir.is_file() && !dir.is_symlink()) {
                let before = |index: usize, path: &Path| {
                    let known = seen.get(&(&root, index))?;
                    Stamp::at(path).filter(|stamp| known.stamp == Some(*stamp)).map(|_| (*known).clone())
                };
                if let Err(error) = entries.read_root(&root, &dir, &this, &before) {
                    entries.unreadable.push((root, error));
                }
            }
        }
        entries.all = ascending(entries.all, |a, b| (&a.root, a.index).cmp(&(&b.root, b.index)));
        Ok(entries)
    }

    fn read_root(
        &mut self,
        root: &RootName,
        dir: &Path,
        this: &ThisHost,
        before: &dyn Fn(usize, &Path) -> Option<Entry>,
    ) -> Result<(), ClaimError> {
        safe::check_dir(dir)?;
        for name in names(dir)? {
            let path = dir.join(&name);
            discard_unfinished(dir, &name);
            // Only numbers as this driver writes them: `07` is not one.
            let Some(index) = name.parse::<usize>().ok().filter(|index| index.to_string() == name) else { continue };
            if let Some(known) = before(index, &path) {
                self.all.push(known);
                continue;
            }
            let (content, bytes, stamp) = match safe::read(&path) {
                Ok(Some((bytes, stamp))) => (Content::parse(&bytes, this), bytes, Some(stamp)),
                Ok(None) => continue,
                Err(error) => (Content::Unreadable { why: error.to_string() }, Vec::new(), None),
            };
            self.all.push(Entry { root: root.clone(), index, content, bytes, stamp, was_held: false });
        }
        Ok(())
    }
}

/// The names in a directory that are UTF-8. The driver writes no other names.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, ClaimError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(ClaimError::file("read", dir))? {
        let entry = entry.map_err(ClaimError::file("read", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Removes an unfinished file that a killed process left. A file that a process is writing is younger than a minute.
pub(super) fn discard_unfinished(dir: &Path, name: &str) {
    if !name.starts_with(safe::UNNAMED) {
        return;
    }
    let path = dir.join(name);
    let age =
        fs::symlink_metadata(&path).and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
    if age.is_some_and(|age| age > Duration::from_secs(60)) {
        if let Err(error) = fs::remove_file(&path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}
