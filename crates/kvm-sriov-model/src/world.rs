//! The state of all model hosts of one world, under one lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::{DomainRef, Event, Job, JobKind, LibvirtError, RunState};
use kvm_sriov::os::{self, Side};
use kvm_sriov::sysfs::{NoVf, Sysfs};
use kvm_sriov::{DomainName, DomainUuid, PciAddress};

use super::definition::Definition;
use super::element::Element;
use super::guest::{ANSWER, Guest, Hotplug, PRESS};
use super::image::Memory;
use super::job::{COPY, Course};
use super::refusal;

/// The world, and who waits for a change in it.
pub(super) struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    changes: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|shared| Self {
            world: Mutex::new(World::new(shared.clone())),
            changed: Condvar::new(),
            changes: AtomicU64::new(0),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most this long.
    pub(super) fn wait<'a>(&'a self, world: MutexGuard<'a, World>, limit: Duration) -> MutexGuard<'a, World> {
        if let Some(os) = os::simulated() {
            drop(world);
            let before = self.changes.load(Ordering::Relaxed);
            let end = Some(os.now() + limit);
            os::wait_until(&*os, end, || self.changes.load(Ordering::Relaxed) != before);
            return self.lock();
        }
        self.changed.wait_timeout(world, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

/// The model hosts that can reach each other.
pub(super) struct World {
    pub(super) sites: Vec<Site>,
    /// The newest memory of every VM that ever ran.
    newest: BTreeMap<DomainUuid, u64>,
    /// What must never happen and did happen.
    pub(super) violations: Vec<String>,
    tokens: u64,
    /// Whether the hosts reach each other.
    pub(super) network: bool,
    shared: Weak<Shared>,
}

/// libvirtd on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    Runs,
    /// It has restarted: the next call fails, because its connection is gone.
    Restarted,
    Stopped,
}

/// One host.
pub(super) struct Site {
    pub(super) name: String,
    pub(super) sysfs: Sysfs,
    pub(super) daemon: Daemon,
    /// How many times libvirtd has ended.
    pub(super) ends: u64,
    pub(super) domains: Vec<Domain>,
    pub(super) watchers: Vec<Watcher>,
    pub(super) guests: BTreeMap<DomainName, Guest>,
    pub(super) hotplugs: BTreeMap<DomainName, Hotplug>,
    pub(super) refused: BTreeMap<PciAddress, String>,
    /// For how many more attempts QEMU may not open the vfio device of a VF.
    pub(super) udev_delays: BTreeMap<PciAddress, usize>,
    pub(super) course: Course,
    /// Called when an answer of a migration is lost.
    pub(super) on_lost_answer: Option<Box<dyn FnOnce() + Send>>,
    /// Whether copies that hang go on ([`Course::Hangs`]).
    pub(super) copies_released: bool,
    pub(super) completed: BTreeMap<DomainUuid, Job>,
    last_id: u32,
}

/// A subscription to the events of one domain.
pub(super) struct Watcher {
    pub(super) token: u64,
    pub(super) uuid: DomainUuid,
    pub(super) sender: Sender<Event>,
}

/// A domain that QEMU runs.
pub(super) struct Domain {
    pub(super) definition: Definition,
    pub(super) id: u32,
    pub(super) state: RunState,
    pub(super) job: Option<Work>,
    /// The number of its memory, see [`Memory`].
    pub(super) memory: u64,
    /// Whether its memory came from a file or another host, and its CPUs have not run since.
    pub(super) fresh: bool,
    pub(super) guest: Guest,
    hotplug: Hotplug,
    requests: Vec<Request>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) current_snapshot: Option<String>,
    /// The running copies of its disks, by target.
    pub(super) copies: BTreeMap<String, DiskCopy>,
    /// The sizes of resized disks, by target, in bytes.
    pub(super) capacities: BTreeMap<String, u64>,
    /// The commands that its agent runs: program and arguments, by process id.
    pub(super) commands: BTreeMap<u64, Vec<String>>,
}

/// A disk that is being copied.
pub(super) struct DiskCopy {
    /// The `<disk>` element that it is copied into.
    pub(super) target: Element,
    pub(super) begun: Instant,
}

impl DiskCopy {
    pub(super) fn is_ready(&self) -> bool {
        os::now() > self.begun + COPY
    }
}

/// A job on a domain.
pub(super) struct Work {
    pub(super) kind: JobKind,
    /// libvirt's name of the call, for the error of a call that waits in vain.
    pub(super) call: &'static str,
    pub(super) aborted: bool,
}

/// A request to release a device, which the guest has not carried out.
struct Request {
    alias: String,
    token: u64,
    pressed: Instant,
}

/// A snapshot of disks and memory.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) name: String,
    pub(super) parent: Option<String>,
    pub(super) definition: Definition,
}

impl World {
    fn new(shared: Weak<Shared>) -> Self {
        Self { sites: Vec::new(), newest: BTreeMap::new(), violations: Vec::new(), tokens: 0, network: true, shared }
    }

    pub(super) fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// Makes this change after this time.
    pub(super) fn later(&self, after: Duration, change: impl FnOnce(&mut Self) + Send + 'static) {
        let shared = self.shared.clone();
        let work = move || {
            os::sleep(after);
            if let Some(shared) = shared.upgrade() {
                change(&mut shared.lock());
                shared.changed();
            }
        };
        os::spawn("world", Side::World, work).unwrap();
    }

    /// Starts the CPUs of a domain.
    pub(super) fn start_cpus(&mut self, site: usize, uuid: &DomainUuid) {
        let elsewhere = self
            .sites
            .iter()
            .enumerate()
            .any(|(other, there)| other != site && there.domain(uuid).is_some_and(|domain| domain.state.runs()));
        let newest = self.newest.entry(uuid.clone()).or_default();
        let Some(domain) = self.sites[site].domain_mut(uuid) else { return };
        if elsewhere {
            self.violations.push(format!("the CPUs of {} run on two hosts", domain.definition.name));
        }
        if domain.memory != *newest {
            self.violations.push(format!("{} runs with an old memory", domain.definition.name));
        }
        // A domain that had handed its memory over has a newer one from now on.
        if domain.fresh || domain.state == RunState::PausedForMigration {
            *newest += 1;
            domain.memory = *newest;
            domain.fresh = false;
        }
        domain.state = RunState::Running;
        self.sites[site].emit(uuid, &Event::Resumed);
        self.hear(site, uuid);
    }

    /// Stops the CPUs of a domain.
    pub(super) fn stop_cpus(&mut self, site: usize, uuid: &DomainUuid, why: RunState) {
        let there = &mut self.sites[site];
        if let Some(domain) = there.domain_mut(uuid) {
            domain.state = why;
            there.emit(uuid, &Event::Suspended);
        }
    }

    /// The number of a memory that the VM has not had yet.
    pub(super) fn new_memory(&mut self, uuid: &DomainUuid) -> u64 {
        let newest = self.newest.entry(uuid.clone()).or_default();
        *newest += 1;
        *newest
    }

    /// Whether this is the newest memory of its VM.
    pub(super) fn is_newest(&self, memory: &Memory) -> bool {
        self.newest.get(&memory.uuid) == Some(&memory.number)
    }

    /// Asks a guest to release a device.
    pub(super) fn ask(&mut self, site: usize, uuid: &DomainUuid, alias: &str) -> Result<(), LibvirtError> {
        let token = self.token();
        let domain = self.sites[site].changeable(uuid)?;
        let Some(device) = domain.definition.device(alias) else { return Err(refusal::no_alias(alias)) };
        if device.name() == "disk" && device.attribute("device") == Some("cdrom") {
            return Err(refusal::unsupported("disk device type 'cdrom' cannot be detached"));
        }
        if let Guest::Busy(times @ 1..) = domain.guest {
            domain.guest = Guest::Busy(times - 1);
            let text = "Hot-unplug failed: guest is busy (power indicator blinking)";
            return Err(refusal::monitor("device_del", text));
        }
        if let Some(at) = domain.requests.iter().position(|request| request.alias == alias) {
            let soon = os::now() < domain.requests[at].pressed + PRESS;
            match domain.hotplug {
                Hotplug::Acpi => {}
                Hotplug::Native | Hotplug::NativeCancels if !soon => {}
                Hotplug::AcpiOnce | Hotplug::Native => {
                    let text = format!("Device {alias} is already in the process of unplug");
                    return Err(refusal::monitor("device_del", text));
                }
                Hotplug::NativeCancels => {
                    domain.requests.remove(at);
                    return Ok(());
                }
            }
            domain.requests.remove(at);
        }
        domain.requests.push(Request { alias: alias.to_owned(), token, pressed: os::now() });
        if domain.guest == Guest::RemovalFailed {
            let (uuid, alias) = (uuid.clone(), alias.to_owned());
            self.later(ANSWER, move |world| world.decline(site, &uuid, &alias, token));
        }
        self.hear(site, uuid);
        Ok(())
    }

    /// Makes a guest that hears carry out its requests, each after its time.
    pub(super) fn hear(&mut self, site: usize, uuid: &DomainUuid) {
        let Some(domain) = self.sites[site].domain(uuid).filter(|domain| domain.hears()) else { return };
        let requests: Vec<(String, u64)> =
            domain.requests.iter().map(|request| (request.alias.clone(), request.token)).collect();
        let guest = domain.guest.clone();
        for (alias, token) in requests {
            match guest.releases(&alias) {
                None => {}
                Some(Duration::ZERO) => self.release(site, uuid, &alias, token),
                Some(after) => {
                    let uuid = uuid.clone();
                    self.later(after, move |world| world.release(site, &uuid, &alias, token));
                }
            }
        }
    }

    /// The guest has released the device of this request.
    fn release(&mut self, site: usize, uuid: &DomainUuid, alias: &str, token: u64) {
        let there = &mut self.sites[site];
        let Some(domain) = there.domain_mut(uuid).filter(|domain| domain.state.runs()) else { return };
        if domain.forget(alias, token) {
            domain.definition.unplug(alias);
            // An event of another device comes as well, which says nothing about this one.
            there.emit(uuid, &Event::DeviceRemoved("net99".into()));
            there.emit(uuid, &Event::DeviceRemoved(alias.to_owned()));
        }
    }

    fn decline(&mut self, site: usize, uuid: &DomainUuid, alias: &str, token: u64) {
        let there = &mut self.sites[site];
        if there.domain_mut(uuid).is_some_and(|domain| domain.forget(alias, token)) {
            there.emit(uuid, &Event::DeviceRemovalFailed(alias.to_owned()));
        }
    }

    /// The guest starts again. An ACPI controller carries out the requests, a native one drops them.
    ///
    /// # Source
    /// QEMU `hw/acpi/pcihp.c`: "Execute any pending removes during reset".
    pub(super) fn begin_anew(&mut self, site: usize, uuid: &DomainUuid) {
        let there = &mut self.sites[site];
        let Some(domain) = there.domain_mut(uuid) else { return };
        let requests = std::mem::take(&mut domain.requests);
        let carried_out = matches!(domain.hotplug, Hotplug::Acpi | Hotplug::AcpiOnce);
        let gone: Vec<String> = requests.into_iter().filter(|_| carried_out).map(|request| request.alias).collect();
        for alias in &gone {
            domain.definition.unplug(alias);
        }
        there.emit(uuid, &Event::Rebooted);
        for alias in gone {
            there.emit(uuid, &Event::DeviceRemoved(alias));
        }
    }

    /// Ends a domain.
    pub(super) fn end(&mut self, site: usize, uuid: &DomainUuid) {
        let there = &mut self.sites[site];
        if there.domain(uuid).is_some() {
            there.domains.retain(|domain| domain.definition.uuid != *uuid);
            there.emit(uuid, &Event::Ended);
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.changed();
        }
    }
}

impl Site {
    pub(super) fn new(name: &str, sysfs: Sysfs) -> Self {
        Self {
            name: name.to_owned(),
            sysfs,
            daemon: Daemon::Runs,
            ends: 0,
            domains: Vec::new(),
            watchers: Vec::new(),
            guests: BTreeMap::new(),
            hotplugs: BTreeMap::new(),
            refused: BTreeMap::new(),
            udev_delays: BTreeMap::new(),
            course: Course::Works,
            on_lost_answer: None,
            copies_released: false,
            completed: BTreeMap::new(),
            last_id: 0,
        }
    }

    pub(super) fn domain(&self, uuid: &DomainUuid) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.definition.uuid == *uuid)
    }

    pub(super) fn domain_mut(&mut self, uuid: &DomainUuid) -> Option<&mut Domain> {
        self.domains.iter_mut().find(|domain| domain.definition.uuid == *uuid)
    }

    pub(super) fn named(&mut self, name: &str) -> Option<&mut Domain> {
        self.domains.iter_mut().find(|domain| domain.definition.name.as_str() == name)
    }

    /// The domain, or libvirt's error when it does not run.
    pub(super) fn existing(&mut self, uuid: &DomainUuid) -> Result<&mut Domain, LibvirtError> {
        self.domain_mut(uuid).ok_or_else(|| refusal::no_domain(uuid.as_str()))
    }

    /// The domain, or libvirt's error when it does not run or a job has it.
    pub(super) fn changeable(&mut self, uuid: &DomainUuid) -> Result<&mut Domain, LibvirtError> {
        let domain = self.existing(uuid)?;
        match &domain.job {
            Some(work) => Err(refusal::locked(work.call)),
            None => Ok(domain),
        }
    }

    /// Refuses a domain whose name or UUID another domain has.
    pub(super) fn is_new(&self, definition: &Definition) -> Result<(), LibvirtError> {
        let Definition { name, uuid, .. } = definition;
        match self
            .domains
            .iter()
            .map(|other| &other.definition)
            .find(|other| other.name == *name || other.uuid == *uuid)
        {
            None => Ok(()),
            Some(other) if other.name != *name => {
                Err(refusal::failed(format!("domain '{}' is already defined with uuid {uuid}", other.name)))
            }
            Some(other) if other.uuid != *uuid => {
                Err(refusal::failed(format!("domain '{name}' already exists with uuid {}", other.uuid)))
            }
            Some(_) => Err(refusal::invalid(format!("domain is already active as '{name}'"))),
        }
    }

    /// Refuses devices that the host lacks, that another domain has, or that QEMU refuses.
    pub(super) fn can_have(&self, domain: &DomainName, devices: &[Element]) -> Result<(), LibvirtError> {
        let mut taken: BTreeMap<PciAddress, &DomainName> = BTreeMap::new();
        for other in &self.domains {
            taken.extend(other.definition.host_addresses().map(|address| (address, &other.definition.name)));
        }
        for device in devices {
            if let Some(bridge) = device.bridge().filter(|bridge| !self.sysfs.is_bridge(bridge)) {
                return Err(refusal::system(format!("Cannot get interface MTU on '{bridge}': No such device")));
            }
            let Some(address) = device.host_address() else { continue };
            if self.sysfs.check_vf(address) == Err(NoVf::Missing) {
                return Err(refusal::system(format!(
                    "Device {address} not found: could not access /sys/bus/pci/devices/{address}/config: \
                     No such file or directory"
                )));
            }
            if let Some(user) = taken.insert(address, domain) {
                let text = format!("PCI device {address} is in use by driver QEMU, domain {user}");
                return Err(refusal::invalid(text));
            }
            if let Some(text) = self.refused.get(&address) {
                return Err(refusal::internal(format!("process exited while connecting to monitor: {text}")));
            }
        }
        Ok(())
    }

    /// Refuses a device whose vfio device QEMU may not open yet.
    ///
    /// # Source
    /// QEMU `hw/vfio/container.c`; the lab, with udev's queue stopped.
    pub(super) fn may_open(&mut self, device: &Element) -> Result<(), LibvirtError> {
        let late = device.host_address().and_then(|address| Some((address, self.udev_delays.get_mut(&address)?)));
        match late {
            Some((address, times)) if *times > 0 => {
                *times -= 1;
                let text = format!("vfio {address}: Could not open '/dev/vfio/11': Permission denied");
                Err(refusal::monitor("device_add", text))
            }
            _ => Ok(()),
        }
    }

    /// Adds a domain.
    pub(super) fn admit(&mut self, definition: Definition, state: RunState, memory: u64, fresh: bool) -> DomainRef {
        self.last_id += 1;
        let name = definition.name.clone();
        let domain = Domain {
            id: self.last_id,
            state,
            job: None,
            memory,
            fresh,
            guest: self.guests.get(&name).cloned().unwrap_or_default(),
            hotplug: self.hotplugs.get(&name).copied().unwrap_or_default(),
            requests: Vec::new(),
            snapshots: Vec::new(),
            current_snapshot: None,
            copies: BTreeMap::new(),
            capacities: BTreeMap::new(),
            commands: BTreeMap::new(),
            definition,
        };
        let reference = domain.reference();
        self.domains.push(domain);
        reference
    }

    /// A domain returns to a snapshot: its QEMU ends, and another one starts.
    pub(super) fn replace(&mut self, definition: Definition, memory: u64, snapshot: &str) {
        self.last_id += 1;
        let (id, uuid) = (self.last_id, definition.uuid.clone());
        let Some(domain) = self.domain_mut(&uuid) else { return };
        domain.id = id;
        domain.definition = definition;
        domain.memory = memory;
        domain.state = RunState::PausedOtherwise;
        domain.requests.clear();
        domain.current_snapshot = Some(snapshot.to_owned());
        self.emit(&uuid, &Event::Ended);
    }

    /// libvirtd ends, or restarts. A QEMU that waits for a domain's memory does not outlive that.
    ///
    /// # Source
    /// libvirt `src/qemu/qemu_process.c`, qemuProcessRecoverMigrationIn.
    pub(super) fn end_daemon(&mut self, daemon: Daemon) {
        self.daemon = daemon;
        self.ends += 1;
        self.watchers.clear();
        self.domains.retain(|domain| domain.job.as_ref().is_none_or(|work| work.kind != JobKind::MigrationIn));
    }

    /// Sends an event to everybody who watches this domain.
    pub(super) fn emit(&mut self, uuid: &DomainUuid, event: &Event) {
        self.watchers.retain(|watcher| watcher.uuid != *uuid || watcher.sender.send(event.clone()).is_ok());
    }
}

impl Domain {
    pub(super) fn reference(&self) -> DomainRef {
        let Definition { name, uuid, .. } = &self.definition;
        DomainRef { name: name.clone(), uuid: uuid.clone(), id: Some(self.id) }
    }

    /// Whether a request reaches the guest.
    pub(super) fn hears(&self) -> bool {
        self.state.runs() && self.definition.has_acpi()
    }

    pub(super) fn set_hotplug(&mut self, hotplug: Hotplug) {
        self.hotplug = hotplug;
    }

    /// Whether the guest is about to release a device.
    pub(super) fn will_answer(&self) -> bool {
        self.hears() && self.requests.iter().any(|request| self.guest.releases(&request.alias).is_some())
    }

    fn forget(&mut self, alias: &str, token: u64) -> bool {
        let before = self.requests.len();
        self.requests.retain(|request| request.alias != alias || request.token != token);
        self.requests.len() < before
    }
}
