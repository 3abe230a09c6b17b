//! The calls that copy a domain and take time: save, restore, migration.

use std::path::Path;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::{DomainRef, Event, Job, JobKind, LibvirtError, RunState};
use kvm_sriov::{DomainUuid, os};

use super::Model;
use super::definition::Definition;
use super::image::{Image, Memory};
use super::refusal;
use super::world::{Work, World};

/// How long a copy takes, of memory or of a disk.
pub(super) const COPY: Duration = Duration::from_millis(3);

/// After this time a copy that hangs ends the test, which would wait for ever.
const FOR_EVER: Duration = Duration::from_secs(120);

/// How a save, a migration or a return to a snapshot goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Course {
    /// It succeeds.
    #[default]
    Works,
    /// It copies for ever, until it is aborted, the domain or libvirtd ends, or [`Model::release_copies`].
    Hangs,
    /// It fails in the middle. After a save or a migration the domain runs on; a return to a snapshot ends it.
    Fails,
    /// QEMU hangs: the caller of a save is cut off, and the save can't be aborted. It lasts until the domain ends.
    StandsStill,
    /// The destination refuses before anything is copied.
    RefusedThere,
    /// Everything is copied, but the destination can't run the domain: it runs on at the source.
    FailsAtTheEnd,
    /// Everything is copied, but the destination does not report whether the domain runs there: it stays paused at the
    /// source.
    InDoubt {
        /// Whether the domain is at the destination. It runs there, unless the migration leaves it paused.
        runs_there: bool,
    },
    /// The answer of one phase of a migration is lost, and libvirt's client reacts to that.
    AnswerLost {
        /// The phase.
        phase: Phase,
        /// Whether the request of this phase arrived.
        arrives: bool,
    },
}

/// The phases of a migration in the order in which libvirt's client drives them. `Begin`, `Perform` and `Confirm` run
/// at the source, the others at the destination.
///
/// # Source
/// libvirt `src/libvirt-domain.c`, `virDomainMigrateVersion3Full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The source describes the domain.
    Begin,
    /// The destination starts a QEMU that waits for memory.
    Prepare,
    /// The source sends the memory and stops the CPUs.
    Perform,
    /// The destination starts the CPUs, unless the migration leaves the domain paused.
    Finish,
    /// The source ends the domain, or starts its CPUs again when `Finish` failed.
    Confirm,
}

impl Phase {
    /// All phases in their order.
    pub const ALL: [Self; 5] = [Self::Begin, Self::Prepare, Self::Perform, Self::Finish, Self::Confirm];
}

/// How a copy ended.
pub(super) enum End {
    Copied,
    Failed,
    Aborted,
    /// The domain ended, here or at the destination.
    Gone,
    /// libvirtd ended.
    CutOff,
}

/// A running copy.
struct Copy<'a> {
    model: &'a Model,
    uuid: &'a DomainUuid,
    id: u32,
    /// Where a migration goes, and the domain's number there.
    there: Option<(usize, u32)>,
    course: Course,
    ends: u64,
}

impl Copy<'_> {
    fn end(&self, world: &World, begin: Instant) -> Option<End> {
        let site = &world.sites[self.model.site];
        let lost = self.there.is_some_and(|(there, id)| {
            // A destination without power reports nothing: the source does not see that the domain ended there.
            world.reaches(self.model.site, there) && !world.is_still(there, self.uuid, id)
        });
        if site.ends != self.ends {
            return Some(End::CutOff);
        }
        if lost || !world.is_still(self.model.site, self.uuid, self.id) {
            return Some(End::Gone);
        }
        if site.domain(self.uuid).and_then(|domain| domain.job.as_ref()).is_some_and(|work| work.aborted) {
            return Some(End::Aborted);
        }
        match self.course {
            Course::Hangs if !site.copies_released => None,
            _ if self.there.is_some_and(|(there, _)| !world.reaches(self.model.site, there)) => None,
            _ if os::now() < begin + COPY => None,
            Course::Fails => Some(End::Failed),
            _ => Some(End::Copied),
        }
    }

    fn wait<'a>(&self, mut world: MutexGuard<'a, World>) -> (MutexGuard<'a, World>, End)
    where
        Self: 'a,
    {
        let begin = os::now();
        loop {
            if let Some(end) = self.end(&world, begin) {
                return (world, end);
            }
            assert!(os::now() < begin + FOR_EVER, "nobody ended a copy that hangs");
            world = self.model.shared.wait(world, COPY);
        }
    }
}

impl World {
    /// Whether a domain is still the one that had this number.
    pub(super) fn is_still(&self, site: usize, uuid: &DomainUuid, id: u32) -> bool {
        self.sites[site].domain(uuid).is_some_and(|domain| domain.id == id)
    }

    /// Refuses to save or migrate a domain as libvirt does: with a block job, or with a device of the host.
    pub(super) fn can_leave(&mut self, site: usize, uuid: &DomainUuid) -> Result<(), LibvirtError> {
        let domain = self.sites[site].changeable(uuid)?;
        if !domain.copies.is_empty() {
            return Err(refusal::invalid("domain has active block job"));
        }
        match domain.definition.host_addresses().next() {
            Some(address) => Err(refusal::invalid(format!(
                "cannot migrate domain: {address}: VFIO migration is not supported in kernel"
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn begin(&mut self, site: usize, uuid: &DomainUuid, kind: JobKind, call: &'static str) {
        if let Some(domain) = self.sites[site].domain_mut(uuid) {
            domain.job = Some(Work { kind, call, aborted: false });
        }
    }

    pub(super) fn take_course(&mut self, site: usize) -> Course {
        std::mem::take(&mut self.sites[site].course)
    }

    /// Ends a job. With `runs`, the CPUs that stopped for it start again.
    pub(super) fn finish(&mut self, site: usize, uuid: &DomainUuid, runs: bool) {
        let Some(domain) = self.sites[site].domain_mut(uuid) else { return };
        domain.job = None;
        if runs && !domain.state.runs() {
            self.start_cpus(site, uuid);
        }
        self.sites[site].emit(uuid, &Event::JobCompleted);
    }

    pub(super) fn complete(&mut self, site: usize, uuid: &DomainUuid, kind: JobKind) {
        let job = Job { kind, progress: Some((100, 100)), downtime_ms: Some(7) };
        self.sites[site].completed.insert(uuid.clone(), job);
    }
}

impl Model {
    pub(super) fn copy<'a>(
        &'a self,
        domain: &'a DomainRef,
        id: u32,
        there: Option<(usize, u32)>,
        world: MutexGuard<'a, World>,
        course: Course,
    ) -> (MutexGuard<'a, World>, End) {
        let ends = world.sites[self.site].ends;
        Copy { model: self, uuid: &domain.uuid, id, there, course, ends }.wait(world)
    }

    pub(super) fn save_into(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let uuid = &domain.uuid;
        world.can_leave(self.site, uuid)?;
        let there = world.sites[self.site].existing(uuid)?;
        let (id, ran) = (there.id, there.state.runs());
        let memory = Memory { uuid: uuid.clone(), number: there.memory };
        let image = Image { xml: there.definition.to_xml(None), ran, memory };
        image.begin(file)?;
        world.begin(self.site, uuid, JobKind::Save, "SaveFlags");
        if ran {
            world.stop_cpus(self.site, uuid, RunState::PausedOtherwise);
        }
        let course = world.take_course(self.site);
        if course == Course::StandsStill {
            return Err(refusal::cut_off());
        }
        let (mut world, end) = self.copy(domain, id, None, world, course);
        let result = match end {
            End::Copied => image.finish(file).map(|()| {
                world.complete(self.site, uuid, JobKind::Save);
                world.end(self.site, uuid);
            }),
            End::Failed => Err(refusal::failed("domain save job: unexpectedly failed")),
            End::Aborted => Err(refusal::aborted("domain save job")),
            End::Gone => return Err(refusal::failed("domain is no longer running")),
            End::CutOff => Err(refusal::cut_off()),
        };
        if result.is_err() {
            // libvirtd aborts a save that it finds at its start.
            world.finish(self.site, uuid, ran);
        }
        self.shared.changed();
        result
    }

    pub(super) fn restore_from(&self, file: &Path, xml: &str, paused: bool) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let image = Image::read(file)?;
        let mut definition = Definition::parse(xml, &image.memory.uuid)?;
        if definition.uuid != image.memory.uuid {
            let text = format!("Target domain uuid {} does not match source {}", definition.uuid, image.memory.uuid);
            return Err(refusal::unsupported(text));
        }
        let site = &mut world.sites[self.site];
        site.is_new(&definition)?;
        if let Some(address) = definition.host_addresses().next() {
            // The image holds no state for the device.
            let text = format!("qemu unexpectedly closed the monitor: vfio {address}: load of migration failed");
            return Err(refusal::internal(text));
        }
        definition.complete()?;
        site.can_have(&definition.name, definition.devices())?;
        let state = if paused || image.ran { RunState::PausedForMigration } else { RunState::PausedByUser };
        let restored = site.admit(definition, state, image.memory.number, true);
        if image.ran && !paused {
            world.start_cpus(self.site, &restored.uuid);
        }
        Ok(())
    }
}
