//! The driver's devices in a domain: the device of a VF, and the aliases of VFs and dummies.

use crate::base::{NicMode, PciAddress, Position};
use crate::xml::WantedNic;
use crate::xml::write::{ElementLine, element, lay_out};

/// The prefix of the aliases of VFs, and of all aliases of the driver.
pub(in crate::xml) const ALIAS: &str = "ua-sriov-";

/// The prefix of the aliases of dummies.
pub(in crate::xml) const DUMMY_ALIAS: &str = "ua-sriov-dummy-";

/// The alias of the VF at this position: `ua-sriov-<position, decimal>`.
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

/// Whether an alias is of a VF of the driver.
pub(in crate::xml) fn is_alias_of_vf(alias: &str) -> bool {
    alias.starts_with(ALIAS) && !alias.starts_with(DUMMY_ALIAS)
}

/// The device with the VF of a NIC, as lines: a host device or, in mode ethernet, an interface of type hostdev, to which
/// libvirt gives the NIC's MAC and VLAN.
///
/// # Source
/// libvirt's formatdomain, "PCI Passthrough" of interfaces. A VLAN with the number 0 is none.
pub(in crate::xml) fn hostdev(nic: &WantedNic, vf: PciAddress) -> Vec<ElementLine> {
    let is_interface = nic.mode == NicMode::Ethernet;
    let mut inner = Vec::new();
    if is_interface {
        inner.push(format!("<mac address='{}'/>", nic.mac));
        inner.push(format!("<source><address type='pci' {}/></source>", vf.to_attributes()));
        inner.extend(nic.port_vlan().map(|vlan| format!("<vlan><tag id='{vlan}'/></vlan>")));
    } else {
        inner.push(format!("<source><address {}/></source>", vf.to_attributes()));
    }
    inner.extend(nic.boot_order.map(|order| format!("<boot order='{order}'/>")));
    inner.push(format!("<alias name='{}'/>", alias_of(nic.position)));
    inner.extend(nic.guest.map(|guest| format!("<address type='pci' {}/>", guest.to_attributes())));
    if is_interface {
        element("<interface type='hostdev' managed='yes'>", inner, "</interface>")
    } else {
        element("<hostdev mode='subsystem' type='pci' managed='yes'>", inner, "</hostdev>")
    }
}

/// The device with the VF at `vf` for a NIC, as XML for a running domain.
pub fn hostdev_of(nic: &WantedNic, vf: PciAddress) -> String {
    lay_out(&hostdev(nic, vf), None, "")
}
