//! Reconciliation: what a VM wants, what it has, and what is claimed are made equal.
//!
//! An action that was killed, a host that lost its power, a guest that answered too late: each leaves a difference between
//! the three, or an operation that nobody goes on with. [`reconcile`] puts all VMs of a host right, and every action puts
//! its own VM right before it begins. [`decide`] holds the rules, which docs/reference/reconcile.md lists.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use kvm_sriov::reconcile::{Options, Consistency, reconcile};
//! use kvm_sriov::{Host, config::{Kvmrc, MapDirs}, libvirt::Libvirt};
//! let dir = tempfile::tempdir()?;
//! std::fs::write(dir.path().join("kvmrc"), format!("VF_STATE_DIR={}/state\n", dir.path().display()))?;
//! let kvmrc = Kvmrc::load(&[dir.path().join("kvmrc")]);
//! let libvirt = Libvirt::open("test:///default", Duration::from_secs(30))?;
//! let host = Host::new(kvmrc.into_settings(), Arc::new(libvirt), MapDirs::new(vec![dir.path().join("vf_maps")]));
//!
//! let options = Options { dry_run: true, ..Options::default() };
//! let report = reconcile(&host, &options)?;
//! assert!(report.vms.is_empty() && report.claims.is_empty());
//! assert_eq!(report.consistency(options.dry_run), Consistency::Consistent);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * `facts` - what is known of a VM
//! * `decide` - the rules
//! * `apply` - repairs are done
//! * `open` - an action takes its VM
//! * `watcher` - plugs back what leaves after every action stopped waiting
//! * `report` - what was found and done

mod apply;
mod decide;
mod facts;
mod open;
mod report;
mod watcher;

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

pub use crate::error::{Doubt, Obstacle};
pub use decide::{Repair, decide};
pub use facts::{Busy, CheckpointState, Elsewhere, Facts, NicClaim, NicFacts, OpenOperation, SaveImage};
pub(crate) use open::{lock, open, open_to_unplug};
pub use report::{Consistency, RepairFailure, Report, VmReport};
pub use watcher::watch;

use apply::Scope;

use crate::base::ascending;
use crate::base::{Action, DeployId, DomainName, NicKey, Owner, Position};
use crate::claims::{Claim, ClaimError, ClaimStore, Holder};
use crate::config::VfMap;
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::vm::{self, Vm};
use crate::xml::{LiveDomain, Wanted};

/// What claims and the journal call it.
const ACTION: Action = Action::Reconcile;

/// So many VMs are put right at once: plugging a VF takes about a second, and a guest may take long to release one.
const AT_ONCE: usize = 8;

/// A lock that an action has is never waited for; but who only looks whether it is held has it for a moment, too.
const A_MOMENT: Duration = Duration::from_millis(100);

/// How a host is put right.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only say what would be done. Takes no lock and writes nothing.
    pub dry_run: bool,
    /// After this time nothing new is begun. A call to libvirt that is in flight then may take as long as the host lets it:
    /// [`Host::call_limit`], or less with [`Host::open_lenient_until`].
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { dry_run: false, timeout: Duration::from_secs(60) }
    }
}

/// Puts a host right: the claims of all roots, and every VM that has or wants VFs or claims some.
///
/// A VM that an action or libvirt works on is left alone, and so is one of which it is not known where it runs. Never waits
/// for a lock. May run at any time, and several times at once.
///
/// # Errors
/// libvirtd does not answer, or the state directory can't be used; nothing was changed. What goes wrong with one root or
/// one VM is in the report, and keeps nothing else from being put right.
pub fn reconcile(host: &Host, options: &Options) -> Result<Report, Cause> {
    let until = Instant::now() + options.timeout;
    let mut report = Report::default();
    let (maps, problems) = host.readable_maps();
    report.problems.extend(problems.into_iter().map(Cause::from));
    let domains = host.hypervisor().domains()?;
    let store = match host.existing_claims()? {
        None if !options.dry_run && !maps.is_empty() => Some(host.claims()?),
        other => other,
    };
    if let Some(store) = &store {
        let claims = if options.dry_run { inspect(host, store, &maps) } else { put_right(host, store, &maps) };
        match claims {
            Ok(claims) => report.claims = claims,
            Err(cause) => report.problems.push(cause),
        }
        report.problems.extend(store.problems()?.into_iter().map(Cause::from));
    }
    let owners: Vec<Owner> = domains.iter().map(DomainRef::owner).collect();
    let claimants = store.as_ref().map_or_else(|| Ok(Vec::new()), ClaimStore::claimants)?;
    let gone: Vec<Owner> =
        claimants.into_iter().map(|claimant| claimant.owner).filter(|own| !owners.iter().any(|o| o.is(own))).collect();
    if let Some(store) = store.filter(|_| !options.dry_run) {
        let here: Vec<&DomainName> = owners.iter().chain(&gone).map(|owner| &owner.vm).collect();
        if let Err(error) = store.sweep_locks(&here) {
            report.problems.push(error.into());
        }
    }
    let subjects = domains.into_iter().map(Subject::Domain).chain(gone.into_iter().map(Subject::Gone));
    let look = Look { host, dry_run: options.dry_run, until, elsewhere: Elsewhere::Unknown };
    let (vms, problems) = look.at_all(subjects.collect());
    report.vms = vms;
    report.problems.extend(problems);
    Ok(report)
}

fn put_right(host: &Host, store: &ClaimStore, maps: &[VfMap]) -> Result<Vec<crate::claims::Repair>, Cause> {
    host.put_claims_right(store, maps, ACTION).map(|(_, repairs)| repairs)
}

fn inspect(host: &Host, store: &ClaimStore, maps: &[VfMap]) -> Result<Vec<crate::claims::Repair>, Cause> {
    let seen = store.entries()?;
    Ok(store.inspect(&seen, &host.backing()?, maps)?)
}

/// A VM to look at.
enum Subject {
    Domain(DomainRef),
    /// One that claims VFs and has no domain here.
    Gone(Owner),
}

struct Look<'a> {
    host: &'a Host,
    dry_run: bool,
    until: Instant,
    elsewhere: Elsewhere,
}

impl Look<'_> {
    /// Several at once: no VM waits for the guest of another.
    fn at_all(&self, subjects: Vec<Subject>) -> (Vec<VmReport>, Vec<Cause>) {
        let workers = AT_ONCE.min(subjects.len());
        let waiting = Mutex::new(VecDeque::from(subjects));
        let next = || waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
        let work = || std::iter::from_fn(next).map(|subject| self.at(subject)).collect::<Vec<_>>();
        let results: Vec<_> = thread::scope(|scope| {
            // This thread works, too, so that all is done on a host that gives no others.
            let others: Vec<_> =
                (1..workers).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
            let joined = |worker: ScopedJoinHandle<'_, _>| worker.join().unwrap_or_else(|panic| resume_unwind(panic));
            let own = work();
            others.into_iter().flat_map(joined).chain(own).collect()
        });
        let (mut vms, mut problems) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(report) => vms.extend(report),
                Err(cause) => problems.push(cause),
            }
        }
        (ascending(vms, |a: &VmReport, b| a.owner.vm.cmp(&b.owner.vm)), problems)
    }

    fn at(&self, subject: Subject) -> Result<Option<VmReport>, Cause> {
        let looked = match subject {
            Subject::Domain(domain) => self.at_domain(domain),
            Subject::Gone(owner) => self.at_gone(owner),
        };
        match looked {
            // It ended since it was listed: the next look frees what it had.
            Err(Cause::Absent { .. }) => Ok(None),
            other => other,
        }
    }

    fn at_domain(&self, domain: DomainRef) -> Result<Option<VmReport>, Cause> {
        let live = vm::read(self.host, &domain)?;
        let wanted = match vm::wanted(&live)? {
            // Devices of ours without a note: the action that brought the first one died before it could write it.
            None if live.positions().is_empty() => return Ok(None),
            wanted => wanted.unwrap_or_default(),
        };
        let report = self.glance(&domain, &live, &wanted)?;
        if self.dry_run || report.left.iter().all(Repair::is_note) {
            return Ok(Some(report));
        }
        let store = self.host.claims()?;
        let lock = match store.lock_vm(&domain.name, ACTION, A_MOMENT) {
            Err(ClaimError::Busy { .. }) => return Ok(Some(locked(report))),
            other => other?,
        };
        let owner = domain.owner();
        let mut vm = Vm::locked(self.host, ACTION, domain, store, lock, None)?;
        let mut report = apply::repair(&mut vm, self.until, self.elsewhere, Scope::Everything)?;
        if report.is_gone {
            let Vm { store, lock, .. } = vm;
            let gone = apply::Domainless { host: self.host, action: ACTION, store, lock, owner };
            if let Some(later) = gone.repair(self.until, self.elsewhere)? {
                report.extend(later);
            }
        }
        Ok(Some(report))
    }

    /// What is to be done to a domain, without its lock.
    fn glance(&self, domain: &DomainRef, live: &LiveDomain, wanted: &Wanted) -> Result<VmReport, Cause> {
        let store = self.host.existing_claims()?;
        let claimants = store.as_ref().map_or_else(|| Ok(Vec::new()), ClaimStore::claimants)?;
        let mut facts = Facts::of_domain(domain, live, wanted, &claimants, self.elsewhere).ask(self.host, domain)?;
        // Otherwise the lock itself is tried, if there is something to do.
        if self.dry_run && is_locked(store.as_ref(), &domain.name)? {
            facts.busy = Busy::Locked;
        }
        let mut report = VmReport::new(domain.owner(), facts);
        report.left = decide(&report.found);
        Ok(report)
    }

    fn at_gone(&self, owner: Owner) -> Result<Option<VmReport>, Cause> {
        let Some(store) = self.host.existing_claims()? else { return Ok(None) };
        let Some(report) = self.glance_at_gone(&store, &owner)? else { return Ok(None) };
        if self.dry_run || report.left.iter().all(Repair::is_note) {
            return Ok(Some(report));
        }
        let lock = match store.lock_vm(&owner.vm, ACTION, A_MOMENT) {
            Err(ClaimError::Busy { .. }) => return Ok(Some(locked(report))),
            other => other?,
        };
        // It may have come back since it was listed.
        let id = owner.uuid.clone().map_or_else(|| DeployId::Name(owner.vm.clone()), DeployId::Uuid);
        if self.host.hypervisor().find(&id)?.is_some_and(|domain| domain.id.is_some()) {
            return Ok(None);
        }
        apply::Domainless { host: self.host, action: ACTION, store, lock, owner }.repair(self.until, self.elsewhere)
    }

    /// What is to be done about the claims of a VM without a domain, without its lock; `None` when it claims nothing any more.
    fn glance_at_gone(&self, store: &ClaimStore, owner: &Owner) -> Result<Option<VmReport>, Cause> {
        let claimants = store.claimants()?;
        let Some(claimant) = claimants.iter().find(|claimant| claimant.owner.is(owner)) else { return Ok(None) };
        let mut facts = Facts::of_claimant(claimant, apply::is_outlived(self.host, owner)?, self.elsewhere);
        if self.dry_run && is_locked(Some(store), &owner.vm)? {
            facts.busy = Busy::Locked;
        }
        let mut report = VmReport::new(owner.clone(), facts);
        report.left = decide(&report.found);
        Ok(Some(report))
    }
}

fn is_locked(store: Option<&ClaimStore>, vm: &DomainName) -> Result<bool, Cause> {
    Ok(store.map_or(Ok(None), |store| store.vm_holder(vm))?.is_some())
}

/// What was seen without the lock may have been an action's work in progress.
fn locked(mut report: VmReport) -> VmReport {
    report.found.busy = Busy::Locked;
    report.left = decide(&report.found);
    report
}

/// Puts right what an earlier action left of a VM whose lock is held: nobody works on it any more.
///
/// * returns why NICs did not get what they lack, each a line in the log already: that is no reason for another action to fail
///
/// # Errors
/// An operation that is open can't be ended; what was put right until then is right. A VM that is in doubt, or in whose open
/// operation somebody else has a part, was not touched.
pub(crate) fn repair(vm: &mut Vm<'_>) -> Result<Lacks, Cause> {
    repair_in_scope(vm, Scope::Everything)
}

/// As [`repair`], but plugs no VF: for an action that would unplug it right away.
pub(crate) fn repair_to_unplug(vm: &mut Vm<'_>) -> Result<(), Cause> {
    repair_in_scope(vm, Scope::AllButPlugging).map(drop)
}

/// What NICs of a VM lack that nobody could give them.
#[derive(Debug, Default)]
pub(crate) struct Lacks(Vec<(Position, Cause)>);

impl Lacks {
    /// Refuses to go on when a NIC that is not one of these lacks its VF or its dummy.
    ///
    /// # Errors
    /// Why the first of them lacks it.
    pub(crate) fn only(self, excused: &[NicKey]) -> Result<(), Cause> {
        let is_excused = |position: &Position| excused.iter().any(|nic| nic.position == *position);
        self.0.into_iter().find(|(position, _)| !is_excused(position)).map_or(Ok(()), |(_, cause)| Err(cause))
    }
}

fn repair_in_scope(vm: &mut Vm<'_>, scope: Scope) -> Result<Lacks, Cause> {
    let until = Instant::now() + vm.host.call_limit(vm.live.memory_kib);
    let report = apply::repair(vm, until, Elsewhere::Unknown, scope)?;
    vm.note_lacking();
    if report.is_gone || report.done.contains(&Repair::Destroy) {
        return Err(Cause::Absent { id: vm.domain.name.to_string() });
    }
    for left in &report.left {
        match left {
            Repair::InDoubt(doubt) => return Err(Cause::Unresolved { vm: vm.domain.name.clone(), doubt: *doubt }),
            Repair::Leave(why @ (Obstacle::Newer | Obstacle::Job | Obstacle::Ending)) => {
                if let Some(operation) = &vm.wanted.operation {
                    let operation = operation.kind.to_string();
                    return Err(Cause::OpenOperation { vm: vm.domain.name.clone(), operation, why: *why });
                }
            }
            _ => {}
        }
    }
    let mut lacks = Lacks::default();
    let mut worst = None;
    for RepairFailure { repair, cause } in report.failures {
        // What one NIC lacks keeps no action from its work, and neither does a claim that is not as it should be.
        let matters = !repair.concerns_one_nic() || matches!(cause, Cause::Cancelled { .. });
        if worst.is_none() && matters {
            worst = Some(cause);
            continue;
        }
        log::warn!("{}: cannot {repair}: {cause}", vm.domain.name);
        if let Repair::Plug(position) | Repair::PlugDummy(position) = repair {
            lacks.0.push((position, cause));
        }
    }
    worst.map_or(Ok(lacks), Err)
}

/// All that is known of one VM, and what [`reconcile`] would do to it.
#[derive(Debug)]
pub struct Explanation {
    /// The VM as it stands, and in `left` what would be done.
    pub report: VmReport,
    /// What it should have; nothing for a VM whose domain is not here.
    pub wanted: Wanted,
    /// Its domain as libvirt shows it; `None` when it is not here.
    pub live: Option<LiveDomain>,
    /// What it claims.
    pub claims: Vec<Claim>,
    /// The action that works on it.
    pub holder: Option<Holder>,
}

/// Looks at one VM, and changes nothing.
///
/// # Errors
/// There is no such domain and no claim of such a VM, or it can't be looked at.
pub fn explain(host: &Host, id: &DeployId) -> Result<Explanation, Cause> {
    let look = Look { host, dry_run: true, until: Instant::now(), elsewhere: Elsewhere::Unknown };
    let store = host.existing_claims()?;
    let claims = |owner: &Owner| store.as_ref().map_or_else(|| Ok(Vec::new()), |store| store.claims_of(owner));
    let holder = |vm: &DomainName| store.as_ref().map_or(Ok(None), |store| store.vm_holder(vm));
    let absent = || Cause::Absent { id: id.to_string() };
    let Some(domain) = host.hypervisor().find(id)?.filter(|domain| domain.id.is_some()) else {
        let owner = claimant(store.as_ref(), id)?.ok_or_else(absent)?;
        let report = look.at_gone(owner.clone())?.ok_or_else(absent)?;
        return Ok(Explanation {
            report,
            wanted: Wanted::default(),
            live: None,
            claims: claims(&owner)?,
            holder: holder(&owner.vm)?,
        });
    };
    let live = vm::read(host, &domain)?;
    let wanted = vm::wanted(&live)?.unwrap_or_default();
    let report = look.glance(&domain, &live, &wanted)?;
    let (claims, holder) = (claims(&domain.owner())?, holder(&domain.name)?);
    Ok(Explanation { report, wanted, live: Some(live), claims, holder })
}

/// The VM that claims VFs and is meant.
fn claimant(store: Option<&ClaimStore>, id: &DeployId) -> Result<Option<Owner>, Cause> {
    let claimants = store.map_or_else(|| Ok(Vec::new()), ClaimStore::claimants)?;
    let is_meant = |owner: &Owner| match id {
        DeployId::Uuid(uuid) => owner.uuid.as_ref() == Some(uuid),
        DeployId::Name(name) => owner.vm == *name,
        DeployId::Id(_) => false,
    };
    Ok(claimants.into_iter().map(|claimant| claimant.owner).find(is_meant))
}

/// Puts one VM right, with what is known of it on another host.
///
/// * `elsewhere` - what the other end says, or a person
///
/// # Errors
/// There is no such VM, another action works on it, or it can't be looked at; nothing was changed.
pub fn resolve(host: &Host, id: &DeployId, elsewhere: Elsewhere) -> Result<VmReport, Cause> {
    let until = Instant::now() + Options::default().timeout;
    let look = Look { host, dry_run: false, until, elsewhere };
    let subject = match host.hypervisor().find(id)?.filter(|domain| domain.id.is_some()) {
        Some(domain) => Subject::Domain(domain),
        None => {
            let store = host.existing_claims()?;
            Subject::Gone(claimant(store.as_ref(), id)?.ok_or_else(|| Cause::Absent { id: id.to_string() })?)
        }
    };
    look.at(subject)?.ok_or_else(|| Cause::Absent { id: id.to_string() })
}
