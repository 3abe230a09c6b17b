//! A host of kvm-sriov around a model: its files in a directory of its own, its kernel made of directories.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::config::Kvmrc;
use kvm_sriov::config::MapDirs;
use kvm_sriov::libvirt::{DomainCalls, DomainRef, Hypervisor, LibvirtError, PowerCalls};
use kvm_sriov::reconcile::{Busy, Options, Report, reconcile};
use kvm_sriov::sysfs::Sysfs;
use kvm_sriov::xml::LiveDomain;
use kvm_sriov::{Cause, Host, Owner, PciAddress};
use tempfile::TempDir;

use super::Model;
use super::faults::{Faults, Killed};

/// The roots of a model host.
pub const ROOTS: [&str; 2] = ["ib0", "ib1"];

/// The bridges of a model host, the dummies' last.
const BRIDGES: [&str; 2] = ["br0", "dummy_br"];

/// A model host.
pub struct ModelHost {
    dir: TempDir,
    /// Where the directories of VMs are; the same on hosts with shared storage.
    datastore: PathBuf,
    model: Model,
    faults: Arc<Faults>,
    photograph: Arc<Mutex<Option<Photograph>>>,
}

/// How an action ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// It returned.
    With(T),
    /// Its process died. What it held is free, its files are as they were in that moment.
    Killed,
}

impl Default for ModelHost {
    fn default() -> Self {
        Self::with_vfs(4)
    }
}

impl ModelHost {
    /// A host with this many VFs on each root.
    pub fn with_vfs(number: usize) -> Self {
        let dir = temporary();
        let datastore = dir.path().join("datastores/0");
        let model = Model::new("host1", Sysfs::at(dir.path().join("root")));
        Self::around(dir, datastore, model, 0x07, number)
    }

    /// A second host in the same world, with as many VFs at other addresses and the same storage.
    pub fn beside(&self, name: &str, number: usize) -> Self {
        let dir = temporary();
        let model = self.model.beside(name, Sysfs::at(dir.path().join("root")));
        Self::around(dir, self.datastore.clone(), model, 0x81, number)
    }

    fn around(dir: TempDir, datastore: PathBuf, model: Model, bus: u8, number: usize) -> Self {
        let faults = Arc::new(Faults::around(Arc::new(model.clone())));
        let host = Self { dir, datastore, model, faults, photograph: Arc::default() };
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
        let (photograph, places) = (Arc::clone(&host.photograph), host.kept());
        host.faults.at_death(move || {
            *photograph.lock().unwrap() = Some(Photograph::take(&places));
        });
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn device(&self, vf: PciAddress) -> PathBuf {
        self.at("root/sys/bus/pci/devices").join(vf.to_string())
    }

    /// What a process leaves behind when it dies.
    fn kept(&self) -> Vec<PathBuf> {
        vec![self.at("state"), self.datastore.clone()]
    }

    /// Writes kvmrc, with these lines besides what every VM with VFs needs; the times are short.
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

    /// Makes a block device `/dev/dm-<number>` with this content, and a link in `/dev` to it, such as `vg-one-0/lv-one-42-0`.
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

    /// Has this many huge pages of 2 MiB free on a NUMA node; those of the host are those of all nodes.
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

    /// The host as a process sees it that starts now.
    pub fn host(&self) -> Host {
        let kvmrc = Kvmrc::load(&[self.at("kvmrc")]).strict().unwrap();
        let hypervisor: Arc<dyn Hypervisor> = Arc::clone(&self.faults) as _;
        Host::new(kvmrc.into_settings(), hypervisor, MapDirs::new(vec![self.at("maps")]))
            .with_sysfs(Sysfs::at(self.at("root")))
            .with_run_dir(self.run_dir())
    }

    /// Starts a domain without VFs, whose guest answers at once. VFs are plugged in with
    /// [`Host::plug`](kvm_sriov::Host::plug).
    ///
    /// # Errors
    /// libvirt's, such as a domain of that name that runs already, or an armed fault.
    pub fn start_domain(&self, name: &str) -> Result<DomainRef, LibvirtError> {
        let xml = format!(
            "<domain type='kvm'><name>{name}</name><memory unit='MiB'>512</memory><vcpu>1</vcpu>\
             <features><acpi/></features><os><type machine='pc'>hvm</type></os><devices/></domain>"
        );
        self.model.create(&xml, Duration::from_secs(10))
    }

    /// In place of OpenNebula's `/var/run/one`.
    pub fn run_dir(&self) -> PathBuf {
        self.at("run")
    }

    /// Its libvirtd, without faults.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The faults between its processes and its libvirtd.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The state directory.
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

    /// Writes a file in place of a map.
    pub fn write_map(&self, root: &str, text: &str) {
        fs::write(self.at("maps").join(root), text).unwrap();
    }

    /// The host has a PCI function that is not a VF.
    pub fn add_other_function(&self, address: PciAddress) {
        fs::create_dir_all(self.device(address)).unwrap();
    }

    /// The map of a root is gone.
    pub fn loses_map(&self, root: &str) {
        fs::remove_file(self.at("maps").join(root)).unwrap();
    }

    /// A VF vanishes from the host.
    pub fn vanishes(&self, vf: PciAddress) {
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

    /// A domain that runs here.
    pub fn domain(&self, name: &str) -> Option<LiveDomain> {
        let domain = self.model.find(&name.parse().unwrap()).unwrap()?;
        Some(LiveDomain::parse(&self.model.live_xml(&domain).unwrap()?).unwrap())
    }

    /// The claim files by their names `<root>/<index>`, and what they say.
    pub fn claims(&self) -> BTreeMap<String, String> {
        let files = Photograph::take(&[self.at("state")]);
        let state = self.at("state");
        let name = |path: &Path| path.strip_prefix(&state).unwrap().display().to_string();
        let claims = files.files.into_iter().filter(|(path, _)| !name(path).starts_with(".locks/"));
        claims.map(|(path, bytes)| (name(&path), String::from_utf8(bytes).unwrap())).collect()
    }

    /// The files in the directories of VMs that are no deployment files, and what they hold.
    pub fn vm_files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = Photograph::take(std::slice::from_ref(&self.datastore)).files;
        files.retain(|path, _| !path.file_name().unwrap().to_string_lossy().starts_with("deployment."));
        files
    }

    /// Runs an action to its end, or to the death of its process by an armed fault.
    pub fn run<T>(&self, action: impl FnOnce() -> T) -> Ended<T> {
        let ended = catch_unwind(AssertUnwindSafe(action));
        // Another thread of it may have been the one that died.
        if !self.faults.is_dead() {
            return ended.map_or_else(|payload| resume_unwind(payload), Ended::With);
        }
        if let Err(payload) = ended {
            if !payload.is::<Killed>() {
                resume_unwind(payload);
            }
        }
        self.photograph.lock().unwrap().take().unwrap().restore(&self.kept());
        self.bury();
        self.faults.disarm();
        Ended::Killed
    }

    /// Reconciles; again as long as a VM was passed over because its lock was held.
    ///
    /// Another test of this process may have started a program: until that has begun it holds a copy of every open file, locks
    /// of other hosts too.
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

    /// Whether a VM that claims VFs is not in the report.
    fn passed_over(&self, report: &Report) -> bool {
        let store = self.host().existing_claims().unwrap();
        let claimants = store.map(|store| store.claimants().unwrap()).unwrap_or_default();
        let reported = |owner: &Owner| report.vms.iter().any(|vm| vm.owner.is(owner));
        report.problems.is_empty() && claimants.iter().any(|claimant| !reported(&claimant.owner))
    }

    /// The process of the last action has ended: claims that name this one name one that ended long ago.
    pub fn bury(&self) {
        let alive = format!("\nholder={} ", std::process::id());
        for (name, text) in self.claims() {
            if let Some((before, after)) = text.split_once(&alive) {
                let rest = after.split_once('\n').map(|(_, rest)| rest).unwrap_or_default();
                fs::write(self.at("state").join(name), format!("{before}{alive}1\n{rest}")).unwrap();
            }
        }
    }
}

/// A directory in memory if there is one: claims are synced to the disk one by one.
fn temporary() -> TempDir {
    let shm = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new();
    if shm.is_dir() { builder().tempdir_in(shm).unwrap() } else { builder().tempdir().unwrap() }
}

/// All files below some directories.
///
/// A thread that unwinds runs destructors, which a process that is killed does not: what they did to files is taken back.
pub(super) struct Photograph {
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Photograph {
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
            // A link to a device of the model's leads nowhere here.
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
