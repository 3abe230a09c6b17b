//! What was found and done.

use super::decide::Repair;
use super::facts::Facts;
use crate::base::Owner;
use crate::claims;
use crate::error::{Cause, Why};

/// What was found and done on a host.
#[derive(Debug, Default)]
pub struct Report {
    /// Every VM with VFs, and every VM that claims some.
    pub vms: Vec<VmReport>,
    /// Claims that were put right; in a dry run, that would be.
    pub claims: Vec<claims::Repair>,
    /// What could not be looked at.
    pub problems: Vec<Cause>,
}

/// What was found and done of one VM.
#[derive(Debug)]
pub struct VmReport {
    /// The VM.
    pub owner: Owner,
    /// What was known of it before anything was done.
    pub found: Facts,
    /// What was done, in this order.
    pub done: Vec<Repair>,
    /// What could not be done.
    pub failures: Vec<Failure>,
    /// What is left: everything in a dry run, otherwise what waits for somebody.
    pub left: Vec<Repair>,
    /// Whether its domain went while it was being put right.
    pub(super) is_gone: bool,
}

/// A repair that failed.
#[derive(Debug)]
pub struct Failure {
    /// Which one.
    pub repair: Repair,
    /// Why.
    pub cause: Cause,
}

/// How things stand after a look at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All is as it should be, or somebody works on it.
    Right,
    /// Something is left to be done.
    Left,
    /// A person must say where a VM lives.
    InDoubt,
}

impl VmReport {
    pub(super) fn new(owner: Owner, found: Facts) -> Self {
        Self { owner, found, done: Vec::new(), failures: Vec::new(), left: Vec::new(), is_gone: false }
    }

    pub(super) fn fail(&mut self, repair: Repair, cause: Cause) {
        log::debug!("{}: cannot {repair}: {cause}", self.owner.vm);
        self.failures.push(Failure { repair, cause });
    }

    /// Adds what was done later.
    pub(super) fn go_on(&mut self, later: Self) {
        self.done.extend(later.done);
        self.failures.extend(later.failures);
        self.left = later.left;
    }

    /// How the VM stands.
    pub fn verdict(&self) -> Verdict {
        let is_in_doubt = |repair: &Repair| matches!(repair, Repair::InDoubt(_));
        let is_left = |repair: &Repair| !matches!(repair, Repair::Leave(Why::Locked | Why::Job | Why::Ending));
        if self.left.iter().any(is_in_doubt) {
            Verdict::InDoubt
        } else if self.left.iter().any(is_left) || !self.failures.is_empty() {
            Verdict::Left
        } else {
            Verdict::Right
        }
    }
}

impl Report {
    /// How the host stands: as its worst VM.
    ///
    /// * `dry_run` - whether the claims in it were only looked at
    pub fn verdict(&self, dry_run: bool) -> Verdict {
        let own = if self.problems.is_empty() && (self.claims.is_empty() || !dry_run) {
            Verdict::Right
        } else {
            Verdict::Left
        };
        self.vms.iter().map(VmReport::verdict).max().unwrap_or(own).max(own)
    }
}
