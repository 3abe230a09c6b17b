//! The plug engine claims free VFs and plugs them into a running VM, each at the guest address that its NIC had or
//! should have.

use super::Vm;
use super::refusal::{PlugFailure, VfCall, with_refusals};
use crate::base::{PciAddress, Position, WantedVf};
use crate::claims::{Claim, ClaimRequest};
use crate::error::{Cause, RefusedVf};
use crate::host::Progress;
use crate::xml::{LiveDomain, WantedNic, hostdev_of};

/// A VF that a running domain has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PluggedVf {
    /// Its place among the VFs of the domain, from 0.
    pub position: Position,
    /// Its address on the host.
    pub vf: PciAddress,
    /// Its address in the guest; `None` when libvirt does not show one.
    pub guest: Option<PciAddress>,
}

impl Vm<'_> {
    /// Plugs a VF for each of these NICs: the VF that the VM claims for the NIC, or a free VF of its root.
    ///
    /// When libvirt refuses a VF, that is logged and the next free VF is tried.
    ///
    /// # Errors
    /// Not every NIC has its VF. The NICs of lower positions have theirs. The others keep only the claims that they had
    /// before, and a NIC whose call did not answer keeps its claim. [`Cause::AllRefused`] lists why each VF was
    /// refused.
    pub(crate) fn plug(&mut self, nics: &[WantedNic]) -> Result<Vec<Claim>, Cause> {
        if nics.is_empty() {
            return Ok(Vec::new());
        }
        let mut nics = WantedNic::in_order(nics.to_vec());
        self.keep_off_others(&mut nics);
        let before = self.store.claims_of(&self.owner())?;
        let mut claims = self.claim(&nics, &[])?;
        let mut refusals = Vec::new();
        let mut done = 0;
        while let (Some(nic), Some(claim)) = (nics.get(done), claims.get(done).cloned()) {
            match self.attach(nic, claim.vf, &refusals) {
                Ok(()) => done += 1,
                Err(PlugFailure::OneVf(refusal)) => {
                    log::warn!("VF {} was refused ({}); trying the next free one", refusal.vf, refusal.why);
                    refusals.push(refusal);
                    let next = self
                        .store
                        .release(std::slice::from_ref(&claim))
                        .map_err(Cause::from)
                        .and_then(|()| self.claim(std::slice::from_ref(nic), &refusals));
                    match next {
                        Ok(next) => {
                            claims.splice(done..=done, next);
                        }
                        Err(cause) => {
                            claims.remove(done);
                            return Err(self.give_up(&before, &claims, done, with_refusals(cause, &refusals)));
                        }
                    }
                }
                Err(PlugFailure::AnyVf(cause)) => return Err(self.give_up(&before, &claims, done, cause)),
            }
        }
        self.reread()?;
        self.plug_again(&nics, &claims)?;
        for (nic, claim) in nics.iter().zip(&claims) {
            self.verify(nic, claim.vf)?;
            log::info!("{} has VF {} of {} for NIC {}", self.domain.name, claim.vf, claim.root, nic.mac);
            self.host.journal().vf(self.action, &self.domain.name, &claim.root, claim.vf, "plugged");
        }
        self.note_places(&nics);
        Ok(claims)
    }

    /// Chooses another guest address for each NIC whose own address is unknown, or is used by another device.
    pub(crate) fn keep_off_others(&self, nics: &mut [WantedNic]) {
        let mut known = self.wanted.nics.clone();
        for nic in nics {
            known.retain(|other| other.position != nic.position);
            let taken = nic.guest.filter(|guest| self.live.uses_guest_address(*guest));
            if taken.is_some() || nic.guest.is_none() {
                nic.guest = self.live.free.address_for(&known, nic.position);
            }
            if let Some(taken) = taken {
                let place = nic.guest.map_or_else(|| "where libvirt puts it".into(), |guest| format!("at {guest}"));
                log::warn!(
                    "guest address {taken} of NIC {} (position {}) is another device's in {}: its VF is plugged in {place}",
                    nic.mac,
                    nic.position,
                    self.domain.name
                );
            }
            known.push(nic.clone());
        }
    }

    /// Updates the guest addresses of these VFs in the domain's metadata, and removes the addresses of adopted VFs. The
    /// VFs are found without that, too, so a failure is only logged.
    fn note_places(&mut self, nics: &[WantedNic]) {
        let mut has_changed = false;
        for nic in nics {
            let guest = self.live.device_of(nic).and_then(|device| device.guest);
            for wanted in self.wanted.nics.iter_mut().filter(|wanted| wanted.position == nic.position) {
                has_changed |= wanted.guest != guest || wanted.adopted.vf.is_some();
                wanted.guest = guest;
                wanted.adopted.vf = None;
            }
        }
        if has_changed {
            if let Err(cause) = self.write_wanted() {
                log::warn!("{cause}; the metadata of {} have outdated guest addresses", self.domain.name);
            }
        }
    }

    /// Plugs again the VFs that the guest ejected just after they were plugged: it may still hold queued eject requests
    /// from an unplug of several VFs.
    fn plug_again(&mut self, nics: &[WantedNic], claims: &[Claim]) -> Result<(), Cause> {
        let lost: Vec<_> = nics.iter().zip(claims).filter(|(nic, _)| self.live.device_of(nic).is_none()).collect();
        if lost.is_empty() {
            return Ok(());
        }
        for (nic, claim) in lost {
            log::info!("the guest of {} released VF {} again: it is plugged once more", self.domain.name, claim.vf);
            self.attach(nic, claim.vf, &[]).map_err(|failure| match failure {
                PlugFailure::AnyVf(cause) => cause,
                PlugFailure::OneVf(RefusedVf { vf, why, .. }) => {
                    let what = format!("VF {vf} left again at once, and was refused then: {why}");
                    Cause::NotAsAsked { name: self.domain.name.clone(), what }
                }
            })?;
        }
        self.reread()
    }

    /// Releases the new claims of the NICs that got no VF. If it is unknown whether a NIC got its VF, its claim stays,
    /// and the next action that reads the domain decides.
    ///
    /// * `before` - the VM's claims before the plug. They stay: no other VM may take a VF that this VM lacks for a
    ///   moment
    fn give_up(&self, before: &[Claim], claims: &[Claim], done: usize, cause: Cause) -> Cause {
        let done = if cause.leaves_doubt() { done.saturating_add(1) } else { done };
        let is_new = |claim: &&Claim| !before.iter().any(|old| old.vf == claim.vf);
        let unused: Vec<Claim> = claims.iter().skip(done).filter(is_new).cloned().collect();
        match self.store.release(&unused) {
            Ok(()) => cause,
            Err(undo) => cause.and_undo(undo),
        }
    }

    /// The claims of these NICs: those that the VM has, which need no map, and for the others free VFs, all or none.
    fn claim(&self, nics: &[WantedNic], refused: &[RefusedVf]) -> Result<Vec<Claim>, Cause> {
        let owner = self.owner();
        let refused: Vec<PciAddress> = refused.iter().map(|refusal| refusal.vf).collect();
        let in_use: Vec<PciAddress> = self.live.vfs().collect();
        let mut own = self.store.claims_of(&owner)?;
        own.retain(|claim| !refused.contains(&claim.vf) && !in_use.contains(&claim.vf));
        // A claimed VF may no longer exist: the adapter's driver was loaded again, or its VFs were created again.
        let (mut own, gone): (Vec<_>, Vec<_>) =
            own.into_iter().partition(|claim| self.host.sysfs().check_vf(claim.vf).is_ok());
        self.store.release(&gone)?;
        for claim in &gone {
            log::warn!(
                "VF {} of {}, claimed by {}, is no longer a VF of this host: released",
                claim.vf,
                claim.root,
                owner.vm
            );
            self.host.journal().vf(self.action, &owner.vm, &claim.root, claim.vf, "released");
        }
        // A claim is used for one NIC only, also when it does not say for which of two NICs with one MAC it is.
        let mut claimed = |nic: &WantedNic| {
            let at = own.iter().position(|claim| claim.root == nic.root && claim.is_for(&nic.key()))?;
            Some(own.swap_remove(at))
        };
        let mut claims: Vec<(&WantedNic, Option<Claim>)> = nics.iter().map(|nic| (nic, claimed(nic))).collect();
        let used: Vec<PciAddress> = claims.iter().filter_map(|(_, claim)| Some(claim.as_ref()?.vf)).collect();
        if !used.is_empty() {
            // A reconciliation that read the domain before it wanted these NICs may take the claims for stale.
            let there = self.store.renew(&self.lock, &owner, &used)?;
            for (_, claim) in &mut claims {
                claim.take_if(|claim| there.iter().all(|there| there.vf != claim.vf));
            }
        }
        let lacking = || claims.iter().filter(|(_, claim)| claim.is_none()).map(|(nic, _)| nic);
        let asked: Vec<WantedVf> = lacking().map(|nic| nic.vf()).collect();
        let mut fresh = if asked.is_empty() {
            Vec::new()
        } else {
            let maps = self.host.maps_and_others(asked.iter().map(|vf| &vf.root))?;
            let sysfs = self.host.sysfs();
            let request =
                ClaimRequest { owner: &owner, lock: &self.lock, vfs: &asked, maps: &maps, sysfs, refused: &refused };
            self.host.claim(&self.store, &request, self.action)?
        }
        .into_iter();
        Ok(claims.into_iter().filter_map(|(_, claim)| claim.or_else(|| fresh.next())).collect())
    }

    fn attach(&self, nic: &WantedNic, vf: PciAddress, refusals: &[RefusedVf]) -> Result<(), PlugFailure> {
        let device = hostdev_of(nic, vf);
        let limit = self.host.call_limit(self.live.memory_kib);
        self.host.report(|| Progress::Plugging { vf });
        let plugged = self.host.past_udev(|| self.host.hypervisor().attach(&self.domain, &device, limit));
        let Err(error) = plugged else { return Ok(()) };
        // Only the live XML tells whether the VF is plugged.
        let is_in = |live: LiveDomain| live.device_of(nic).is_some_and(|device| device.vf == vf);
        if self.host.patiently(|| super::read(self.host, &self.domain)).is_ok_and(is_in) {
            log::debug!("{} has VF {vf} although the call failed: {error}", self.domain.name);
            return Ok(());
        }
        let attempt = VfCall {
            what: format!("plug VF {vf} into {}", self.domain.name),
            vfs: &[vf],
            refusals,
            guest_kib: self.live.memory_kib,
            limit_kib: self.live.limit_kib,
            sysfs: self.host.sysfs(),
        };
        Err(attempt.judge(error))
    }

    /// Checks in the live XML that a NIC has its VF.
    fn verify(&self, nic: &WantedNic, vf: PciAddress) -> Result<(), Cause> {
        let differs = |what: String| Err(Cause::NotAsAsked { name: self.domain.name.clone(), what });
        match self.live.device_of(nic) {
            None => differs(format!("VF {vf} is missing although it was plugged")),
            Some(device) if device.vf != vf => differs(format!("NIC {} has VF {} instead of {vf}", nic.mac, device.vf)),
            Some(device) if nic.guest.is_some() && device.guest != nic.guest => {
                differs(format!("VF {vf} is at another guest address than it was asked for"))
            }
            Some(device) => device
                .differs_from_network_of(nic)
                .map_or(Ok(()), |what| differs(format!("VF {vf} of NIC {} has {what}", nic.mac))),
        }
    }
}
