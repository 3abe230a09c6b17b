//! Names that come from outside the driver, checked when they are parsed: roots, domains, hosts, snapshots, deploy ids.

use std::fmt;
use std::str::FromStr;

use crate::base::ParseError;

/// The name of a root: the file name of its VF map, and what follows `sriov_` in a bridge name.
///
/// Shape: `[A-Za-z0-9_][A-Za-z0-9_.-]*`, at most 255 bytes, not `*.conf`, `*_ofed` or `*~`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootName(String);

/// The name of a libvirt domain, such as `one-42`: 1 to 255 bytes, no control characters except tabs, no `/`, not `.`
/// or `..`. OpenNebula's own names use fewer characters; domains of other owners need the rest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

/// The UUID of a libvirt domain, in lower case with hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainUuid(String);

/// The name of a host in OpenNebula: letters, digits, `.`, `_` and `-`, starting with a letter or digit. It becomes an
/// argument of ssh and part of a libvirt URI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// The name of a snapshot of a VM, such as `snap-0`: letters, digits, `.`, `_` and `-`, starting with a letter or
/// digit. It is also the name of a file in the VM's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

/// A name of a domain: its UUID, its name, or libvirt's number of a running one.
///
/// OpenNebula calls it the deploy id. It gives the UUID (6.0 and later) or the name (before 6.0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainId {
    /// A UUID.
    Uuid(DomainUuid),
    /// libvirt's id of a running domain.
    Id(u32),
    /// A domain name, such as `one-42`.
    Name(DomainName),
}

impl RootName {
    /// The root in a bridge name; `None` for a bridge without the prefix `sriov_`.
    ///
    /// # Errors
    /// [`ParseError`] when the rest of the bridge name is not a root name.
    pub fn from_bridge(bridge: &str) -> Option<Result<Self, ParseError>> {
        bridge.strip_prefix("sriov_").map(str::parse)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RootName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let shaped = text
            .bytes()
            .enumerate()
            .all(|(i, b)| b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && (b == b'.' || b == b'-')));
        let reserved = text.ends_with(".conf") || text.ends_with("_ofed") || text.ends_with('~');
        if text.is_empty() || text.len() > 255 || !shaped || reserved {
            return Err(ParseError::new(
                "a root name (letters, digits, _ . -, not starting with . or -, not ending in .conf or _ofed)",
                text,
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl DomainName {
    /// The domain name of OpenNebula's VM with this number.
    pub fn of_vm(number: u32) -> Self {
        Self(format!("one-{number}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fits = (1..=255).contains(&text.len())
            && !text.chars().any(|c| (c.is_control() && c != '\t') || c == '/')
            && text != "."
            && text != "..";
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseError::new("a domain name such as one-42", text)) }
    }
}

impl DomainUuid {
    /// The UUID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainUuid {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let groups = [8, 4, 4, 4, 12];
        let fits = text.split('-').count() == groups.len()
            && text
                .split('-')
                .zip(groups)
                .all(|(part, len)| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit()));
        if fits { Ok(Self(text.to_ascii_lowercase())) } else { Err(ParseError::new("a UUID", text)) }
    }
}

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let fits = (1..=253).contains(&text.len())
            && text.bytes().all(plain)
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseError::new("a host name such as node3", text)) }
    }
}

impl SnapshotName {
    /// The name of OpenNebula's snapshot with this number.
    pub fn of(number: u32) -> Self {
        Self(format!("snap-{number}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let fits = (1..=200).contains(&text.len())
            && text.bytes().all(plain)
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseError::new("a snapshot name such as snap-0", text)) }
    }
}

impl FromStr for DomainId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if let Ok(uuid) = text.parse() {
            return Ok(Self::Uuid(uuid));
        }
        match text.parse() {
            Ok(id) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(Self::Id(id)),
            _ => text.parse().map(Self::Name).map_err(|_| ParseError::new("a UUID, or a name such as one-42", text)),
        }
    }
}

impl fmt::Display for RootName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DomainUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bridge_with_the_prefix_names_a_root() {
        assert!(RootName::from_bridge("br0").is_none());
        assert!(RootName::from_bridge("xsriov_ib0").is_none());
        assert_eq!(RootName::from_bridge("sriov_ib0").unwrap().unwrap().as_str(), "ib0");
        for bad in [
            "sriov_",
            "sriov_../etc",
            "sriov_.x",
            "sriov_a b",
            "sriov_ib0.conf",
            "sriov_ib0_ofed",
            "sriov_ib0~",
            "sriov_-x",
        ] {
            assert!(RootName::from_bridge(bad).unwrap().is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn a_host_name_cannot_be_an_option_or_hold_shell_characters() {
        for good in ["node3", "host-1.example", "192.0.2.7"] {
            assert_eq!(good.parse::<HostName>().unwrap().as_str(), good);
        }
        for bad in ["", "-oProxyCommand=x", "a b", "a;b", "a@b", "a/b", "$(x)", ".x"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn a_snapshot_name_stays_in_its_directory() {
        assert_eq!(SnapshotName::of(3).as_str().parse(), Ok(SnapshotName::of(3)));
        assert!("1700000000".parse::<SnapshotName>().is_ok());
        for bad in ["", "../x", "a/b", ".x", "-x", "a b", "a\0"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn domain_names_that_opennebula_never_uses_are_accepted() {
        for good in ["one-42", "a b", "with\ta tab", &"x".repeat(255)] {
            assert_eq!(good.parse::<DomainName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a\nb", "a\0b", &"x".repeat(256)] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn deploy_ids_come_in_three_forms() {
        let uuid = "7F1C2A52-64d6-4c0c-9b0e-2f7a4c1d9e10";
        assert!(matches!(uuid.parse(), Ok(DomainId::Uuid(u)) if u.as_str() == uuid.to_lowercase()));
        assert!(matches!("17".parse(), Ok(DomainId::Id(17))));
        assert!(matches!("one-42".parse(), Ok(DomainId::Name(_))));
        assert!("".parse::<DomainId>().is_err());
        assert!("a\0b".parse::<DomainId>().is_err());
    }
}
