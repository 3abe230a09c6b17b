//! The driver's devices in a domain: the host device of a VF, and the aliases of host devices and dummies.

use crate::base::{PciAddress, Position};
use crate::xml::WantedNic;
use crate::xml::write::{ElementLine, element, lay_out};

/// The prefix of the aliases of host devices with a VF.
pub(in crate::xml) const ALIAS: &str = "ua-sriov-";

/// The prefix of the aliases of dummies.
pub(in crate::xml) const DUMMY_ALIAS: &str = "ua-sriov-dummy-";

/// The alias of the host device at this position: `ua-sriov-<position, decimal>`.
///
/// # Source
/// libvirt keeps an alias from outside only with the prefix `ua-` (formatdomain, `<alias>`).
pub fn alias_of(position: Position) -> String {
    format!("{ALIAS}{position}")
}

/// The alias of the dummy interface at this position: `ua-sriov-dummy-<position, decimal>`.
pub fn dummy_alias_of(position: Position) -> String {
    format!("{DUMMY_ALIAS}{position}")
}

/// The host device with the VF of a NIC, as lines.
pub(in crate::xml) fn hostdev(nic: &WantedNic, vf: PciAddress) -> Vec<ElementLine> {
    let mut inner = vec![format!("<source><address {}/></source>", vf.to_attributes())];
    inner.extend(nic.boot_order.map(|order| format!("<boot order='{order}'/>")));
    inner.push(format!("<alias name='{}'/>", alias_of(nic.position)));
    inner.extend(nic.guest.map(|guest| format!("<address type='pci' {}/>", guest.to_attributes())));
    element("<hostdev mode='subsystem' type='pci' managed='yes'>", inner, "</hostdev>")
}

/// The host device with the VF at `vf` for a NIC, as XML for a running domain.
pub fn hostdev_of(nic: &WantedNic, vf: PciAddress) -> String {
    lay_out(&hostdev(nic, vf), None, "")
}
