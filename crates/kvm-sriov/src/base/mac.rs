//! MAC addresses: those of NICs, and those of the dummies that carry a NIC's IP address into the guest.

use std::fmt;
use std::str::FromStr;

use crate::base::ParseError;

/// An Ethernet MAC address. Parsing ignores case; printing gives lower case with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

/// The first byte of the MAC addresses of all dummies (`DUMMY_MAC_PREFIX` in kvmrc): two hexadecimal digits, not
/// multicast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DummyMacPrefix(u8);

/// The number of a NIC among the SR-IOV NICs of its VM: 0 to 15, one hexadecimal digit in the MAC of the dummy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u8);

impl MacAddress {
    /// The six bytes.
    pub fn octets(&self) -> [u8; 6] {
        self.0
    }

    /// The last four bytes. In OpenNebula's MACs they are the IP address.
    pub fn tail(&self) -> [u8; 4] {
        let [_, _, c, d, e, f] = self.0;
        [c, d, e, f]
    }

    /// Builds a MAC from its first two and last four bytes.
    pub fn with_tail([a, b]: [u8; 2], [c, d, e, f]: [u8; 4]) -> Self {
        Self([a, b, c, d, e, f])
    }

    /// Whether this MAC has the prefix of dummies.
    pub fn has_prefix(&self, prefix: DummyMacPrefix) -> bool {
        self.0.first() == Some(&prefix.0)
    }

    /// The MAC of the dummy for the NIC with this MAC: `<prefix>:0<pos>:<last four bytes>`.
    ///
    /// # Errors
    /// As [`DummyMacPrefix::check`].
    pub fn dummy(&self, prefix: DummyMacPrefix, position: Position) -> Result<Self, ParseError> {
        prefix.check(*self)?;
        let [_, _, c, d, e, f] = self.0;
        Ok(Self([prefix.0, position.0, c, d, e, f]))
    }
}

impl DummyMacPrefix {
    /// Checks that a NIC with this MAC can be told from the dummies of its VM.
    ///
    /// # Errors
    /// [`ParseError`] when the prefix is the first byte of this MAC: the guest could not tell the NIC from a dummy.
    pub fn check(&self, nic: MacAddress) -> Result<(), ParseError> {
        if nic.has_prefix(*self) {
            let expected = "a DUMMY_MAC_PREFIX that is not the first byte of the MAC of a NIC of the VM";
            return Err(ParseError::new(expected, &nic.to_string()));
        }
        Ok(())
    }
}

impl Position {
    /// The position with this number.
    ///
    /// # Errors
    /// [`ParseError`] for a number above 15: the MAC of the dummy has one digit for it.
    pub fn new(number: usize) -> Result<Self, ParseError> {
        u8::try_from(number)
            .ok()
            .filter(|n| *n < 16)
            .map(Self)
            .ok_or_else(|| ParseError::new("at most 16 SR-IOV NICs in a VM", &format!("{}", number.saturating_add(1))))
    }

    /// The number, 0 to 15.
    pub fn number(&self) -> u8 {
        self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for DummyMacPrefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || {
            ParseError::new("two hexadecimal digits that are no multicast address (an even number, such as aa)", text)
        };
        let byte = hex_byte(text).ok_or_else(wrong)?;
        if byte & 1 == 1 { Err(wrong()) } else { Ok(Self(byte)) }
    }
}

impl fmt::Display for DummyMacPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

fn hex_byte(text: &str) -> Option<u8> {
    (text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(text, 16).ok())
        .flatten()
}

impl FromStr for MacAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new("a MAC address such as 02:00:c0:a8:01:05", text);
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts.next().and_then(hex_byte).ok_or_else(wrong)?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(octets)) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_mac_survives_printing(octets: [u8; 6]) {
            let mac = MacAddress(octets);
            prop_assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
            prop_assert_eq!(mac.to_string().to_uppercase().parse::<MacAddress>().unwrap(), mac);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            prop_assert!(text.parse::<MacAddress>().is_err() || text.len() == 17);
        }
    }

    #[test]
    fn the_dummy_keeps_the_last_four_bytes() {
        let mac: MacAddress = "02:00:C0:a8:01:05".parse().unwrap();
        let dummy = mac.dummy("aa".parse().unwrap(), Position::new(10).unwrap()).unwrap();
        assert_eq!(dummy.to_string(), "aa:0a:c0:a8:01:05");
        assert!(mac.dummy("02".parse().unwrap(), Position::new(0).unwrap()).is_err());
        assert!("ab".parse::<DummyMacPrefix>().is_err(), "a multicast prefix was taken");
        assert!(Position::new(16).is_err());
    }
}
