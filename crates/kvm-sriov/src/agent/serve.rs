//! The end that answers: the agent on the destination of a migration, and on the source of one that the front-end asks for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::conversation::{Conversation, Pulse};
use super::{AgentAnswer, AgentRequest, IncomingVm, MAGIC, Presence, Reach, VERSION, ask_state, errand};
use crate::base::span::{Kind, Span};
use crate::base::{Action, DeployId, DomainName, DomainUuid, NicKey, Owner, POLL, Position, RootName};
use crate::claims::{ClaimError, ClaimStore, Request as ClaimRequest, VmLock};
use crate::config::VfMap;
use crate::error::Cause;
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::{DomainRef, Event, Events, JobKind, RunState};
use crate::reconcile::{self, Elsewhere, Repair, Why};
use crate::vm::gone;
use crate::vm::storage::{Image, make_image};
use crate::vm::{self, Vm};
use crate::xml::{LiveDomain, Mode, OperationKind, Wanted, WantedNic};

/// What the agent's locks and journal lines call it.
const ACTION: Action = Action::Migrate;

/// How long a domain may stay on its way in when nobody asks any more. Its source takes a minute to know that this agent
/// is gone; then it aborts, and libvirt removes the domain here.
const WAY_IN: Duration = Duration::from_secs(180);

/// How long a domain whose move has begun may not be here at all when its source was lost: the source takes a minute to know
/// that this agent is gone, and until then libvirt may still bring the domain. So long its VFs are nobody else's.
const GRACE: Duration = Duration::from_secs(90);

/// How long the source is asked for what has become of the VM there, and how long between two questions.
const ASKING: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long libvirtd may be away when a move is given up: the source waits for the answer. What is not freed then is freed when
/// the source is gone.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// Answers requests until there are no more, then leaves the host as it must be: a VM that runs here, or that its source has
/// given away, gets all that it was to get, and nothing is claimed for one that does not come.
///
/// * `open` - opens this host; what prevents it is the answer to every request
/// * `reach` - how the source is reached, to be asked when it was lost
///
/// # Source
/// docs/reference/agent.md.
pub fn serve(
    open: impl FnOnce() -> Result<Host, Cause>,
    reach: &dyn Reach,
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
                conversation.say(AgentAnswer::from(&cause));
            }
            return;
        }
    };
    let mut desk = Desk { host: &host, reach, expected: None };
    while let Some(line) = conversation.wait() {
        let _span = Span::begin(Kind::Request, "agent");
        let answer = match line.parse() {
            Ok(request) => desk.answer(request).unwrap_or_else(|cause| AgentAnswer::from(&cause)),
            Err(error) => AgentAnswer::Refused(error.to_string()),
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
    let Some(domain) = hypervisor.find(&DeployId::Uuid(uuid.clone()))? else { return Ok((Presence::Absent, None)) };
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
    reach: &'h dyn Reach,
    expected: Option<Expected>,
}

/// A VM that is to come, and what is held for it.
struct Expected {
    visitor: IncomingVm,
    witness: Witness,
    /// Whether libvirt may have been asked to move it.
    is_under_way: bool,
    /// Claims and lock; `None` for a VM without VFs, which touches neither.
    held: Option<(ClaimStore, VmLock)>,
    snapshots: Vec<(String, bool)>,
    made_dir: Option<PathBuf>,
}

/// Who has watched for a domain since before it could come. That it is not here does not say that it has never run here.
struct Witness {
    events: Events,
    /// Whether it was seen here.
    came: bool,
    /// Whether its CPUs ran here, or may have run unseen.
    ran: bool,
}

impl Witness {
    fn new(events: Events) -> Self {
        Self { events, came: false, ran: false }
    }

    /// What is to be said of a domain that was looked at just now.
    fn says(&mut self, presence: Presence) -> Presence {
        while let Some(event) = self.events.next(Duration::ZERO) {
            self.came |= event != Event::Disconnected;
            // libvirtd was away: nobody tells what happened meanwhile.
            self.ran |= matches!(event, Event::Resumed | Event::Disconnected);
            if event == Event::Disconnected {
                break;
            }
        }
        self.came |= presence != Presence::Absent;
        self.ran |= presence == Presence::Running;
        if presence == Presence::Absent && self.ran { Presence::Ended } else { presence }
    }
}

impl Desk<'_> {
    fn answer(&mut self, request: AgentRequest) -> Result<AgentAnswer, Cause> {
        match request {
            AgentRequest::Prepare(visitor) => self.prepare(*visitor),
            AgentRequest::Image { path, format, size } => {
                let limit = self.host.settings().call_timeout;
                self.expected()?.make_image(Image { path, format, size }, limit)
            }
            AgentRequest::Symlink { path, target } => {
                let limit = self.host.settings().call_timeout;
                self.expected()?.make_link(path, target, limit)
            }
            AgentRequest::Snapshot { is_current, xml } => {
                self.expected()?.snapshots.push((xml, is_current));
                Ok(AgentAnswer::Done)
            }
            AgentRequest::Go => {
                self.expected()?.is_under_way = true;
                Ok(AgentAnswer::Done)
            }
            AgentRequest::Finish { .. } if self.expected.is_some() => self.finish(),
            AgentRequest::Finish { uuid, id } => self.finish_for_another(&uuid, &id),
            AgentRequest::Abort { destroy } => self.abort(destroy),
            AgentRequest::State(uuid) => Ok(AgentAnswer::State(self.presence(&uuid)?.0)),
            AgentRequest::Migrate(order) => match self.host.driver_dir() {
                Some(dir) => errand::migrate(dir, &order),
                None => Err(Cause::Program {
                    what: "start migrate".into(),
                    why: "this host has no programs of the driver".into(),
                }),
            },
        }
    }

    fn expected(&mut self) -> Result<&mut Expected, Cause> {
        self.expected.as_mut().ok_or(Cause::NothingPrepared)
    }

    /// As [`presence`], with what was seen of a VM that is expected.
    fn presence(&mut self, uuid: &DomainUuid) -> Result<(Presence, Option<DomainRef>), Cause> {
        let (presence, domain) = presence(self.host, uuid)?;
        let expected = self.expected.as_mut().filter(|expected| expected.visitor.uuid == *uuid);
        Ok((expected.map_or(presence, |expected| expected.witness.says(presence)), domain))
    }

    /// Checks and claims everything that the VM needs here, or changes nothing.
    fn prepare(&mut self, visitor: IncomingVm) -> Result<AgentAnswer, Cause> {
        if let Some(other) = &self.expected {
            return Err(Cause::Exists { name: other.visitor.name.clone() });
        }
        let host = self.host;
        // Before it is looked for: what comes from now on is seen.
        let witness = Witness::new(host.hypervisor().watch_for(&visitor.uuid)?);
        for id in [DeployId::Uuid(visitor.uuid.clone()), DeployId::Name(visitor.name.clone())] {
            if let Some(domain) = host.hypervisor().find(&id)? {
                return Err(Cause::Exists { name: domain.name });
            }
        }
        let wanted = visitor.wanted.clone().filter(|wanted| !wanted.nics.is_empty());
        let needs = wanted.as_ref().map(|wanted| Needs::check(host, wanted, &visitor.lacking)).transpose()?;
        let mut expected =
            Expected { visitor, witness, is_under_way: false, held: None, snapshots: Vec::new(), made_dir: None };
        // Before anything is held: the file server below may not answer.
        expected.make_dir(host)?;
        let bridge = needs.as_ref().map(|needs| needs.bridge.clone());
        match needs.map_or(Ok(()), |needs| expected.claim(host, &needs)) {
            Ok(()) => {
                if host.settings().cleanup_memory_on_start {
                    Sudo::ask().compact_memory();
                }
                self.expected = Some(expected);
                Ok(AgentAnswer::Ready { bridge })
            }
            Err(cause) => {
                expected.forget(host)?;
                Err(cause)
            }
        }
    }

    /// The VM is here, and gone from its source: it runs, and gets what it was to get.
    fn finish(&mut self) -> Result<AgentAnswer, Cause> {
        let uuid = self.expected()?.visitor.uuid.clone();
        let (presence, domain) = self.wait_until_settled(&uuid, self.host.settings().call_timeout, Duration::ZERO)?;
        let host = self.host;
        // One that did not come, or can't run, stays expected: what was made for it goes, or it is tried again.
        let Some(domain) = domain else { return Err(Cause::Absent { id: uuid.to_string() }) };
        if !matches!(presence, Presence::Running | Presence::Paused) {
            return Err(Cause::NotAsAsked { name: domain.name, what: format!("it is still {presence} here") });
        }
        let left = self.expected()?.receive(host, &domain, presence)?;
        self.expected = None;
        Ok(if left.is_empty() { AgentAnswer::Done } else { AgentAnswer::Left(left.join("; ")) })
    }

    /// As [`Desk::finish`], for a VM whose own agent was lost with the connection to its source. That agent may still live and hold
    /// the VM's lock: the CPUs do not wait for the lock, only the VFs do.
    fn finish_for_another(&mut self, uuid: &DomainUuid, id: &str) -> Result<AgentAnswer, Cause> {
        let Some(domain) = self.host.hypervisor().find(&DeployId::Uuid(uuid.clone()))? else {
            return Err(Cause::NothingPrepared);
        };
        let live = vm::read(self.host, &domain)?;
        let (presence, _) = presence(self.host, uuid)?;
        let is_closed = vm::wanted(&live)?.is_some_and(|wanted| wanted.operation.is_none());
        if is_closed && presence == Presence::Running {
            // Its own agent had heard it.
            return Ok(AgentAnswer::Done);
        }
        let stands = moved_by(&domain, &live, id)?;
        if presence == Presence::Paused && !stands {
            vm::let_run(self.host, &domain)?;
            self.host.journal().vm(ACTION, &domain.name, "resumed");
        }
        // Until its own agent has noticed the loss and has asked the source.
        let end = Instant::now() + Pulse::default().silence + ASKING + self.host.settings().lock_timeout;
        let report = loop {
            let report = reconcile::resolve(self.host, &DeployId::Uuid(uuid.clone()), Elsewhere::NeverRan)?;
            if !report.left.contains(&Repair::Leave(Why::Locked)) || Instant::now() >= end {
                break report;
            }
            thread::sleep(POLL);
        };
        let failures = report.failures.iter().map(|failure| format!("cannot {}: {}", failure.repair, failure.cause));
        let left: Vec<String> = failures.chain(report.left.iter().map(ToString::to_string)).collect();
        Ok(if left.is_empty() { AgentAnswer::Done } else { AgentAnswer::Left(left.join("; ")) })
    }

    /// The VM stays where it was.
    fn abort(&mut self, destroy: bool) -> Result<AgentAnswer, Cause> {
        let uuid = self.expected()?.visitor.uuid.clone();
        let host = self.host;
        let patience = host.settings().call_timeout.min(GIVEN_UP);
        if let (_, Some(domain)) = host.patiently_for(patience, || presence(host, &uuid))? {
            if !destroy {
                return Err(Cause::Exists { name: domain.name });
            }
            gone::destroy(host, &domain)?;
        }
        self.expected()?.forget(host)?;
        self.expected = None;
        Ok(AgentAnswer::Done)
    }

    /// Looks until the VM is here or not here, and no longer on its way.
    ///
    /// * `timeout` - how long it may be on its way
    /// * `grace` - how long libvirt may still bring one that has not been seen
    fn wait_until_settled(
        &mut self,
        uuid: &DomainUuid,
        timeout: Duration,
        grace: Duration,
    ) -> Result<(Presence, Option<DomainRef>), Cause> {
        let begin = Instant::now();
        let host = self.host;
        loop {
            let (presence, domain) = host.patiently(|| self.presence(uuid))?;
            let lasts = match presence {
                Presence::Incoming | Presence::Ending => timeout,
                Presence::Absent if self.expected.as_ref().is_some_and(Expected::may_come) => grace,
                _ => Duration::ZERO,
            };
            if begin.elapsed() >= lasts {
                return Ok((presence, domain));
            }
            thread::sleep(POLL);
        }
    }

    /// Nobody asks any more. What is true decides: a VM that runs here is here to stay, for one that is not here nothing is
    /// held, and one that waits here is let run when its source says that it is gone there.
    fn close(mut self) {
        let Some(expected) = &self.expected else { return };
        let (name, uuid) = (expected.visitor.name.clone(), expected.visitor.uuid.clone());
        log::warn!("{name}: its source was lost; what is true decides");
        let settled = self.wait_until_settled(&uuid, WAY_IN, self.host.settings().call_timeout.min(GRACE));
        let Some(mut expected) = self.expected.take() else { return };
        let in_doubt = |why: String| log::warn!("{name} is in doubt: {why}; kvm-sriov resolve {name} decides");
        let forget = |expected: &mut Expected, host: &Host| match expected.forget(host) {
            Ok(()) => log::info!("{name} did not come: nothing is held for it any more"),
            Err(cause) => log::warn!("{cause}; what is held for {name} is freed by the next action that looks"),
        };
        let receive = |expected: &mut Expected, host: &Host, domain: &DomainRef, presence| match expected
            .receive(host, domain, presence)
        {
            Ok(left) => left.iter().for_each(|left| log::warn!("{left}")),
            Err(cause) => in_doubt(cause.to_string()),
        };
        match settled {
            Ok((Presence::Absent | Presence::Ended, _)) => forget(&mut expected, self.host),
            Ok((presence @ Presence::Running, Some(domain))) => receive(&mut expected, self.host, &domain, presence),
            // As its user had it.
            Ok((presence @ Presence::Paused, Some(domain))) if !expected.is_handed_over() => {
                receive(&mut expected, self.host, &domain, presence);
            }
            Ok((presence @ Presence::Paused, Some(domain))) => match self.ask_source(&expected) {
                Ok(Presence::Running) => {
                    log::warn!("{name} runs at its source: what has come here has never run and goes");
                    match gone::destroy(self.host, &domain) {
                        Ok(()) => forget(&mut expected, self.host),
                        Err(cause) => in_doubt(cause.to_string()),
                    }
                }
                Ok(Presence::Absent) => {
                    log::info!("{name} is gone from its source: it runs here now");
                    receive(&mut expected, self.host, &domain, presence);
                }
                Ok(there) => in_doubt(format!("it waits here, and is {there} at its source")),
                Err(why) => in_doubt(format!("it waits here, and its source can't be asked: {why}")),
            },
            Ok((presence, _)) => in_doubt(format!("it is {presence} here")),
            Err(cause) => in_doubt(cause.to_string()),
        }
    }

    /// What the source says of the VM, as soon as it runs or is gone there, or when it has been asked for long enough.
    fn ask_source(&self, expected: &Expected) -> Result<Presence, String> {
        let visitor = &expected.visitor;
        let Some(from) = &visitor.from else { return Err("OpenNebula did not name it".into()) };
        let end = Instant::now() + self.host.settings().call_timeout.min(ASKING);
        loop {
            let says = ask_state(self.reach, from, &visitor.uuid).map_err(|error| error.to_string());
            if matches!(says, Ok(Presence::Running | Presence::Absent)) || Instant::now() >= end {
                return says;
            }
            if expected.held.as_ref().is_some_and(|(_, lock)| lock.cancelled()) {
                return Err(Cause::Cancelled { name: visitor.name.clone() }.to_string());
            }
            thread::sleep(ASK_AGAIN);
        }
    }
}

/// Refuses a domain that this move did not bring. Whether its CPUs stood when the move began.
fn moved_by(domain: &DomainRef, live: &LiveDomain, id: &str) -> Result<bool, Cause> {
    match vm::wanted(live)?.and_then(|wanted| wanted.operation).map(|operation| operation.kind) {
        Some(OperationKind::Migrate { id: other, stands, .. }) if other == id => Ok(stands),
        _ => Err(Cause::NotAsAsked { name: domain.name.clone(), what: "it was not brought by this move".into() }),
    }
}

/// Work on files, which may lie on a file server that does not answer: it is waited for so long, and left behind then.
fn on_files<T: Send + 'static>(
    verb: &'static str,
    path: &Path,
    limit: Duration,
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    let (sender, receiver) = mpsc::channel();
    let failed = Cause::file(verb, path);
    let begun = thread::Builder::new().spawn(move || drop(sender.send(work())));
    if let Err(error) = begun {
        return Err(failed(error));
    }
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        let text = format!("its file system has not answered for {} s", limit.as_secs());
        Err(failed(io::Error::new(io::ErrorKind::TimedOut, text)))
    })
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

    /// Whether its CPUs stand when it has come, until its source is seen to have given it away. A VM without VFs comes as the
    /// stock driver brings it (docs/decisions/0013-hand-over.md).
    fn is_handed_over(&self) -> bool {
        self.visitor.wanted.is_some()
    }

    /// Whether libvirt may still bring it although it has not been seen.
    fn may_come(&self) -> bool {
        let is_cancelled = self.held.as_ref().is_some_and(|(_, lock)| lock.cancelled());
        self.is_under_way && !self.witness.came && !is_cancelled
    }

    /// Takes the lock of the VM and claims a VF for every NIC that has one where it comes from, or none at all. Then it claims one for
    /// each of the other NICs that can have one.
    fn claim(&mut self, host: &Host, needs: &Needs) -> Result<(), Cause> {
        let store = host.claims()?;
        let lock = store.lock_vm(&self.visitor.name, ACTION, host.settings().lock_timeout)?;
        self.held = Some((store.clone(), lock));
        let Some(wanted) = &self.visitor.wanted else { return Ok(()) };
        let (lacking, needed): (Vec<_>, Vec<_>) =
            wanted.nics.iter().partition(|nic| self.visitor.lacking.contains(&nic.position));
        self.claim_for(host, &store, &needs.maps, &needed)?;
        for nic in lacking {
            let maps = host.maps_and_others(std::iter::once(&nic.root));
            if let Err(cause) = maps.and_then(|maps| self.claim_for(host, &store, &maps, &[nic])) {
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

    fn make_dir(&mut self, host: &Host) -> Result<(), Cause> {
        let Some(dir) = self.visitor.dir.clone() else { return Ok(()) };
        let is_made = {
            let dir = dir.clone();
            on_files("make", &dir.clone(), host.settings().call_timeout, move || {
                let is_new = !dir.exists();
                if is_new {
                    fs::create_dir_all(&dir).map_err(Cause::file("make", &dir))?;
                }
                Ok(is_new)
            })?
        };
        self.made_dir = is_made.then_some(dir);
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

    fn make_image(&self, image: Image, limit: Duration) -> Result<AgentAnswer, Cause> {
        self.own(&image.path)?;
        on_files("make", &image.path.clone(), limit, move || make_image(&image, &image.path))?;
        Ok(AgentAnswer::Done)
    }

    fn make_link(&self, path: PathBuf, target: PathBuf, limit: Duration) -> Result<AgentAnswer, Cause> {
        self.own(&path)?;
        on_files("make", &path.clone(), limit, move || {
            if path.is_symlink() {
                return Ok(());
            }
            std::os::unix::fs::symlink(target, &path).map_err(Cause::file("make", path))
        })?;
        Ok(AgentAnswer::Done)
    }

    /// Frees the claims, and removes the directory if it was made here.
    fn forget(&mut self, host: &Host) -> Result<(), Cause> {
        let owner = self.owner();
        if let Some((store, _)) = &self.held {
            gone::release(host, store, &owner, ACTION)?;
        }
        let Some(dir) = self.made_dir.take() else { return Ok(()) };
        on_files("remove", &dir.clone(), host.settings().call_timeout, move || {
            fs::remove_dir_all(&dir).map_err(Cause::file("remove", dir))
        })
    }

    /// Lets the VM run, and gives it its VFs, its snapshots and the time. Once it runs there is no way back: what fails is said,
    /// and reconciliation tries again.
    ///
    /// # Errors
    /// Its CPUs stand as before, and nothing was done.
    fn receive(&mut self, host: &Host, domain: &DomainRef, presence: Presence) -> Result<Vec<String>, Cause> {
        let live = self.let_run(host, domain, presence)?;
        let mut left = Vec::new();
        // First: who comes after a death of this process knows by the open operation that they may be missing.
        for (xml, is_current) in &self.snapshots {
            if let Err(error) = host.hypervisor().redefine_snapshot(domain, xml, *is_current) {
                left.push(format!("a snapshot of {} is not known to libvirt: {error}", domain.name));
            }
        }
        if let Some((store, lock)) = self.held.take() {
            left.extend(plug(host, domain, live, store, lock, &self.visitor.lacking));
        }
        vm::clock::start(host, domain);
        Ok(left)
    }

    /// Lets a VM run that its source has given away. Returns its live XML, if it had to be looked at.
    fn let_run(&self, host: &Host, domain: &DomainRef, presence: Presence) -> Result<Option<LiveDomain>, Cause> {
        if !self.is_handed_over() {
            return Ok(None);
        }
        let live = vm::read(host, domain)?;
        if presence == Presence::Paused && !moved_by(domain, &live, &self.visitor.id)? {
            if self.held.as_ref().is_some_and(|(_, lock)| lock.cancelled()) {
                return Err(Cause::Cancelled { name: domain.name.clone() });
            }
            vm::let_run(host, domain)?;
            host.journal().vm(ACTION, &domain.name, "resumed");
        }
        Ok(Some(live))
    }
}

/// Gives the VM its VFs and closes the operation. What could not be done is the answer.
///
/// * `lacking` - the NICs that had no VF before: none is no more than a line in the log
fn plug(
    host: &Host,
    domain: &DomainRef,
    live: Option<LiveDomain>,
    store: ClaimStore,
    lock: VmLock,
    lacking: &[Position],
) -> Vec<String> {
    let name = &domain.name;
    let claims = store.clone();
    let mut left = Vec::new();
    let vm = match live {
        Some(live) => Vm::seen(host, ACTION, domain.clone(), live, store, lock, None),
        None => Vm::locked(host, ACTION, domain.clone(), store, lock, None),
    };
    match vm {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_server_that_does_not_answer_is_left_behind() {
        let (release, held) = mpsc::channel::<()>();
        let limit = Duration::from_millis(50);
        let hangs = move || Ok(held.recv().is_ok());
        let error = on_files("make", "/vm/42".as_ref(), limit, hangs).unwrap_err();
        assert_eq!(error.to_string(), "cannot make /vm/42: its file system has not answered for 0 s");
        drop(release);
        assert_eq!(on_files("make", "/vm/42".as_ref(), Duration::from_secs(60), || Ok(7)).unwrap(), 7);
    }
}
