//! A migration in the phases in which libvirt's client drives it.
//!
//! Between two phases others may go on: the client may be killed, the network may break, a libvirtd may restart.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kvm_sriov::DomainUuid;
use kvm_sriov::libvirt::{DomainRef, JobKind, LibvirtError, Migration, RunState};
use kvm_sriov::os::{self, Side, simulated};

use super::Model;
use super::definition::Definition;
use super::job::{COPY, Course, End, Phase};
use super::refusal;
use super::world::{Daemon, World};

/// After this time without an answer libvirt takes a connection for broken.
///
/// # Source
/// libvirtd.conf: `keepalive_interval = 5`, `keepalive_count = 5`.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The client of a migration. If its process is killed, both libvirtds notice that its connections are closed.
struct Client<'a> {
    model: &'a Model,
    uuid: DomainUuid,
    /// The domain's number at the source, and whether its CPUs ran.
    id: u32,
    ran: bool,
    /// The destination, and the domain's number there once it is prepared.
    there: usize,
    there_id: Option<u32>,
    /// The last phase that was asked for; `None` when the migration has ended, well or not.
    phase: Option<Phase>,
    /// How often the source's libvirtd had ended when the migration began.
    ends: u64,
}

/// # Source
/// libvirt `src/qemu/qemu_migration.c`, qemuMigrationSrcCleanup; `qemu_process.c`, VIR_QEMU_PROCESS_START_AUTODESTROY.
impl Drop for Client<'_> {
    fn drop(&mut self) {
        let Some(phase) = self.phase.take() else { return };
        let Self { model, uuid, id, ran, there, there_id, .. } = self;
        let (site, id, ran, there) = (model.site, *id, *ran, *there);
        let world = model.shared.lock();
        // The waiting QEMU ends with the client's connection, until it has the domain.
        if let (Some(number), true) = (*there_id, phase < Phase::Confirm) {
            let uuid = uuid.clone();
            let noticed = if world.reaches(site, there) { Duration::ZERO } else { KEEPALIVE };
            world.later(noticed, move |world| {
                if world.is_still(there, &uuid, number) && world.is_incoming(there, &uuid) {
                    world.end(there, &uuid);
                }
            });
        }
        let uuid = uuid.clone();
        match phase {
            Phase::Begin | Phase::Prepare => {}
            // The source's libvirtd goes on with the copy.
            Phase::Perform => world.later(COPY, move |world| {
                if !world.is_still(site, &uuid, id) {
                    return;
                }
                let is_waiting = world.is_incoming(there, &uuid) && world.reaches(site, there);
                if is_waiting {
                    world.stop_cpus(site, &uuid, RunState::PausedForMigration);
                }
                world.finish(site, &uuid, ran && !is_waiting);
            }),
            // "Migration finished but we don't know if the domain was successfully started on destination or not"
            Phase::Finish | Phase::Confirm => world.later(Duration::ZERO, move |world| {
                if world.is_still(site, &uuid, id) {
                    world.finish(site, &uuid, false);
                }
            }),
        }
    }
}

impl Client<'_> {
    /// Others go on, between two phases.
    fn between<'w>(&self, world: MutexGuard<'w, World>, step: &'static str) -> MutexGuard<'w, World>
    where
        Self: 'w,
    {
        if simulated().is_none() {
            return world;
        }
        drop(world);
        os::step("phase", step);
        self.model.shared.lock()
    }

    fn reaches(&self, world: &World) -> bool {
        world.reaches(self.model.site, self.there)
    }

    /// The source's libvirtd has ended since the migration began.
    fn has_restarted(&self, world: &World) -> bool {
        world.sites[self.model.site].ends != self.ends
    }

    /// The waiting QEMU ends, now or when its libvirtd notices that the client is gone.
    fn discard(&self, world: &mut World) {
        let Some(number) = self.there_id else { return };
        let (there, uuid) = (self.there, self.uuid.clone());
        let end = move |world: &mut World| {
            if world.is_still(there, &uuid, number) {
                world.end(there, &uuid);
            }
        };
        if self.reaches(world) { end(world) } else { world.later(KEEPALIVE, end) }
    }

    /// The domain is at the destination.
    fn arrives(&self, world: &mut World, migration: &Migration) {
        let runs = self.ran && !migration.paused;
        if let (false, Some(domain)) = (runs, world.sites[self.there].domain_mut(&self.uuid)) {
            domain.state = RunState::PausedByUser;
        }
        world.complete(self.there, &self.uuid, JobKind::MigrationIn);
        world.finish(self.there, &self.uuid, runs);
    }

    /// The CPUs stop at the source: all memory is copied.
    fn stop(&self, world: &mut World) {
        world.stop_cpus(self.model.site, &self.uuid, RunState::PausedForMigration);
    }

    /// The source's job ends. With `runs`, its CPUs start again.
    fn give_up(&self, world: &mut World, runs: bool) {
        if world.is_still(self.model.site, &self.uuid, self.id) {
            world.finish(self.model.site, &self.uuid, runs);
        }
    }
}

impl Model {
    /// # Source
    /// libvirt `src/libvirt-domain.c`, `virDomainMigrateVersion3Full`.
    pub(super) fn migrate_to(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let uuid = &domain.uuid;
        world.can_leave(self.site, uuid)?;
        let source = world.sites[self.site].existing(uuid)?;
        let (id, ran, memory, guest) = (source.id, source.state.runs(), source.memory, source.guest.clone());
        if !source.snapshots.is_empty() {
            let text = format!("cannot migrate domain with {} snapshots", source.snapshots.len());
            return Err(refusal::invalid(text));
        }
        let mut definition = match &migration.xml {
            Some(xml) => Definition::parse(xml, uuid)?,
            None => source.definition.clone(),
        };
        let there = world.destination(self.site, &migration.destination)?;
        let course = world.take_course(self.site);
        let ends = world.sites[self.site].ends;
        let phase = Some(Phase::Begin);
        let mut client = Client { model: self, uuid: uuid.clone(), id, ran, there, there_id: None, phase, ends };
        let lost = |phase, arrives| course == Course::AnswerLost { phase, arrives };

        world = client.between(world, "prepare");
        let is_lost = [true, false].into_iter().any(|arrives| lost(Phase::Begin, arrives));
        if is_lost || lost(Phase::Prepare, false) || !client.reaches(&world) {
            // The source does not know of the migration yet, or drops it with the connection.
            client.phase = None;
            return Err(self.loses(world));
        }
        client.phase = None;
        world.sites[there].is_new(&definition)?;
        definition.complete()?;
        world.sites[there].can_have(&definition.name, definition.devices())?;
        if course == Course::RefusedThere {
            return Err(refusal::internal("process exited while connecting to monitor: cannot set up guest memory"));
        }
        let incoming = world.sites[there].admit(definition, RunState::PausedForMigration, memory, true);
        if let Some(domain) = world.sites[there].domain_mut(uuid) {
            domain.guest = guest;
        }
        world.begin(there, uuid, JobKind::MigrationIn, "MigratePrepare3Params");
        client.there_id = incoming.id;
        client.phase = Some(Phase::Prepare);

        world = client.between(world, "perform");
        if lost(Phase::Prepare, true) || !client.reaches(&world) {
            // The waiting QEMU ends with the connection over which it was requested.
            client.phase = None;
            let (uuid, id) = (uuid.clone(), incoming.id.unwrap_or_default());
            world.later(COPY, move |world| {
                if world.is_still(there, &uuid, id) {
                    world.end(there, &uuid);
                }
            });
            return Err(self.loses(world));
        }
        if client.has_restarted(&world) || !world.is_still(self.site, uuid, id) {
            client.phase = None;
            client.discard(&mut world);
            self.shared.changed();
            return Err(if client.has_restarted(&world) {
                refusal::cut_off()
            } else {
                refusal::failed("domain is not running")
            });
        }
        world.begin(self.site, uuid, JobKind::MigrationOut, "MigratePerform3Params");
        client.phase = Some(Phase::Perform);
        let there_id = incoming.id.unwrap_or_default();
        let (mut world, end) = self.copy(domain, id, Some((there, there_id)), world, course);
        let failed = match (end, course) {
            (End::Copied, Course::FailsAtTheEnd) => {
                client.stop(&mut world);
                Some(refusal::internal("qemu unexpectedly closed the monitor: load of migration failed"))
            }
            (End::Copied, _) => None,
            (End::Failed, _) => Some(refusal::failed("migration out job: unexpectedly failed")),
            (End::Aborted, _) => Some(refusal::aborted("migration out job")),
            (End::Gone, _) => Some(refusal::failed("domain is not running")),
            (End::CutOff, _) => Some(refusal::cut_off()),
        };
        if let Some(error) = failed {
            client.phase = None;
            client.discard(&mut world);
            client.give_up(&mut world, ran);
            self.shared.changed();
            return Err(error);
        }
        if lost(Phase::Perform, false) {
            client.phase = None;
            world.end(there, uuid);
            client.give_up(&mut world, ran);
            return Err(self.loses(world));
        }
        client.stop(&mut world);
        if lost(Phase::Perform, true) {
            // The client tells the destination that the phase failed. The source's libvirtd does not learn that.
            client.phase = None;
            client.give_up(&mut world, false);
            world.end(there, uuid);
            return Err(self.loses(world));
        }
        client.phase = Some(Phase::Finish);
        if let Course::InDoubt { runs_there } = course {
            client.phase = None;
            client.give_up(&mut world, false);
            if runs_there {
                client.arrives(&mut world, migration);
            } else {
                world.end(there, uuid);
            }
            return Err(self.loses(world));
        }

        world = client.between(world, "finish");
        let waits = world.is_still(there, uuid, there_id) && world.sites[there].daemon != Daemon::Stopped;
        let arrives = waits && client.reaches(&world) && !lost(Phase::Finish, false);
        if arrives {
            client.arrives(&mut world, migration);
            client.phase = Some(Phase::Confirm);
            world = client.between(world, "confirm");
        } else if world.is_still(there, uuid, there_id) {
            client.discard(&mut world);
        }
        if !arrives || lost(Phase::Finish, true) || !client.reaches(&world) {
            // "If ddomain is NULL, then we were unable to start the guest on the target, and must restart on the
            // source."
            client.phase = None;
            let is_cut_off = client.has_restarted(&world);
            client.give_up(&mut world, ran && !is_cut_off);
            return Err(self.loses(world));
        }
        client.phase = None;
        if lost(Phase::Confirm, false) || client.has_restarted(&world) {
            client.give_up(&mut world, false);
            // libvirt only logs a failure of this phase.
            drop(self.loses(world));
            return Ok(());
        }
        world.complete(self.site, uuid, JobKind::MigrationOut);
        if world.is_still(self.site, uuid, id) {
            world.end(self.site, uuid);
        }
        if lost(Phase::Confirm, true) {
            drop(self.loses(world));
        } else {
            self.shared.changed();
        }
        Ok(())
    }

    /// An answer is lost: calls what the test set for this moment.
    fn loses(&self, mut world: MutexGuard<'_, World>) -> LibvirtError {
        let what = world.sites[self.site].on_lost_answer.take();
        drop(world);
        self.shared.changed();
        if let Some(what) = what {
            what();
        }
        refusal::cut_off()
    }

    /// Has libvirtd do work that it finishes even when its client is killed.
    pub(super) fn in_daemon<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let Some(os) = simulated() else { return work(self) };
        let (model, answer) = (self.clone(), Arc::new(Mutex::new(None)));
        let place = Arc::clone(&answer);
        let whole = move || {
            let done = work(&model);
            *place.lock().unwrap() = Some(done);
        };
        os::spawn("libvirtd", Side::World, whole).unwrap();
        os::wait_until(&*os, None, || answer.lock().unwrap().is_some());
        let mut answer = answer.lock().unwrap();
        answer.take().unwrap()
    }
}

impl World {
    /// The host in an address such as `qemu+ssh://host2/system`.
    fn destination(&self, from: usize, uri: &str) -> Result<usize, LibvirtError> {
        let authority = uri.split_once("://").map_or(uri, |(_, rest)| rest).split('/').next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let found = self.sites.iter().position(|site| site.name == host);
        found.filter(|found| self.reaches(from, *found)).ok_or_else(|| refusal::unreachable(host))
    }

    /// Whether one host reaches the libvirtd of another one.
    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        self.sites[to].daemon != Daemon::Stopped && (from == to || self.network)
    }

    /// Whether a QEMU here still waits for the domain's memory.
    fn is_incoming(&self, site: usize, uuid: &DomainUuid) -> bool {
        let job = self.sites[site].domain(uuid).and_then(|domain| domain.job.as_ref());
        job.is_some_and(|work| work.kind == JobKind::MigrationIn)
    }
}
