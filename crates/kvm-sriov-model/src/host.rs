//! A host around a [`Model`]: its configuration, maps, claims and PCI devices are files in a temporary directory.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::config::{Kvmrc, MapDirs, Settings};
use kvm_sriov::libvirt::{DomainCalls, DomainRef, Hypervisor, LibvirtError, PowerCalls};
use kvm_sriov::reconcile::{Busy, Options, Report, reconcile};
use kvm_sriov::sysfs::Sysfs;
use kvm_sriov::xml::LiveDomain;
use kvm_sriov::{Cause, Host, HostBuilder, Owner, PciAddress};
use tempfile::TempDir;

use super::Model;
use super::faults::{Faults, Killed};

/// The roots of a model host, each with a map.
pub const ROOTS: [&str; 2] = ["ib0", "ib1"];

/// The bridges of a model host. The last one is the dummies'.
const BRIDGES: [&str; 2] = ["br0", "dummy_br"];

/// A host whose libvirtd is a [`Model`]. [`host`](Self::host) gives the [`Host`] that a program uses.
///
/// Its roots `ib0` and `ib1` have a map each. Its configuration has a dummy bridge and prefix, and limits of a few
/// seconds.
pub struct ModelHost {
    dir: TempDir,
    /// The directory with the directories of VMs. Hosts with shared storage have the same.
    datastore: PathBuf,
    model: Model,
    faults: Arc<Faults>,
    at_death: Arc<Mutex<Option<SavedFiles>>>,
}

/// How an action ended, see [`ModelHost::run`].
#[derive(Debug)]
pub enum Ended<T> {
    /// It returned this.
    With(T),
    /// Its process died. Its locks are free, and its files are as they were at that moment.
    Killed,
}

impl Default for ModelHost {
    fn default() -> Self {
        Self::with_vfs(4)
    }
}

impl ModelHost {
    /// A host with this many VFs on each root. The default has 4.
    pub fn with_vfs(number: usize) -> Self {
        let dir = temporary();
        let datastore = dir.path().join("datastores/0");
        let model = Model::new("host1", Sysfs::at(dir.path().join("root")));
        Self::around(dir, datastore, model, 0x07, number)
    }

    /// One more host in the same world, with this many VFs at other addresses and the same storage.
    pub fn beside(&self, name: &str, number: usize) -> Self {
        let dir = temporary();
        let model = self.model.beside(name, Sysfs::at(dir.path().join("root")));
        Self::around(dir, self.datastore.clone(), model, 0x81, number)
    }

    fn around(dir: TempDir, datastore: PathBuf, model: Model, bus: u8, number: usize) -> Self {
        let faults = Arc::new(Faults::around(Arc::new(model.clone())));
        let host = Self { dir, datastore, model, faults, at_death: Arc::default() };
        let maps = host.at("maps");
        fs::create_dir_all(&maps).unwrap();
        fs::create_dir_all(&host.datastore).unwrap();
        for bridge in BRIDGES {
            fs::create_dir_all(host.at("root/sys/class/net").join(bridge).join("bridge")).unwrap();
        }
        for (root, bus) in ROOTS.iter().zip(bus..) {
            let vfs = (1..=u8::try_from(number).unwrap()).map(|n| PciAddress::new(0, bus, n / 8, n % 8).unwrap());
            let mut map = String::new();
            for vf in vfs {
                fs::create_dir_all(host.device(vf).join("physfn")).unwrap();
                map += &format!("{}\n", vf.to_map_line());
            }
            fs::write(maps.join(root), map).unwrap();
        }
        fs::create_dir_all(host.run_dir()).unwrap();
        fs::create_dir_all(host.at("root/proc")).unwrap();
        fs::write(host.at("root/proc/meminfo"), "MemAvailable: 4194304 kB\n").unwrap();
        host.set_kvmrc("");
        let (at_death, places) = (Arc::clone(&host.at_death), host.kept());
        host.faults.on_death(move || {
            *at_death.lock().unwrap() = Some(SavedFiles::take(&places));
        });
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn device(&self, vf: PciAddress) -> PathBuf {
        self.at("root/sys/bus/pci/devices").join(vf.to_string())
    }

    /// The directories whose files a process leaves behind when it dies.
    fn kept(&self) -> Vec<PathBuf> {
        vec![self.at("state"), self.datastore.clone()]
    }

    /// Writes kvmrc: what VMs with VFs need, short limits, and then these lines, which win.
    pub fn set_kvmrc(&self, lines: &str) {
        let state = self.at("state");
        let text = format!(
            "DUMMY_BRIDGE=dummy_br\nDUMMY_MAC_PREFIX=aa\nVF_STATE_DIR={}\nSHUTDOWN_TIMEOUT=1\nSRIOV_LOCK_TIMEOUT=5\n\
             SRIOV_UNPLUG_TIMEOUT=2\nSRIOV_UNPLUG_GRACE=1\nSRIOV_CALL_TIMEOUT=2\nVIRSH_RETRIES=1\nLIBVIRT_URI=model:///{}\n{lines}",
            state.display(),
            self.model.name(),
        );
        fs::write(self.at("kvmrc"), text).unwrap();
    }

    /// Makes a block device `/dev/dm-<number>` with this content, and a link in `/dev` to it, such as
    /// `vg-one-0/lv-one-42-0`.
    ///
    /// * returns its node
    pub fn volume(&self, name: &str, number: u32, content: &[u8]) -> PathBuf {
        let (link, node) = (self.at("root/dev").join(name), self.at(&format!("root/dev/dm-{number}")));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(format!("../dm-{number}"), link).unwrap();
        fs::write(&node, content).unwrap();
        let about = self.at(&format!("root/sys/class/block/dm-{number}"));
        fs::create_dir_all(&about).unwrap();
        fs::write(about.join("size"), format!("{}\n", content.len() / 512)).unwrap();
        node
    }

    /// Sets how many huge pages of 2 MiB are free on each NUMA node. The host has the sum of them.
    pub fn set_huge_pages(&self, nodes: &[u64]) {
        let write = |dir: &Path, number: u64| {
            let dir = dir.join("hugepages/hugepages-2048kB");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("free_hugepages"), format!("{number}\n")).unwrap();
        };
        write(&self.at("root/sys/kernel/mm"), nodes.iter().sum());
        for (node, number) in nodes.iter().enumerate() {
            write(&self.at(&format!("root/sys/devices/system/node/node{node}")), *number);
        }
    }

    /// The host, as a process opens it that starts now.
    pub fn host(&self) -> Host {
        self.builder().with_hypervisor(self.hypervisor())
    }

    /// What kvmrc sets, and a destination that does not wait long for a VM whose source was lost.
    pub fn settings(&self) -> Settings {
        let kvmrc = Kvmrc::load(&[self.at("kvmrc")]).strict().unwrap();
        let mut settings = kvmrc.into_settings();
        settings.arrival_grace = Duration::from_secs(2);
        settings
    }

    /// The host's configuration, as a process reads it that starts now.
    pub fn builder(&self) -> HostBuilder {
        Host::builder()
            .settings(self.settings())
            .maps_in(self.at("maps"))
            .sysfs(Sysfs::at(self.at("root")))
            .run_dir(self.run_dir())
    }

    /// Its libvirtd, as its processes call it: with faults, and counted.
    pub fn hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.faults) as _
    }

    /// Starts a domain without VFs, whose guest answers. VFs are plugged in with
    /// [`Host::plug`](kvm_sriov::Host::plug).
    ///
    /// # Errors
    /// A domain of this name runs already.
    pub fn start_domain(&self, name: &str) -> Result<DomainRef, LibvirtError> {
        let xml = format!(
            "<domain type='kvm'><name>{name}</name><memory unit='MiB'>512</memory><vcpu>1</vcpu>\
             <features><acpi/></features><os><type machine='pc'>hvm</type></os><devices/></domain>"
        );
        self.model.create(&xml, Duration::from_secs(10))
    }

    /// The directory that stands for OpenNebula's `/var/run/one`.
    pub fn run_dir(&self) -> PathBuf {
        self.at("run")
    }

    /// Its libvirtd. A call through it has no fault and is not counted.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The faults of the calls that its processes make to libvirtd.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The directory of the claims.
    pub fn state_dir(&self) -> PathBuf {
        self.at("state")
    }

    /// The VFs of a root, in the order of its map.
    pub fn vfs(&self, root: &str) -> Vec<PciAddress> {
        MapDirs::new(vec![self.at("maps")]).load(&root.parse().unwrap()).unwrap().vfs().to_vec()
    }

    /// Writes the map of a root.
    pub fn set_map(&self, root: &str, vfs: &[PciAddress]) {
        let lines: Vec<String> = vfs.iter().map(|vf| vf.to_map_line() + "\n").collect();
        fs::write(self.at("maps").join(root), lines.concat()).unwrap();
    }

    /// Writes this text into the map of a root.
    pub fn write_map(&self, root: &str, text: &str) {
        fs::write(self.at("maps").join(root), text).unwrap();
    }

    /// Adds a PCI function that is not a VF.
    pub fn add_other_function(&self, address: PciAddress) {
        fs::create_dir_all(self.device(address)).unwrap();
    }

    /// Removes the map of a root.
    pub fn remove_map(&self, root: &str) {
        fs::remove_file(self.at("maps").join(root)).unwrap();
    }

    /// Removes a VF from the host.
    pub fn remove_vf(&self, vf: PciAddress) {
        fs::remove_dir_all(self.device(vf)).unwrap();
    }

    /// The directory that stands for the host's `/`, with its `sys`, `proc`, `dev` and `etc`.
    pub fn root_dir(&self) -> PathBuf {
        self.at("root")
    }

    /// The directory with the directories of VMs. Hosts that were made with [`beside`](Self::beside) share it.
    pub fn datastore(&self) -> &Path {
        &self.datastore
    }

    /// A running domain of this host.
    pub fn domain(&self, name: &str) -> Option<LiveDomain> {
        let domain = self.model.find(&name.parse().unwrap()).unwrap()?;
        Some(LiveDomain::parse(&self.model.live_xml(&domain).unwrap()?).unwrap())
    }

    /// The claim files: names `<root>/<index>` and contents.
    pub fn claims(&self) -> BTreeMap<String, String> {
        let files = SavedFiles::take(&[self.at("state")]);
        let state = self.at("state");
        let name = |path: &Path| path.strip_prefix(&state).unwrap().display().to_string();
        let claims = files.files.into_iter().filter(|(path, _)| !name(path).starts_with(".locks/"));
        claims.map(|(path, bytes)| (name(&path), String::from_utf8(bytes).unwrap())).collect()
    }

    /// The files in the directories of VMs except deployment files: paths and contents.
    pub fn vm_files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = SavedFiles::take(std::slice::from_ref(&self.datastore)).files;
        files.retain(|path, _| !path.file_name().unwrap().to_string_lossy().starts_with("deployment."));
        files
    }

    /// Runs an action as a process of its own, to its end or to its death by an armed [`Fault`](super::faults::Fault).
    pub fn run<T>(&self, action: impl FnOnce() -> T) -> Ended<T> {
        let ended = catch_unwind(AssertUnwindSafe(action));
        // The fault may have hit another thread of the action.
        if !self.faults.is_dead() {
            return ended.map_or_else(|payload| resume_unwind(payload), Ended::With);
        }
        if let Err(payload) = ended {
            if !payload.is::<Killed>() {
                resume_unwind(payload);
            }
        }
        self.at_death.lock().unwrap().take().unwrap().restore(&self.kept());
        self.end_process();
        self.faults.disarm();
        Ended::Killed
    }

    /// Reconciles. Repeats this while the lock of a VM is held, at most 5 s.
    ///
    /// Another test of this process may have just started a program. Until the program runs, it holds a copy of every
    /// open file, including locks on other model hosts.
    ///
    /// # Errors
    /// As [`reconcile`].
    pub fn reconcile(&self) -> Result<Report, Cause> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let report = reconcile(&self.host(), &Options::default())?;
            let locked = report.vms.iter().any(|vm| vm.found.busy == Busy::Locked);
            if (locked || self.passed_over(&report)) && Instant::now() < end && !self.faults.is_dead() {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            return Ok(report);
        }
    }

    /// Whether a VM that claims VFs is missing in the report.
    fn passed_over(&self, report: &Report) -> bool {
        let store = self.host().existing_claims().unwrap();
        let claimants = store.map(|store| store.claimants().unwrap()).unwrap_or_default();
        let reported = |owner: &Owner| report.vms.iter().any(|vm| vm.owner.is(owner));
        report.problems.is_empty() && claimants.iter().any(|claimant| !reported(&claimant.owner))
    }

    /// Ends the process of the last action: claims that name this process as their holder name an ended one afterwards.
    pub fn end_process(&self) {
        let alive = format!("\nholder={} ", std::process::id());
        for (name, text) in self.claims() {
            if let Some((before, after)) = text.split_once(&alive) {
                let rest = after.split_once('\n').map(|(_, rest)| rest).unwrap_or_default();
                fs::write(self.at("state").join(name), format!("{before}{alive}1\n{rest}")).unwrap();
            }
        }
    }
}

/// A directory in memory if possible: claims are synced to the disk one by one.
fn temporary() -> TempDir {
    let shm = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new();
    if shm.is_dir() { builder().tempdir_in(shm).unwrap() } else { builder().tempdir().unwrap() }
}

/// All files below some directories.
///
/// A thread that unwinds runs destructors, a killed process does not. So the files are put back as they were at the
/// death.
pub(super) struct SavedFiles {
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
}

impl SavedFiles {
    pub(super) fn take(places: &[PathBuf]) -> Self {
        let mut files = BTreeMap::new();
        for place in places {
            Self::read(place, &mut files);
        }
        Self { files }
    }

    fn read(place: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        let Ok(entries) = fs::read_dir(place) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                Self::read(&path, files);
            // A link to a device of the model has no target in this tree.
            } else if path.exists() {
                files.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }

    fn restore(self, places: &[PathBuf]) {
        let now = Self::take(places);
        for path in now.files.keys().filter(|path| !self.files.contains_key(*path)) {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in self.files {
            if now.files.get(&path) != Some(&bytes) {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
        }
    }
}
