//! Devices that leave a VM for good.

use super::Vm;
use crate::base::{MacAddress, PciAddress, Position};
use crate::claims::Claim;
use crate::error::{Cause, UnplugOutcome};
use crate::xml::WantedNic;

/// A device of a NIC with a VF that must be unplugged: the VF itself, or its dummy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicDevice {
    pub(crate) alias: String,
    pub(crate) position: Position,
    pub(crate) kind: NicDeviceKind,
}

/// What the device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NicDeviceKind {
    Vf(PciAddress),
    Dummy(MacAddress),
}

impl Vm<'_> {
    /// The devices that a NIC has: its VF, its dummy, or both.
    pub(crate) fn devices_of(&self, nic: &WantedNic) -> Vec<NicDevice> {
        let position = nic.position;
        let device = |alias: Option<&String>, kind| Some(NicDevice { alias: alias?.clone(), position, kind });
        let vf = self.live.device_of(nic).and_then(|vf| device(vf.alias.as_ref(), NicDeviceKind::Vf(vf.vf)));
        let dummy = self.dummy_of(nic).and_then(|dummy| device(dummy.alias.as_ref(), NicDeviceKind::Dummy(dummy.mac)));
        vf.into_iter().chain(dummy).collect()
    }

    /// Unplugs the VF and the dummy of a NIC that the VM should not have, and releases its claim.
    ///
    /// * `in_doubt` - whether libvirt may still plug the VF. Then the claim stays, until an action finds that it did
    ///   not
    /// * returns whether the claim is released
    ///
    /// # Errors
    /// The guest did not release both. The claim stays.
    pub(crate) fn undo_plug(&mut self, nic: &WantedNic, in_doubt: bool) -> Result<bool, Cause> {
        let mut is_known = !in_doubt;
        match self.host.patiently(|| super::read(self.host, &self.domain)) {
            Ok(live) => {
                self.live = live;
                is_known |= self.live.device_of(nic).is_some();
                let devices = self.devices_of(nic);
                self.take_out(&devices)?;
                self.live.forget(&aliases(&devices));
            }
            // The domain has ended, and its devices with it.
            Err(Cause::Absent { .. }) => is_known = true,
            Err(cause) => return Err(cause),
        }
        if is_known {
            self.free_nic(nic)?;
        }
        Ok(is_known)
    }

    /// Unplugs the dummies whose MAC does not match the NIC at their position.
    ///
    /// # Errors
    /// The guest did not release them.
    pub(crate) fn unplug_wrong_dummies(&mut self) -> Result<(), Cause> {
        let mut wrong = Vec::new();
        for nic in &self.wanted.nics {
            let Some(dummy) = self.dummy_of(nic).filter(|dummy| dummy.is_ours()) else { continue };
            if dummy.mac != self.host.dummy_mac(nic.mac, nic.position)? {
                let (alias, position) = (dummy.alias.clone().unwrap_or_default(), nic.position);
                wrong.push(NicDevice { alias, position, kind: NicDeviceKind::Dummy(dummy.mac) });
            }
        }
        self.take_out(&wrong)?;
        self.live.forget(&aliases(&wrong));
        Ok(())
    }

    /// Asks the guest to release devices, for the undo of an action. All of them must leave.
    fn take_out(&self, devices: &[NicDevice]) -> Result<(), Cause> {
        if devices.is_empty() {
            return Ok(());
        }
        super::check_answers(self.host, &self.domain)?;
        let outcomes = self.ask_to_undo(&aliases(devices))?;
        self.not_released(devices, &outcomes).map_or(Ok(()), Err)
    }

    /// The error that names the devices that stayed; `None` when all have left.
    pub(crate) fn not_released(&self, devices: &[NicDevice], outcomes: &[UnplugOutcome]) -> Option<Cause> {
        let seconds = self.host.settings().unplug_timeout.as_secs();
        let vm = || self.domain.name.clone();
        let stayed = || devices.iter().zip(outcomes).filter(|(_, outcome)| **outcome != UnplugOutcome::Released);
        let kept: Vec<_> =
            stayed().filter_map(|(device, outcome)| Some((device.position, device.vf()?, outcome.clone()))).collect();
        if self.host.is_stopped() && stayed().next().is_some() {
            return Some(Cause::Stopped { kept });
        }
        if !kept.is_empty() {
            return Some(Cause::NotReleased { vm: vm(), seconds, kept });
        }
        let (device, outcome) = stayed().next()?;
        let NicDeviceKind::Dummy(mac) = device.kind else { return None };
        let device = format!("the dummy interface {mac}");
        Some(Cause::DeviceNotReleased { vm: vm(), device, seconds, outcome: outcome.clone() })
    }

    /// Releases the claim for a NIC that the VM no longer has.
    pub(crate) fn free_nic(&self, nic: &WantedNic) -> Result<(), Cause> {
        // A claim of an earlier version names only the MAC. It may be for another NIC with the same MAC.
        let shows = |vf| self.live.vfs().any(|shown| shown == vf);
        self.free(|claim| claim.is_for(&nic.key()) && !shows(claim.vf))
    }

    /// Releases the claims of the VM that `meant` selects, with a line in the journal for each.
    pub(crate) fn free(&self, meant: impl Fn(&Claim) -> bool) -> Result<(), Cause> {
        let mut claims = self.store.claims_of(&self.owner())?;
        claims.retain(meant);
        self.store.release(&claims)?;
        for claim in &claims {
            log::info!("VF {} of {} is free", claim.vf, claim.root);
            self.host.journal().vf(self.action, &self.domain.name, &claim.root, claim.vf, "released");
        }
        Ok(())
    }
}

impl NicDevice {
    /// The VF; `None` for a dummy.
    pub(crate) fn vf(&self) -> Option<PciAddress> {
        match self.kind {
            NicDeviceKind::Vf(vf) => Some(vf),
            NicDeviceKind::Dummy(_) => None,
        }
    }
}

/// The aliases of devices, in their order.
pub(crate) fn aliases(devices: &[NicDevice]) -> Vec<String> {
    devices.iter().map(|device| device.alias.clone()).collect()
}
