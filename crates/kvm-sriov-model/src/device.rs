//! A device of a domain: an element of `<devices>`.

use kvm_sriov::PciAddress;

use super::element::Element;

impl Element {
    /// Its alias, libvirt's name for it.
    pub(crate) fn alias(&self) -> Option<&str> {
        self.child("alias")?.attribute("name")
    }

    /// Its address in the guest.
    pub(crate) fn guest_address(&self) -> Option<PciAddress> {
        let address = self.children().find(|child| child.name() == "address" && child.attribute("type") == Some("pci"));
        pci_address(address?).filter(|at| (at.domain(), at.bus(), at.slot()) != (0, 0, 0))
    }

    /// The host's PCI device that it passes through.
    pub(crate) fn host_address(&self) -> Option<PciAddress> {
        let is_passed_through = match self.name() {
            "hostdev" => self.attribute("type") == Some("pci"),
            "interface" => self.attribute("type") == Some("hostdev"),
            _ => false,
        };
        self.child("source").filter(|_| is_passed_through)?.child("address").and_then(pci_address)
    }

    /// The bridge of an interface.
    pub(super) fn bridge(&self) -> Option<&str> {
        if self.name() == "interface" { self.child("source")?.attribute("bridge") } else { None }
    }

    /// The MAC of an interface.
    pub(super) fn mac(&self) -> Option<&str> {
        if self.name() == "interface" { self.child("mac")?.attribute("address") } else { None }
    }

    /// Whether it is the disk with this target.
    pub(super) fn is_disk(&self, target: &str) -> bool {
        self.name() == "disk" && self.child("target").is_some_and(|it| it.attribute("dev") == Some(target))
    }

    pub(super) fn name_device(&mut self, alias: &str) {
        let last = self.take(|child| matches!(child.name(), "alias" | "address"));
        self.push(Self::new("alias", &[("name", alias)]));
        // libvirt's order: the address is last.
        last.into_iter().filter(|child| child.name() == "address").for_each(|address| self.push(address));
    }

    pub(super) fn put_at(&mut self, guest: PciAddress) {
        self.take(|child| child.name() == "address");
        let (domain, bus) = (format!("0x{:04x}", guest.domain()), format!("0x{:02x}", guest.bus()));
        let (slot, function) = (format!("0x{:02x}", guest.slot()), format!("0x{:x}", guest.function()));
        let attributes =
            [("type", "pci"), ("domain", &domain), ("bus", &bus), ("slot", &slot), ("function", &function)];
        self.push(Self::new("address", &attributes));
    }
}

fn pci_address(address: &Element) -> Option<PciAddress> {
    let field = |name| address.attribute(name).map_or(Some(0), number);
    let small = |name| field(name).and_then(|number| u8::try_from(number).ok());
    PciAddress::new(field("domain")?, small("bus")?, small("slot")?, small("function")?).ok()
}

/// A number in C's forms: `0x1f`, `037`, `31`.
pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u32::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    }
}
