//! Plugs a VF into a running domain.

use crate::actions;
use crate::base::{Action, DomainId, MacAddress, RootName};
use crate::error::ActionError;
use crate::host::Host;
use crate::vm::PluggedVf;
use crate::xml::VmNic;

impl Host {
    /// Plugs a free VF of `root` into a running domain. In mode hostdev a dummy interface carries the IP address into the
    /// guest; in mode ethernet the VF gets the MAC.
    ///
    /// * `mac` - the MAC of the NIC that the VF stands for; its last four bytes are the IP address. If a NIC of this
    ///   MAC and root exists already, its VF is returned.
    ///
    /// # Errors
    /// No VF is free, libvirt refused every free one, or the domain is busy. Nothing was changed, or the state in the
    /// error says what is left.
    pub fn plug(&self, domain: &DomainId, root: &RootName, mac: MacAddress) -> Result<PluggedVf, ActionError> {
        let mode = self.mode_of(root).map_err(|cause| ActionError::untouched(Action::AttachNic, cause))?;
        actions::plug_vf(self, domain, &VmNic::new(mac, None), (root.clone(), mode), None)
    }
}
