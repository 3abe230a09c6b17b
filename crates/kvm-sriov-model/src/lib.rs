//! Hosts that are not there: a libvirtd that behaves as libvirt and QEMU do, and fails when it is told to.
//!
//! The lab shows what works; here is shown what must not happen when something else does. One model stands for the
//! libvirtd of one host; several may be joined to one world, between which domains migrate. Guests answer after
//! milliseconds. `tests/model/behaviours.rs` holds the model and the lab to the same list of behaviours.
//!
//! * `world` - what is true: hosts, domains, requests that a guest has not answered, memories that must run once
//! * `definition`, `element`, `device`, `slots` - a domain's XML, completed as libvirt does
//! * `guest` - what a guest does with a request; `job` - what takes time: save, restore, migration; `image` - its file
//! * `hypervisor` - the calls; `refusal` - libvirt's errors
//! * [`faults`] - any [`Hypervisor`](kvm_sriov::libvirt::Hypervisor) whose call `n` fails, or is the last of its process
//! * [`host`] - a [`kvm_sriov::Host`] around a model; [`check`] - what must be true of it
//! * [`every`] - an action with every call failing in turn
//! * [`agent`] - the agent of a model host, on a thread

// A test stops at the first surprise: a model that is used wrongly panics.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods)]

pub mod agent;
pub mod check;
mod definition;
mod device;
mod element;
pub mod every;
pub mod faults;
mod guest;
pub mod host;
mod hypervisor;
mod image;
mod job;
mod refusal;
mod slots;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::{Event, LibvirtError, RunState};
use kvm_sriov::sysfs::Sysfs;
use kvm_sriov::{DomainUuid, PciAddress};

pub use element::Element;
pub use guest::{ANSWER, Guest, Hotplug, PRESS};
pub use image::{Image, Memory};
pub use job::{Course, Phase};
use world::{Daemon, Shared, Site};

/// The libvirtd of one host. Clones are the same.
#[derive(Clone)]
pub struct Model {
    shared: Arc<Shared>,
    site: usize,
}

impl Model {
    /// A host alone in its world, whose PCI devices and bridges are those of `sysfs`.
    pub fn new(name: &str, sysfs: Sysfs) -> Self {
        let model = Self { shared: Shared::new(), site: 0 };
        model.beside(name, sysfs)
    }

    /// A further host in this one's world.
    pub fn beside(&self, name: &str, sysfs: Sysfs) -> Self {
        let mut world = self.shared.lock();
        world.sites.push(Site::new(name, sysfs));
        Self { shared: Arc::clone(&self.shared), site: world.sites.len() - 1 }
    }

    /// The host's name.
    pub fn name(&self) -> String {
        self.change_site(|site| site.name.clone())
    }

    fn change_site<T>(&self, change: impl FnOnce(&mut Site) -> T) -> T {
        let changed = change(&mut self.shared.lock().sites[self.site]);
        self.shared.changed();
        changed
    }

    /// From now on this is the guest of the domain with this name, which may run already.
    pub fn set_guest(&self, name: &str, guest: Guest) {
        self.change_site(|site| {
            if let Some(domain) = site.named(name) {
                domain.guest = guest.clone();
            }
            site.guests.insert(name.parse().unwrap(), guest);
        });
    }

    /// From now on this is the controller of the domain with this name, which may run already.
    pub fn set_hotplug(&self, name: &str, hotplug: Hotplug) {
        self.change_site(|site| {
            if let Some(domain) = site.named(name) {
                domain.set_hotplug(hotplug);
            }
            site.hotplugs.insert(name.parse().unwrap(), hotplug);
        });
    }

    /// QEMU refuses this PCI device from now on, with this text.
    pub fn refuse(&self, address: PciAddress, text: &str) {
        self.change_site(|site| site.refused.insert(address, text.to_owned()));
    }

    /// udev comes too late with the vfio device of this VF so many times: QEMU may not open it.
    pub fn comes_too_late(&self, address: PciAddress, times: usize) {
        self.change_site(|site| site.too_late.insert(address, times));
    }

    /// QEMU takes this PCI device again.
    pub fn accept(&self, address: PciAddress) {
        self.change_site(|site| site.refused.remove(&address));
    }

    /// The next save, migration or return to a snapshot goes like this, and those after it work.
    pub fn set_course(&self, course: Course) {
        self.change_site(|site| {
            site.course = course;
            site.let_go = false;
        });
    }

    /// Done in the moment in which [`Course::AnswerLost`] or [`Course::InDoubt`] comes true.
    pub fn at_loss(&self, what: impl FnOnce() + Send + 'static) {
        self.change_site(|site| site.at_loss = Some(Box::new(what)));
    }

    /// Copies that hang go on.
    pub fn let_go(&self) {
        self.change_site(|site| site.let_go = true);
    }

    /// Waits until no job runs here any more.
    pub fn finishes_jobs(&self) {
        self.wait_while(|domain| domain.job.is_some());
    }

    /// Waits until every guest has answered that hears: a process that died may just have asked.
    pub fn answers(&self) {
        self.wait_while(world::Domain::will_answer);
    }

    fn wait_while(&self, lasts: impl Fn(&world::Domain) -> bool) {
        let end = Instant::now() + Duration::from_secs(5);
        let mut world = self.shared.lock();
        while world.sites[self.site].domains.iter().any(&lasts) && Instant::now() < end {
            world = self.shared.wait(world, ANSWER);
        }
    }

    /// The next requests to destroy a domain end none: its process waits for the kernel.
    pub fn stick(&self, times: usize) {
        self.change_site(|site| site.stuck = times);
    }

    /// The guest has booted: it hears from now on.
    pub fn boots(&self, name: &str) {
        self.set_guest(name, Guest::default());
    }

    /// The guest reboots itself.
    pub fn guest_reboots(&self, name: &str) {
        let uuid = self.uuid(name);
        self.shared.lock().begin_anew(self.site, &uuid);
    }

    /// The domain ends by itself, if it is there.
    pub fn ends(&self, name: &str) {
        let uuid = self.change_site(|site| site.named(name).map(|domain| domain.definition.uuid.clone()));
        if let Some(uuid) = uuid {
            self.shared.lock().end(self.site, &uuid);
        }
    }

    /// An administrator pauses the domain.
    pub fn pauses(&self, name: &str) {
        let uuid = self.uuid(name);
        self.shared.lock().stop_cpus(self.site, &uuid, RunState::PausedByUser);
    }

    /// The guest suspends itself to memory.
    pub fn sleeps(&self, name: &str) {
        let uuid = self.uuid(name);
        self.shared.lock().stop_cpus(self.site, &uuid, RunState::PmSuspended);
    }

    /// The CPUs of the domain stand, and this is how libvirt says so.
    pub fn stands(&self, name: &str, state: RunState) {
        let uuid = self.uuid(name);
        self.shared.lock().stop_cpus(self.site, &uuid, state);
    }

    /// An event that nothing explains.
    pub fn emits(&self, name: &str, event: &Event) {
        let uuid = self.uuid(name);
        self.change_site(|site| site.emit(&uuid, event));
    }

    /// libvirtd restarts: who watches is cut off, jobs are aborted, the next call fails, those after it work.
    pub fn restart_daemon(&self) {
        self.end_daemon(Daemon::Restarted);
    }

    /// libvirtd ends; domains run on.
    pub fn stop_daemon(&self) {
        self.end_daemon(Daemon::Stopped);
    }

    /// libvirtd starts again.
    pub fn start_daemon(&self) {
        self.change_site(|site| site.daemon = Daemon::Runs);
    }

    fn end_daemon(&self, daemon: Daemon) {
        self.change_site(|site| {
            site.daemon = daemon;
            site.ends += 1;
            site.watchers.clear();
        });
    }

    /// The host loses its power: nothing runs there, nothing answers.
    pub fn power_off(&self) {
        self.change_site(|site| {
            site.daemon = Daemon::Stopped;
            site.ends += 1;
            site.watchers.clear();
            site.domains.clear();
        });
    }

    fn uuid(&self, name: &str) -> DomainUuid {
        self.change_site(|site| site.named(name).unwrap().definition.uuid.clone())
    }

    /// The devices that the guest was asked for and has not released.
    pub fn asked_for(&self, name: &str) -> Vec<String> {
        self.change_site(|site| site.named(name).map(|domain| domain.asked_for()).unwrap_or_default())
    }

    /// What the agent of this domain's guest was told to run, and still runs, by its number in the guest.
    pub fn commands(&self, name: &str) -> BTreeMap<u64, Vec<String>> {
        self.change_site(|site| site.named(name).map(|domain| domain.commands.clone()).unwrap_or_default())
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.change_site(|site| site.watchers.len())
    }

    /// What must never happen in this world and did: a domain that runs in two places, or with an old memory.
    pub fn wrongs(&self) -> Vec<String> {
        self.shared.lock().wrongs.clone()
    }

    /// Whether the VM of this image would go on where it stopped: the image is complete, and the VM did not run since.
    ///
    /// # Errors
    /// It is no complete image.
    pub fn is_newest(&self, image: &std::path::Path) -> Result<bool, LibvirtError> {
        Ok(self.shared.lock().is_newest(&Image::read(image)?.memory))
    }
}
