//! A VF comes into a running domain.

use crate::actions;
use crate::base::{Action, DomainId, MacAddress, PciAddress, Position, RootName};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::reconcile;
use crate::xml::VmNic;

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

impl Host {
    /// Plugs a free VF of `root` into a running domain, with a dummy interface that carries the IP address into the guest.
    ///
    /// * `mac` - the MAC of the NIC that the VF stands for; its last four bytes are the IP address. A NIC of this MAC and root
    ///   that is there already is success, and its VF is returned.
    ///
    /// # Errors
    /// No VF is free, libvirt refused every free one, or the domain is busy. Nothing was changed, or the state in the error
    /// says what is left.
    pub fn plug(&self, domain: &DomainId, root: &RootName, mac: MacAddress) -> Result<PluggedVf, ActionError> {
        let nic = VmNic::new(mac, Some(format!("sriov_{root}")));
        actions::attach_nic(self, domain, &nic, None)?;
        self.plugged_vf(domain, root, mac).map_err(|cause| {
            let left = format!("{domain} has the VF; kvm-sriov explain {domain} shows it");
            ActionError::new(Action::AttachNic, cause, HostState::Left(left))
        })
    }

    fn plugged_vf(&self, domain: &DomainId, root: &RootName, mac: MacAddress) -> Result<PluggedVf, Cause> {
        let seen = reconcile::explain(self, domain)?;
        let device = |live: &crate::xml::LiveDomain| {
            let nic = seen.wanted.nics.iter().rev().find(|nic| nic.mac == mac && nic.root == *root)?;
            let device = live.device_of(nic)?;
            Some(PluggedVf { position: nic.position, vf: device.vf, guest: device.guest })
        };
        seen.live.as_ref().and_then(device).ok_or_else(|| Cause::Absent { id: format!("{domain} with a VF for {mac}") })
    }
}
