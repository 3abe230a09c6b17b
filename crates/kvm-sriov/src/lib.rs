//! SR-IOV virtual functions for KVM guests that can still be suspended and migrated.
//!
//! A VF (a virtual function of an InfiniBand or Ethernet adapter) belongs to one guest and to one host, so libvirt can
//! neither save nor migrate a domain that has one. This crate claims VFs and plugs them into running domains. It asks
//! guests to release their VFs before a save or a migration, and plugs other VFs at the same guest addresses
//! afterwards. It repairs what an interruption left unfinished. It uses libvirt's C API.
//!
//! ```
//! use kvm_sriov::reconcile::{Consistency, Options};
//! use kvm_sriov::{DomainId, RootName};
//! use kvm_sriov_model::host::ModelHost;
//!
//! // A host in memory. A real one:
//! // Host::builder().maps_in("/etc/kvm-sriov/vf_maps").dummy("dummy_br", "aa".parse()?).open()?
//! let model = ModelHost::default();
//! model.start_domain("vm-1")?;
//! let host = model.host();
//!
//! // The map "ib0" lists the VFs of one adapter. The domain gets a free one, and a dummy with the IP address.
//! let (vm, ib0): (DomainId, RootName) = ("vm-1".parse()?, "ib0".parse()?);
//! let plugged = host.plug(&vm, &ib0, "02:00:c0:a8:01:05".parse()?)?;
//!
//! // The guest releases its VF, and its memory is saved into a file. The VF is free then.
//! let file = model.datastore().join("vm-1.save");
//! host.save(&vm, &file)?;
//! assert!(host.vfs()?.iter().all(|vf| vf.state == kvm_sriov::VfState::Free));
//!
//! // The domain runs again, with a VF at the same guest address.
//! host.restore(&file)?;
//! let seen = host.explain(&vm)?;
//! let live = seen.live.ok_or("vm-1 does not run")?;
//! assert_eq!(live.hostdevs.first().and_then(|device| device.guest), plugged.guest);
//!
//! // Call this every half minute: it repairs what a killed process, a lost host or a slow guest left unfinished.
//! let report = host.reconcile(&Options::default())?;
//! assert_eq!(report.consistency(false), Consistency::Consistent);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to begin
//!
//! * [`Host::builder`] - URI, directories, maps, settings; then [`Host::plug`], [`unplug`](Host::unplug),
//!   [`save`](Host::save), [`restore`](Host::restore), [`migrate`](Host::migrate), [`reconcile`](Host::reconcile),
//!   [`explain`](Host::explain)
//! * [`ActionError`] - what failed, why, and the state of the host afterwards
//! * [`opennebula`] and [`actions`] - the driver of OpenNebula, which is built on this crate
//! * the crate `kvm-sriov-model` - hosts in memory with fault injection, for tests without libvirt
//!
//! # In a long-running process
//!
//! * A [`Host`] is `Send` and `Sync`. Operations on different domains run at the same time; operations on one domain
//!   wait for each other.
//! * Every wait for libvirtd, a guest, a lock or another host has a limit: see [`config::Settings`]. Files on a file
//!   system that hangs, and programs that an action runs, have none.
//! * The first connection starts a thread for libvirt's event loop. The thread ends with the last connection.
//! * The crate does not change how signals are handled, unless the process calls [`hold_signals`].
//! * Log lines go to the crate `log`.
//!
//! # Storeys
//!
//! The crate is built in storeys, listed here from the top down. A module imports only from modules below it; the test
//! `storeys` reads the imports and this list.
//!
//! * `opennebula` - how OpenNebula calls the driver's programs, and the answers that it expects
//! * `operations` - plug, unplug, save, restore, migrate, reconcile: methods of [`Host`] for embedding programs
//! * `actions` - what OpenNebula asks for: deploy, save, restore, migrate, attach_nic ...; one file per action
//! * `agent` - the driver's process on the other host of a migration
//! * `reconcile` - repairs what an action left unfinished: makes the wanted, claimed and plugged VFs equal
//! * `vm` - one VM in the hands of one action: locked, read, plugged, unplugged
//! * `host` - [`Host`]: one host's configuration, libvirtd, VF maps, claims and journal
//! * `error` - [`ActionError`]: what failed, on what, why, and the state of the host
//! * `claims` - which VM has which VF, in files
//! * `libvirt` - libvirtd through its C API
//! * `xml` - libvirt's and OpenNebula's documents: read into types, changed by splices
//! * `config` - settings, kvmrc, VF maps, the version of OpenNebula
//! * `sysfs` - what the kernel says of PCI functions, bridges and memory
//! * `base` - names, addresses, positions, and the owner of a claim
//! * `os` - time, waiting, threads: what a simulation of several hosts takes the place of

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
pub mod os;
pub mod reconcile;
pub mod sysfs;
pub mod vm;
pub mod xml;

pub use base::printable;
pub use base::signals::hold as hold_signals;
pub use base::{
    Action, DomainId, DomainName, DomainUuid, DummyMacPrefix, HostName, MacAddress, NicKey, NicMode, Owner, ParseError,
    PciAddress, Position, RootName, SnapshotName, WantedVf,
};
pub use error::{ActionError, AgentError, Cause, Doubt, HostState, Obstacle, UnplugOutcome};
pub use host::{
    Host, HostBuilder, NotTheDriversUser, Progress, Stop, Vf, VfState, become_drivers_user, become_owner_of,
};
pub use vm::PluggedVf;
