//! How a guest gets a VF.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::ParseError;

/// How a guest gets a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum NicMode {
    /// A PCI host device, and a dummy interface that carries the IP address.
    #[default]
    Hostdev,
    /// An interface of type hostdev with OpenNebula's MAC.
    Ethernet,
    /// An interface on a libvirt network that provides VFs.
    Network,
    /// A PCI host device whose GUID and partition keys are set.
    Infiniband,
}

impl Display for NicMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hostdev => "hostdev",
            Self::Ethernet => "ethernet",
            Self::Network => "network",
            Self::Infiniband => "infiniband",
        })
    }
}

impl FromStr for NicMode {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "hostdev" => Ok(Self::Hostdev),
            "ethernet" => Ok(Self::Ethernet),
            "network" => Ok(Self::Network),
            "infiniband" => Ok(Self::Infiniband),
            _ => Err(ParseError::new("hostdev, ethernet, network or infiniband", text)),
        }
    }
}
