//! What a host needs for dummy interfaces: a bridge, and the first byte of their MACs.

use super::Host;
use crate::base::{DummyMacPrefix, MacAddress, ParseError, Position};
use crate::error::Cause;

impl Host {
    /// The bridge of the dummies.
    ///
    /// # Errors
    /// The setting is missing, or names no bridge of this host.
    pub(crate) fn dummy_bridge(&self) -> Result<&str, Cause> {
        let why = "a VM with a VF has a dummy interface on this bridge, which carries its IP address";
        let bridge = self.settings().dummy_bridge.as_deref().ok_or(Cause::NotSet { variable: "DUMMY_BRIDGE", why })?;
        if self.sysfs().is_bridge(bridge) { Ok(bridge) } else { Err(Cause::NoBridge { bridge: bridge.to_owned() }) }
    }

    /// The MAC of the dummy of a NIC.
    ///
    /// * `nic` - the MAC of the NIC; `position` - its position among the SR-IOV NICs of its VM
    ///
    /// # Errors
    /// DUMMY_MAC_PREFIX is not set, or is the first byte of the NIC's own MAC.
    pub(crate) fn dummy_mac(&self, nic: MacAddress, position: Position) -> Result<MacAddress, Cause> {
        nic.dummy(self.dummy_prefix()?, position).map_err(wrong_prefix)
    }

    /// Refuses NICs that the guest of a VM with VFs would take for dummies.
    ///
    /// * `macs` - the MACs of all NICs of the VM, with and without VFs, without its dummies
    ///
    /// # Errors
    /// DUMMY_MAC_PREFIX is not set, or is the first byte of one of the MACs.
    pub(crate) fn check_macs(&self, macs: impl IntoIterator<Item = MacAddress>) -> Result<(), Cause> {
        let prefix = self.dummy_prefix()?;
        macs.into_iter().try_for_each(|mac| prefix.check(mac)).map_err(wrong_prefix)
    }

    fn dummy_prefix(&self) -> Result<DummyMacPrefix, Cause> {
        let why = "it is the first byte of the dummy interface's MAC, by which the guest knows it";
        self.settings().dummy_mac_prefix.ok_or(Cause::NotSet { variable: "DUMMY_MAC_PREFIX", why })
    }
}

fn wrong_prefix(source: ParseError) -> Cause {
    Cause::Value { what: "DUMMY_MAC_PREFIX".into(), source }
}
