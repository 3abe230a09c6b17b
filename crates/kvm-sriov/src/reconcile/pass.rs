//! One pass over a host, or over one of its VMs.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::apply::{self, Scope};
use super::domainless::{self, Domainless};
use super::{ACTION, Busy, Elsewhere, Facts, Repair, Report, VmReport, decide};
use crate::base::{DomainId, DomainName, Owner, ascending, lock};
use crate::claims::{Backing, ClaimError, ClaimRepair, ClaimStore, Claimant, Entry};
use crate::config::{VfMap, VfMapError};
use crate::error::Cause;
use crate::host::{Host, SeenDomain, SeenDomains, Vf};
use crate::libvirt::DomainRef;
use crate::os;
use crate::vm::{self, Vm};
use crate::xml::{LiveDomain, Wanted};

/// How many VMs are repaired at once. Plugging a VF takes about a second, and a guest may take long to release one.
const AT_ONCE: usize = 8;

/// How long a VM's lock may take. A pass never waits for an action, but a process that only tests the lock holds it for
/// a moment, too.
const LOCK_MOMENT: Duration = Duration::from_millis(100);

/// How a host is reconciled.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only report what would be done: take no lock and write nothing.
    pub dry_run: bool,
    /// After this time no repair is begun. A call of libvirt that has begun by then may take as long as the host
    /// allows: [`Host::call_limit`], or less with [`Host::open_lenient_until`].
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { dry_run: false, timeout: Duration::from_secs(60) }
    }
}

/// What a host's VFs are used for, and what [`reconcile`] would do.
#[derive(Debug)]
pub struct Survey {
    /// Every VF of every root, in the order of the maps.
    pub vfs: Vec<Vf>,
    /// What a dry run finds.
    pub report: Report,
}

/// Reconciles a host: the claims of all roots, and every VM that has, wants or claims VFs.
///
/// Leaves alone a VM that an action or libvirt is working on, and a VM in doubt. Never waits for a lock. Several
/// processes may reconcile a host at once, at any time. Reads each domain once; a domain with something to repair is
/// read again with its VM's lock held.
///
/// # Errors
/// libvirtd does not answer, or the state directory can't be used; nothing was changed. A problem with one root or one
/// VM is no error: it is in the report, and the others are repaired.
pub fn reconcile(host: &Host, options: &Options) -> Result<Report, Cause> {
    let until = os::now() + options.timeout;
    Look::at(host)?.reconcile(host, options.dry_run, until)
}

/// [`Host::vfs`] and a dry run of [`reconcile`], with one read of each domain.
///
/// # Errors
/// As both. Nothing was changed.
pub fn survey(host: &Host) -> Result<Survey, Cause> {
    let Look { maps, problems, store, entries, domains, backing } = Look::at(host)?;
    let (entries, backing) = (entries?, backing?);
    let vfs = host.vfs_by(&maps, &entries, &backing);
    let look = Look { maps, problems, store, entries: Ok(entries), domains, backing: Ok(backing) };
    let report = look.reconcile(host, true, os::now())?;
    Ok(Survey { vfs, report })
}

/// A host as it was read.
struct Look {
    maps: Vec<VfMap>,
    /// The maps that can't be read.
    problems: Vec<VfMapError>,
    store: Option<ClaimStore>,
    /// The claims. They are read before libvirt is asked: only a claim that existed before, and whose VF no domain shows
    /// now, can be stale.
    entries: Result<Vec<Entry>, ClaimError>,
    domains: Vec<SeenDomain>,
    backing: Result<Backing, Cause>,
}

impl Look {
    fn at(host: &Host) -> Result<Self, Cause> {
        let (maps, problems) = host.readable_maps();
        let store = host.existing_claims()?;
        let entries = store.as_ref().map_or_else(|| Ok(Vec::new()), ClaimStore::entries);
        let SeenDomains { domains, backing } = host.read_domains()?;
        Ok(Self { maps, problems, store, entries, domains, backing })
    }

    fn reconcile(self, host: &Host, dry_run: bool, until: Instant) -> Result<Report, Cause> {
        let mut report = Report::default();
        report.problems.extend(self.problems.into_iter().map(Cause::from));
        let store = match self.store {
            None if !dry_run && !self.maps.is_empty() => Some(host.claims()?),
            other => other,
        };
        if let Some(store) = &store {
            match repair_claims(host, store, self.entries, self.backing, &self.maps, dry_run) {
                Ok(repairs) => report.claims = repairs,
                Err(cause) => report.problems.push(cause),
            }
            report.problems.extend(store.problems()?.into_iter().map(Cause::from));
        }
        let owners: Vec<Owner> = self.domains.iter().map(|seen| seen.domain.owner()).collect();
        let claimants = claimants(store.as_ref())?;
        let is_domainless = |owner: &&Owner| !owners.iter().any(|other| other.is(owner));
        let domainless: Vec<Owner> =
            claimants.iter().map(|claimant| &claimant.owner).filter(is_domainless).cloned().collect();
        if let Some(store) = store.filter(|_| !dry_run) {
            let here: Vec<&DomainName> = owners.iter().chain(&domainless).map(|owner| &owner.vm).collect();
            if let Err(error) = store.sweep_locks(&here) {
                report.problems.push(error.into());
            }
        }
        let domainless = domainless.into_iter().map(Subject::Domainless);
        let domains = self.domains.into_iter();
        let subjects = domains.map(|seen| Subject::Domain(seen.domain, seen.live.map(Box::new))).chain(domainless);
        let pass = Pass { host, dry_run, until, elsewhere: Elsewhere::Unknown };
        let (vms, problems) = pass.over_all(subjects.collect(), &claimants);
        report.vms = vms;
        report.problems.extend(problems);
        Ok(report)
    }
}

/// The repairs of the claims themselves, done or (in a dry run) only found.
fn repair_claims(
    host: &Host,
    store: &ClaimStore,
    entries: Result<Vec<Entry>, ClaimError>,
    backing: Result<Backing, Cause>,
    maps: &[VfMap],
    dry_run: bool,
) -> Result<Vec<ClaimRepair>, Cause> {
    let (entries, backing) = (entries?, backing?);
    if dry_run {
        Ok(store.inspect(&entries, &backing, maps)?)
    } else {
        host.repair_claims(store, &entries, &backing, maps, ACTION)
    }
}

/// Everybody who claims VFs; nobody on a host without a state directory.
pub(super) fn claimants(store: Option<&ClaimStore>) -> Result<Vec<Claimant>, ClaimError> {
    store.map_or_else(|| Ok(Vec::new()), ClaimStore::claimants)
}

/// A VM to reconcile.
pub(super) enum Subject {
    /// A VM with a domain on this host, and the domain's live XML if it was read.
    Domain(DomainRef, Option<Box<LiveDomain>>),
    /// A VM that claims VFs and has no domain on this host.
    Domainless(Owner),
}

/// One pass over VMs of a host.
pub(super) struct Pass<'a> {
    pub(super) host: &'a Host,
    pub(super) dry_run: bool,
    /// After this time no repair is begun.
    pub(super) until: Instant,
    pub(super) elsewhere: Elsewhere,
}

impl Pass<'_> {
    /// Reconciles several VMs at once, so that no VM waits for the guest of another. Returns what could not be read as
    /// well.
    ///
    /// * `claimants` - everybody who claims VFs, as it was read last
    fn over_all(&self, subjects: Vec<Subject>, claimants: &[Claimant]) -> (Vec<VmReport>, Vec<Cause>) {
        // In a simulation a thread of its own would not be simulated.
        let at_once = if os::simulated().is_some() { 1 } else { AT_ONCE };
        let workers = at_once.min(subjects.len());
        let waiting = Mutex::new(VecDeque::from(subjects));
        let next = || lock(&waiting).pop_front();
        let work = || std::iter::from_fn(next).map(|subject| self.over(subject, claimants)).collect::<Vec<_>>();
        let results: Vec<_> = thread::scope(|scope| {
            // This thread works, too: if the system gives no other thread, the pass only takes longer.
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

    /// Reconciles one VM; `None` when it has nothing to do with VFs, or has ended.
    ///
    /// * `claimants` - everybody who claims VFs, as it was read with the domain
    pub(super) fn over(&self, subject: Subject, claimants: &[Claimant]) -> Result<Option<VmReport>, Cause> {
        let report = match subject {
            Subject::Domain(domain, live) => self.over_domain(domain, live.as_deref(), claimants),
            Subject::Domainless(owner) => self.over_domainless(owner),
        };
        match report {
            // The domain ended since it was listed. The next pass releases its claims.
            Err(Cause::Absent { .. }) => Ok(None),
            other => other,
        }
    }

    fn over_domain(
        &self,
        domain: DomainRef,
        seen: Option<&LiveDomain>,
        claimants: &[Claimant],
    ) -> Result<Option<VmReport>, Cause> {
        let first = match seen {
            Some(live) => match self.inspect(&domain, live, claimants)? {
                Some(report) if !report.left.is_empty() => Some(report),
                // Most VMs of a host have nothing to repair, so they are read only once.
                consistent => return Ok(consistent),
            },
            None => None,
        };
        let report = match first.filter(|report| !self.is_final(report)) {
            // It is read again when its lock is held.
            Some(report) => report,
            // The VM may have changed since it was read with all others, and this report is shown to a person.
            None => {
                let (live, claimants) = (vm::read(self.host, &domain)?, self.claimants()?);
                let Some(report) = self.inspect(&domain, &live, &claimants)? else { return Ok(None) };
                report
            }
        };
        if self.is_final(&report) {
            return Ok(Some(report));
        }
        let store = self.host.claims()?;
        let lock = match store.lock_vm(&domain.name, ACTION, LOCK_MOMENT) {
            Err(ClaimError::Busy { .. }) => return Ok(Some(locked(report))),
            other => other?,
        };
        let owner = domain.owner();
        let mut vm = Vm::locked(self.host, ACTION, domain, store, lock, None)?;
        let mut report = apply::repair(&mut vm, self.until, self.elsewhere, Scope::Everything)?;
        if report.is_gone {
            let Vm { store, lock, .. } = vm;
            let gone = Domainless { host: self.host, store, lock, owner };
            if let Some(later) = gone.repair(self.until, self.elsewhere)? {
                report.extend(later);
            }
        }
        Ok(Some(report))
    }

    /// What would be done to a VM with a domain here; `None` when it has nothing to do with VFs. Takes no lock and changes
    /// nothing.
    fn inspect(
        &self,
        domain: &DomainRef,
        live: &LiveDomain,
        claimants: &[Claimant],
    ) -> Result<Option<VmReport>, Cause> {
        match vm::wanted(live)? {
            None if live.positions().is_empty() => Ok(None),
            // A domain with our devices and without our metadata: the action that plugged the first one died before it
            // wrote them.
            wanted => self.inspect_wanting(domain, live, &wanted.unwrap_or_default(), claimants).map(Some),
        }
    }

    /// What would be done to a VM that should have these VFs.
    pub(super) fn inspect_wanting(
        &self,
        domain: &DomainRef,
        live: &LiveDomain,
        wanted: &Wanted,
        claimants: &[Claimant],
    ) -> Result<VmReport, Cause> {
        let facts = Facts::of_domain(domain, live, wanted, claimants, self.elsewhere).ask(self.host, domain)?;
        self.plan(self.host.existing_claims()?.as_ref(), domain.owner(), facts)
    }

    /// Everybody who claims VFs now.
    pub(super) fn claimants(&self) -> Result<Vec<Claimant>, Cause> {
        Ok(claimants(self.host.existing_claims()?.as_ref())?)
    }

    /// Whether a report stays as it is: this is a dry run, or there is nothing to repair.
    fn is_final(&self, report: &VmReport) -> bool {
        self.dry_run || report.left.iter().all(Repair::is_note)
    }

    pub(super) fn over_domainless(&self, owner: Owner) -> Result<Option<VmReport>, Cause> {
        let Some(store) = self.host.existing_claims()? else { return Ok(None) };
        let Some(report) = self.inspect_domainless(&store, &owner)? else { return Ok(None) };
        if self.is_final(&report) {
            return Ok(Some(report));
        }
        let lock = match store.lock_vm(&owner.vm, ACTION, LOCK_MOMENT) {
            Err(ClaimError::Busy { .. }) => return Ok(Some(locked(report))),
            other => other?,
        };
        // The domain may have been started since it was listed.
        let id = owner.uuid.clone().map_or_else(|| DomainId::Name(owner.vm.clone()), DomainId::Uuid);
        if self.host.hypervisor().find(&id)?.is_some_and(|domain| domain.id.is_some()) {
            return Ok(None);
        }
        Domainless { host: self.host, store, lock, owner }.repair(self.until, self.elsewhere)
    }

    /// What would be done about the claims of a VM without a domain here; `None` when it no longer claims anything.
    /// Takes no lock and changes nothing.
    fn inspect_domainless(&self, store: &ClaimStore, owner: &Owner) -> Result<Option<VmReport>, Cause> {
        let claimants = store.claimants()?;
        let Some(claimant) = claimants.iter().find(|claimant| claimant.owner.is(owner)) else { return Ok(None) };
        let facts = Facts::of_claimant(claimant, domainless::is_outlived(self.host, owner)?, self.elsewhere);
        self.plan(Some(store), owner.clone(), facts).map(Some)
    }

    /// A report in which all repairs are left.
    fn plan(&self, store: Option<&ClaimStore>, owner: Owner, mut facts: Facts) -> Result<VmReport, Cause> {
        // A pass that is no dry run takes the lock before it changes anything.
        if self.dry_run && store.map_or(Ok(None), |store| store.vm_holder(&owner.vm))?.is_some() {
            facts.busy = Busy::Locked;
        }
        let mut report = VmReport::new(owner, facts);
        report.left = decide(&report.found);
        Ok(report)
    }
}

/// Replaces the repairs of a report when an action holds the VM's lock: what was found without the lock may have been
/// the action's work in progress.
fn locked(mut report: VmReport) -> VmReport {
    report.found.busy = Busy::Locked;
    report.left = decide(&report.found);
    report
}
