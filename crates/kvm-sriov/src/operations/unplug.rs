//! Unplugs a VF from a running domain.

use crate::actions;
use crate::base::{DomainId, MacAddress};
use crate::error::ActionError;
use crate::host::Host;

impl Host {
    /// Unplugs the VF of the NIC with this MAC, and its dummy interface, and frees the VF. Success when neither is
    /// there.
    ///
    /// # Errors
    /// The guest did not release it within [`Settings::unplug_timeout`](crate::config::Settings::unplug_timeout), or
    /// several NICs have the MAC. The domain keeps the NIC; a VF that the guest releases late is plugged back by the
    /// watcher or by [`Host::reconcile`].
    pub fn unplug(&self, domain: &DomainId, mac: MacAddress) -> Result<(), ActionError> {
        actions::detach_nic(self, domain, mac, None)
    }
}
