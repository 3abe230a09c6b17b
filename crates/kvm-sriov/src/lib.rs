//! SR-IOV virtual functions for OpenNebula's KVM guests.
//!
//! A network whose bridge is `sriov_<root>` asks for a VF (a virtual function of an InfiniBand or Ethernet adapter) of
//! the map `<root>`. This library is all of the driver: it claims VFs, gives them to domains through libvirt's C API, and
//! frees them when the domain is gone. OpenNebula's programs (package `kvm-sriov-shims`) and the command `kvm-sriov` only
//! call it.
//!
//! * [`actions`] - what OpenNebula asks for: deploy, save, restore, migrate, attach_nic ...
//! * [`agent`] - the driver's process on the other host of a migration
//! * [`network`] - the companion network driver
//! * [`Host`] - the host they run on: its kvmrc, libvirtd, VF maps and claims
//! * [`wire`] - how OpenNebula calls and reads the answer
//! * [`claims`], [`kvmrc`], [`vf_map`], [`xml`], [`libvirt`], [`sysfs`] - the parts, each of use alone

pub mod actions;
pub mod agent;
pub mod claims;
mod detached;
mod error;
mod hook;
mod host;
mod identity;
mod image;
mod journal;
pub mod kvmrc;
pub mod libvirt;
mod mac;
mod names;
pub mod network;
mod order;
mod pci;
pub mod probe;
pub mod reconcile;
mod signals;
mod span;
mod sudo;
pub mod sysfs;
pub mod vf_map;
pub mod vm;
mod vm_dir;
pub mod wire;
pub mod xml;

pub use error::{ActionError, Cause, HostState};
pub use hook::Hook;
pub use host::{Host, Vf, VfState};
pub use identity::{NotTheDriversUser, become_drivers_user, become_owner_of};
pub use mac::{DummyMacPrefix, MacAddress, Position};
pub use names::{DeployId, DomainName, DomainUuid, HostName, RootName, SnapshotName};
pub use pci::{ParseError, PciAddress};
pub use signals::hold as hold_signals;
