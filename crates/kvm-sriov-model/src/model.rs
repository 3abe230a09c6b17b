//! The libvirtd of one host, as a test sees it: what it lets happen there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::{Event, LibvirtError, RunState};
use kvm_sriov::sysfs::Sysfs;
use kvm_sriov::{DomainName, DomainUuid, PciAddress};

use super::guest::{ANSWER, Guest, Hotplug};
use super::image::Image;
use super::job::Course;
use super::world::{Daemon, Domain, Shared, Site};

/// The libvirtd of one host, with QEMU and the guests. A clone is the same libvirtd.
///
/// It implements [`Hypervisor`](kvm_sriov::libvirt::Hypervisor). Its own methods are what happens on the host without a
/// call. A domain is named by its name; a method panics when that domain does not run, unless it says otherwise.
#[derive(Clone)]
pub struct Model {
    pub(super) shared: Arc<Shared>,
    pub(super) site: usize,
}

/// Hosts.
impl Model {
    /// A host alone in its world, whose PCI devices and bridges are those of `sysfs`.
    pub fn new(name: &str, sysfs: Sysfs) -> Self {
        let model = Self { shared: Shared::new(), site: 0 };
        model.beside(name, sysfs)
    }

    /// One more host in the same world. Domains migrate between the hosts of a world.
    pub fn beside(&self, name: &str, sysfs: Sysfs) -> Self {
        let mut world = self.shared.lock();
        world.sites.push(Site::new(name, sysfs));
        Self { shared: Arc::clone(&self.shared), site: world.sites.len() - 1 }
    }

    /// The host's name.
    pub fn name(&self) -> String {
        self.change_site(|site| site.name.clone())
    }

    /// What must never happen in this world and did happen: a domain that ran on two hosts, or from an old memory.
    pub fn violations(&self) -> Vec<String> {
        self.shared.lock().violations.clone()
    }

    fn change_site<T>(&self, change: impl FnOnce(&mut Site) -> T) -> T {
        let changed = change(&mut self.shared.lock().sites[self.site]);
        self.shared.changed();
        changed
    }

    fn uuid(&self, name: &str) -> DomainUuid {
        self.change_site(|site| site.named(name).unwrap().definition.uuid.clone())
    }
}

/// Guests, and QEMU's hot-plug controller.
impl Model {
    /// Sets what the guest of this domain does from now on. The domain may run already, or start later.
    pub fn set_guest(&self, name: &str, guest: Guest) {
        self.change_site(|site| {
            if let Some(domain) = site.named(name) {
                domain.guest = guest.clone();
            }
            site.guests.insert(name.parse().unwrap(), guest);
        });
    }

    /// Sets what the hot-plug controller of this domain does from now on. The domain may run already, or start later.
    pub fn set_hotplug(&self, name: &str, hotplug: Hotplug) {
        self.change_site(|site| {
            if let Some(domain) = site.named(name) {
                domain.set_hotplug(hotplug);
            }
            site.hotplugs.insert(name.parse().unwrap(), hotplug);
        });
    }

    /// The guest has booted: it answers from now on.
    pub fn finish_boot(&self, name: &str) {
        self.set_guest(name, Guest::default());
    }

    /// The guest reboots itself.
    pub fn reboot_guest(&self, name: &str) {
        let uuid = self.uuid(name);
        self.shared.lock().begin_anew(self.site, &uuid);
    }

    /// The guest suspends itself to memory.
    pub fn suspend_guest(&self, name: &str) {
        self.stop_cpus(name, RunState::PmSuspended);
    }

    /// Waits until every guest has carried out the requests that it answers.
    ///
    /// A process that died may have asked a guest just before.
    pub fn wait_for_guests(&self) {
        self.wait_while(Domain::will_answer);
    }

    /// The commands that the agent of this domain's guest runs, by their process id in the guest. Empty without such a
    /// domain.
    pub fn commands(&self, name: &str) -> BTreeMap<u64, Vec<String>> {
        self.change_site(|site| site.named(name).map(|domain| domain.commands.clone()).unwrap_or_default())
    }
}

/// Domains.
impl Model {
    /// An administrator pauses the domain.
    pub fn pause(&self, name: &str) {
        self.stop_cpus(name, RunState::PausedByUser);
    }

    /// The domain's CPUs stop, and libvirt gives this state.
    pub fn stop_cpus(&self, name: &str, state: RunState) {
        let uuid = self.uuid(name);
        self.shared.lock().stop_cpus(self.site, &uuid, state);
    }

    /// The domain ends by itself. Nothing happens when it does not run.
    pub fn end_domain(&self, name: &str) {
        let uuid = self.change_site(|site| site.named(name).map(|domain| domain.definition.uuid.clone()));
        if let Some(uuid) = uuid {
            self.shared.lock().end(self.site, &uuid);
        }
    }

    /// Sends an event of this domain for which there is no reason.
    pub fn emit(&self, name: &str, event: &Event) {
        let uuid = self.uuid(name);
        self.change_site(|site| site.emit(&uuid, event));
    }

    /// The VFs and other PCI devices of the host that domains have: the domain's UUID, the device's alias, its address.
    pub fn host_devices(&self) -> Vec<(DomainUuid, String, PciAddress)> {
        let world = self.shared.lock();
        let domains = world.sites[self.site].domains.iter();
        let devices = |domain: &Domain| {
            let uuid = domain.definition.uuid.clone();
            let devices = domain.definition.devices().iter().filter_map(move |device| {
                Some((uuid.clone(), device.alias().unwrap_or_default().to_owned(), device.host_address()?))
            });
            devices.collect::<Vec<_>>()
        };
        domains.flat_map(devices).collect()
    }

    /// The domains of this host: their names, and whether their CPUs run.
    pub fn places(&self) -> Vec<(DomainName, bool)> {
        let world = self.shared.lock();
        let domains = world.sites[self.site].domains.iter();
        domains.map(|domain| (domain.definition.name.clone(), domain.state.runs())).collect()
    }

    /// How many watches for events are open.
    pub fn open_watches(&self) -> usize {
        self.change_site(|site| site.watchers.len())
    }
}

/// Devices.
impl Model {
    /// QEMU refuses this PCI device from now on, with this text.
    pub fn refuse(&self, address: PciAddress, text: &str) {
        self.change_site(|site| site.refused.insert(address, text.to_owned()));
    }

    /// QEMU takes this PCI device again.
    pub fn accept(&self, address: PciAddress) {
        self.change_site(|site| site.refused.remove(&address));
    }

    /// For this many attempts, QEMU may not open the vfio device of this VF: udev has not handled it yet.
    pub fn delay_udev(&self, address: PciAddress, attempts: usize) {
        self.change_site(|site| site.udev_delays.insert(address, attempts));
    }
}

/// Saves, migrations and snapshots.
impl Model {
    /// Sets how the next save, migration or return to a snapshot goes. Those after it work.
    pub fn set_course(&self, course: Course) {
        self.change_site(|site| {
            site.course = course;
            site.copies_released = false;
        });
    }

    /// Calls `what` at the moment at which the answer of [`Course::AnswerLost`] or [`Course::InDoubt`] is lost.
    pub fn on_lost_answer(&self, what: impl FnOnce() + Send + 'static) {
        self.change_site(|site| site.on_lost_answer = Some(Box::new(what)));
    }

    /// Copies that hang ([`Course::Hangs`]) go on.
    pub fn release_copies(&self) {
        self.change_site(|site| site.copies_released = true);
    }

    /// Waits until no job runs on this host.
    pub fn wait_for_jobs(&self) {
        self.wait_while(|domain| domain.job.is_some());
    }

    fn wait_while(&self, lasts: impl Fn(&Domain) -> bool) {
        let end = Instant::now() + Duration::from_secs(5);
        let mut world = self.shared.lock();
        while world.sites[self.site].domains.iter().any(&lasts) && Instant::now() < end {
            world = self.shared.wait(world, ANSWER);
        }
    }

    /// Whether this image holds the newest memory of its VM: the image is complete, and the VM has not run since.
    ///
    /// # Errors
    /// The file is not a complete image.
    pub fn is_newest(&self, image: &Path) -> Result<bool, LibvirtError> {
        Ok(self.shared.lock().is_newest(&Image::read(image)?.memory))
    }
}

/// libvirtd and the host.
impl Model {
    /// libvirtd restarts: watches are cut off, jobs are aborted, the next call fails, and the calls after it work.
    pub fn restart_daemon(&self) {
        self.end_daemon(Daemon::Restarted);
    }

    /// Whether libvirtd runs, or is about to.
    pub fn is_up(&self) -> bool {
        self.change_site(|site| site.daemon != Daemon::Stopped)
    }

    /// The hosts of this world reach each other again, or no longer.
    pub fn set_network(&self, network: bool) {
        self.shared.lock().network = network;
        self.shared.changed();
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
        self.change_site(|site| site.end_daemon(daemon));
    }

    /// The host loses power: no domain runs there, and libvirtd does not answer.
    pub fn power_off(&self) {
        self.change_site(|site| {
            site.end_daemon(Daemon::Stopped);
            site.domains.clear();
        });
    }
}
