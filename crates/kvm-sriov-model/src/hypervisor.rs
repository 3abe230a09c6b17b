//! The calls of libvirt, as the model answers them.

use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::{
    BlockJob, DomainRef, Events, Hypervisor, Job, JobKind, LibvirtError, Migration, RunState, Snapshots, Usage,
};
use kvm_sriov::{DeployId, DomainUuid};

use super::Model;
use super::definition::Definition;
use super::element::Element;
use super::guest::Guest;
use super::image::Image;
use super::job::Course;
use super::refusal;
use super::world::{Daemon, DiskCopy, Domain, Shared, Snapshot, Watcher, World};

/// How long libvirt waits for a guest before it calls a device "asked for": 5 s, here less.
const DETACH: Duration = Duration::from_millis(50);

/// How large every disk is that was not resized, in bytes.
const CAPACITY: u64 = 64 << 20;

impl Model {
    /// A call begins: the connection must be there.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, World>, LibvirtError> {
        let mut world = self.shared.lock();
        let site = &mut world.sites[self.site];
        match site.daemon {
            Daemon::Runs => Ok(world),
            Daemon::Restarted => {
                site.daemon = Daemon::Runs;
                Err(refusal::cut_off())
            }
            Daemon::Stopped => Err(refusal::cut_off()),
        }
    }

    /// A call that changes a domain.
    fn change<T>(
        &self,
        domain: &DomainRef,
        change: impl FnOnce(&mut Domain) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        change(self.enter()?.sites[self.site].changeable(&domain.uuid)?)
    }

    /// A call that looks at a domain.
    fn look<T>(&self, domain: &DomainRef, look: impl FnOnce(&Domain) -> T) -> Result<Option<T>, LibvirtError> {
        Ok(self.enter()?.sites[self.site].domain(&domain.uuid).map(look))
    }
}

/// Ends a watch when it is dropped.
struct Subscription {
    shared: Arc<Shared>,
    site: usize,
    token: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.lock().sites[self.site].watchers.retain(|watcher| watcher.token != self.token);
    }
}

impl Hypervisor for Model {
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError> {
        Ok(self.enter()?.sites[self.site].domains.iter().map(Domain::reference).collect())
    }

    fn find(&self, id: &DeployId) -> Result<Option<DomainRef>, LibvirtError> {
        let domains = self.domains()?;
        Ok(domains.into_iter().find(|domain| match id {
            DeployId::Uuid(uuid) => domain.uuid == *uuid,
            DeployId::Name(name) => domain.name == *name,
            DeployId::Id(id) => domain.id == Some(*id),
        }))
    }

    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError> {
        self.look(domain, |domain| {
            let mut definition = domain.definition.clone();
            domain.copies.iter().for_each(|(disk, copy)| definition.mirror(disk, &copy.target));
            definition.to_xml(Some(domain.id))
        })
    }

    fn migratable_xml(&self, domain: &DomainRef) -> Result<String, LibvirtError> {
        let found = self.look(domain, |domain| domain.definition.to_xml(None))?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))
    }

    fn create(&self, xml: &str, _limit: Duration) -> Result<DomainRef, LibvirtError> {
        let mut world = self.enter()?;
        let token = world.token();
        let uuid = format!("00000000-0000-4000-8000-{token:012x}").parse().map_err(|_| refusal::internal("uuid"))?;
        let mut definition = Definition::parse(xml, &uuid)?;
        world.sites[self.site].is_new(&definition)?;
        definition.complete()?;
        world.sites[self.site].can_have(&definition.name, definition.devices())?;
        for device in definition.devices() {
            world.sites[self.site].may_open(device)?;
        }
        let memory = world.new_memory(&definition.uuid);
        let created = world.sites[self.site].admit(definition, RunState::PausedOtherwise, memory, false);
        world.start_cpus(self.site, &created.uuid);
        Ok(created)
    }

    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let site = &mut world.sites[self.site];
        site.existing(&domain.uuid)?;
        if site.stuck > 0 {
            site.stuck -= 1;
            let text = "Failed to terminate process 4711 with SIGKILL: Device or resource busy";
            return Err(refusal::system(text));
        }
        world.end(self.site, &domain.uuid);
        Ok(())
    }

    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        if let Some(after) = there.guest.powers_off().filter(|_| there.hears()) {
            let (site, uuid, id) = (self.site, domain.uuid.clone(), there.id);
            world.later(after, move |world| {
                if world.sites[site].domain(&uuid).is_some_and(|domain| domain.id == id) {
                    world.end(site, &uuid);
                }
            });
        }
        Ok(())
    }

    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        if let Some(after) = there.guest.powers_off().filter(|_| there.hears()) {
            let (site, uuid) = (self.site, domain.uuid.clone());
            world.later(after, move |world| world.begin_anew(site, &uuid));
        }
        Ok(())
    }

    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        world.sites[self.site].changeable(&domain.uuid)?;
        world.begin_anew(self.site, &domain.uuid);
        Ok(())
    }

    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError> {
        let found = self.look(domain, |domain| domain.definition.metadata(uri))?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))
    }

    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError> {
        self.change(domain, |domain| domain.definition.set_metadata(xml, prefix, uri))
    }

    fn state(&self, domain: &DomainRef) -> Result<Option<RunState>, LibvirtError> {
        self.look(domain, |domain| domain.state)
    }

    fn job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        let job = |domain: &Domain| {
            let kind = domain.job.as_ref().map(|work| work.kind);
            kind.map(|kind| Job { kind, progress: Some((50, 100)), downtime_ms: None })
        };
        Ok(self.look(domain, job)?.flatten())
    }

    fn completed_job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        Ok(self.enter()?.sites[self.site].completed.get(&domain.uuid).copied())
    }

    fn abort_job(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        match &mut world.sites[self.site].existing(&domain.uuid)?.job {
            None => return Err(refusal::invalid("no job is active on the domain")),
            Some(work) if work.kind == JobKind::MigrationIn => {
                return Err(refusal::invalid("cannot abort incoming migration; use virDomainDestroy instead"));
            }
            Some(work) => work.aborted = true,
        }
        self.shared.changed();
        Ok(())
    }

    fn watch(&self, domain: &DomainRef) -> Result<Events, LibvirtError> {
        self.enter()?.sites[self.site].existing(&domain.uuid)?;
        self.watch_for(&domain.uuid)
    }

    fn watch_for(&self, uuid: &DomainUuid) -> Result<Events, LibvirtError> {
        let mut world = self.enter()?;
        let token = world.token();
        let site = &mut world.sites[self.site];
        let (sender, receiver) = mpsc::channel();
        site.watchers.push(Watcher { token, uuid: uuid.clone(), sender });
        let subscription = Subscription { shared: Arc::clone(&self.shared), site: self.site, token };
        Ok(Events::new(receiver, Box::new(subscription)))
    }

    fn attach(&self, domain: &DomainRef, device_xml: &str, _limit: Duration) -> Result<(), LibvirtError> {
        let device = Element::parse(device_xml);
        let device = device.map_err(|error| refusal::xml(format!("(device_definition): {error}")))?;
        let mut world = self.enter()?;
        let site = &mut world.sites[self.site];
        site.changeable(&domain.uuid)?;
        site.can_have(&domain.name, std::slice::from_ref(&device))?;
        let definition = &mut site.existing(&domain.uuid)?.definition;
        if device.name() == "memory" {
            definition.can_take_dimm(&device)?;
        }
        // Plugging a CD into a drive that is there changes its medium.
        let target = device.child("target").and_then(|target| target.attribute("dev")).unwrap_or_default().to_owned();
        let is_cd = |disk: &Element| disk.attribute("device") == Some("cdrom");
        if is_cd(&device) && definition.disk(&target).is_some_and(is_cd) {
            definition.pivot(&target, &device);
            return Ok(());
        }
        site.may_open(&device)?;
        let alias = site.existing(&domain.uuid)?.definition.plug(device)?;
        site.emit(&domain.uuid, &kvm_sriov::libvirt::Event::DeviceAdded(alias));
        world.hear(self.site, &domain.uuid);
        Ok(())
    }

    fn detach_alias(&self, domain: &DomainRef, alias: &str, _: Duration) -> Result<(), LibvirtError> {
        self.enter()?.ask(self.site, &domain.uuid, alias)
    }

    fn detach(&self, domain: &DomainRef, device_xml: &str) -> Result<(), LibvirtError> {
        let wanted = Element::parse(device_xml);
        let wanted = wanted.map_err(|error| refusal::xml(format!("(device_definition): {error}")))?;
        let mut world = self.enter()?;
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        let is_it = |device: &&Element| {
            let same = |ours: Option<&str>, theirs: Option<&str>| theirs.is_none_or(|theirs| ours == Some(theirs));
            device.name() == wanted.name()
                && same(device.alias(), wanted.alias())
                && same(device.mac(), wanted.mac())
                && (wanted.host_address().is_none() || device.host_address() == wanted.host_address())
        };
        let found = there.definition.devices().iter().find(is_it).and_then(Element::alias).map(str::to_owned);
        let alias = found.ok_or_else(|| refusal::no_device(wanted.alias().or(wanted.mac()).unwrap_or("?")))?;
        world.ask(self.site, &domain.uuid, &alias)?;
        let begin = Instant::now();
        while let Some(rest) = DETACH.checked_sub(begin.elapsed()) {
            let there = world.sites[self.site].domain(&domain.uuid);
            if there.is_none_or(|domain| domain.definition.device(&alias).is_none()) {
                break;
            }
            world = self.shared.wait(world, rest);
        }
        Ok(())
    }

    fn change_medium(&self, domain: &DomainRef, disk_xml: &str) -> Result<(), LibvirtError> {
        let disk = Element::parse(disk_xml);
        let disk = disk.map_err(|error| refusal::xml(format!("(device_definition): {error}")))?;
        let target = disk.child("target").and_then(|target| target.attribute("dev")).unwrap_or_default().to_owned();
        self.change(domain, |domain| {
            domain.definition.disk(&target).ok_or_else(|| refusal::no_disk(&target))?;
            domain.definition.pivot(&target, &disk);
            Ok(())
        })
    }

    fn save(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError> {
        self.save_into(domain, file)
    }

    fn image_xml(&self, file: &Path) -> Result<String, LibvirtError> {
        drop(self.enter()?);
        Ok(Image::read(file)?.xml)
    }

    fn restore(&self, file: &Path, xml: &str, paused: bool, _: Duration) -> Result<(), LibvirtError> {
        self.restore_from(file, xml, paused)
    }

    fn resume(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        match world.sites[self.site].changeable(&domain.uuid)?.state {
            RunState::Running => return Err(refusal::invalid("domain is already running")),
            RunState::PmSuspended => return Err(refusal::invalid("domain is pmsuspended")),
            _ => world.start_cpus(self.site, &domain.uuid),
        }
        Ok(())
    }

    fn wake_up(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        if world.sites[self.site].changeable(&domain.uuid)?.state != RunState::PmSuspended {
            return Err(refusal::invalid("Unable to wake up domain: domain is not pmsuspended"));
        }
        world.start_cpus(self.site, &domain.uuid);
        Ok(())
    }

    fn sync_time(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        self.change(domain, |_| Err(refusal::no_agent()))
    }

    fn migrate(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError> {
        self.migrate_to(domain, migration)
    }

    fn snapshots(&self, domain: &DomainRef) -> Result<Snapshots, LibvirtError> {
        let found = self.look(domain, |domain| Snapshots {
            names: domain.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
            current: domain.current_snapshot.clone(),
        })?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))
    }

    fn create_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError> {
        let wanted = snapshot_element(xml)?;
        let mut world = self.enter()?;
        world.can_leave(self.site, &domain.uuid)?;
        let there = world.sites[self.site].existing(&domain.uuid)?;
        let name = wanted.child("name").map_or_else(|| "1700000000".to_owned(), Element::text);
        if there.snapshots.iter().any(|snapshot| snapshot.name == name) {
            return Err(refusal::failed(format!("domain snapshot {name} already exists")));
        }
        let ran = there.state.runs();
        let (parent, definition) = (there.current_snapshot.replace(name.clone()), there.definition.clone());
        there.snapshots.push(Snapshot { name, parent, definition });
        if ran {
            world.stop_cpus(self.site, &domain.uuid, RunState::PausedOtherwise);
            world.start_cpus(self.site, &domain.uuid);
        }
        Ok(())
    }

    fn snapshot_xml(&self, domain: &DomainRef, name: &str) -> Result<String, LibvirtError> {
        let found = self.look(domain, |domain| domain.snapshot(name).map(Snapshot::to_xml))?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))?
    }

    fn revert_snapshot(&self, domain: &DomainRef, name: &str) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let course = world.take_course(self.site);
        let definition = world.sites[self.site].changeable(&domain.uuid)?.snapshot(name)?.definition.clone();
        if course == Course::Fails {
            world.end(self.site, &domain.uuid);
            return Err(refusal::internal("qemu unexpectedly closed the monitor: snapshot can't be loaded"));
        }
        let memory = world.new_memory(&domain.uuid);
        world.sites[self.site].replace(definition, memory, name);
        world.start_cpus(self.site, &domain.uuid);
        Ok(())
    }

    fn delete_snapshot(&self, domain: &DomainRef, name: &str, _metadata_only: bool) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            let parent = domain.snapshot(name)?.parent.clone();
            domain.snapshots.retain(|snapshot| snapshot.name != name);
            for child in domain.snapshots.iter_mut().filter(|child| child.parent.as_deref() == Some(name)) {
                child.parent.clone_from(&parent);
            }
            if domain.current_snapshot.as_deref() == Some(name) {
                domain.current_snapshot = parent;
            }
            Ok(())
        })
    }

    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str, current: bool) -> Result<(), LibvirtError> {
        let wanted = snapshot_element(xml)?;
        let missing = |what: &str| refusal::xml(format!("missing {what} in existing snapshot"));
        let name = wanted.child("name").ok_or_else(|| missing("name"))?.text();
        let kept = wanted.child("domain").ok_or_else(|| missing("domain"))?;
        let definition = Definition::parse(&kept.to_string(), &domain.uuid)?;
        if definition.uuid != domain.uuid {
            return Err(refusal::argument(format!("definition for snapshot {name} must use uuid {}", domain.uuid)));
        }
        let parent = wanted.child("parent").and_then(|parent| parent.child("name")).map(Element::text);
        self.change(domain, |domain| {
            if let Some(parent) = &parent {
                domain.snapshot(parent)?;
            }
            domain.snapshots.retain(|snapshot| snapshot.name != name);
            domain.snapshots.push(Snapshot { name: name.clone(), parent, definition });
            if current {
                domain.current_snapshot = Some(name);
            }
            Ok(())
        })
    }

    fn block_copy(&self, domain: &DomainRef, disk: &str, target_xml: &str, _shallow: bool) -> Result<(), LibvirtError> {
        let target = Element::parse(target_xml);
        let target = target.map_err(|error| refusal::xml(format!("(disk_definition): {error}")))?;
        self.change(domain, |domain| {
            if domain.copies.contains_key(disk) {
                return Err(refusal::copy_runs(disk));
            }
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            domain.copies.insert(disk.to_owned(), DiskCopy { target, begun: Instant::now() });
            Ok(())
        })
    }

    fn block_job(&self, domain: &DomainRef, disk: &str) -> Result<Option<BlockJob>, LibvirtError> {
        let found = self.look(domain, |domain| {
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            let done = |copy: &DiskCopy| if copy.is_ready() { 100 } else { 50 };
            Ok(domain.copies.get(disk).map(|copy| BlockJob { done: done(copy), all: 100 }))
        })?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))?
    }

    fn finish_block_job(&self, domain: &DomainRef, disk: &str, pivot: bool) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            let copy = domain.copies.get(disk).ok_or_else(|| refusal::no_copy(disk))?;
            if pivot && !copy.is_ready() {
                return Err(refusal::copy_not_ready(disk));
            }
            let target = domain.copies.remove(disk).map(|copy| copy.target);
            if let Some(target) = target.filter(|_| pivot) {
                domain.definition.pivot(disk, &target);
            }
            Ok(())
        })
    }

    fn disk_capacity(&self, domain: &DomainRef, disk: &str) -> Result<u64, LibvirtError> {
        let found = self.look(domain, |domain| {
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            Ok(domain.capacities.get(disk).copied().unwrap_or(CAPACITY))
        })?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))?
    }

    fn resize_disk(&self, domain: &DomainRef, disk: &str, bytes: u64) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            if domain.copies.contains_key(disk) {
                let text = format!("Node '{disk}' is busy: block device is in use by block job: mirror");
                return Err(refusal::monitor("block_resize", text));
            }
            domain.capacities.insert(disk.to_owned(), bytes);
            Ok(())
        })
    }

    fn set_memory(&self, domain: &DomainRef, kib: u64) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            if kib > domain.definition.memory_kib("memory") {
                return Err(refusal::argument("cannot set memory higher than max memory"));
            }
            domain.definition.set_memory_kib("currentMemory", kib);
            Ok(())
        })
    }

    fn set_vcpus(&self, domain: &DomainRef, number: u32) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            let most = domain.definition.most_vcpus();
            if number > most {
                let text = format!(
                    "requested vcpus is greater than max allowable vcpus for the live domain: {number} > {most}"
                );
                return Err(refusal::argument(text));
            }
            if number < domain.definition.vcpus() && domain.guest == Guest::Silent {
                return Err(refusal::kept_vcpu());
            }
            domain.definition.set_vcpus(number);
            Ok(())
        })
    }

    fn ask_agent(&self, domain: &DomainRef, command: &str) -> Result<String, LibvirtError> {
        let asked: serde_json::Value =
            serde_json::from_str(command).map_err(|error| refusal::argument(error.to_string()))?;
        let arguments = &asked["arguments"];
        let mut world = self.enter()?;
        let number = world.token();
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        if there.guest == Guest::Silent {
            return Err(refusal::no_agent());
        }
        match asked["execute"].as_str() {
            Some("guest-exec") => {
                let words =
                    std::iter::once(&arguments["path"]).chain(arguments["arg"].as_array().into_iter().flatten());
                let words: Vec<String> = words.map(|word| word.as_str().unwrap_or_default().to_owned()).collect();
                match &words[..] {
                    [kill, _, number] if kill == "kill" => drop(there.commands.remove(&number.parse().unwrap_or(0))),
                    _ => drop(there.commands.insert(number, words)),
                }
                Ok(format!("{{\"return\":{{\"pid\":{number}}}}}"))
            }
            Some("guest-exec-status") => {
                let number = arguments["pid"].as_u64().unwrap_or(0);
                let exited = !there.commands.contains_key(&number);
                Ok(format!("{{\"return\":{{\"exited\":{exited}}}}}"))
            }
            other => {
                let text = format!("unable to execute QEMU agent command '{}': not found", other.unwrap_or_default());
                Err(refusal::internal(text))
            }
        }
    }

    fn usage(
        &self,
        domain: &DomainRef,
        interfaces: &[String],
        disks: &[String],
    ) -> Result<Option<Usage>, LibvirtError> {
        let count = |things: &[String], each: u64| each * u64::try_from(things.len()).unwrap_or(0);
        self.look(domain, |domain| Usage {
            cpu_ns: 0,
            memory_kib: domain.definition.memory_kib("memory"),
            received: count(interfaces, 1000),
            sent: count(interfaces, 100),
            read: (count(disks, 4096), count(disks, 8)),
            written: (count(disks, 512), count(disks, 1)),
            is_paused: !domain.state.runs(),
            is_stuck: domain.state == RunState::PausedByUser,
        })
    }
}

fn snapshot_element(xml: &str) -> Result<Element, LibvirtError> {
    let element = Element::parse(xml).map_err(|error| refusal::xml(format!("(domain_snapshot): {error}")))?;
    if element.name() == "domainsnapshot" {
        Ok(element)
    } else {
        Err(refusal::xml(format!("unexpected root element <{}>, expecting <domainsnapshot>", element.name())))
    }
}

impl Domain {
    fn snapshot(&self, name: &str) -> Result<&Snapshot, LibvirtError> {
        self.snapshots.iter().find(|snapshot| snapshot.name == name).ok_or_else(|| refusal::no_snapshot(name))
    }
}

impl Snapshot {
    fn to_xml(&self) -> String {
        let text = |name: &str, text: &str| Element::new(name, &[]).with_text(text);
        let mut snapshot = Element::new("domainsnapshot", &[]).with(text("name", &self.name));
        snapshot.push(text("state", "running"));
        if let Some(parent) = &self.parent {
            snapshot.push(Element::new("parent", &[]).with(text("name", parent)));
        }
        snapshot.with(self.definition.to_element(None)).to_string()
    }
}
