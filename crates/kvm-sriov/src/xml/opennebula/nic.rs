//! The NICs of a VM, as OpenNebula describes them.

use roxmltree::Node;

use super::value::{number, text_of, value};
use crate::base::{MacAddress, ParseError, PciAddress, RootName};
use crate::xml::read::decimal;
use crate::xml::{PciDevice, XmlError};

/// A network interface of a VM, as OpenNebula describes it. The texts are not checked: libvirt decides whether they are
/// valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmNic {
    /// Its MAC.
    pub mac: MacAddress,
    /// OpenNebula's NIC_ID.
    pub id: Option<u32>,
    /// The VLAN; also `None` for a number that an SR-IOV NIC can't have, such as that of a VXLAN.
    pub vlan: Option<u16>,
    /// Whether the NIC carries tagged frames of more VLANs (VLAN_TAGGED_ID), or tags within tags (CVLANS).
    pub tagged_vlans: bool,
    /// The network driver of its network; unknown before 5.0, where all networks of a host have the same driver.
    pub vn_mad: Option<String>,
    /// The bridge of its network.
    pub bridge: Option<String>,
    /// The type of the bridge: linux, openvswitch, openvswitch_dpdk ...
    pub bridge_type: Option<String>,
    /// `dummy` for a network without a bridge.
    pub network_mode: Option<String>,
    /// The device on the host, such as `one-42-1`.
    pub target: Option<String>,
    /// The model of the device that the guest sees.
    pub model: Option<String>,
    /// The position in the boot order, from 1.
    pub boot_order: Option<u32>,
    /// The program that brings the interface up.
    pub script: Option<String>,
    /// The number of queues of a virtio device, or `auto` for one per virtual CPU.
    pub queues: Option<String>,
    /// The network filter.
    pub filter: Option<String>,
    /// The IP address, for the filter.
    pub ip: Option<String>,
    /// The virtual router's IP address, for the filter.
    pub vrouter_ip: Option<String>,
    /// The limits of incoming traffic.
    pub inbound: Bandwidth,
    /// The limits of outgoing traffic.
    pub outbound: Bandwidth,
    /// Whether the action is about this device.
    pub attach: bool,
}

/// The limits of one direction; `None` for each that is not set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// In KiB per second.
    pub average: Option<String>,
    /// In KiB per second.
    pub peak: Option<String>,
    /// In KiB.
    pub burst: Option<String>,
}

/// A PCI device of a VM, as OpenNebula describes it. One with a MAC is a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPci {
    /// The MAC of a NIC.
    pub mac: Option<MacAddress>,
    /// The device on the host.
    pub device: PciDevice,
    /// The guest address that OpenNebula chose.
    pub guest: Option<PciAddress>,
    /// Whether the action is about this device.
    pub attach: bool,
}

/// A network filter, in the words of a message.
pub(super) const FILTER: &str = "a network filter (FILTER)";

/// More VLANs, in the words of a message.
const TAGGED: &str = "tagged VLANs (VLAN_TAGGED_ID, CVLANS)";

/// Limits of traffic, in the words of a message.
pub(super) const LIMITS: &str = "limits of traffic (INBOUND_*, OUTBOUND_*)";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VmAlias {
    pub(super) mac: MacAddress,
    pub(super) attach: bool,
}

impl VmNic {
    /// A NIC that is known only from the arguments of an action.
    pub fn new(mac: MacAddress, bridge: Option<String>) -> Self {
        Self {
            mac,
            id: None,
            vlan: None,
            tagged_vlans: false,
            vn_mad: None,
            bridge,
            bridge_type: None,
            network_mode: None,
            target: None,
            model: None,
            boot_order: None,
            script: None,
            queues: None,
            filter: None,
            ip: None,
            vrouter_ip: None,
            inbound: Bandwidth::default(),
            outbound: Bandwidth::default(),
            attach: true,
        }
    }

    /// What the NIC asks for that the VF of a root with MODE=ethernet can't have, for a message; `None` if nothing.
    pub fn needs_bridge(&self) -> Option<&'static str> {
        let none = Bandwidth::default();
        let is_limited = [&self.inbound, &self.outbound].iter().any(|limits| **limits != none);
        let asked = [(self.filter.is_some(), FILTER), (is_limited, LIMITS), (self.tagged_vlans, TAGGED)];
        asked.iter().find(|(is_asked, _)| *is_asked).map(|(_, what)| *what)
    }

    /// The root that the bridge names; `None` for a bridge without the prefix `sriov_`.
    ///
    /// # Errors
    /// [`ParseError`] when the rest of the bridge name is not a root name.
    pub fn root(&self) -> Option<Result<RootName, ParseError>> {
        self.bridge.as_deref().and_then(RootName::from_bridge)
    }

    pub(super) fn read(nic: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let Some(mac) = mac(nic)? else { return Ok(None) };
        let new = Self::new(mac, text_of(nic, "BRIDGE"));
        let vlan = match value(nic, "VLAN_ID").map(|(vlan, at)| (decimal(&vlan), at)) {
            Some((Ok(vlan), _)) => Some(vlan),
            Some((Err(error), at)) if new.root().is_some() => {
                return Err(XmlError::at(at, format_args!("VLAN_ID: {error}")));
            }
            Some((Err(_), _)) | None => None,
        };
        Ok(Some(Self {
            id: number(nic, "NIC_ID"),
            vlan,
            tagged_vlans: ["VLAN_TAGGED_ID", "CVLANS"].iter().any(|name| text_of(nic, name).is_some()),
            vn_mad: text_of(nic, "VN_MAD"),
            bridge_type: text_of(nic, "BRIDGE_TYPE"),
            network_mode: text_of(nic, "NETWORK_MODE"),
            target: text_of(nic, "TARGET"),
            model: text_of(nic, "MODEL"),
            boot_order: number(nic, "ORDER"),
            script: text_of(nic, "SCRIPT"),
            queues: text_of(nic, "VIRTIO_QUEUES"),
            filter: text_of(nic, "FILTER"),
            ip: text_of(nic, "IP"),
            vrouter_ip: text_of(nic, "VROUTER_IP"),
            inbound: Bandwidth::read(nic, ["INBOUND_AVG_BW", "INBOUND_PEAK_BW", "INBOUND_PEAK_KB"]),
            outbound: Bandwidth::read(nic, ["OUTBOUND_AVG_BW", "OUTBOUND_PEAK_BW", "OUTBOUND_PEAK_KB"]),
            attach: is_attached(nic),
            ..new
        }))
    }
}

impl Bandwidth {
    fn read(nic: Node<'_, '_>, [average, peak, burst]: [&'static str; 3]) -> Self {
        Self { average: text_of(nic, average), peak: text_of(nic, peak), burst: text_of(nic, burst) }
    }
}

impl VmPci {
    pub(super) fn read(pci: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let attach = is_attached(pci);
        let device = match text_of(pci, "UUID") {
            Some(uuid) => PciDevice::Mediated(uuid),
            None => match address(pci, ["DOMAIN", "BUS", "SLOT", "FUNCTION"]) {
                Some(address) => PciDevice::Function(address),
                None if attach => {
                    return Err(XmlError::at(pci, "expected DOMAIN, BUS, SLOT and FUNCTION in <PCI>, found others"));
                }
                None => return Ok(None),
            },
        };
        let guest = address(pci, ["VM_DOMAIN", "VM_BUS", "VM_SLOT", "VM_FUNCTION"]);
        Ok(Some(Self { mac: mac(pci)?, device, guest, attach }))
    }
}

impl VmAlias {
    pub(super) fn read(alias: Node<'_, '_>) -> Option<Self> {
        Some(Self { mac: mac(alias).ok()??, attach: is_attached(alias) })
    }
}

fn is_attached(device: Node<'_, '_>) -> bool {
    text_of(device, "ATTACH").as_deref() == Some("YES")
}

fn mac(nic: Node<'_, '_>) -> Result<Option<MacAddress>, XmlError> {
    let Some((mac, at)) = value(nic, "MAC") else { return Ok(None) };
    mac.parse().map(Some).map_err(|error| XmlError::at(at, format_args!("MAC: {error}")))
}

/// A PCI address in four elements, each hexadecimal with or without `0x`.
fn address(pci: Node<'_, '_>, names: [&'static str; 4]) -> Option<PciAddress> {
    let [domain, bus, slot, function] = names.map(|name| {
        let text = text_of(pci, name)?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u32::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
    });
    let small = |number: Option<u32>| u8::try_from(number?).ok();
    PciAddress::new(domain?, small(bus)?, small(slot)?, small(function)?).ok()
}
