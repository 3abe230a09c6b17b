//! Elements of a domain that several modules read: devices, addresses, MACs, UUIDs and sizes.

use roxmltree::Node;

use crate::base::{DomainUuid, MacAddress, ParseError, PciAddress};
use crate::xml::XmlError;
use crate::xml::read::{attribute, child, children, content, required};

/// The memory limit of the domain's QEMU on the host, in KiB; `None` without a limit.
pub(in crate::xml) fn hard_limit(domain: Node<'_, '_>) -> Option<u64> {
    child(child(domain, "memtune")?, "hard_limit").and_then(kibibytes)
}

/// A size in KiB, from libvirt's element: KiB if it has no unit; powers of 1024 for `K` and `KiB`, of 1000 for `KB`.
pub(in crate::xml) fn kibibytes(memory: Node<'_, '_>) -> Option<u64> {
    in_kib(content(memory).trim(), memory.attribute("unit").unwrap_or("KiB"))
}

pub(in crate::xml) fn in_kib(number: &str, unit: &str) -> Option<u64> {
    let number: u64 = number.parse().ok()?;
    let (power, base) = match unit.to_ascii_lowercase().as_str() {
        "b" | "bytes" => (0, 1024),
        "k" | "kib" => (1, 1024),
        "m" | "mib" => (2, 1024),
        "g" | "gib" => (3, 1024),
        "t" | "tib" => (4, 1024),
        "kb" => (1, 1000),
        "mb" => (2, 1000),
        "gb" => (3, 1000),
        "tb" => (4, 1000),
        _ => return None,
    };
    u64::pow(base, power).checked_mul(number).map(|bytes| bytes / 1024)
}

/// The devices of a domain, from all its blocks: OpenNebula writes several.
pub(in crate::xml) fn devices<'a, 'i>(domain: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let devices = children(domain, "devices").flat_map(|block| block.children());
    devices.filter(|device| device.is_element() && device.tag_name().namespace().is_none())
}

/// The MAC address of an `<interface>`.
pub(in crate::xml) fn mac_of(interface: Node<'_, '_>) -> Result<MacAddress, XmlError> {
    let mac = child(interface, "mac")
        .ok_or_else(|| XmlError::at(interface, "expected <mac address=...> in <interface>, found none"))?;
    required(mac, "address", str::parse)
}

/// The UUID of a domain, with or without hyphens: libvirt accepts both.
pub(in crate::xml) fn uuid_of(domain: Node<'_, '_>) -> Result<Option<DomainUuid>, XmlError> {
    let Some(node) = child(domain, "uuid") else { return Ok(None) };
    let text = content(node);
    let mut hyphened = String::new();
    for (i, digit) in text.chars().filter(|c| *c != '-' && !c.is_whitespace()).enumerate() {
        if matches!(i, 8 | 12 | 16 | 20) {
            hyphened.push('-');
        }
        hyphened.push(digit);
    }
    hyphened.parse().map(Some).map_err(|_| XmlError::at(node, ParseError::new("a UUID", &text)))
}

/// The address in libvirt's `<address domain= bus= slot= function=>`. A missing field is 0. Numbers have the base of C:
/// `0x10` is hexadecimal, `010` octal and `10` decimal; OpenNebula writes bus numbers in decimal.
///
/// # Source
/// `virPCIDeviceAddressParseXML` in libvirt's `src/conf/device_conf.c`.
pub(in crate::xml) fn pci_address(node: Node<'_, '_>) -> Result<PciAddress, XmlError> {
    let field = |name| Ok::<u32, XmlError>(attribute(node, name, c_number)?.unwrap_or(0));
    let small = |name| {
        let number = field(name)?;
        u8::try_from(number)
            .map_err(|_| XmlError::at(node, format_args!("{name}: expected at most 0xff, found {number:#x}")))
    };
    PciAddress::new(field("domain")?, small("bus")?, small("slot")?, small("function")?)
        .map_err(|error| XmlError::at(node, error))
}

pub(in crate::xml) fn c_number(text: &str) -> Result<u32, ParseError> {
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    Some(digits)
        .filter(|digits| !digits.starts_with(['+', '-']))
        .and_then(|digits| u32::from_str_radix(digits, base).ok())
        .ok_or_else(|| ParseError::new("a number such as 0x1f", text))
}

/// The guest address of a device, if the device has one. An address of all zeros asks libvirt to choose.
pub(in crate::xml) fn guest_address(device: Node<'_, '_>) -> Result<Option<PciAddress>, XmlError> {
    let Some(node) = children(device, "address").find(|address| address.attribute("type") == Some("pci")) else {
        return Ok(None);
    };
    let address = pci_address(node)?;
    Ok(Some(address).filter(|a| (a.domain(), a.bus(), a.slot()) != (0, 0, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::parse::parse;

    #[test]
    fn addresses_are_read_as_libvirt_reads_them() {
        for (text, expected) in [
            ("<a domain='0x0000' bus='0x81' slot='0x02' function='0x3'/>", "0000:81:02.3"),
            ("<a type='pci' bus='10' slot='0000' function='0'/>", "0000:0a:00.0"),
            ("<a bus='010'/>", "0000:08:00.0"),
        ] {
            let document = parse(text).unwrap();
            assert_eq!(pci_address(document.root_element()).unwrap().to_string(), expected);
        }
        for wrong in ["<a bus='0x100'/>", "<a slot='32'/>", "<a bus='-1'/>", "<a bus=''/>", "<a bus='0x+1'/>"] {
            let document = parse(wrong).unwrap();
            assert!(pci_address(document.root_element()).is_err(), "{wrong}");
        }
    }
}
