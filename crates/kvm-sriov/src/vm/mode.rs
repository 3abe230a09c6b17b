//! What a NIC may ask for, by the mode of its root.

use crate::base::NicMode;
use crate::error::Cause;
use crate::xml::VmNic;

/// Refuses a NIC that asks for what a VF in this mode can't have. In mode hostdev, its dummy has it.
pub(crate) fn check_mode(nic: &VmNic, mode: NicMode) -> Result<(), Cause> {
    match nic.needs_bridge().filter(|_| mode == NicMode::Ethernet) {
        Some(what) => Err(Cause::NeedsBridge { mac: nic.mac, what }),
        None => Ok(()),
    }
}

/// Refuses a NIC whose VLAN is not known although its VF would be put into the VLAN. The arguments of an action do not
/// have it, and a NIC that is known from them alone has no NIC_ID.
pub(crate) fn check_vlan_is_known(nic: &VmNic, mode: NicMode) -> Result<(), Cause> {
    if mode == NicMode::Ethernet && nic.id.is_none() { Err(Cause::NoVlanKnown { mac: nic.mac }) } else { Ok(()) }
}
