//! The end that answers: the agent on the destination of a migration, and on the source of one that the front-end asks for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::conversation::{Conversation, Pulse};
use super::{Answer, MAGIC, Presence, Request, VERSION, Visitor, errand};
use crate::actions::storage::{Image, make_image};
use crate::claims::{ClaimError, ClaimStore, NicKey, Owner, Request as ClaimRequest, VmLock};
use crate::error::Cause;
use crate::host::{Host, POLL};
use crate::libvirt::{DomainRef, JobKind, RunState};
use crate::span::{Kind, Span};
use crate::sudo::Sudo;
use crate::vf_map::VfMap;
use crate::vm::gone;
use crate::vm::{self, Vm};
use crate::xml::{Mode, Wanted, WantedNic};
use crate::{DeployId, DomainName, DomainUuid, Position, RootName};

/// What the agent's locks and journal lines call it.
const ACTION: &str = "migrate";

/// How long a domain may stay on its way in when nobody asks any more. Its source takes a minute to know that this agent
/// is gone; then it aborts, and libvirt removes the domain here.
const WAY_IN: Duration = Duration::from_secs(180);

/// How long libvirtd may be away when a move is given up: the source waits for the answer. What is not freed then is freed when
/// the source is gone.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// Answers requests until there are no more, then leaves the host as it must be: a VM that runs here gets all that it was to
/// get, and nothing is claimed for one that does not come.
///
/// * `open` - opens this host; what prevents it is the answer to every request
///
/// # Source
/// docs/agent.md.
pub fn serve(
    open: impl FnOnce() -> Result<Host, Cause>,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
) {
    let conversation = match Conversation::new(input, output, Pulse::default()) {
        Ok(conversation) => conversation,
        // The end of this program is the answer.
        Err(error) => return log::error!("the agent can't listen: {error}"),
    };
    conversation.say(format!("{MAGIC} {VERSION} {}", env!("CARGO_PKG_VERSION")));
    let host = match open() {
        Ok(host) => host,
        Err(cause) => {
            while conversation.wait().is_some() {
                conversation.say(Answer::from(&cause));
            }
            return;
        }
    };
    let mut desk = Desk { host: &host, expected: None };
    while let Some(line) = conversation.wait() {
        let _span = Span::begin(Kind::Request, "agent");
        let answer = match line.parse() {
            Ok(request) => desk.answer(request).unwrap_or_else(|cause| Answer::from(&cause)),
            Err(error) => Answer::Refused(error.to_string()),
        };
        conversation.say(answer);
    }
    desk.close();
}

/// Where a VM is, seen from this host.
///
/// # Errors
/// libvirtd does not answer.
pub(crate) fn presence(host: &Host, uuid: &DomainUuid) -> Result<(Presence, Option<DomainRef>), Cause> {
    let hypervisor = host.hypervisor();
    let found = hypervisor.find(&DeployId::Uuid(uuid.clone()))?.filter(|domain| domain.id.is_some());
    let Some(domain) = found else { return Ok((Presence::Absent, None)) };
    let comes_in = hypervisor.job(&domain)?.is_some_and(|job| job.kind == JobKind::MigrationIn);
    let presence = match hypervisor.state(&domain)? {
        None => return Ok((Presence::Absent, None)),
        Some(RunState::Ending) => Presence::Ending,
        Some(RunState::PausedForMigration) => Presence::Incoming,
        Some(_) if comes_in => Presence::Incoming,
        Some(RunState::Running) => Presence::Running,
        Some(_) => Presence::Paused,
    };
    Ok((presence, Some(domain)))
}

/// The agent at work.
struct Desk<'h> {
    host: &'h Host,
    expected: Option<Expected>,
}

/// A VM that is to come, and what is held for it.
struct Expected {
    visitor: Visitor,
    /// Claims and lock; `None` for a VM without VFs, which touches neither.
    held: Option<(ClaimStore, VmLock)>,
    snapshots: Vec<(String, bool)>,
    made_dir: Option<PathBuf>,
}

impl Desk<'_> {
    fn answer(&mut self, request: Request) -> Result<Answer, Cause> {
        match request {
            Request::Prepare(visitor) => self.prepare(*visitor),
            Request::Image { path, format, size } => self.expected()?.make_image(&path, &format, size),
            Request::Symlink { path, target } => self.expected()?.make_link(&path, &target),
            Request::Snapshot { is_current, xml } => {
                self.expected()?.snapshots.push((xml, is_current));
                Ok(Answer::Done)
            }
            Request::Finish => self.finish(),
            Request::Abort { destroy } => self.abort(destroy),
            Request::State(uuid) => Ok(Answer::State(presence(self.host, &uuid)?.0)),
            Request::Migrate(order) => errand::migrate(self.host.driver_dir(), &order),
        }
    }

    fn expected(&mut self) -> Result<&mut Expected, Cause> {
        self.expected.as_mut().ok_or(Cause::NothingPrepared)
    }

    /// Checks and claims everything that the VM needs here, or changes nothing.
    fn prepare(&mut self, visitor: Visitor) -> Result<Answer, Cause> {
        if let Some(other) = &self.expected {
            return Err(Cause::Exists { name: other.visitor.name.clone() });
        }
        let host = self.host;
        for id in [DeployId::Uuid(visitor.uuid.clone()), DeployId::Name(visitor.name.clone())] {
            if let Some(domain) = host.hypervisor().find(&id)? {
                return Err(Cause::Exists { name: domain.name });
            }
        }
        let wanted = visitor.wanted.clone().filter(|wanted| !wanted.nics.is_empty());
        let needs = wanted.as_ref().map(|wanted| Needs::check(host, wanted, &visitor.lacking)).transpose()?;
        let held = match &needs {
            Some(_) => {
                let store = host.claims()?;
                let lock = store.lock_vm(&visitor.name, ACTION, host.kvmrc().lock_timeout())?;
                Some((store, lock))
            }
            None => None,
        };
        let mut expected = Expected { visitor, held, snapshots: Vec::new(), made_dir: None };
        expected.make_dir()?;
        let bridge = needs.as_ref().map(|needs| needs.bridge.clone());
        match needs.map_or(Ok(()), |needs| expected.claim(host, &needs)) {
            Ok(()) => {
                if host.kvmrc().cleanup_memory_on_start() {
                    Sudo::ask().compact_memory();
                }
                self.expected = Some(expected);
                Ok(Answer::Ready { bridge })
            }
            Err(cause) => {
                expected.forget(host)?;
                Err(cause)
            }
        }
    }

    /// The VM is here: it gets what it was to get.
    fn finish(&mut self) -> Result<Answer, Cause> {
        let uuid = self.expected()?.visitor.uuid.clone();
        let (_, domain) = self.wait_until_settled(&uuid, self.host.kvmrc().call_timeout())?;
        // One that did not come stays expected, so that what was made for it goes.
        let Some((domain, expected)) = domain.and_then(|domain| Some((domain, self.expected.take()?))) else {
            return Err(Cause::Absent { id: uuid.to_string() });
        };
        let left = expected.receive(self.host, domain);
        Ok(if left.is_empty() { Answer::Done } else { Answer::Left(left.join("; ")) })
    }

    /// The VM stays where it was.
    fn abort(&mut self, destroy: bool) -> Result<Answer, Cause> {
        let expected = self.expected()?;
        let uuid = expected.visitor.uuid.clone();
        let host = self.host;
        let patience = host.kvmrc().call_timeout().min(GIVEN_UP);
        if let (_, Some(domain)) = host.patiently_for(patience, || presence(host, &uuid))? {
            if !destroy {
                return Err(Cause::Exists { name: domain.name });
            }
            gone::destroy(host, &domain)?;
        }
        self.expected()?.forget(host)?;
        self.expected = None;
        Ok(Answer::Done)
    }

    /// Looks until the VM is here or not here, and no longer on its way.
    fn wait_until_settled(&self, uuid: &DomainUuid, timeout: Duration) -> Result<(Presence, Option<DomainRef>), Cause> {
        let end = Instant::now() + timeout;
        loop {
            let (presence, domain) = self.host.patiently(|| presence(self.host, uuid))?;
            if !matches!(presence, Presence::Incoming | Presence::Ending) || Instant::now() >= end {
                return Ok((presence, domain));
            }
            thread::sleep(POLL);
        }
    }

    /// Nobody asks any more. What is true decides: a VM that runs here is here to stay, for one that is not here nothing is
    /// held, and one that could still run elsewhere is left alone.
    fn close(mut self) {
        let Some(expected) = &self.expected else { return };
        let (name, uuid) = (expected.visitor.name.clone(), expected.visitor.uuid.clone());
        log::warn!("{name}: its source was lost; what is true here decides");
        let settled = self.wait_until_settled(&uuid, WAY_IN);
        let Some(mut expected) = self.expected.take() else { return };
        match settled {
            Ok((Presence::Absent, _)) => match expected.forget(self.host) {
                Ok(()) => log::info!("{name} did not come: nothing is held for it any more"),
                Err(cause) => log::warn!("{cause}; what is held for {name} is freed by the next action that looks"),
            },
            Ok((Presence::Running, Some(domain))) => {
                for left in expected.receive(self.host, domain) {
                    log::warn!("{left}");
                }
            }
            Ok((presence, _)) => {
                log::warn!("{name} is in doubt: it is {presence} here; kvm-sriov resolve {name} decides")
            }
            Err(cause) => log::warn!("{cause}; {name} is in doubt, kvm-sriov resolve {name} decides"),
        }
    }
}

/// What a VM with VFs needs of a host besides the VFs.
struct Needs {
    bridge: String,
    maps: Vec<VfMap>,
}

impl Needs {
    /// * `lacking` - the NICs that have no VF where the VM comes from: they need none here
    fn check(host: &Host, wanted: &Wanted, lacking: &[Position]) -> Result<Self, Cause> {
        if let Some(nic) = wanted.nics.iter().find(|nic| nic.mode != Mode::Hostdev) {
            return Err(Cause::NoMode { mac: nic.mac, mode: nic.mode });
        }
        let bridge = host.dummy_bridge()?.to_owned();
        let needed = wanted.nics.iter().filter(|nic| !lacking.contains(&nic.position));
        let maps = host.maps_and_others(needed.map(|nic| &nic.root))?;
        Ok(Self { bridge, maps })
    }
}

impl Expected {
    fn owner(&self) -> Owner {
        Owner { vm: self.visitor.name.clone(), uuid: Some(self.visitor.uuid.clone()) }
    }

    /// A VF for every NIC that has one where the VM comes from, or none at all; then one for each of the others, as far as there
    /// are.
    fn claim(&self, host: &Host, needs: &Needs) -> Result<(), Cause> {
        let (Some((store, _)), Some(wanted)) = (&self.held, &self.visitor.wanted) else { return Ok(()) };
        let (lacking, needed): (Vec<_>, Vec<_>) =
            wanted.nics.iter().partition(|nic| self.visitor.lacking.contains(&nic.position));
        self.claim_for(host, store, &needs.maps, &needed)?;
        for nic in lacking {
            let maps = host.maps_and_others(std::iter::once(&nic.root));
            if let Err(cause) = maps.and_then(|maps| self.claim_for(host, store, &maps, &[nic])) {
                log::warn!("{cause}; NIC {} of {} had no VF before, and comes without", nic.mac, self.visitor.name);
            }
        }
        Ok(())
    }

    /// A VF for each of these NICs, or none at all.
    fn claim_for(&self, host: &Host, store: &ClaimStore, maps: &[VfMap], nics: &[&WantedNic]) -> Result<(), Cause> {
        if nics.is_empty() {
            return Ok(());
        }
        let backing = host.recover(store, maps, ACTION)?;
        let nics: Vec<_> = nics.iter().map(|nic| (nic.root.clone(), nic.key())).collect();
        let owner = self.owner();
        let sysfs = host.sysfs();
        let request = ClaimRequest { owner: &owner, nics: &nics, maps, sysfs, refused: &[] };
        let claims = store.claim_all(&request, &backing).map_err(|error| too_few(error, &nics, &owner.vm))?;
        for claim in &claims {
            host.journal().vf(ACTION, &owner.vm, &claim.root, claim.vf, "claimed");
        }
        Ok(())
    }

    fn make_dir(&mut self) -> Result<(), Cause> {
        let Some(dir) = self.visitor.dir.as_ref().filter(|dir| !dir.exists()) else { return Ok(()) };
        fs::create_dir_all(dir).map_err(Cause::file("make", dir))?;
        self.made_dir = Some(dir.clone());
        Ok(())
    }

    /// Only what lies in the VM's own directory is made here.
    fn own(&self, path: &Path) -> Result<(), Cause> {
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        match &self.visitor.dir {
            Some(dir) if path.starts_with(dir) && !climbs => Ok(()),
            _ => Err(Cause::NotInVmDir { path: path.to_owned() }),
        }
    }

    fn make_image(&self, path: &Path, format: &str, size: u64) -> Result<Answer, Cause> {
        self.own(path)?;
        make_image(&Image { path: path.to_owned(), format: format.to_owned(), size }, path)?;
        Ok(Answer::Done)
    }

    fn make_link(&self, path: &Path, target: &Path) -> Result<Answer, Cause> {
        self.own(path)?;
        if !path.is_symlink() {
            std::os::unix::fs::symlink(target, path).map_err(Cause::file("make", path))?;
        }
        Ok(Answer::Done)
    }

    /// Frees the claims, and removes the directory if it was made here.
    fn forget(&mut self, host: &Host) -> Result<(), Cause> {
        let owner = self.owner();
        if let Some((store, _)) = &self.held {
            gone::release(host, store, &owner, ACTION)?;
        }
        if let Some(dir) = &self.made_dir {
            fs::remove_dir_all(dir).map_err(Cause::file("remove", dir))?;
        }
        self.made_dir = None;
        Ok(())
    }

    /// Gives the VM its VFs, its snapshots and the time. There is no way back: what fails is said, and reconciliation tries
    /// again.
    fn receive(self, host: &Host, domain: DomainRef) -> Vec<String> {
        let mut left = Vec::new();
        // First: who comes after a death of this process knows by the open operation that they may be missing.
        for (xml, is_current) in &self.snapshots {
            if let Err(error) = host.hypervisor().redefine_snapshot(&domain, xml, *is_current) {
                left.push(format!("a snapshot of {} is not known to libvirt: {error}", domain.name));
            }
        }
        if let Some((store, lock)) = self.held {
            left.extend(plug(host, &domain, store, lock, &self.visitor.lacking));
        }
        vm::clock::start(host, &domain);
        left
    }
}

/// Gives the VM its VFs and closes the operation. What could not be done is the answer.
///
/// * `lacking` - the NICs that had no VF before: none is no more than a line in the log
fn plug(host: &Host, domain: &DomainRef, store: ClaimStore, lock: VmLock, lacking: &[Position]) -> Vec<String> {
    let name = &domain.name;
    let claims = store.clone();
    let mut left = Vec::new();
    match Vm::locked(host, ACTION, domain.clone(), store, lock, None) {
        Err(cause) => left.push(format!("{name} lacks its VFs, which are plugged by reconciliation: {cause}")),
        Ok(mut vm) => {
            let mut missing = vm.missing();
            missing.retain(|nic| !lacking.contains(&nic.position));
            if vm.lock.cancelled() {
                left.push(Cause::Cancelled { name: name.clone() }.to_string());
            } else if let Err(cause) = vm.plug(&missing) {
                left.push(format!("{name} lacks VFs, which are plugged by reconciliation: {cause}"));
            } else {
                vm.plug_lacking();
            }
            if let Err(cause) = vm.finish() {
                left.push(format!("the migration of {name} is still noted as under way: {cause}"));
            }
        }
    }
    // Whatever failed: the domain backs its claims, and nobody works on it any more.
    if let Err(error) = claims.settle(&domain.owner()) {
        left.push(format!("the claims of {name} still name the agent: {error}"));
    }
    left
}

/// A map with too few free VFs, in the words of the one who asks from afar.
fn too_few(error: ClaimError, nics: &[(RootName, NicKey)], vm: &DomainName) -> Cause {
    let ClaimError::Exhausted { root, total, mut users, no_vfs, .. } = error else { return error.into() };
    // Those that were chosen for it before the map ran out.
    users.remove(vm.as_str());
    let used: usize = users.values().sum();
    Cause::TooFew {
        free: total.saturating_sub(used),
        needed: nics.iter().filter(|(other, _)| *other == root).count(),
        root,
        users: counted(&users),
        no_vfs,
    }
}

fn counted(users: &BTreeMap<String, usize>) -> String {
    let all: Vec<String> = users.iter().map(|(user, count)| format!("{user}: {count}")).collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}
