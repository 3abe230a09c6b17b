//! SR-IOV virtual functions for OpenNebula's KVM guests.

pub mod claims;
pub mod kvmrc;
pub mod libvirt;
mod mac;
mod names;
mod pci;
pub mod sysfs;
pub mod vf_map;
pub mod xml;

pub use mac::{DummyMacPrefix, MacAddress, Position};
pub use names::{DeployId, DomainName, DomainUuid, RootName};
pub use pci::{ParseError, PciAddress};
