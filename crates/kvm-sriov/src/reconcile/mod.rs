//! Reconciliation: what a VM wants, what it has and what it claims are made equal.
//!
//! An action was killed, a host lost power, a guest answered too late: each leaves a difference between the three, or
//! an operation that no process continues. [`reconcile`] repairs all VMs of a host, and every action repairs its own VM
//! before it begins. [`decide`] holds the rules. docs/reference/reconcile.md lists them as tables.
//!
//! ```
//! use kvm_sriov::Host;
//! use kvm_sriov::reconcile::{Consistency, Options, reconcile};
//! let dir = tempfile::tempdir()?;
//! let host = Host::builder()
//!     .uri("test:///default")
//!     .state_dir(dir.path().join("state"))
//!     .maps_in(dir.path().join("vf_maps"))
//!     .open()?;
//!
//! let options = Options { dry_run: true, ..Options::default() };
//! let report = reconcile(&host, &options)?;
//! assert!(report.vms.is_empty() && report.claims.is_empty());
//! assert_eq!(report.consistency(options.dry_run), Consistency::Consistent);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * `facts` - what is known of a VM
//! * `decide` - the rules: from facts to repairs
//! * `apply` - the repairs of a VM with a domain on this host
//! * `domainless` - the repairs of a VM that claims VFs and has no domain on this host
//! * `pass` - one pass over a host, or over one of its VMs
//! * `explain` - what is known of one VM, and the word of a person about it
//! * `open` - an action locks its VM and repairs it
//! * `watcher` - plugs back the VFs that leave after every action has stopped waiting
//! * `report` - what was found and done

mod apply;
mod decide;
mod domainless;
mod explain;
mod facts;
mod open;
mod pass;
mod report;
mod watcher;

use crate::base::Action;
pub use crate::error::{Doubt, Obstacle};
pub use decide::{Repair, decide};
pub use explain::{Explanation, explain, resolve};
pub use facts::{Busy, CheckpointState, Elsewhere, Facts, NicClaim, NicFacts, OpenOperation, SaveImage};
pub(crate) use open::{lock, open, open_to_unplug, repair, repair_to_unplug};
pub use pass::{Options, Survey, reconcile, survey};
pub use report::{Consistency, RepairFailure, Report, VmReport};
pub use watcher::watch;

/// The action that locks, claims and the journal name.
const ACTION: Action = Action::Reconcile;
