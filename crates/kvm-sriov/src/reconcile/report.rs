//! What reconciliation found and did.

use super::decide::Repair;
use super::facts::Facts;
use crate::base::Owner;
use crate::claims;
use crate::error::{Cause, Obstacle};

/// What was found and done on a host.
#[derive(Debug, Default)]
pub struct Report {
    /// Every VM with VFs, and every VM that claims some.
    pub vms: Vec<VmReport>,
    /// Claims that were repaired; in a dry run, claims that would be repaired.
    pub claims: Vec<claims::ClaimRepair>,
    /// What could not be read, such as a VF map or a domain.
    pub problems: Vec<Cause>,
}

/// What was found and done about one VM.
#[derive(Debug)]
pub struct VmReport {
    /// The VM.
    pub owner: Owner,
    /// What was known of the VM before anything was done.
    pub found: Facts,
    /// The repairs that were done, in this order.
    pub done: Vec<Repair>,
    /// The repairs that failed.
    pub failures: Vec<RepairFailure>,
    /// The repairs that are left. In a dry run these are all repairs.
    pub left: Vec<Repair>,
    /// Whether the domain ended while it was being repaired.
    pub(super) is_gone: bool,
}

/// A repair that failed.
#[derive(Debug)]
pub struct RepairFailure {
    /// The repair.
    pub repair: Repair,
    /// Why it failed.
    pub cause: Cause,
}

/// Whether what a VM wants, what it has and what it claims are equal. Ordered from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consistency {
    /// They are equal, or an action or libvirt is working on the VM.
    Consistent,
    /// A repair is left to be done, or has failed.
    Unfinished,
    /// A person must say on which host the VM lives.
    InDoubt,
}

impl VmReport {
    pub(super) fn new(owner: Owner, found: Facts) -> Self {
        Self { owner, found, done: Vec::new(), failures: Vec::new(), left: Vec::new(), is_gone: false }
    }

    /// Adds a repair to those that were done, or to those that failed.
    pub(super) fn record(&mut self, repair: &Repair, done: Result<(), Cause>) {
        let (vm, repair) = (&self.owner.vm, repair.clone());
        match done {
            Ok(()) => {
                log::info!("{vm}: {repair}: done");
                self.done.push(repair);
            }
            Err(cause) => {
                log::debug!("{vm}: cannot {repair}: {cause}");
                self.failures.push(RepairFailure { repair, cause });
            }
        }
    }

    /// Adds what a second pass over the same VM did. Its `left` replaces this one.
    pub(super) fn extend(&mut self, later: Self) {
        self.done.extend(later.done);
        self.failures.extend(later.failures);
        self.left = later.left;
    }

    /// The consistency of the VM after what was done.
    pub fn consistency(&self) -> Consistency {
        let is_in_doubt = |repair: &Repair| matches!(repair, Repair::InDoubt(_));
        let is_left =
            |repair: &Repair| !matches!(repair, Repair::Leave(Obstacle::Locked | Obstacle::Job | Obstacle::Ending));
        if self.left.iter().any(is_in_doubt) {
            Consistency::InDoubt
        } else if self.left.iter().any(is_left) || !self.failures.is_empty() {
            Consistency::Unfinished
        } else {
            Consistency::Consistent
        }
    }
}

impl Report {
    /// The consistency of the host: that of its worst VM, root or problem.
    ///
    /// * `dry_run` - whether this is the report of a dry run, so that its claims are not repaired yet
    pub fn consistency(&self, dry_run: bool) -> Consistency {
        let own = if self.problems.is_empty() && (self.claims.is_empty() || !dry_run) {
            Consistency::Consistent
        } else {
            Consistency::Unfinished
        };
        self.vms.iter().map(VmReport::consistency).max().unwrap_or(own).max(own)
    }
}
