//! What the kernel says about the host: bridges, PCI functions, block devices, memory, and whether QEMU may open a VF.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::{POLL, PciAddress};
use crate::os;

/// The size of the kernel's sectors, in bytes.
const SECTOR: u64 = 512;

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its node, without symbolic links.
    pub node: PathBuf,
    /// The kernel's name, such as `dm-3`. Two nodes with the same name are the same device.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The kernel's view of the host, read below a root directory that tests may change.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

/// Why an address of a map can't be given to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoVf {
    /// The host has no PCI function at this address.
    Missing,
    /// The PCI function is not a VF, but an adapter itself or another device.
    NotVf,
}

impl fmt::Display for NoVf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::NotVf => "not a VF",
        })
    }
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/".into())
    }
}

impl Sysfs {
    /// The view below `root`, in place of `/`.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Whether `name` is a Linux bridge of this host.
    pub fn is_bridge(&self, name: &str) -> bool {
        self.root.join("sys/class/net").join(name).join("bridge").is_dir()
    }

    /// Checks that the function is a VF: only VFs have a `physfn`.
    ///
    /// # Errors
    /// [`NoVf`] says why it is not a VF.
    ///
    /// # Source
    /// Linux `Documentation/ABI/testing/sysfs-bus-pci`: `physfn` "will exist only in VF devices".
    pub fn check_vf(&self, address: PciAddress) -> Result<(), NoVf> {
        let device = self.device(address);
        match (device.exists(), device.join("physfn").exists()) {
            (_, true) => Ok(()),
            (true, false) => Err(NoVf::NotVf),
            (false, false) => Err(NoVf::Missing),
        }
    }

    /// Whether the adapter of a VF has a network device on this host. libvirt sets MACs and VLANs of VFs through it.
    pub fn has_network_adapter(&self, vf: PciAddress) -> bool {
        let devices = fs::read_dir(self.device(vf).join("physfn/net"));
        devices.is_ok_and(|mut devices| devices.next().is_some())
    }

    /// The IOMMU group of the function: the number in `/dev/vfio/<number>`. `None` without an IOMMU.
    pub fn iommu_group(&self, address: PciAddress) -> Option<u32> {
        fs::read_link(self.device(address).join("iommu_group")).ok()?.file_name()?.to_str()?.parse().ok()
    }

    /// The block device behind a path such as `/dev/vg-one-0/lv-one-42-0`; `None` if the path is not one.
    ///
    /// # Source
    /// Linux `Documentation/ABI/stable/sysfs-block`: `size` is in sectors of 512 bytes; a `/` in the name of a node
    /// becomes `!`.
    pub fn block_device(&self, path: &Path) -> Option<BlockDevice> {
        let node = fs::canonicalize(self.root.join(path.strip_prefix("/").ok()?)).ok()?;
        let dev = fs::canonicalize(self.root.join("dev")).ok()?;
        let name = node.strip_prefix(dev).ok()?.to_str()?.replace('/', "!");
        let sectors = fs::read_to_string(self.root.join("sys/class/block").join(&name).join("size")).ok()?;
        let size = sectors.trim().parse::<u64>().ok()?.checked_mul(SECTOR)?;
        Some(BlockDevice { node, name, size })
    }

    /// Whether a udev rule of this host sets the owner, group or mode of vfio devices.
    ///
    /// # Source
    /// udev(7): the directories of rules. libvirt labels /dev/vfio/GROUP only with `dynamic_ownership = 1`.
    pub fn has_vfio_rule(&self) -> bool {
        ["etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d"]
            .iter()
            .any(|dir| udev_rules(&self.root.join(dir)).iter().any(|line| is_vfio_rule(line)))
    }

    /// Advice for a person when QEMU may not open a vfio device.
    pub fn vfio_advice(&self) -> &'static str {
        if self.has_vfio_rule() {
            "a udev rule for vfio exists, but it does not name the user of qemu.conf, or it was installed after the device \
             appeared: correct it, then run udevadm control --reload and udevadm trigger --subsystem-match=vfio"
        } else {
            "no udev rule gives the device to the user of qemu.conf: install 80-kvm-sriov-vfio.rules into /etc/udev/rules.d, \
             then run udevadm control --reload"
        }
    }

    /// Waits until udev has handled all its events, at most `limit`.
    ///
    /// # Source
    /// systemd `src/udev/udev-manager.c`: /run/udev/queue exists while there are unhandled events.
    pub(crate) fn wait_for_udev(&self, limit: Duration) {
        let end = os::now() + limit;
        while self.root.join("run/udev/queue").exists() && os::now() < end {
            os::sleep(POLL);
        }
    }

    /// Memory that is available without swapping, in KiB (`MemAvailable`); 0 if the kernel does not say.
    pub fn available_memory_kib(&self) -> u64 {
        self.memory_info("MemAvailable:").unwrap_or(0)
    }

    fn memory_info(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.root.join("proc/meminfo")).ok()?;
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// The default size of huge pages, in KiB (`Hugepagesize`).
    pub fn huge_page_kib(&self) -> Option<u64> {
        self.memory_info("Hugepagesize:")
    }

    /// How many huge pages of this size are available; `None` if the host has none of this size.
    ///
    /// * `nodes` - the NUMA nodes that the pages must be on; empty for any node
    ///
    /// # Source
    /// Linux `Documentation/admin-guide/mm/hugetlbpage.rst`: some of the free pages are reserved; the kernel allocates
    /// surplus pages on demand.
    pub fn free_huge_pages(&self, kib: u64, nodes: &[u32]) -> Option<u64> {
        let name = format!("hugepages/hugepages-{kib}kB");
        let all = self.root.join("sys/kernel/mm").join(&name);
        let number =
            |dir: &Path, file: &str| -> Option<u64> { fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok() };
        let free = number(&all, "free_hugepages")?;
        let reserved = number(&all, "resv_hugepages").unwrap_or(0);
        let surplus = number(&all, "surplus_hugepages").unwrap_or(0);
        let overcommit = number(&all, "nr_overcommit_hugepages").unwrap_or(0).saturating_sub(surplus);
        let node = |node: &u32| self.root.join(format!("sys/devices/system/node/node{node}")).join(&name);
        let on_nodes: u64 = nodes.iter().filter_map(|n| number(&node(n), "free_hugepages")).sum();
        // The kernel does not say on which nodes the reserved pages are.
        let free = free.saturating_sub(reserved);
        let free = if nodes.is_empty() { free } else { free.min(on_nodes) };
        Some(free.saturating_add(overcommit))
    }

    fn device(&self, address: PciAddress) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address.to_string())
    }
}

/// The vfio device that QEMU could not open for lack of permission, found in libvirt's error text.
///
/// # Source
/// QEMU `hw/vfio/container.c`: `Could not open '/dev/vfio/11': Permission denied`; before 9.0 `failed to open
/// /dev/vfio/11: Permission denied`.
pub(crate) fn denied_vfio_device(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("/dev/vfio/")?;
    let (name, rest) = rest.split_at(rest.find(['\'', ':', ' '])?);
    rest.contains("Permission denied").then(|| format!("/dev/vfio/{name}"))
}

fn udev_rules(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "rules"))
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn is_vfio_rule(line: &str) -> bool {
    let squeezed: String = line.chars().filter(|c| !c.is_whitespace()).collect();
    !squeezed.starts_with('#')
        && squeezed.contains("SUBSYSTEM==\"vfio\"")
        && ["OWNER", "GROUP", "MODE"]
            .iter()
            .any(|key| squeezed.contains(&format!("{key}=\"")) || squeezed.contains(&format!("{key}:=\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let vf: PciAddress = "0000:07:00.3".parse().unwrap();
        let device = root.join("sys/bus/pci/devices/0000:07:00.3");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(root.join("sys/class/net/br0/bridge")).unwrap();
        fs::create_dir_all(root.join("sys/class/net/eth0")).unwrap();
        fs::create_dir_all(root.join("etc/udev/rules.d")).unwrap();
        fs::create_dir_all(root.join("proc")).unwrap();
        std::os::unix::fs::symlink("../../../kernel/iommu_groups/11", device.join("iommu_group")).unwrap();
        fs::write(root.join("proc/meminfo"), "MemTotal: 9 kB\nMemAvailable:   2048 kB\n").unwrap();
        let sysfs = Sysfs::at(root.into());
        assert!(sysfs.is_bridge("br0"));
        assert!(!sysfs.is_bridge("eth0"));
        assert!(!sysfs.is_bridge("none"));
        assert_eq!(sysfs.check_vf(vf), Err(NoVf::NotVf));
        fs::write(device.join("physfn"), "").unwrap();
        assert_eq!(sysfs.check_vf(vf), Ok(()));
        assert_eq!(sysfs.check_vf("0000:08:00.0".parse().unwrap()), Err(NoVf::Missing));
        assert_eq!(sysfs.iommu_group(vf), Some(11));
        assert_eq!(sysfs.available_memory_kib(), 2048);
        fs::create_dir_all(root.join("dev/vg-one-0")).unwrap();
        fs::create_dir_all(root.join("dev/cciss")).unwrap();
        std::os::unix::fs::symlink("../dm-3", root.join("dev/vg-one-0/lv-one-42-0")).unwrap();
        for (node, name) in [("dm-3", "dm-3"), ("cciss/c0d0", "cciss!c0d0"), ("null", "")] {
            fs::write(root.join("dev").join(node), "").unwrap();
            if !name.is_empty() {
                fs::create_dir_all(root.join("sys/class/block").join(name)).unwrap();
                fs::write(root.join("sys/class/block").join(name).join("size"), "2048\n").unwrap();
            }
        }
        let names = |path: &str| sysfs.block_device(Path::new(path)).map(|device| (device.name, device.size));
        assert_eq!(names("/dev/vg-one-0/lv-one-42-0"), Some(("dm-3".into(), 1 << 20)));
        assert_eq!(names("/dev/cciss/c0d0"), Some(("cciss!c0d0".into(), 1 << 20)));
        assert_eq!((names("/dev/null"), names("/proc/meminfo"), names("relative")), (None, None, None));
        assert!(!sysfs.has_vfio_rule());
        fs::write(root.join("etc/udev/rules.d/1.rules"), "# SUBSYSTEM==\"vfio\", OWNER=\"x\"\n").unwrap();
        assert!(!sysfs.has_vfio_rule(), "a comment is not a rule");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/udev/80-kvm-sriov-vfio.rules");
        fs::copy(shipped, root.join("etc/udev/rules.d/80.rules")).unwrap();
        assert!(sysfs.has_vfio_rule());
    }

    #[test]
    fn huge_pages_are_counted_by_size_and_node() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(dir.path().into());
        assert_eq!((sysfs.huge_page_kib(), sysfs.free_huge_pages(2048, &[])), (None, None));
        let write = |path: &str, number: u64| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{number}\n")).unwrap();
        };
        let all = "sys/kernel/mm/hugepages/hugepages-2048kB";
        write(&format!("{all}/free_hugepages"), 100);
        assert_eq!(sysfs.free_huge_pages(2048, &[]), Some(100));
        for (file, number) in [("resv_hugepages", 10), ("nr_overcommit_hugepages", 8), ("surplus_hugepages", 3)] {
            write(&format!("{all}/{file}"), number);
        }
        assert_eq!(sysfs.free_huge_pages(2048, &[]), Some(95));
        for (node, number) in [(0, 99), (1, 1)] {
            write(&format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/free_hugepages"), number);
        }
        assert_eq!(sysfs.free_huge_pages(2048, &[1]), Some(6));
        assert_eq!(sysfs.free_huge_pages(2048, &[0, 1]), Some(95));
        assert_eq!(sysfs.free_huge_pages(1 << 20, &[0]), None);
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/meminfo"), "Hugepagesize:       2048 kB\n").unwrap();
        assert_eq!(sysfs.huge_page_kib(), Some(2048));
    }

    #[test]
    fn the_denied_device_is_found_in_libvirts_text() {
        let text = "internal error: process exited while connecting to monitor: vfio 0000:01:10.0: Could not open '/dev/vfio/11': Permission denied";
        assert_eq!(denied_vfio_device(text).as_deref(), Some("/dev/vfio/11"));
        let text = "vfio 0000:01:10.0: failed to open /dev/vfio/11: Permission denied";
        assert_eq!(denied_vfio_device(text).as_deref(), Some("/dev/vfio/11"));
        assert_eq!(denied_vfio_device("Could not open '/dev/vfio/11': No such file"), None);
        assert_eq!(denied_vfio_device("Could not open '/x': Permission denied"), None);
    }
}
