//! The VF maps of a host, and the repair of the claims of their roots.

use std::path::{Path, PathBuf};

use super::Host;
use crate::base::{Action, NicMode, RootName};
use crate::claims::{Backing, Claim, ClaimRepair, ClaimRequest, ClaimStore, Entry};
use crate::config::{Kvmrc, VfMap, VfMapError};
use crate::error::Cause;

/// Maps of this host alone. The maps beside the driver are the same on all hosts.
const HOST_MAPS: &str = "/etc/kvm-sriov/vf_maps";

impl Host {
    /// The directories of the maps of a driver in `driver_dir`, in the order in which they are searched: VF_MAPS_PATH
    /// of kvmrc, the host's own, and the one beside the driver.
    pub fn map_dirs(kvmrc: &Kvmrc, driver_dir: &Path) -> Vec<PathBuf> {
        let own = kvmrc.vf_maps_path().map(Path::to_owned);
        own.into_iter().chain([HOST_MAPS.into(), driver_dir.join("vf_maps")]).collect()
    }

    /// The maps of these roots, each once.
    ///
    /// # Errors
    /// A map is missing or can't be read. Nothing was changed.
    pub(crate) fn maps_of<'r>(&self, roots: impl Iterator<Item = &'r RootName>) -> Result<Vec<VfMap>, Cause> {
        let mut maps: Vec<VfMap> = Vec::new();
        for root in roots {
            if maps.iter().all(|map| map.root() != root) {
                maps.push(self.maps().load(root)?);
            }
        }
        Ok(maps)
    }

    /// How VMs get the VFs of a root.
    ///
    /// # Errors
    /// Its map or its settings are missing or can't be read. Nothing was changed.
    pub(crate) fn mode_of(&self, root: &RootName) -> Result<NicMode, Cause> {
        Ok(self.maps().load(root)?.mode())
    }

    /// The maps of these roots, and after them every other map that can be read, because several maps may list one
    /// address. The log names a map that can't be read.
    ///
    /// # Errors
    /// A map of these roots is missing or can't be read. Nothing was changed.
    pub(crate) fn maps_and_others<'r>(&self, roots: impl Iterator<Item = &'r RootName>) -> Result<Vec<VfMap>, Cause> {
        let mut maps = self.maps_of(roots)?;
        let (all, problems) = self.readable_maps();
        for problem in problems {
            log::warn!("{problem}; the other maps are used");
        }
        let others: Vec<VfMap> =
            all.into_iter().filter(|other| maps.iter().all(|map| map.root() != other.root())).collect();
        maps.extend(others);
        Ok(maps)
    }

    /// Every map that can be read, and the error of every other map.
    pub(crate) fn readable_maps(&self) -> (Vec<VfMap>, Vec<VfMapError>) {
        let mut problems = Vec::new();
        let roots = self.maps().roots().unwrap_or_else(|error| {
            problems.push(error);
            Vec::new()
        });
        let loaded = roots.iter().map(|root| self.maps().load(root));
        let maps = loaded.filter_map(|map| map.map_err(|error| problems.push(error)).ok()).collect();
        (maps, problems)
    }

    /// Repairs the claims of the roots of these maps, and returns what backs claims on this host.
    ///
    /// # Errors
    /// libvirtd does not answer, or the claims can't be read or written. A claim that was repaired before stays so.
    pub(crate) fn recover(&self, store: &ClaimStore, maps: &[VfMap], action: Action) -> Result<Backing, Cause> {
        // The claims are read before libvirt is asked. Only a claim that existed before, and whose VF no domain shows
        // now, can be stale.
        let seen = store.entries()?;
        let backing = self.backing()?;
        self.repair_claims(store, &seen, &backing, maps, action)?;
        Ok(backing)
    }

    /// Claims a VF for each NIC of a request, or for none of them, after repairing the claims of its maps. Each claim
    /// is a line in the journal.
    ///
    /// # Errors
    /// As [`Host::recover`], or too few VFs are free. Nothing was claimed.
    pub(crate) fn claim(
        &self,
        store: &ClaimStore,
        request: &ClaimRequest<'_>,
        action: Action,
    ) -> Result<Vec<Claim>, Cause> {
        let backing = self.recover(store, request.maps, action)?;
        let claims = store.claim_all(request, &backing)?;
        for claim in &claims {
            self.journal().vf(action, &claim.owner.vm, &claim.root, claim.vf, "claimed");
        }
        Ok(claims)
    }

    /// Repairs the claims of the roots of these maps. Returns what was repaired.
    ///
    /// A domain may have lost a VF after it was read, and before the VF was claimed for it. So after such claims were
    /// made, the domains are read again, and what is stale by then is freed.
    ///
    /// * `seen` - the claims as they were read before libvirt was asked
    /// * `backing` - what libvirt said then
    ///
    /// # Errors
    /// The claims can't be read or written. A claim that was repaired before stays so.
    pub(crate) fn repair_claims(
        &self,
        store: &ClaimStore,
        seen: &[Entry],
        backing: &Backing,
        maps: &[VfMap],
        action: Action,
    ) -> Result<Vec<ClaimRepair>, Cause> {
        let mut repairs = store.recover(seen, backing, maps)?;
        if repairs.iter().any(|repair| matches!(repair, ClaimRepair::Adopted(_))) {
            let seen = store.entries()?;
            repairs.extend(store.recover(&seen, &self.backing()?, maps)?);
        }
        for repair in &repairs {
            let claim = repair.claim();
            log::info!("VF {} of {}, claimed by {}: {}", claim.vf, claim.root, claim.owner.vm, repair.word());
            self.journal().vf(action, &claim.owner.vm, &claim.root, claim.vf, repair.word());
        }
        Ok(repairs)
    }
}
