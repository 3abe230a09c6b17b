//! The actions of OpenNebula's VMM driver, one file each. `shared` holds what several actions need.
//!
//! An action takes the lock of its VM, reads the state of the host, plans, applies its changes and verifies them. When
//! it fails, it undoes its changes in reverse, and its error says what could not be undone. Calling an action a second
//! time does no harm.
//!
//! ```
//! use kvm_sriov::{Host, actions};
//! let dir = tempfile::tempdir()?;
//! let host = Host::builder()
//!     .uri("test:///default")
//!     .state_dir(dir.path().join("state"))
//!     .maps_in(dir.path().join("vf_maps"))
//!     .open()?;
//!
//! let xml = "<domain type='test'><name>one-42</name><memory>65536</memory><os><type>hvm</type></os></domain>";
//! let domain = actions::deploy(&host, &dir.path().join("42/deployment.0"), xml)?;
//! actions::reboot(&host, &domain.uuid.to_string().parse()?)?;
//! actions::cancel(&host, &"one-42".parse()?, None)?;
//!
//! let error = actions::reset(&host, &"one-42".parse()?).unwrap_err();
//! assert_eq!(error.to_string(), "reset: there is no domain one-42 on this host; nothing was changed");
//!
//! let vf = xml.replace("</domain>", "<devices><interface type='bridge'><source bridge='sriov_ib0'/>\
//!     <mac address='02:00:c0:a8:01:05'/></interface></devices></domain>");
//! let error = actions::deploy(&host, &dir.path().join("42/deployment.1"), &vf).unwrap_err();
//! assert!(error.to_string().starts_with("deploy: there is no VF map ib0"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attach_disk;
mod attach_nic;
mod cancel;
mod deploy;
mod detach_disk;
mod detach_nic;
mod exec;
mod exec_cancel;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod migrate;
mod migrate_local;
mod poll;
mod prereconfigure;
mod reboot;
mod reconfigure;
mod reset;
mod resize;
mod resize_disk;
mod restore;
mod restore_ceph;
mod save;
mod save_ceph;
mod shared;
mod shutdown;
mod snapshot_create;
mod snapshot_delete;
mod snapshot_revert;

pub use attach_disk::attach_disk;
pub use attach_nic::attach_nic;
pub(crate) use attach_nic::with_vf as plug_vf;
pub use cancel::cancel;
pub use deploy::deploy;
pub use detach_disk::detach_disk;
pub use detach_nic::detach_nic;
pub use exec::exec;
pub use exec_cancel::exec_cancel;
pub use migrate::migrate;
pub use migrate_local::migrate_local;
pub use poll::{Measurement, poll};
pub use prereconfigure::prereconfigure;
pub use reboot::reboot;
pub use reconfigure::reconfigure;
pub use reset::reset;
pub use resize::resize;
pub use resize_disk::resize_disk;
pub use restore::restore;
pub use restore_ceph::restore_ceph;
pub use save::save;
pub use save_ceph::save_ceph;
pub use shared::ceph::Ceph;
pub use shared::route::Route;
pub use shutdown::shutdown;
pub use snapshot_create::snapshot_create;
pub use snapshot_delete::snapshot_delete;
pub use snapshot_revert::snapshot_revert;
