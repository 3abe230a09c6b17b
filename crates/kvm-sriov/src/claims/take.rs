//! Claims free VFs.

use std::collections::BTreeMap;

use super::entries::Entries;
use super::{Backing, Claim, ClaimError, ClaimRequest, ClaimStore, Token};
use crate::base::{PciAddress, RootName, WantedVf};
use crate::config::{NoVfs, Supply, VfMap};

impl ClaimStore {
    /// Claims a VF for every NIC, or for none of them. Takes the free VF with the lowest index each time, and skips the
    /// lines of a map that are not a VF of this host. The action that holds `request.lock` holds the claims until
    /// [`ClaimStore::commit`] or [`ClaimStore::settle`].
    ///
    /// * `backing` - what libvirt reports of all running domains. A VF that a domain has is not free.
    ///
    /// # Errors
    /// [`ClaimError::Exhausted`] says which VMs have the VFs; other errors say which file can't be read or written.
    /// Nothing was claimed.
    pub fn claim_all(&self, request: &ClaimRequest<'_>, backing: &Backing) -> Result<Vec<Claim>, ClaimError> {
        let supplies = supplies(request)?;
        let seen = self.files()?;
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
            let made = self.make(claim, Some(request.lock.token()), request.maps);
            if let Err(error) = made {
                for claim in chosen.iter().take(written) {
                    drop(self.unname(claim)?);
                }
                return Err(error);
            }
        }
        Ok(chosen)
    }

    /// Makes the file of a claim at the place of its VF in its map. Call this with the claims' lock held.
    pub(super) fn make(&self, claim: &Claim, holder: Option<Token>, maps: &[VfMap]) -> Result<(), ClaimError> {
        let index = map_of(maps, &claim.root)?.index_of(claim.vf);
        let index = index.ok_or_else(|| ClaimError::NoMap { root: claim.root.clone() })?;
        let path = self.path(&claim.root, index);
        self.prepare(&path, claim, holder, &[])?.name(&path, false)
    }
}

/// For each root that the request names: the VFs of its map, without the addresses that are no VF (these are logged).
fn supplies(request: &ClaimRequest<'_>) -> Result<BTreeMap<RootName, Supply>, ClaimError> {
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

fn exhausted(
    root: &RootName,
    supply: &Supply,
    request: &ClaimRequest<'_>,
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

pub(super) fn map_of<'a>(maps: &'a [VfMap], root: &RootName) -> Result<&'a VfMap, ClaimError> {
    maps.iter().find(|map| map.root() == root).ok_or_else(|| ClaimError::NoMap { root: root.clone() })
}
