//! A guest's root tree with the tools of its distribution, in a network namespace. `tests/prepare guest-root` unpacks
//! the tree.
//!
//! NICs are real network devices with a sysfs of files. User namespaces make root unnecessary.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::project;
use crate::remotes::target;
use crate::rig_host::Said;

/// Enters the tree: ROOT, the guest's own DIR, a shell SCRIPT. All writes stay in DIR.
const ENTER: &str = r#"
set -e
root=$1 dir=$2 script=$3
mount -t overlay overlay -o "userxattr,lowerdir=$root,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
mount --rbind /proc "$dir/root/proc"
# Root of the guest may be root of this machine: it gets no device that others need.
mount -t tmpfs tmpfs "$dir/root/dev"
for device in null zero full random urandom tty; do
    : >"$dir/root/dev/$device"
    mount --bind "/dev/$device" "$dir/root/dev/$device"
done
mount --bind "$dir/sys" "$dir/root/sys"
# Where sysfs can't be written, networkd and NetworkManager do not wait for udev.
mount -o remount,bind,ro "$dir/root/sys"
ip link set lo up
for nic in "$dir"/sys/class/net/*; do
    [ -e "$nic/address" ] || continue
    read -r mac <"$nic/address"
    read -r index <"$nic/ifindex"
    ip link add "${nic##*/}" index "$index" type veth peer name "x$index" index $((index + 1000))
    case $mac in ??:??:??:??:??:??) ip link set "${nic##*/}" address "$mac" ;; esac
    ip link set "x$index" up
done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$dir/root" /bin/sh -c "$script"
"#;

/// A guest. NICs are attached and detached between the scripts that run in it.
pub struct Guest {
    dir: TempDir,
    plugged: u32,
    /// The path of PCI functions below /sys/devices.
    bridge: &'static str,
}

impl Guest {
    /// A guest without OpenNebula's context packages, with this project's scripts installed.
    pub fn bare() -> Self {
        let guest = Self::empty();
        guest.package("install").ok();
        guest
    }

    /// Makes its PCI host bridge a platform device, as on ARM, for NICs that are plugged from now on.
    pub fn on_arm(&mut self) {
        self.bridge = "platform/4010000000.pcie/pci0000:00";
    }

    /// A guest without OpenNebula's context packages and without this project's scripts.
    fn empty() -> Self {
        // Not in /tmp: an overlay's upper directory needs extended attributes.
        let guest = Self { dir: tempfile::tempdir_in(target()).unwrap(), plugged: 9, bridge: "pci0000:00" };
        for part in ["root", "work", "upper/etc", "sys/class/net", "sys/bus/pci/devices"] {
            fs::create_dir_all(guest.path(part)).unwrap();
        }
        guest.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsystemd-network:x:0:0::/:/bin/false\n");
        guest.write("/etc/group", "root:x:0:\nsystemd-network:x:0:\n");
        guest.write("/etc/machine-id", "6c0a1d7d2b3b4a7d8e9f0a1b2c3d4e5f\n");
        guest
    }

    /// A guest with the stand-ins of OpenNebula's context scripts and this project's scripts.
    pub fn new() -> Self {
        let guest = Self::unprepared();
        guest.package("install").ok();
        guest
    }

    /// A guest with only the stand-ins of OpenNebula's context scripts.
    pub fn unprepared() -> Self {
        let guest = Self::empty();
        for (from, to) in
            [("one-contextd", "/usr/sbin/one-contextd"), ("loc-10-network", "/etc/one-context.d/loc-10-network")]
        {
            guest.copy(&project().join("tests/rigs/context").join(from), to);
        }
        for entry in fs::read_dir(project().join("tests/rigs/context/loc-10-network.d")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            guest.copy(&path, &format!("/etc/one-context.d/loc-10-network.d/{name}"));
        }
        guest
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    fn upper(&self, file: &str) -> PathBuf {
        self.path("upper").join(file.trim_start_matches('/'))
    }

    /// Copies a file into the guest.
    pub fn copy(&self, from: &Path, to: &str) {
        self.write(to, "");
        fs::copy(from, self.upper(to)).unwrap();
    }

    /// Runs `guest/install` with these words before the guest's root.
    pub fn package(&self, words: &str) -> Said {
        let mut install = Command::new(project().join("guest/install"));
        install.args(words.split_whitespace().filter(|word| *word != "install")).arg(self.path("upper"));
        install.output().unwrap().into()
    }

    /// Writes a file of the guest.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.upper(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes a program of the guest.
    pub fn program(&self, file: &str, text: &str) {
        self.write(file, text);
        fs::set_permissions(self.upper(file), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Reads a file that the guest wrote.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.upper(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Whether the guest has written this file.
    pub fn wrote(&self, file: &str) -> bool {
        self.upper(file).exists()
    }

    /// The guest's context: `NAME='value'`, one a line.
    pub fn context(&self, text: &str) {
        self.write("/context/context.sh", text);
    }

    /// Plugs a device below a PCI function. Its kind is a number of linux/if_arp.h.
    fn plug(&mut self, pci: &str, child: &str, name: &str, mac: &str, kind: u32) {
        let device = self.path("sys/bus/pci/devices").join(pci);
        // Links are relative as in sysfs, so that they also work in the guest's own tree.
        let function = Path::new(self.bridge).join(pci);
        if !device.exists() {
            symlink(Path::new("../../../devices").join(&function), device).unwrap();
        }
        self.add(&function.join(child).join("net").join(name), name, mac, kind);
    }

    /// Adds a network device at this path below /sys/devices.
    fn add(&mut self, below: &Path, name: &str, mac: &str, kind: u32) {
        self.plugged += 1;
        let nic = self.path("sys/devices").join(below);
        fs::create_dir_all(&nic).unwrap();
        let (kind, index) = (kind.to_string(), self.plugged.to_string());
        let uevent = format!("INTERFACE={name}\nIFINDEX={index}");
        for (file, value) in
            [("address", mac), ("type", &kind), ("ifindex", &index), ("dev_port", "0"), ("uevent", &uevent)]
        {
            fs::write(nic.join(file), format!("{value}\n")).unwrap();
        }
        let up: PathBuf = std::iter::repeat_n("..", below.components().count() + 1).collect();
        symlink(up.join("class/net"), nic.join("subsystem")).unwrap();
        symlink(Path::new("../../devices").join(below), self.path("sys/class/net").join(name)).unwrap();
    }

    /// Adds a network device without a parent device, such as a bridge or a container's veth.
    pub fn virtual_device(&mut self, name: &str, mac: &str) {
        self.add(&Path::new("virtual/net").join(name), name, mac, 1);
    }

    /// Plugs a virtio NIC, such as a dummy or a NIC on a bridge.
    pub fn virtio(&mut self, pci: &str, name: &str, mac: &str) {
        self.plug(pci, "virtio0", name, mac, 1);
    }

    /// Plugs a NIC that is a PCI function, such as a VF or an e1000.
    pub fn function(&mut self, pci: &str, name: &str, mac: &str) {
        self.plug(pci, "", name, mac, 1);
    }

    /// Binds a function to a driver.
    pub fn bind(&self, pci: &str, driver: &str) {
        let dir = self.path("sys/bus/pci/drivers").join(driver);
        fs::create_dir_all(&dir).unwrap();
        symlink(Path::new("../../../../devices").join(self.bridge).join(pci), dir.join(pci)).unwrap();
    }

    /// Plugs an `InfiniBand` VF with its `IPoIB` device.
    pub fn infiniband(&mut self, pci: &str, name: &str) {
        self.plug(pci, "", name, "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:0a:6f:11", 32);
    }

    /// Writes an attribute of a NIC in sysfs.
    pub fn attribute(&self, name: &str, attribute: &str, value: &str) {
        fs::write(self.path("sys/class/net").join(name).join(attribute), format!("{value}\n")).unwrap();
    }

    /// Removes a NIC.
    pub fn unplug(&self, name: &str) {
        let link = self.path("sys/class/net").join(name);
        fs::remove_dir_all(fs::canonicalize(&link).unwrap()).unwrap();
        fs::remove_file(link).unwrap();
    }

    /// Runs a script as root of the guest, with its current NICs.
    pub fn run(&self, script: &str) -> Said {
        let root = target().join("guest-root");
        assert!(root.is_dir(), "{} is missing: run tests/prepare guest-root", root.display());
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--net", "--mount", "--", "sh", "-c", ENTER, "enter"]);
        unshare.arg(root).arg(self.dir.path()).arg(script).output().unwrap().into()
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // An overlay leaves a directory that even its owner could not read.
        let work = self.path("work/work");
        if work.exists() {
            drop(fs::set_permissions(work, fs::Permissions::from_mode(0o700)));
        }
    }
}
