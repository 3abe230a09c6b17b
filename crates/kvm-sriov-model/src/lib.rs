//! Hosts, libvirtd, QEMU and guests in memory: a test double for programs that use [`kvm_sriov`].
//!
//! A [`ModelHost`](host::ModelHost) is a host with VFs whose libvirtd is a [`Model`]. It needs no libvirtd, no root and
//! no adapter. Guests answer after milliseconds, late or never; libvirtd restarts; copies hang; any call can fail,
//! before or after its effect, or be the last one of its process.
//!
//! ```
//! use kvm_sriov::libvirt::LibvirtErrorKind;
//! use kvm_sriov::reconcile::Options;
//! use kvm_sriov::{DomainId, RootName, VfState};
//! use kvm_sriov_model::faults::Fault;
//! use kvm_sriov_model::host::{Ended, ModelHost};
//!
//! // Four VFs on each of the roots ib0 and ib1, and a domain without VFs whose guest answers.
//! let model = ModelHost::default();
//! model.start_domain("vm-1")?;
//! let (vm, ib0): (DomainId, RootName) = ("vm-1".parse()?, "ib0".parse()?);
//! let plugged = model.host().plug(&vm, &ib0, "02:00:c0:a8:01:05".parse()?)?;
//! let used = |vf: &kvm_sriov::Vf| vf.address == plugged.vf && vf.state != VfState::Free;
//! assert!(model.host().vfs()?.iter().any(used));
//!
//! // libvirt refuses to save the domain. The error says so, and the domain has its VF as before.
//! model.faults().arm_first("save", Fault::Fails(LibvirtErrorKind::Other));
//! let file = model.datastore().join("vm-1.save");
//! let error = model.host().save(&vm, &file).unwrap_err();
//! assert!(error.to_string().contains("save was made to fail"), "{error}");
//! assert!(model.host().vfs()?.iter().any(used));
//!
//! // The process dies in the middle of the next save, while the guest has no VF. Another process repairs what it left.
//! model.faults().arm_first("save", Fault::Dies);
//! assert!(matches!(model.run(|| model.host().save(&vm, &file)), Ended::Killed));
//! model.host().reconcile(&Options::default())?;
//! assert!(model.host().vfs()?.iter().any(used));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What there is
//!
//! * [`host`] - a host with maps, claims, a configuration and PCI devices, all in a temporary directory
//! * [`Model`] - its libvirtd: what guests ([`Guest`]), QEMU ([`Hotplug`]), copies ([`Course`]) and the daemon do.
//!   Several hosts in one world ([`ModelHost::beside`](host::ModelHost::beside)) migrate domains to each other
//! * [`faults`] - a fault at one call to libvirtd; works with any [`Hypervisor`](kvm_sriov::libvirt::Hypervisor)
//! * [`every`] - an action with a fault at each of its calls in turn, and what must be true afterwards; [`check`] -
//!   what must be true of hosts at any time
//! * [`agent`] - the end of a migration on the destination, on a thread
//!
//! # How far it is like libvirt
//!
//! Its answers, errors and events are those of libvirt and QEMU: the project runs one list of behaviours against the
//! model and, with the same assertions, against real libvirtds. It knows the calls that [`kvm_sriov`] makes, and of a
//! domain's XML what those calls read or change. A model that is used wrongly panics: it is for tests.

// It is for tests, which stop at the first surprise.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods)]

pub mod agent;
pub mod check;
mod definition;
mod device;
mod element;
pub mod every;
pub mod faults;
mod guest;
pub mod host;
mod hypervisor;
mod image;
mod job;
mod migration;
mod model;
mod refusal;
mod slots;
mod world;

pub use guest::{Guest, Hotplug};
pub use job::{Course, Phase};
pub use model::Model;
