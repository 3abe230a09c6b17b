//! A guest releases devices.

use super::{Plugged, Vm, check_answers, unplug};
use crate::base::PciAddress;
use crate::error::{Cause, UnplugOutcome};
use crate::xml::LiveHostdev;

impl Vm<'_> {
    /// Refuses an action that can't succeed although the VFs leave: the guest is paused, or the domain has a host
    /// device that is not one of the driver's VFs.
    ///
    /// * `what` - what the action does to the domain: "saved", "migrated" ...
    ///
    /// # Errors
    /// Nothing was changed.
    pub(crate) fn check_can_leave(&self, what: &'static str) -> Result<(), Cause> {
        let vm = self.domain.name.clone();
        let ours: Vec<LiveHostdev> = self.plugged().into_iter().map(|plugged| plugged.device).collect();
        if let Some(device) = self.live.immovable_device(&ours) {
            return Err(Cause::ForeignDevice { vm, device, what });
        }
        if ours.is_empty() { Ok(()) } else { check_answers(self.host, &self.domain) }
    }

    /// Asks the guest to release the devices with these aliases, all at once, and waits for all of them, or until the
    /// host is told to stop.
    ///
    /// * returns an outcome for each alias, in their order
    ///
    /// # Errors
    /// [`Cause::Absent`] when the domain ended; or the live XML can't be read, and devices may have left.
    pub(crate) fn ask_for(&self, aliases: &[String]) -> Result<Vec<UnplugOutcome>, Cause> {
        self.release(aliases, unplug::Ends::Early)
    }

    /// As [`Vm::ask_for`], for the undo of an action: also when the host is told to stop.
    pub(super) fn ask_to_undo(&self, aliases: &[String]) -> Result<Vec<UnplugOutcome>, Cause> {
        self.release(aliases, unplug::Ends::InTime)
    }

    fn release(&self, aliases: &[String], ends: unplug::Ends) -> Result<Vec<UnplugOutcome>, Cause> {
        let vf_of = |alias: &str| -> Option<PciAddress> {
            self.live.hostdevs.iter().find(|device| device.alias.as_deref() == Some(alias)).map(|device| device.vf)
        };
        let outcomes = unplug::for_action(self.host, &self.domain, aliases, &vf_of, ends)
            .map_err(|source| Cause::Xml { what: format!("the live XML of {}", self.domain.name), source })?;
        if outcomes.contains(&UnplugOutcome::DomainGone) {
            return Err(Cause::Absent { id: self.domain.name.to_string() });
        }
        Ok(outcomes)
    }

    /// Asks the guest to release these VFs, and waits for all of them.
    ///
    /// # Errors
    /// [`Cause::NotReleased`] or [`Cause::Stopped`] names the VFs that stayed. [`Vm::plug_back`] plugs back those that
    /// left.
    pub(crate) fn unplug(&mut self, devices: &[Plugged]) -> Result<(), Cause> {
        if devices.is_empty() {
            return self.host.check_stop();
        }
        let aliases: Vec<String> = devices.iter().map(|device| device.alias.clone()).collect();
        let outcomes = self.ask_for(&aliases)?;
        let (released, kept): (Vec<_>, Vec<_>) =
            devices.iter().cloned().zip(outcomes).partition(|(_, outcome)| *outcome == UnplugOutcome::Released);
        let released: Vec<Plugged> = released.into_iter().map(|(device, _)| device).collect();
        self.journal(&released, "unplugged");
        let gone: Vec<String> = released.iter().map(|device| device.alias.clone()).collect();
        self.live.forget(&gone);
        let kept: Vec<_> =
            kept.into_iter().map(|(device, outcome)| (device.nic.position, device.device.vf, outcome)).collect();
        if self.host.is_stopped() {
            return Err(Cause::Stopped { kept });
        }
        if kept.is_empty() {
            return Ok(());
        }
        let seconds = self.host.settings().unplug_timeout.as_secs();
        Err(Cause::NotReleased { vm: self.domain.name.clone(), seconds, kept })
    }
}
