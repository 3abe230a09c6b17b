//! An SR-IOV NIC that a domain should have.

use roxmltree::Node;

use super::element::{Element, KeptContent};
use crate::base::{MacAddress, NicKey, NicMode, ParseError, PciAddress, Position, RootName, WantedVf, ascending};
use crate::xml::XmlError;
use crate::xml::read::{attribute, decimal, required};

/// An SR-IOV NIC that a domain should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedNic {
    /// OpenNebula's MAC of the NIC.
    pub mac: MacAddress,
    /// The root of its VF.
    pub root: RootName,
    /// How the guest gets the VF.
    pub mode: NicMode,
    /// Its number among the SR-IOV NICs of the VM.
    pub position: Position,
    /// The guest address of the VF, if the driver chose or noted one.
    pub guest: Option<PciAddress>,
    /// The position in the boot order, from 1.
    pub boot_order: Option<u32>,
    /// The VLAN, or the number of the partition key, if the network has one.
    pub vlan: Option<u16>,
    /// OpenNebula's NIC_ID, if known.
    pub nic_id: Option<u32>,
    /// The XML of the dummy, written before the driver asks the guest to release the dummy. It serves to plug the same
    /// dummy again.
    pub dummy: Option<String>,
    /// Its devices without an alias of the driver, in an adopted domain.
    pub adopted: AdoptedDevices,
    /// Content of a later version.
    pub kept: KeptContent,
}

/// The devices of a NIC in a domain that the stock driver or the driver of 2013 started. They have aliases of libvirt,
/// which libvirt reuses for other devices, so the driver identifies them otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdoptedDevices {
    /// The VF, by its address on the host; `None` after it was unplugged.
    pub vf: Option<PciAddress>,
    /// The dummy, by its MAC; `None` after it was unplugged.
    pub dummy: Option<MacAddress>,
}

impl WantedNic {
    /// A NIC with a PCI host device. Nothing else of it is known.
    pub(crate) fn new(mac: MacAddress, root: RootName, position: Position) -> Self {
        Self {
            mac,
            root,
            mode: NicMode::Hostdev,
            position,
            guest: None,
            boot_order: None,
            vlan: None,
            nic_id: None,
            dummy: None,
            adopted: AdoptedDevices::default(),
            kept: KeptContent::default(),
        }
    }

    /// The VF that the NIC needs.
    pub fn vf(&self) -> WantedVf {
        WantedVf { root: self.root.clone(), nic: self.key() }
    }

    /// Whether the guest needs a dummy interface, which carries the NIC's IP address.
    pub fn has_dummy(&self) -> bool {
        self.mode == NicMode::Hostdev
    }

    /// The VLAN that the VF's port is in; `None` for a port without one.
    pub fn port_vlan(&self) -> Option<u16> {
        self.vlan.filter(|vlan| *vlan != 0)
    }

    /// Identifies the NIC in its VM.
    pub fn key(&self) -> NicKey {
        NicKey { position: self.position, mac: self.mac }
    }

    /// Sorts NICs by position.
    pub(crate) fn in_order(nics: Vec<Self>) -> Vec<Self> {
        ascending(nics, |a, b| a.position.cmp(&b.position))
    }

    const ATTRIBUTES: [&'static str; 11] =
        ["mac", "root", "mode", "position", "guest", "boot", "vlan", "nic", "dummy", "adopted-vf", "adopted-dummy"];

    pub(super) fn read(node: Node<'_, '_>) -> Result<Self, XmlError> {
        Ok(Self {
            mac: required(node, "mac", str::parse)?,
            root: required(node, "root", str::parse)?,
            mode: required(node, "mode", str::parse)?,
            position: required(node, "position", position)?,
            guest: attribute(node, "guest", str::parse)?,
            boot_order: attribute(node, "boot", decimal)?,
            vlan: attribute(node, "vlan", decimal)?,
            nic_id: attribute(node, "nic", decimal)?,
            dummy: attribute(node, "dummy", |xml| Ok(xml.to_owned()))?,
            adopted: AdoptedDevices {
                vf: attribute(node, "adopted-vf", str::parse)?,
                dummy: attribute(node, "adopted-dummy", str::parse)?,
            },
            kept: KeptContent::read(node, &Self::ATTRIBUTES, &[]),
        })
    }

    pub(super) fn element(&self) -> Element {
        let attributes = vec![
            ("mac", Some(self.mac.to_string())),
            ("root", Some(self.root.to_string())),
            ("mode", Some(self.mode.to_string())),
            ("position", Some(self.position.to_string())),
            ("guest", self.guest.map(|guest| guest.to_string())),
            ("boot", self.boot_order.map(|order| order.to_string())),
            ("vlan", self.vlan.map(|vlan| vlan.to_string())),
            ("nic", self.nic_id.map(|id| id.to_string())),
            ("dummy", self.dummy.clone()),
            ("adopted-vf", self.adopted.vf.map(|vf| vf.to_string())),
            ("adopted-dummy", self.adopted.dummy.map(|mac| mac.to_string())),
        ];
        Element::new("nic", attributes).with_kept(&self.kept)
    }
}

pub(super) fn position(text: &str) -> Result<Position, ParseError> {
    decimal(text).and_then(Position::new)
}
