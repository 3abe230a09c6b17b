//! PCI addresses as libvirt, sysfs and the VF maps write them.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, slot, function.
///
/// Ordered by domain, bus, slot, function. Prints in the form of sysfs (`0000:07:00.3`).
///
/// ```
/// use kvm_sriov::PciAddress;
/// let vf: PciAddress = "0000:07:00.3".parse()?;
/// assert_eq!(vf.to_string(), "0000:07:00.3");
/// assert_eq!(vf.to_map_line(), "0x07 0x00 0x03");
/// # Ok::<(), kvm_sriov::ParseError>(())
/// ```
///
/// # Source
/// Limits of the fields: `PCI_SLOT` and `PCI_FUNC` of Linux (`include/uapi/linux/pci.h`). libvirt accepts a 32 bit
/// domain, because the kernel creates domains above 0xffff for VMD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    slot: u8,
    function: u8,
}

/// A text that does not have the form of its type. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found \"{found}\"")]
pub struct ParseError {
    /// The expected form, for messages.
    pub expected: &'static str,
    /// The text, control characters escaped.
    pub found: String,
}

impl ParseError {
    pub(crate) fn new(expected: &'static str, found: &str) -> Self {
        Self { expected, found: found.escape_debug().to_string() }
    }
}

impl PciAddress {
    /// Builds an address.
    ///
    /// * `domain` - any; `bus` - any; `slot` - at most 0x1f; `function` - at most 7
    ///
    /// # Errors
    /// [`ParseError`] when the slot or the function is out of range.
    pub fn new(domain: u32, bus: u8, slot: u8, function: u8) -> Result<Self, ParseError> {
        if slot > 0x1f {
            return Err(ParseError::new("a PCI slot of at most 0x1f", &format!("{slot:#x}")));
        }
        if function > 7 {
            return Err(ParseError::new("a PCI function of at most 7", &format!("{function:#x}")));
        }
        Ok(Self { domain, bus, slot, function })
    }

    /// Reads the four attributes of libvirt's `<address>`, in hexadecimal with or without `0x`. libvirt itself always
    /// prints `0x`.
    ///
    /// # Errors
    /// [`ParseError`] names the attribute that is out of range.
    pub fn from_attributes(domain: &str, bus: &str, slot: &str, function: &str) -> Result<Self, ParseError> {
        let domain = u32::from_str_radix(hex_digits(domain), 16)
            .map_err(|_| ParseError::new("a hexadecimal PCI domain", domain))?;
        Self::new(
            domain,
            byte(bus, "a hexadecimal PCI bus of at most 0xff")?,
            byte(slot, "a hexadecimal PCI slot of at most 0x1f")?,
            byte(function, "a hexadecimal PCI function of at most 7")?,
        )
    }

    /// The domain (segment).
    pub fn domain(&self) -> u32 {
        self.domain
    }

    /// The bus, 0 to 0xff.
    pub fn bus(&self) -> u8 {
        self.bus
    }

    /// The slot (device), 0 to 0x1f.
    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// The function, 0 to 7.
    pub fn function(&self) -> u8 {
        self.function
    }

    /// The address as a line of a VF map: `0xBUS 0xSLOT 0xFUNC`, preceded by the domain if the domain is not 0.
    pub fn to_map_line(&self) -> String {
        let rest = format!("0x{:02x} 0x{:02x} 0x{:02x}", self.bus, self.slot, self.function);
        if self.domain == 0 { rest } else { format!("0x{:04x} {rest}", self.domain) }
    }

    /// The address as attributes in libvirt's own form: `domain='0x0000' bus='0x07' slot='0x00' function='0x3'`.
    pub fn to_attributes(&self) -> String {
        format!(
            "domain='0x{:04x}' bus='0x{:02x}' slot='0x{:02x}' function='0x{:x}'",
            self.domain, self.bus, self.slot, self.function
        )
    }
}

fn hex_digits(text: &str) -> &str {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // `from_str_radix` would accept a sign.
    if digits.starts_with(['+', '-']) { "" } else { digits }
}

fn byte(text: &str, expected: &'static str) -> Result<u8, ParseError> {
    u8::from_str_radix(hex_digits(text), 16).map_err(|_| ParseError::new(expected, text))
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.slot, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = ParseError;

    /// Reads `DDDD:BB:SS.F`, or `BB:SS.F` for domain 0.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new("a PCI address such as 0000:07:00.3", text);
        let (rest, function) = text.rsplit_once('.').ok_or_else(wrong)?;
        let mut parts = rest.rsplit(':');
        let slot = parts.next().ok_or_else(wrong)?;
        let bus = parts.next().ok_or_else(wrong)?;
        let domain = parts.next().unwrap_or("0000");
        let plain = |field: &str, most: usize| {
            (1..=most).contains(&field.len()) && field.bytes().all(|b| b.is_ascii_hexdigit())
        };
        if parts.next().is_some() || !plain(domain, 8) || !plain(bus, 2) || !plain(slot, 2) || !plain(function, 1) {
            return Err(wrong());
        }
        Self::from_attributes(domain, bus, slot, function).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_address_survives_each_of_its_forms(domain: u32, bus: u8, slot in 0u8..0x20, function in 0u8..8) {
            let address = PciAddress::new(domain, bus, slot, function).unwrap();
            prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            if let Ok(address) = text.parse::<PciAddress>() {
                prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
            }
        }
    }

    #[test]
    fn slots_and_functions_out_of_range_are_refused() {
        for text in ["0000:07:20.0", "0000:07:00.8", "0000:07:00", "07.0", "", "0000:07:00.3 ", "0:0:0:0.0", "+7:00.1"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?} was accepted");
        }
        assert_eq!("07:00.3".parse::<PciAddress>().unwrap().to_string(), "0000:07:00.3");
    }
}
