//! SR-IOV virtual functions for OpenNebula's KVM guests.
//!
//! A network whose bridge is `sriov_<root>` asks for a VF (a virtual function of an InfiniBand or Ethernet adapter) of
//! the map `<root>`. This library is all of the driver: it claims VFs, gives them to domains through libvirt's C API, and
//! frees them when the domain is gone. OpenNebula's programs (package `kvm-sriov-shims`) and the command `kvm-sriov` only
//! call it.
//!
//! # Storeys
//!
//! The crate is built in storeys, listed here from the top down. A module imports only from modules below it; the test
//! `storeys` reads the imports and this list.
//!
//! * `opennebula` - how OpenNebula calls the driver's programs and reads their answers
//! * `operations` - plug, unplug, save, restore, migrate, reconcile: methods of [`Host`] for programs that embed the crate
//! * `actions` - what OpenNebula asks for: deploy, save, restore, migrate, attach_nic ...; one file per action
//! * `agent` - the driver's process on the other host of a migration
//! * `reconcile` - repairs what an action left unfinished: wanted, claimed and plugged VFs are made equal
//! * `vm` - one VM in the hands of one action: locked, read, plugged, unplugged
//! * `host` - [`Host`]: one host's configuration, libvirtd, VF maps, claims and journal
//! * `error` - [`ActionError`]: what failed, on what, why, and the state of the host
//! * `claims` - which VM has which VF, in files
//! * `libvirt` - libvirtd through its C API
//! * `xml` - libvirt's and OpenNebula's documents, read into types and rewritten by splices
//! * `config` - kvmrc, VF maps, the version of OpenNebula
//! * `sysfs` - what the kernel says of PCI functions, bridges and memory
//! * `base` - names, addresses, positions, and the owner of a claim

pub mod actions;
pub mod agent;
mod base;
pub mod claims;
pub mod config;
mod error;
mod host;
pub mod libvirt;
pub mod opennebula;
mod operations;
pub mod reconcile;
pub mod sysfs;
pub mod vm;
pub mod xml;

pub use base::signals::hold as hold_signals;
pub use base::{
    Action, DeployId, DomainName, DomainUuid, DummyMacPrefix, HostName, MacAddress, NicKey, Owner, ParseError,
    PciAddress, Position, RootName, SnapshotName, WantedVf,
};
pub use error::{ActionError, AgentError, Cause, Doubt, HostState, Outcome, Why};
pub use host::{Hook, Host, HostBuilder, NotTheDriversUser, Vf, VfState, become_drivers_user, become_owner_of};
pub use operations::PluggedVf;
