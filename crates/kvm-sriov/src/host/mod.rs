//! A host: its configuration, its libvirtd, its maps and its claims.

mod builder;
pub(crate) mod detached;
mod identity;
mod journal;
pub(crate) mod sudo;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::claims::{Backing, ClaimError, ClaimRepair, ClaimStore, Entry};
use crate::error::Cause;
use journal::Journal;

pub use builder::HostBuilder;
pub use identity::{NotTheDriversUser, become_drivers_user, become_owner_of};

use crate::base::{Action, DeployId, DummyMacPrefix, MacAddress, POLL, ParseError, PciAddress, Position, RootName};
use crate::config::{Kvmrc, Settings};
use crate::config::{MapDirs, VfMap, VfMapError};
use crate::libvirt::{DomainRef, Hypervisor, Libvirt, LibvirtError, copy_limit};
use crate::sysfs::{NoVf, Sysfs, denied_vfio_device};
use crate::xml::LiveDomain;

/// Maps that belong to this host alone; the tree beside the driver is the same on all hosts.
const HOST_MAPS: &str = "/etc/kvm-sriov/vf_maps";

/// How much longer than SRIOV_CALL_TIMEOUT a call may take for each GiB of memory that it pins.
///
/// # Source
/// libvirt `src/qemu/qemu_process.c`, qemuConnectMonitor up to 9.x: a second more for each GiB, because the kernel makes all of it
/// zero. Pinning comes on top of that, page by page and by one thread (Linux `drivers/vfio/vfio_iommu_type1.c`). Measured: 0.3 s
/// for a GiB of 4 KiB pages made zero and locked, 2.1 s in a virtual machine whose own host had to find the pages.
const PER_GIB: Duration = Duration::from_secs(2);

/// How often a VF is tried that QEMU may not open although a udev rule gives it to QEMU.
const UDEV_TRIES: usize = 4;

/// How long udev may take to do what it knows of.
///
/// # Source
/// udevadm(8): `settle` waits 120 s. It is a matter of milliseconds, or of a host that is overloaded.
const UDEV: Duration = Duration::from_secs(30);

/// Where OpenNebula copies the driver to on a host.
const DRIVER_DIR: &str = "/var/tmp/one/vmm/kvm-sriov";

/// Where OpenNebula keeps what it must not forget while the host runs (7.2 and later).
const RUN_DIR: &str = "/var/run/one";

/// Everything an action needs to know of the host it runs on.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use kvm_sriov::{Host, config::{Kvmrc, MapDirs}, libvirt::Libvirt};
/// let dir = tempfile::tempdir()?;
/// std::fs::write(dir.path().join("kvmrc"), format!("VF_STATE_DIR={}/state\n", dir.path().display()))?;
/// let kvmrc = Kvmrc::load(&[dir.path().join("kvmrc")]);
/// let libvirt = Libvirt::open("test:///default", Duration::from_secs(30))?;
/// let host = Host::new(kvmrc.into_settings(), Arc::new(libvirt), MapDirs::new(vec!["vf_maps".into()]));
/// for vf in host.vfs()? {
///     println!("{} {} {}", vf.root, vf.address, vf.state);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Host {
    settings: Settings,
    hypervisor: Arc<dyn Hypervisor>,
    maps: MapDirs,
    sysfs: Sysfs,
    journal: Journal,
    /// Where the driver's programs lie; `None` for a host that has none.
    driver_dir: Option<PathBuf>,
    run_dir: PathBuf,
    /// When it is not waited any longer for libvirtd.
    end: Option<Instant>,
}

impl Host {
    /// A host from its parts, one by one: see [`HostBuilder`].
    pub fn builder() -> HostBuilder {
        HostBuilder::new()
    }

    /// A host from its parts. The kernel is looked at through `/`, the journal is the host's.
    pub fn new(settings: Settings, hypervisor: Arc<dyn Hypervisor>, maps: MapDirs) -> Self {
        let driver_dir = Some(DRIVER_DIR.into());
        let (sysfs, journal) = (Sysfs::default(), Journal::default());
        Self { settings, hypervisor, maps, sysfs, journal, driver_dir, run_dir: RUN_DIR.into(), end: None }
    }

    /// The same host with another directory in place of OpenNebula's `/var/run/one`.
    #[must_use]
    pub fn with_run_dir(self, run_dir: PathBuf) -> Self {
        Self { run_dir, ..self }
    }

    /// The same host with another view of the kernel.
    #[must_use]
    pub fn with_sysfs(self, sysfs: Sysfs) -> Self {
        Self { sysfs, ..self }
    }

    /// The host that a driver in `driver_dir` runs on, for an action that starts or plugs something.
    ///
    /// # Errors
    /// Nothing was touched: kvmrc has a line that can't be read, or libvirtd does not answer.
    pub fn open(driver_dir: &Path) -> Result<Self, Cause> {
        let kvmrc = Kvmrc::load(&Kvmrc::places(driver_dir)).strict()?;
        Self::connect(kvmrc, driver_dir, None)
    }

    /// The host that a driver in `driver_dir` runs on, for an action that ends or frees something: what can't be read
    /// in kvmrc is logged, and the stock default holds.
    ///
    /// # Errors
    /// Nothing was touched: libvirtd does not answer.
    pub fn open_lenient(driver_dir: &Path) -> Result<Self, Cause> {
        Self::lenient(driver_dir, None)
    }

    /// As [`Host::open_lenient`], for what must have an end: after `end` libvirtd is not waited for, and asked nothing more.
    /// Only a VM that is started from the image of its save is waited for longer.
    ///
    /// # Errors
    /// Nothing was touched: libvirtd does not answer.
    pub fn open_lenient_until(driver_dir: &Path, end: Instant) -> Result<Self, Cause> {
        Self::lenient(driver_dir, Some(end))
    }

    fn lenient(driver_dir: &Path, end: Option<Instant>) -> Result<Self, Cause> {
        let kvmrc = Kvmrc::load(&Kvmrc::places(driver_dir));
        for problem in kvmrc.problems() {
            log::warn!("{problem}; the default is used");
        }
        Self::connect(kvmrc, driver_dir, end)
    }

    fn connect(kvmrc: Kvmrc, driver_dir: &Path, end: Option<Instant>) -> Result<Self, Cause> {
        for misspelt in kvmrc.misspelt() {
            log::warn!("{misspelt}");
        }
        for warning in kvmrc.warnings() {
            log::debug!("{warning}");
        }
        let dirs = Self::map_dirs(&kvmrc, driver_dir);
        let (uri, timeout) = (&kvmrc.settings().libvirt_uri, kvmrc.settings().call_timeout);
        let libvirt = end.map_or_else(|| Libvirt::open(uri, timeout), |end| Libvirt::open_until(uri, timeout, end))?;
        Ok(Self {
            driver_dir: Some(driver_dir.into()),
            end,
            ..Self::new(kvmrc.into_settings(), Arc::new(libvirt), MapDirs::new(dirs))
        })
    }

    /// Where the maps of a driver in `driver_dir` are looked for, in this order: VF_MAPS_PATH of kvmrc, the host's own,
    /// those beside the driver.
    pub fn map_dirs(kvmrc: &Kvmrc, driver_dir: &Path) -> Vec<PathBuf> {
        let own = kvmrc.vf_maps_path().map(Path::to_owned);
        own.into_iter().chain([HOST_MAPS.into(), driver_dir.join("vf_maps")]).collect()
    }

    /// The directory of OpenNebula's remotes, where the programs lie that it runs as root; `None` without OpenNebula.
    pub(crate) fn remotes(&self) -> Option<PathBuf> {
        Some(self.driver_dir.as_deref()?.join("../.."))
    }

    /// OpenNebula's `/var/run/one`.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The directory of the driver's programs; `None` for a host that has none.
    pub(crate) fn driver_dir(&self) -> Option<&Path> {
        self.driver_dir.as_deref()
    }

    /// The running domain that OpenNebula means.
    ///
    /// # Errors
    /// There is none, or libvirtd does not answer. Nothing was changed.
    pub fn find(&self, id: &DeployId) -> Result<DomainRef, Cause> {
        self.hypervisor.find(id)?.ok_or_else(|| Cause::Absent { id: id.to_string() })
    }

    /// What the site chose for it.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its libvirtd.
    pub fn hypervisor(&self) -> &dyn Hypervisor {
        self.hypervisor.as_ref()
    }

    /// Its libvirtd, for a call that may outlive its caller.
    pub(crate) fn shared_hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.hypervisor)
    }

    /// Where its VF maps lie.
    pub fn maps(&self) -> &MapDirs {
        &self.maps
    }

    /// What its kernel says.
    pub fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Its claims, the state directory made if it is not there.
    ///
    /// # Errors
    /// The directory can't be made or is not safe to use; nothing was changed.
    pub fn claims(&self) -> Result<ClaimStore, ClaimError> {
        ClaimStore::create(&self.settings.state_dir)
    }

    /// Its claims, `None` when there is no state directory: nothing was ever claimed since it was removed.
    ///
    /// # Errors
    /// The directory is not safe to use; nothing was changed.
    pub fn existing_claims(&self) -> Result<Option<ClaimStore>, ClaimError> {
        ClaimStore::open(&self.settings.state_dir)
    }

    /// What every running domain of this host shows and wants.
    ///
    /// # Errors
    /// libvirtd does not answer. Nothing was changed. A domain whose XML can't be read is in [`Backing::unreadable`].
    pub fn backing(&self) -> Result<Backing, Cause> {
        let mut backing = Backing::default();
        for domain in self.hypervisor.domains()? {
            // None: it ended since it was listed.
            let Some(text) = self.hypervisor.live_xml(&domain)? else { continue };
            let owner = domain.owner();
            let live = match LiveDomain::parse(&text) {
                Ok(live) => live,
                Err(error) => {
                    log::warn!("the live XML of {}: {error}; what it claims stays its", domain.name);
                    backing.unreadable.push(owner);
                    continue;
                }
            };
            if live.wanted.is_err() {
                backing.unreadable.push(owner.clone());
            }
            backing.devices.extend(live.vfs().map(|vf| (vf, owner.clone())));
            let wanted = live.wanted.as_ref().ok().and_then(Option::as_ref).map_or(&[][..], |wanted| &wanted.nics);
            backing.nics.extend(wanted.iter().filter_map(|nic| Some((live.device_of(nic)?.vf, nic.key()))));
            backing.wanting.extend(live.missing().map(|nic| (owner.clone(), nic.key())));
        }
        Ok(backing)
    }

    /// Every VF of every root, in the order of the maps, and what it is used for.
    ///
    /// # Errors
    /// The state directory or libvirtd can't be read. Nothing was changed. A map that can't be read is named in the log.
    pub fn vfs(&self) -> Result<Vec<Vf>, Cause> {
        let (maps, problems) = self.readable_maps();
        for problem in problems {
            log::warn!("{problem}");
        }
        let entries = match self.existing_claims()? {
            Some(store) => store.entries()?,
            None => Vec::new(),
        };
        let backing = self.backing()?;
        let mut vfs = Vec::new();
        for map in &maps {
            for (index, address) in map.vfs().iter().enumerate() {
                let user = backing.user(*address).map(|owner| owner.vm.to_string());
                let claim = entries.iter().find(|entry| {
                    entry.vf() == Some(*address)
                        || (entry.root() == map.root() && entry.index() == index && entry.vf().is_none())
                });
                let is_vf = self.sysfs.check_vf(*address);
                let state = match (user, claim) {
                    (user, claim) if is_vf.is_err() => {
                        let vm = user.or_else(|| claim.map(Entry::user));
                        if is_vf == Err(NoVf::Missing) { VfState::Missing { vm } } else { VfState::NotVf { vm } }
                    }
                    (Some(vm), Some(_)) => VfState::Used { vm },
                    (Some(vm), None) => VfState::Unclaimed { vm },
                    (None, Some(entry)) => VfState::Unbacked { vm: entry.user() },
                    (None, None) => VfState::Free,
                };
                vfs.push(Vf { root: map.root().clone(), index, address: *address, state });
            }
        }
        Ok(vfs)
    }

    /// How long a call to libvirt may take for which QEMU touches or pins this much memory, in KiB: the start of a domain, and each
    /// VF that comes in. SRIOV_CALL_TIMEOUT, and 2 s for each GiB: 1324 s with 512 GiB and the default of 300 s.
    pub fn call_limit(&self, memory_kib: u64) -> Duration {
        let gib = u32::try_from(memory_kib.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
        self.settings.call_timeout.saturating_add(PER_GIB.saturating_mul(gib))
    }

    /// How long a domain with this much memory, in KiB, may take to start from a save image: SRIOV_CALL_TIMEOUT, and 50 s for each GiB.
    pub fn copy_limit(&self, memory_kib: u64) -> Duration {
        copy_limit(self.settings.call_timeout, memory_kib)
    }

    /// Does what may fail while libvirtd is away for a moment, until it succeeds, fails otherwise, or SRIOV_CALL_TIMEOUT has
    /// passed. For what may be done twice.
    pub(crate) fn patiently<T>(&self, work: impl FnMut() -> Result<T, Cause>) -> Result<T, Cause> {
        self.patiently_for(self.settings.call_timeout, work)
    }

    /// As [`Host::patiently`], but not longer than `limit`.
    pub(crate) fn patiently_for<T>(
        &self,
        limit: Duration,
        mut work: impl FnMut() -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let end = Instant::now() + limit;
        let end = self.end.map_or(end, |last| last.min(end));
        loop {
            match work() {
                Err(cause) if cause.is_passing() && Instant::now() < end => thread::sleep(POLL),
                other => return other,
            }
        }
    }

    /// The bridge of the dummies, which is there.
    ///
    /// # Errors
    /// It is not set in kvmrc, or is no bridge of this host.
    pub(crate) fn dummy_bridge(&self) -> Result<&str, Cause> {
        let why = "a VM with a VF has a dummy interface on this bridge, which carries its IP address";
        let bridge = self.settings.dummy_bridge.as_deref().ok_or(Cause::NotSet { variable: "DUMMY_BRIDGE", why })?;
        if self.sysfs.is_bridge(bridge) { Ok(bridge) } else { Err(Cause::NoBridge { bridge: bridge.to_owned() }) }
    }

    /// The MAC of the dummy for the NIC with this MAC at this position.
    ///
    /// # Errors
    /// DUMMY_MAC_PREFIX is not set in kvmrc, or is the first byte of the NIC's own MAC.
    pub(crate) fn dummy_mac(&self, nic: MacAddress, position: Position) -> Result<MacAddress, Cause> {
        nic.dummy(self.dummy_prefix()?, position).map_err(wrong_prefix)
    }

    /// Refuses NICs that the guest of a VM with VFs could not tell from dummies.
    ///
    /// * `macs` - of all NICs of the VM, with and without VFs, but not of its dummies
    ///
    /// # Errors
    /// DUMMY_MAC_PREFIX is not set in kvmrc, or is the first byte of one of them.
    pub(crate) fn check_macs(&self, macs: impl IntoIterator<Item = MacAddress>) -> Result<(), Cause> {
        let prefix = self.dummy_prefix()?;
        macs.into_iter().try_for_each(|mac| prefix.check(mac)).map_err(wrong_prefix)
    }

    fn dummy_prefix(&self) -> Result<DummyMacPrefix, Cause> {
        let why = "it is the first byte of the dummy interface's MAC, by which the guest knows it";
        self.settings.dummy_mac_prefix.ok_or(Cause::NotSet { variable: "DUMMY_MAC_PREFIX", why })
    }

    /// Makes a call that gives a domain a VF. libvirt makes the VF's vfio device and has QEMU open it at once, while udev gives it
    /// to QEMU's user: on a busy host udev may come too late. Then libvirt has taken the device away; udev is waited for, and the
    /// call is made again. A host without a rule for vfio has nothing to wait for.
    ///
    /// # Errors
    /// Those of the call.
    pub(crate) fn past_udev<T>(&self, call: impl Fn() -> Result<T, LibvirtError>) -> Result<T, LibvirtError> {
        for _ in 1..UDEV_TRIES {
            match call() {
                Err(error) if denied_vfio_device(error.text()).is_some() && self.sysfs.has_vfio_rule() => {
                    log::info!("{}: udev is waited for, and it is tried again", error.text());
                    self.sysfs.wait_for_udev(UDEV);
                }
                other => return other,
            }
        }
        call()
    }

    /// The maps of these roots, each once.
    ///
    /// # Errors
    /// A map is missing or can't be read. Nothing was changed.
    pub(crate) fn maps_of<'r>(&self, roots: impl Iterator<Item = &'r RootName>) -> Result<Vec<VfMap>, Cause> {
        let mut maps: Vec<VfMap> = Vec::new();
        for root in roots {
            if maps.iter().all(|map| map.root() != root) {
                maps.push(self.maps.load(root)?);
            }
        }
        Ok(maps)
    }

    /// The maps of these roots, and after them every other one that can be read: an address may be in several. One that can't be
    /// read is named in the log.
    ///
    /// # Errors
    /// A map of these roots is missing or can't be read. Nothing was changed.
    pub(crate) fn maps_and_others<'r>(&self, roots: impl Iterator<Item = &'r RootName>) -> Result<Vec<VfMap>, Cause> {
        let mut maps = self.maps_of(roots)?;
        let (all, problems) = self.readable_maps();
        for problem in problems {
            log::warn!("{problem}; what else lists its VFs goes on");
        }
        let others: Vec<VfMap> =
            all.into_iter().filter(|other| maps.iter().all(|map| map.root() != other.root())).collect();
        maps.extend(others);
        Ok(maps)
    }

    /// Every map that can be read, and what is wrong with each other one.
    pub(crate) fn readable_maps(&self) -> (Vec<VfMap>, Vec<VfMapError>) {
        let mut problems = Vec::new();
        let roots = self.maps.roots().unwrap_or_else(|error| {
            problems.push(error);
            Vec::new()
        });
        let loaded = roots.iter().map(|root| self.maps.load(root));
        let maps = loaded.filter_map(|map| map.map_err(|error| problems.push(error)).ok()).collect();
        (maps, problems)
    }

    /// Puts the claims of these roots right, and returns what backs claims on this host.
    ///
    /// # Errors
    /// libvirtd does not answer, or the claims can't be read or written. What was put right until then is right.
    pub(crate) fn recover(&self, store: &ClaimStore, maps: &[VfMap], action: Action) -> Result<Backing, Cause> {
        self.put_claims_right(store, maps, action).map(|(backing, _)| backing)
    }

    /// As [`Host::recover`]; also returns what was put right.
    pub(crate) fn put_claims_right(
        &self,
        store: &ClaimStore,
        maps: &[VfMap],
        action: Action,
    ) -> Result<(Backing, Vec<ClaimRepair>), Cause> {
        // The claims are read before libvirt is asked: only a claim that was there already, and is in no domain now, can
        // be stale.
        let seen = store.entries()?;
        let backing = self.backing()?;
        let repairs = store.recover(&seen, &backing, maps)?;
        for repair in &repairs {
            let claim = repair.claim();
            log::info!("VF {} of {}, claimed by {}: {}", claim.vf, claim.root, claim.owner.vm, repair.word());
            self.journal.vf(action, &claim.owner.vm, &claim.root, claim.vf, repair.word());
        }
        Ok((backing, repairs))
    }
}

fn wrong_prefix(source: ParseError) -> Cause {
    Cause::Value { what: "DUMMY_MAC_PREFIX".into(), source }
}

/// A VF of a map and what it is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vf {
    /// The root whose map lists it.
    pub root: RootName,
    /// Its line in the map, from 0.
    pub index: usize,
    /// Where it is on the host's PCI bus.
    pub address: PciAddress,
    /// What it is used for.
    pub state: VfState,
}

/// What a VF is used for, by the claims and by libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VfState {
    /// No domain has it and nobody claims it.
    Free,
    /// A running domain has it and it is claimed.
    Used {
        /// The domain's name.
        vm: String,
    },
    /// A running domain has it without a claim: a domain that is not ours, or the state directory was lost.
    Unclaimed {
        /// The domain's name.
        vm: String,
    },
    /// The host has no such PCI function: its adapter's driver is not loaded, its VFs are not made, or the map is another host's.
    /// No VM gets it.
    Missing {
        /// The domain that shows it all the same, or who claims it.
        vm: Option<String>,
    },
    /// It is a PCI function but not a VF: an adapter itself, or another device. No VM gets it.
    NotVf {
        /// The domain that has it all the same, or who claims it.
        vm: Option<String>,
    },
    /// It is claimed but no running domain has it: an action runs, or the claim is stale and the next deploy frees it.
    Unbacked {
        /// Who the claim names.
        vm: String,
    },
}

impl std::fmt::Display for VfState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            Self::Missing { vm: None } => f.write_str("missing"),
            Self::Missing { vm: Some(vm) } => write!(f, "missing, used by {vm}"),
            Self::NotVf { vm: None } => f.write_str("not a VF"),
            Self::NotVf { vm: Some(vm) } => write!(f, "not a VF, used by {vm}"),
            Self::Used { vm } => write!(f, "used by {vm}"),
            Self::Unclaimed { vm } => write!(f, "used by {vm}, without a claim"),
            Self::Unbacked { vm } => write!(f, "claimed by {vm}, in no running domain"),
        }
    }
}
