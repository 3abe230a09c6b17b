//! Guest addresses as libvirt assigns them: requested ones first, then the lowest free ones.

use std::collections::BTreeSet;

use kvm_sriov::PciAddress;
use kvm_sriov::libvirt::LibvirtError;

use super::device::number;
use super::element::Element;
use super::refusal;

/// The guest's PCI buses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    /// One bus of 32 slots, of which the chipset has the first two; every slot is hot-pluggable.
    Pc,
    /// A root bus for what stays, and a hot-pluggable slot behind each root port.
    Q35,
}

impl Machine {
    pub(super) fn of(kind: Option<&str>) -> Self {
        match kind {
            Some(kind) if kind != "pc" && !kind.starts_with("pc-i440fx") => Self::Q35,
            _ => Self::Pc,
        }
    }

    /// Assigns an address to every device of a domain that starts, and adds missing root ports.
    pub(super) fn place_all(self, devices: &mut Vec<Element>) -> Result<(), LibvirtError> {
        number_ports(devices);
        let mut used = BTreeSet::new();
        for address in devices.iter().filter_map(Element::guest_address) {
            if !used.insert(address) {
                return Err(refusal::xml(format!("Attempted double use of PCI Address {address}")));
            }
        }
        // libvirt's order decides which device gets the lower addresses.
        for kind in ["video", "interface", "controller", "disk", "hostdev", ""] {
            for index in 0..devices.len() {
                let device = &devices[index];
                let is_next = (device.name() == kind || kind.is_empty()) && device.guest_address().is_none();
                if !is_next || !needs_address(device) {
                    continue;
                }
                let place = self.built_in(device, devices).or_else(|| self.free(devices));
                let place = place.unwrap_or_else(|| add_port(devices));
                devices[index].put_at(place);
            }
        }
        Ok(())
    }

    /// Assigns an address to a device that is plugged in, or checks the requested one.
    pub(super) fn place(self, devices: &[Element], device: &mut Element) -> Result<(), LibvirtError> {
        if !needs_address(device) {
            return Ok(());
        }
        match device.guest_address() {
            Some(address) if devices.iter().any(|other| other.guest_address() == Some(address)) => {
                Err(refusal::xml(format!("Attempted double use of PCI Address {address}")))
            }
            Some(address) if !self.has(devices, address) => Err(refusal::xml(format!(
                "Invalid PCI address {address}. The PCI controller with index={} doesn't exist, or is not hotpluggable",
                address.bus()
            ))),
            Some(_) => Ok(()),
            None => {
                let free = self.free(devices).ok_or_else(|| refusal::internal("No more available PCI slots"))?;
                device.put_at(free);
                Ok(())
            }
        }
    }

    fn has(self, devices: &[Element], address: PciAddress) -> bool {
        match self {
            Self::Pc => address.bus() == 0 && address.slot() > 1,
            Self::Q35 => ports(devices).any(|port| port == address.bus()) && address.slot() == 0,
        }
    }

    fn free(self, devices: &[Element]) -> Option<PciAddress> {
        let used: BTreeSet<_> = devices.iter().filter_map(Element::guest_address).collect();
        let candidates: Vec<PciAddress> = match self {
            // Slot 2 is reserved for the display, even without one.
            Self::Pc => (3..0x20).map(|slot| address(0, slot)).collect(),
            Self::Q35 => ports(devices).collect::<BTreeSet<_>>().into_iter().map(|bus| address(bus, 0)).collect(),
        };
        candidates.into_iter().find(|candidate| !used.contains(candidate))
    }

    /// The address of a device that is never hot-plugged.
    fn built_in(self, device: &Element, devices: &[Element]) -> Option<PciAddress> {
        let slots = match (self, device.name(), device.attribute("type")) {
            (Self::Pc, "video", _) => 2..3,
            (Self::Q35, "video" | "sound", _) | (Self::Q35, "controller", Some("usb")) => 1..0x1f,
            _ => return None,
        };
        let used: BTreeSet<_> = devices.iter().filter_map(Element::guest_address).collect();
        slots.map(|slot| address(0, slot)).find(|candidate| !used.contains(candidate))
    }
}

fn address(bus: u8, slot: u8) -> PciAddress {
    PciAddress::new(0, bus, slot, 0).unwrap()
}

fn is_pci_controller(device: &Element) -> bool {
    device.name() == "controller" && device.attribute("type") == Some("pci")
}

fn index(controller: &Element) -> Option<u8> {
    number(controller.attribute("index")?)?.try_into().ok()
}

/// The numbers of the buses behind the root ports.
fn ports(devices: &[Element]) -> impl Iterator<Item = u8> {
    let is_port = |device: &&Element| is_pci_controller(device) && device.attribute("model") == Some("pcie-root-port");
    devices.iter().filter(is_port).filter_map(index)
}

fn number_ports(devices: &mut [Element]) {
    for at in 0..devices.len() {
        if is_pci_controller(&devices[at]) && index(&devices[at]).is_none() {
            let free = next_bus(devices);
            devices[at].set("index", &free.to_string());
        }
    }
}

fn next_bus(devices: &[Element]) -> u8 {
    let used: BTreeSet<u8> = devices.iter().filter(|device| is_pci_controller(device)).filter_map(index).collect();
    (1..=0xff).find(|bus| !used.contains(bus)).unwrap()
}

fn add_port(devices: &mut Vec<Element>) -> PciAddress {
    let bus = next_bus(devices);
    let attributes = [("type", "pci"), ("index", &*bus.to_string()), ("model", "pcie-root-port")];
    devices.push(Element::new("controller", &attributes));
    address(bus, 0)
}

/// Whether a device is a function on a PCI bus.
fn needs_address(device: &Element) -> bool {
    match device.name() {
        "interface" | "memballoon" | "rng" | "sound" | "video" | "filesystem" | "vsock" | "shmem" | "watchdog" => {
            device.attribute("model") != Some("none")
        }
        "hostdev" => device.attribute("type") == Some("pci"),
        "disk" => device.child("target").is_some_and(|target| target.attribute("bus") == Some("virtio")),
        "controller" => matches!(device.attribute("type"), Some("scsi" | "virtio-serial" | "usb")),
        _ => false,
    }
}
