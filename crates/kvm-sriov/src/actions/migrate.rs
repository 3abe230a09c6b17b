//! `migrate`: a running VM goes to another host, and its VFs are plugged there.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::relocate::relocate;
use crate::agent::{Agent, AgentAnswer, AgentRequest, IncomingVm, Presence, Reach};
use crate::base::span::{Kind, Span};
use crate::base::{DeployId, HostName, POLL};
use crate::error::{ActionError, AgentError, Cause, HostState};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::{DomainRef, LibvirtError, LibvirtErrorKind, Migration, MigrationOptions, RunState};
use crate::reconcile;
use crate::vm::gone;
use crate::vm::storage::{Image, Storage, is_same};
use crate::vm::{self, Found};
use crate::xml::{LiveDomain, OperationKind, VmData, Wanted, dummy_alias_of, image_for};

/// A disk's block job ends by itself: how often and how long it is waited for.
///
/// # Source
/// OpenNebula's stock driver: three tries, 5 s apart.
const BLOCK_JOB_TRIES: usize = 3;
const BLOCK_JOB_WAIT: Duration = Duration::from_secs(5);

/// Between two looks at a copy that runs.
const LOOK: Duration = Duration::from_secs(1);

/// How long a failed move may take to become clear at the destination.
const CLEAR: Duration = Duration::from_secs(30);

/// From where to where a VM goes, as OpenNebula names the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// This host; `None` when OpenNebula did not say.
    pub from: Option<HostName>,
    /// The destination.
    pub to: HostName,
}

/// Moves a running VM to another host, or on this one to another datastore.
///
/// An agent on the destination checks everything and claims the VFs there before anything happens here; then the VFs are
/// unplugged and libvirt moves the VM, whose CPUs stand there until it is seen to be gone here. Then the agent lets it run and
/// plugs others in at the same guest addresses. When only the datastore changes, the VFs stay where they are.
///
/// * `data` - OpenNebula's description of the VM and of its move
/// * `reach` - how the destination is reached
///
/// # Errors
/// The VM runs on here with its VFs, and nothing is claimed at the destination; or the error's state says exactly what is
/// left. Once the VM is gone here, nothing is an error any more: a VF that can't be plugged there is logged and left to
/// reconciliation.
///
/// # Source
/// OpenNebula's stock `migrate`.
pub fn migrate(
    host: &Host,
    id: &DeployId,
    route: &Route,
    data: Option<&VmData>,
    reach: &dyn Reach,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched("migrate", cause);
    let is_here = route.from.as_ref() == Some(&route.to);
    let options = options(host, data).map_err(untouched)?;
    // The lock of a VM with VFs is held until this returns.
    if is_here {
        return relocate(host, reconcile::open(host, "migrate", id, data).map_err(untouched)?.domain(), data);
    }
    let traveller = reconcile::open_to_unplug(host, "migrate", id, data).map_err(untouched)?;
    Departure::prepare(host, traveller, route, options, data, reach).map_err(untouched)?.run()
}

/// MIGRATE_OPTIONS and what the VM's features ask for.
fn options(host: &Host, data: Option<&VmData>) -> Result<MigrationOptions, Cause> {
    let wrong = |what: &str| {
        let what = what.to_owned();
        move |source| Cause::Value { what, source }
    };
    let mut options = MigrationOptions::parse(&host.settings().migrate_options).map_err(wrong("MIGRATE_OPTIONS"))?;
    if let Some(travel) = data.map(VmData::travel) {
        options
            .add_features(travel.auto_converge.as_deref(), travel.is_compressed)
            .map_err(wrong("the feature MIGRATE_AUTO_CONVERGE"))?;
    }
    Ok(options)
}

/// What is to be done with the VM's files; nothing with shared storage.
fn storage(host: &Host, domain: &DomainRef, data: Option<&VmData>) -> Result<Option<Storage>, Cause> {
    let Some(travel) = data.map(VmData::travel) else { return Ok(None) };
    let no_move = |how: &str| Cause::NoMove { vm: domain.name.clone(), how: how.into() };
    let (source, target) = (travel.source_dir.as_deref(), travel.target_dir.as_deref());
    if source.zip(target).is_some_and(|(source, target)| !is_same(source, target)) {
        return Err(no_move("live to another host and another datastore at once"));
    }
    if travel.is_shared {
        return Ok(None);
    }
    let dir =
        target.or(source).ok_or_else(|| no_move("to storage that is not shared: OpenNebula did not say where"))?;
    let storage = Storage::of(&domain.name, dir, &vm::read_text(host, domain)?, host.sysfs())?;
    if let Some((disk, volume)) = storage.volumes.first() {
        let (disk, volume) = (&disk.target, volume.target.display());
        return Err(no_move(&format!(
            "live to storage that is not shared: its disk {disk} is the logical volume {volume}"
        )));
    }
    Ok(Some(storage))
}

/// Refuses what can't work, before anybody is asked.
fn check(host: &Host, traveller: &Found<'_>) -> Result<(), Cause> {
    let Found::WithVfs(vm) = traveller else { return Ok(()) };
    if host.hypervisor().job(&vm.domain)?.is_some() {
        return Err(Cause::JobRuns { vm: vm.domain.name.clone(), what: "a copy or a save" });
    }
    vm.check_can_leave("migrated")
}

/// A VM whose destination is ready for it.
struct Departure<'a> {
    host: &'a Host,
    traveller: Found<'a>,
    agent: Agent,
    reach: &'a dyn Reach,
    /// Names this one move on both hosts.
    id: String,
    /// This host, as OpenNebula names it.
    from: Option<HostName>,
    /// The dummies' bridge there.
    bridge: Option<String>,
    /// What the destination lacks of the VM's files; `None` with shared storage.
    storage: Option<Storage>,
    migration: Migration,
    snapshots: Vec<(String, bool)>,
    /// Whether libvirt was asked to move it: from then on both hosts are looked at.
    is_under_way: bool,
}

/// What became of a VM.
enum Verdict {
    /// It is here, and nowhere else; or there as well, where it has never run.
    Here,
    /// It is there.
    There,
    /// It is neither here nor there.
    Gone,
    /// It is not known whether it runs there.
    InDoubt,
}

impl<'a> Departure<'a> {
    /// Has the destination check and claim everything. Nothing is changed here.
    fn prepare(
        host: &'a Host,
        traveller: Found<'a>,
        route: &Route,
        options: MigrationOptions,
        data: Option<&VmData>,
        reach: &'a dyn Reach,
    ) -> Result<Self, Cause> {
        check(host, &traveller)?;
        if traveller.wanted().is_some() {
            let what = || "MIGRATE_OPTIONS".to_owned();
            options.check_hand_over().map_err(|source| Cause::Value { what: what(), source })?;
        }
        let domain = traveller.domain().clone();
        let storage = storage(host, &domain, data)?;
        let copied = |storage: &Storage| storage.written.iter().map(|(disk, _)| disk.target.clone()).collect();
        let migration = Migration {
            // libvirt starts the source again when the destination's last answer is lost, although the domain is there
            // (virDomainMigrateVersion3Full). It stands there until it is seen to be gone here.
            paused: traveller.wanted().is_some(),
            destination: format!("{}://{}/system", host.settings().qemu_protocol, route.to),
            copied_disks: storage.as_ref().map(copied).unwrap_or_default(),
            options,
            ..Migration::default()
        };
        let id = new_id()?;
        let visitor = IncomingVm {
            name: domain.name.clone(),
            uuid: domain.uuid.clone(),
            id: id.clone(),
            from: route.from.clone(),
            wanted: traveller.wanted().cloned(),
            lacking: traveller.lacking(),
            dir: storage.as_ref().map(|storage| storage.dir.clone()),
        };
        let mut agent = Agent::start(reach, &route.to)?.with_call_timeout(host.settings().call_timeout);
        let bridge = match agent.ask(&AgentRequest::Prepare(Box::new(visitor)))? {
            AgentAnswer::Ready { bridge } => bridge,
            other => return Err(agent.unexpected(&other).into()),
        };
        let (snapshots, is_under_way, from) = (Vec::new(), false, route.from.clone());
        Ok(Self { host, traveller, agent, reach, id, from, bridge, storage, migration, snapshots, is_under_way })
    }

    fn run(mut self) -> Result<(), ActionError> {
        let (moved, cause) = match self.depart() {
            Ok(()) if self.is_cancelled() => (true, Cause::Cancelled { name: self.traveller.domain().name.clone() }),
            Ok(()) if self.is_gone() => return self.hand_over(),
            Ok(()) => (true, self.still_here()),
            Err(cause) => (false, cause),
        };
        match self.judge(&cause, moved) {
            Verdict::There => {
                log::warn!("{cause}; {} is on {} all the same", self.traveller.domain().name, self.agent.host());
                self.arrive()
            }
            Verdict::Here => Err(self.stay(cause)),
            Verdict::Gone => Err(self.lost(cause)),
            Verdict::InDoubt => Err(self.in_doubt(cause)),
        }
    }

    /// Whether the domain is seen to be gone here.
    fn is_gone(&self) -> bool {
        let (host, domain) = (self.host, self.traveller.domain());
        let gone = host.patiently(|| gone::is_gone(host, domain));
        gone.inspect_err(|cause| log::warn!("{cause}")).unwrap_or(false)
    }

    fn still_here(&self) -> Cause {
        let name = self.traveller.domain().name.clone();
        Cause::NotAsAsked { name, what: "libvirt says that it was moved, and it was not seen to be gone here".into() }
    }

    /// Everything up to libvirt's word that the VM is there.
    fn depart(&mut self) -> Result<(), Cause> {
        self.send_files()?;
        let to = self.agent.host().to_string();
        if let Some(vm) = self.traveller.with_vfs() {
            vm.begin(operation(to, &self.id, self.from.as_ref(), false), None)?;
        }
        self.take_snapshots()?;
        if let Some(vm) = self.traveller.with_vfs() {
            let devices = vm.plugged();
            vm.unplug(&devices)?;
        }
        for _ in 1..BLOCK_JOB_TRIES {
            match self.call() {
                Err(Cause::Call { source, .. }) if source.kind() == LibvirtErrorKind::ActiveBlockJob => {
                    log::info!("a block job runs on a disk of {}: it is waited for", self.traveller.domain().name);
                    self.let_pass(BLOCK_JOB_WAIT)?;
                }
                other => return other,
            }
        }
        self.call()
    }

    /// Gives the destination what it lacks of the VM's files: all that nobody writes to, and an empty image for each disk that
    /// libvirt copies.
    fn send_files(&mut self) -> Result<(), Cause> {
        let Some(storage) = &self.storage else { return Ok(()) };
        {
            let _span = Span::begin(Kind::Copy, "files");
            self.reach.copy(&storage.files(), self.agent.host(), &storage.dir)?;
        }
        for (path, target) in &storage.links {
            self.agent.ask(&AgentRequest::Symlink { path: path.clone(), target: target.clone() })?;
        }
        // After the files: a directory of snapshots came with an image that was being written to.
        for (_, Image { path, format, size }) in &storage.written {
            self.agent.ask(&AgentRequest::Image { path: path.clone(), format: format.clone(), size: *size })?;
        }
        Ok(())
    }

    /// libvirt moves no domain that has snapshots: what it knows of them goes, and both hosts are told anew.
    fn take_snapshots(&mut self) -> Result<(), Cause> {
        let (hypervisor, domain) = (self.host.hypervisor(), self.traveller.domain());
        let known = hypervisor.snapshots(domain)?;
        for name in &known.names {
            let xml = hypervisor.snapshot_xml(domain, name)?;
            let is_current = known.current.as_ref() == Some(name);
            self.agent.ask(&AgentRequest::Snapshot { is_current, xml: xml.clone() })?;
            self.snapshots.push((xml, is_current));
        }
        // Children first: what is left by a crash has its parents.
        for name in known.names.iter().rev() {
            hypervisor.delete_snapshot(domain, name, true)?;
        }
        Ok(())
    }

    /// The domain's XML there; `None` when it is the one from here.
    fn xml_there(&mut self) -> Result<Option<String>, Cause> {
        let (host, bridge) = (self.host, self.bridge.clone());
        let Some((bridge, vm)) = bridge.zip(self.traveller.with_vfs()) else { return Ok(None) };
        if dummies_are_on(&vm.live, &vm.wanted, &bridge) {
            return Ok(None);
        }
        let text = host.hypervisor().migratable_xml(&vm.domain)?;
        image_for(&text, "".as_ref(), None, Some(&bridge))
            .map(Some)
            .map_err(|source| Cause::Xml { what: format!("the XML of {}", vm.domain.name), source })
    }

    /// Waits, unless there is a reason to stop.
    fn let_pass(&mut self, time: Duration) -> Result<(), Cause> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            match self.reason_to_stop() {
                Some(cause) => return Err(cause),
                None => thread::sleep(POLL),
            }
        }
        Ok(())
    }

    fn reason_to_stop(&mut self) -> Option<Cause> {
        if self.agent.is_lost() {
            return Some(self.agent.lost().into());
        }
        let vm = self.traveller.with_vfs()?;
        vm.lock.cancelled().then(|| Cause::Cancelled { name: vm.domain.name.clone() })
    }

    /// The last step before libvirt is asked: the domain says whether its CPUs are to run there, and the agent is heard once
    /// more. From then on it keeps what it holds for as long as libvirt may bring the VM, even when this host is lost.
    fn go(&mut self) -> Result<(), Cause> {
        if let Some(cause) = self.reason_to_stop() {
            return Err(cause);
        }
        let (to, host) = (self.agent.host().to_string(), self.host);
        let Some(vm) = self.traveller.with_vfs() else { return Ok(()) };
        let absent = || Cause::Absent { id: vm.domain.name.to_string() };
        let stands = !host.hypervisor().state(&vm.domain)?.ok_or_else(absent)?.runs();
        vm.set_operation(Some(operation(to, &self.id, self.from.as_ref(), stands)))?;
        // The XML of the domain there says so, too.
        self.migration.xml = self.xml_there()?;
        match self.agent.ask(&AgentRequest::Go)? {
            AgentAnswer::Done => Ok(()),
            other => Err(self.agent.unexpected(&other).into()),
        }
    }

    /// Has libvirt move the domain, and aborts it when the destination is lost.
    fn call(&mut self) -> Result<(), Cause> {
        self.go()?;
        let domain = self.traveller.domain().clone();
        let (hypervisor, migration, mover) = (self.host.shared_hypervisor(), self.migration.clone(), domain.clone());
        // Nothing is sent: the channel ends with the call.
        let (end, ended) = mpsc::channel::<()>();
        let what = format!("migrate {} to {}", domain.name, self.agent.host());
        let call = thread::Builder::new().spawn(move || {
            let _end = end;
            hypervisor.migrate(&mover, &migration)
        });
        let call = match call {
            Ok(call) => call,
            Err(error) => {
                return Err(Cause::Call { what, source: LibvirtError::no_thread("virDomainMigrate3", &error) });
            }
        };
        self.is_under_way = true;
        let mut progress = Progress::default();
        let mut stopped: Option<(Instant, Cause)> = None;
        let timeout = self.host.settings().call_timeout;
        loop {
            if ended.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                let text = "the call that moves it ended by a panic";
                let panicked = |_| Err(LibvirtError::new(LibvirtErrorKind::Other, 0, text));
                return match call.join().unwrap_or_else(panicked) {
                    Ok(()) => Ok(()),
                    Err(source) => Err(stopped.map_or(Cause::Call { what, source }, |(_, cause)| cause)),
                };
            }
            match &stopped {
                Some((since, _)) if since.elapsed() >= timeout => {
                    let text = format!("libvirt has not ended the aborted move for {} s", timeout.as_secs());
                    return Err(Cause::Call { what, source: LibvirtError::new(LibvirtErrorKind::NoAnswer, 0, text) });
                }
                // libvirt may have been on its way to the destination: its job begins late, and is aborted then.
                Some(_) => self.abort_job(&domain, log::Level::Debug),
                None => {
                    progress.look(self.host, &domain);
                    stopped = self.reason_to_stop().map(|cause| (Instant::now(), cause));
                    if let Some((_, cause)) = &stopped {
                        log::warn!("{cause}; the move is aborted");
                        self.abort_job(&domain, log::Level::Warn);
                    }
                }
            }
        }
    }

    fn abort_job(&self, domain: &DomainRef, level: log::Level) {
        if let Err(error) = self.host.hypervisor().abort_job(domain) {
            log::log!(level, "the move of {} could not be aborted: {error}", domain.name);
        }
    }

    /// How the domain runs here, as soon as libvirt has let go of it.
    fn here(&self) -> Result<Option<RunState>, Cause> {
        let (host, domain) = (self.host, self.traveller.domain());
        vm::let_go(host, domain, CLEAR, "its move")?;
        host.patiently(|| Ok(host.hypervisor().state(domain)?))
    }

    /// Looks at both hosts after a failure: only what is true there and here decides.
    ///
    /// * `moved` - whether libvirt says that the domain was moved
    fn judge(&mut self, cause: &Cause, moved: bool) -> Verdict {
        if !self.is_under_way {
            return if matches!(cause, Cause::Absent { .. }) { Verdict::Gone } else { Verdict::Here };
        }
        let here = match self.here() {
            Ok(state) => state,
            Err(cause) => {
                log::warn!("{cause}");
                return Verdict::InDoubt;
            }
        };
        if here.is_some_and(RunState::runs) {
            return Verdict::Here;
        }
        let there = match self.there() {
            Ok(presence) => presence,
            Err(cause) => {
                log::warn!("{cause}");
                return Verdict::InDoubt;
            }
        };
        let never_ran = match there {
            Presence::Absent => true,
            // Nobody but its agent lets it run, which has not been asked to.
            Presence::Paused => self.migration.paused && !moved && self.may_run_here(),
            _ => false,
        };
        match (here, there) {
            // Half of its memory may still be here.
            (Some(_), _) if self.migration.options.is_postcopy() => Verdict::InDoubt,
            (_, Presence::Running) => Verdict::There,
            (None, Presence::Absent | Presence::Ended) => Verdict::Gone,
            (None, Presence::Paused) if self.is_cancelled() => Verdict::Gone,
            (None, Presence::Paused) => Verdict::There,
            (Some(_), Presence::Paused) if self.migration.paused && moved => Verdict::There,
            (Some(_), _) if never_ran => match self.resume() {
                Ok(()) => Verdict::Here,
                Err(cause) => {
                    log::warn!("{cause}");
                    Verdict::InDoubt
                }
            },
            _ => Verdict::InDoubt,
        }
    }

    fn is_cancelled(&mut self) -> bool {
        self.traveller.with_vfs().is_some_and(|vm| vm.lock.cancelled())
    }

    /// Whether its CPUs ran when the move began.
    fn may_run_here(&self) -> bool {
        let operation = self.traveller.wanted().and_then(|wanted| wanted.operation.as_ref());
        !operation.is_some_and(|operation| matches!(operation.kind, OperationKind::Migrate { stands: true, .. }))
    }

    /// Where the VM is, seen from the destination; a move that ends just now is waited for.
    fn there(&mut self) -> Result<Presence, Cause> {
        let uuid = self.traveller.domain().uuid.clone();
        let end = Instant::now() + CLEAR;
        loop {
            match self.agent.state(&uuid)? {
                Presence::Incoming | Presence::Ending if Instant::now() < end => thread::sleep(POLL),
                presence => return Ok(presence),
            }
        }
    }

    /// It never ran there, and libvirt left it paused here.
    fn resume(&self) -> Result<(), Cause> {
        let (hypervisor, domain) = (self.host.hypervisor(), self.traveller.domain());
        match hypervisor.state(domain)? {
            Some(RunState::PausedForMigration) => vm::let_run(self.host, domain),
            // Paused by its user, or by an error of its disk: as it was.
            _ => Ok(()),
        }
    }

    /// The VM is there. What is here, if anything, is a shell, and goes.
    ///
    /// # Errors
    /// It was not seen to be gone here, so it was not let run there: it is in doubt.
    fn arrive(self) -> Result<(), ActionError> {
        let (host, domain) = (self.host, self.traveller.domain().clone());
        if let Err(cause) = host.patiently(|| gone::destroy(host, &domain)) {
            if self.migration.paused {
                return Err(self.in_doubt(cause));
            }
            let (name, to) = (&domain.name, self.agent.host());
            log::warn!("{cause}; {name} runs on {to}, and it was not seen that it is gone here");
        }
        self.hand_over()
    }

    /// The VM is gone here: it runs there, and nothing is an error any more.
    fn hand_over(mut self) -> Result<(), ActionError> {
        let (name, to) = (self.traveller.domain().name.clone(), self.agent.host().clone());
        // Before anything else: its guest stands still until then.
        let finished = self.finish();
        self.let_go_of_claims(true);
        match finished {
            Ok(AgentAnswer::Done) => log::info!("{name} runs on {to}"),
            Ok(AgentAnswer::Left(what)) => log::warn!("{name} is on {to}, but {what}"),
            Ok(other) => log::warn!("{name} is on {to}; its agent answered {other}"),
            Err(error) if self.migration.paused => log::error!(
                "{error}; {name} is on {to} and may stand there until its agent has asked this host; if it stays so, run \
                 kvm-sriov resolve {name} --here on {to}"
            ),
            Err(error) => log::warn!("{error}; {name} runs on {to}, what it lacks there is left to reconciliation"),
        }
        if self.host.settings().cleanup_memory_on_stop {
            Sudo::ask().compact_memory();
        }
        Ok(())
    }

    /// Has the destination let the VM run; over a new connection when the one that there was is lost.
    fn finish(&mut self) -> Result<AgentAnswer, AgentError> {
        let request = AgentRequest::Finish { uuid: self.traveller.domain().uuid.clone(), id: self.id.clone() };
        let error = match self.agent.ask(&request) {
            Err(error @ (AgentError::Lost { .. } | AgentError::NoAnswer { .. })) if self.migration.paused => error,
            answered => return answered,
        };
        log::warn!("{error}; another one is started");
        let agent = Agent::start(self.reach, &self.agent.host().clone())?;
        agent.with_call_timeout(self.host.settings().call_timeout).ask(&request)
    }

    /// The VM stays here: undoes everything in reverse, or says exactly what is left.
    fn stay(mut self, cause: Cause) -> ActionError {
        let (host, domain) = (self.host, self.traveller.domain().clone());
        // Before the operation is closed: as long as it is open, reconciliation would do it.
        for (xml, is_current) in &self.snapshots {
            if let Err(error) = host.hypervisor().redefine_snapshot(&domain, xml, *is_current) {
                log::warn!("a snapshot of {} is not known to libvirt any more: {error}", domain.name);
            }
        }
        // Here first: a libvirtd that is lost there would keep the VM waiting for its VFs.
        let undo = self.traveller.with_vfs().and_then(|vm| vm.plug_back(&cause).err());
        // A domain of it that is there may go only while its CPUs run here: then it has never run, or libvirt let it run by
        // itself (a VM without VFs).
        let destroy = matches!(host.patiently(|| Ok(host.hypervisor().state(&domain)?)), Ok(Some(RunState::Running)));
        let there = self.agent.ask(&AgentRequest::Abort { destroy }).err().map(|error| {
            log::warn!("{error}");
            format!("; what {} holds for it is freed there, now or by the next action that looks", self.agent.host())
        });
        let here = undo.as_ref().map_or_else(
            || vm::pending_text(&cause).map(|text| format!("nothing was moved; {text}")),
            |_| {
                Some(format!(
                    "nothing was moved, and {} may lack VFs; kvm-sriov reconcile, or its next action, plugs them back",
                    domain.name
                ))
            },
        );
        let cause = match undo {
            None => cause,
            Some(undo) => {
                self.let_go_of_claims(false);
                Cause::Twice { cause: Box::new(cause), undo: Box::new(undo) }
            }
        };
        let state = match (here, there) {
            (None, None) => HostState::NothingMoved,
            (here, there) => {
                HostState::Left(here.unwrap_or(HostState::NothingMoved.to_string()) + &there.unwrap_or_default())
            }
        };
        ActionError::new("migrate", cause, state)
    }

    /// Frees what the VM claims here or, when it may still be here, says that no process works on it any more.
    fn let_go_of_claims(&mut self, is_gone: bool) {
        let Some(vm) = self.traveller.with_vfs() else { return };
        let owner = vm.owner();
        let done = if is_gone {
            gone::release(vm.host, &vm.store, &owner, "migrate")
        } else {
            vm.store.settle(&owner).map(drop)
        };
        if let Err(error) = done {
            log::warn!("{error}; what {} claims here is put right by the next action that looks", owner.vm);
        }
    }

    /// The VM ended during its move, here and there.
    fn lost(mut self, cause: Cause) -> ActionError {
        // What has come there is of a VM that OpenNebula has given up.
        let destroy = self.is_cancelled();
        if let Err(error) = self.agent.ask(&AgentRequest::Abort { destroy }) {
            log::warn!("{error}; what is held there is freed by the next action that looks");
        }
        self.let_go_of_claims(true);
        let left = format!("{} has ended, here and on {}", self.traveller.domain().name, self.agent.host());
        ActionError::new("migrate", cause, HostState::Left(left))
    }

    fn in_doubt(mut self, cause: Cause) -> ActionError {
        self.let_go_of_claims(false);
        let (vm, to) = (self.traveller.domain().name.clone(), self.agent.host().clone());
        let decides = match self.traveller.with_vfs() {
            Some(_) => format!("kvm-sriov resolve {vm} decides"),
            None => format!("look on both hosts where {vm} runs (virsh list --all), and end or resume it there"),
        };
        let left = format!("nothing was resumed or destroyed; {decides}");
        ActionError::new("migrate", Cause::UnknownThere { cause: Box::new(cause), vm, to }, HostState::Left(left))
    }
}

/// Whether all dummies of a VM are on this bridge already.
fn dummies_are_on(live: &LiveDomain, wanted: &Wanted, bridge: &str) -> bool {
    wanted.nics.iter().all(|nic| {
        let alias = dummy_alias_of(nic.position);
        let dummy = live.interfaces.iter().find(|interface| interface.alias.as_deref() == Some(alias.as_str()));
        dummy.is_none_or(|dummy| dummy.bridge.as_deref() == Some(bridge))
    })
}

/// What the domain says of its move.
fn operation(to: String, id: &str, from: Option<&HostName>, stands: bool) -> OperationKind {
    OperationKind::Migrate { to, id: id.to_owned(), from: from.map(ToString::to_string), stands }
}

/// A name for this move that no other has.
fn new_id() -> Result<String, Cause> {
    let path = "/proc/sys/kernel/random/uuid";
    let id = std::fs::read_to_string(path).map_err(Cause::file("read", path))?;
    Ok(id.trim().to_owned())
}

/// Lines in the log while the copy runs.
#[derive(Default)]
struct Progress {
    said: usize,
}

impl Progress {
    /// At which parts of the copy a line is due, in percent.
    const LINES: [u64; 4] = [10, 25, 50, 75];

    fn look(&mut self, host: &Host, domain: &DomainRef) {
        let Ok(Some(job)) = host.hypervisor().job(domain) else { return };
        let Some((done, all)) = job.progress.filter(|(_, all)| *all > 0) else { return };
        let percent = done.saturating_mul(100) / all;
        let passed = Self::LINES.iter().filter(|line| percent >= **line).count();
        if passed > self.said {
            self.said = passed;
            log::info!("{}: {percent} % of {} MiB copied", domain.name, all >> 20);
        }
    }
}
