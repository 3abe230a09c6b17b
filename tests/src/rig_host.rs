//! A host of a rig. A lab host is a machine with real VFs (of an emulated adapter), libvirtd and QEMU, reached by ssh.
//! A light host is a namespace of this machine, without VFs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::caller::{Answer, Caller, Version};
use crate::guest_cpu::{LOOKS, is_mixed_up};
use crate::project;
use crate::remotes::{Remotes, target};
use crate::vm::{ActionData, SHARED, Vm};

/// The limit for a guest to show its NICs: five times the time on a machine three times slower than the one where it
/// was measured.
pub const GUEST_BOOT: Duration = Duration::from_secs(200);

/// The limit for anything that a host or a guest does within seconds.
pub const SOON: Duration = Duration::from_secs(60);

/// The length of a kernel's boot id.
const BOOT_ID: usize = 36;

/// The driver's configuration on a host.
pub const KVMRC: &str = "/var/tmp/one/etc/vmm/kvm-sriov/kvmrc";

/// The settings that a VM with VFs needs.
pub const BASE_KVMRC: &str = "DUMMY_BRIDGE=dummy_br\nDUMMY_MAC_PREFIX=aa\n";

/// The directory of OpenNebula's programs on a host.
const REMOTES: &str = "/var/tmp/one";

/// The program that makes, starts and reaches the lab's hosts.
const LAB: &str = "tests/rigs/lab/lab";

/// The program that makes, starts and reaches the light hosts.
const LIGHT: &str = "tests/rigs/light/light";

/// One host of a rig.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RigHost {
    script: &'static str,
    number: u8,
}

/// A NIC with its addresses, as the Debian guest of a light host shows it.
#[derive(Debug, Clone)]
pub struct Has {
    /// Its MAC.
    pub mac: String,
    /// Whether it is up.
    pub is_up: bool,
    /// Its first global IPv4 address with prefix length, or an empty text.
    pub ip: String,
    /// Its first global IPv6 address with prefix length, or an empty text.
    pub ip6: String,
}

/// A NIC as a guest shows it.
#[derive(Debug, Clone)]
pub struct GuestNic {
    /// Its name in the guest.
    pub name: String,
    /// Its MAC.
    pub mac: String,
    /// Its PCI address in the guest, such as `0000:10:00.0`.
    pub pci: String,
    /// The guest's driver for it.
    pub driver: String,
}

/// A sign of life of a guest: its CPUs run.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    /// Seconds since the guest booted.
    pub uptime: f64,
    /// The boot id of the guest's kernel. Another one means that the guest booted again.
    pub boot: String,
}

/// A ping from a guest to a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ping {
    /// Whether the peer answered.
    pub ok: bool,
    /// The time, in seconds since the guest booted.
    pub uptime: f64,
}

/// The console of the lab's guest on one host. Each host has a file of its own, and a restored domain begins a new one.
#[derive(Debug, Clone)]
pub struct Console(String);

impl Console {
    /// The text after this word in lines that begin with `GUEST` and this word.
    fn said<'a>(&'a self, word: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.0.lines().filter_map(move |line| line.strip_prefix("GUEST ")?.strip_prefix(word)?.strip_prefix(' '))
    }

    /// The guest's NICs after their last change, by PCI address.
    pub fn nics(&self) -> Vec<GuestNic> {
        let read = |word: &str| {
            let (name, rest) = word.split_once('=')?;
            let (mac, rest) = rest.split_once('@')?;
            let (pci, driver) = rest.split_once(',')?;
            let [name, mac, pci, driver] = [name, mac, pci, driver].map(str::to_owned);
            Some(GuestNic { name, mac, pci, driver })
        };
        let line = self.said("NET").next_back().unwrap_or_default();
        let mut nics: Vec<GuestNic> = line.split_whitespace().filter_map(read).collect();
        nics.sort_by(|a, b| a.pci.cmp(&b.pci));
        nics
    }

    /// The guest's VFs with the IPv4 addresses that `guest/` configured, after their last change, by position.
    pub fn vfs(&self) -> Vec<(String, String)> {
        let line = self.said("VFS").next_back().unwrap_or_default();
        line.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(nic, ip)| (nic.into(), ip.into()))
            .collect()
    }

    /// The signs of life, in order, one in about 5 s.
    pub fn ticks(&self) -> Vec<Tick> {
        let read = |line: &str| {
            let (uptime, boot) = line.split_once(' ')?;
            // A save or a migration may split a line.
            (boot.len() == BOOT_ID).then_some(Tick { uptime: uptime.parse().ok()?, boot: boot.into() })
        };
        self.said("TICK").filter_map(read).collect()
    }

    /// The pings to a peer, in order, one in about 2 s.
    pub fn pings(&self, peer: &str) -> Vec<Ping> {
        let read = |line: &str| {
            let (answer, uptime) = line.strip_prefix(peer)?.strip_prefix(' ')?.split_once(' ')?;
            Some(Ping { ok: answer == "ok", uptime: uptime.parse().ok()? })
        };
        self.said("PING").filter_map(read).collect()
    }

    /// The devices of a light host's guest after their last change: `cpus`, `mib` of memory, disks with their MiB, CDs
    /// with their first word.
    pub fn sees(&self) -> BTreeMap<String, String> {
        let line = self.said("SEES").next_back().unwrap_or_default();
        line.split_whitespace().filter_map(|word| word.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    /// The NICs of a light host's Debian guest after their last change.
    pub fn has(&self) -> Vec<Has> {
        let read = |word: &str| {
            let (_, rest) = word.split_once('=')?;
            let [mac, state, ip, ip6] = rest.split(',').collect::<Vec<_>>().try_into().ok()?;
            Some(Has { mac: mac.into(), is_up: state == "up", ip: ip.into(), ip6: ip6.into() })
        };
        let line = self.said("HAS").next_back().unwrap_or_default();
        line.split_whitespace().filter_map(read).collect()
    }

    /// In a light host's Debian guest: the seconds from the last plug of the device with this MAC until it had this
    /// address.
    pub fn from_device_to_address(&self, mac: &str, ip: &str) -> Option<f64> {
        // [<date>T<hours>:<minutes>:<seconds>] <index>: <name> ...
        let read = |line: &'_ str| -> Option<(f64, String, String)> {
            let (time, event) = line.strip_prefix('[')?.split_once("] ")?;
            let clock = time.split_once('T')?.1.split(':').map(str::parse::<f64>);
            let seconds = clock.collect::<Result<Vec<_>, _>>().ok()?.into_iter().reduce(|sum, part| sum * 60.0 + part);
            let (index, what) = event.split_once(": ")?;
            Some((seconds?, index.to_owned(), what.to_owned()))
        };
        let events: Vec<_> = self.said("EVENT").filter_map(read).collect();
        let (_, device, _) = events.iter().rfind(|(_, _, what)| what.contains(&format!("link/ether {mac}")))?;
        let first = |text: &str| {
            events.iter().find(|(_, index, what)| index == device && what.contains(text)).map(|(time, ..)| *time)
        };
        Some(first(&format!(" inet {ip} "))? - first("link/ether")?)
    }

    /// How many times the guest booted.
    pub fn boots(&self) -> usize {
        self.said("READY").count()
    }

    /// Whether the guest's power button was pressed.
    pub fn heard_power_button(&self) -> bool {
        self.0.lines().any(|line| line == "GUEST POWEROFF")
    }
}

/// The result of a program.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Fails the test unless the program succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "exit code {}\n{}{}", self.code, self.out, self.err);
        self.out
    }

    /// The lines that OpenNebula (7.x) shows to a user: all lines that are no log lines.
    pub fn message(&self) -> String {
        let log = ["ERROR: ", "INFO: ", "WARN: ", "DEBUG: ", "ExitCode: "];
        self.err.lines().filter(|line| !log.iter().any(|prefix| line.starts_with(prefix))).collect()
    }
}

impl RigHost {
    /// Starts the host with this number, unless it runs.
    pub fn start(number: u8) -> Self {
        let host = Self { script: LAB, number };
        host.lab(&["start"]);
        host
    }

    /// Starts both hosts side by side, unless they run.
    pub fn start_both() -> [Self; 2] {
        Self::start_all(LAB)
    }

    /// Stops the light hosts of an earlier run, and starts both anew.
    pub fn start_light() -> [Self; 2] {
        Self::stop_light();
        Self::start_all(LIGHT)
    }

    /// Stops both light hosts and removes everything of them.
    pub fn stop_light() {
        let status = Command::new(project().join(LIGHT)).arg("stop").status().unwrap();
        assert!(status.success(), "{LIGHT} stop failed");
    }

    fn start_all(script: &'static str) -> [Self; 2] {
        let status = Command::new(project().join(script)).args(["start", "1", "2"]).status().unwrap();
        assert!(status.success(), "{script} start 1 2 failed");
        [1, 2].map(|number| Self { script, number })
    }

    /// Runs an action of the remotes at `remotes` as this version of OpenNebula does. It forwards its agent only to
    /// `migrate`.
    #[track_caller]
    pub fn called_by(
        self,
        version: Version,
        remotes: &str,
        vm: &Vm,
        action: &str,
        args: &[&str],
        stdin: &str,
    ) -> Answer {
        let (script, number) = (project().join(self.script).display().to_string(), self.number.to_string());
        let mut ssh = vec![script.as_str(), "ssh", &number, "-u", "oneadmin"];
        if action == "migrate" {
            ssh.push("-A");
        }
        ssh.push("--");
        Caller::new(version, remotes).vm(vm.id).host(&self.name()).over(&ssh).run(action, args, stdin)
    }

    /// Its name, which the other host can resolve.
    pub fn name(self) -> String {
        format!("host{}", self.number)
    }

    /// Turns the host off as a power failure does, and on again with its disk.
    pub fn power_cycle(self) {
        self.lab(&["reboot"]);
    }

    /// Turns the host off as a power failure does. Its disk and the shared datastores are kept.
    pub fn power_off(self) {
        self.lab(&["off"]);
    }

    /// Turns a host on again after it was turned off.
    pub fn power_on(self) {
        self.lab(&["reboot"]);
    }

    /// Disconnects the host from the network of the hosts. The test still reaches it.
    pub fn cut_network(self) {
        self.root("ip link set lan down").ok();
    }

    /// Connects the host to that network again.
    pub fn mend_network(self) {
        self.root("ip link set lan up").ok();
    }

    /// Runs a command of the human monitor of the QEMU that is this host, such as `set_link igb0 off`.
    pub fn monitor(self, command: &str) {
        let script = project().join(self.script);
        let args = ["monitor", &self.number.to_string(), command];
        let said: Said = Command::new(script).args(args).output().unwrap().into();
        assert_eq!((said.code, said.out.as_str()), (0, ""), "{command}: {said:?}");
    }

    fn lab(self, verb: &[&str]) {
        let status =
            Command::new(project().join(self.script)).args(verb).arg(self.number.to_string()).status().unwrap();
        assert!(status.success(), "{} {verb:?} {} failed", self.script, self.number);
    }

    /// Starts a command over ssh.
    fn spawn(self, user: &str, forward: bool, command: &str, stdin: &[u8]) -> (Child, JoinHandle<()>) {
        let mut ssh = Command::new(project().join(self.script));
        ssh.args(["ssh", &self.number.to_string(), "-u", user]);
        if forward {
            ssh.arg("-A");
        }
        ssh.args(["--", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ssh.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let text = stdin.to_vec();
        let writer = thread::spawn(move || {
            // A program that does not read its input is no failure.
            drop(pipe.write_all(&text));
        });
        (child, writer)
    }

    fn ssh(self, user: &str, command: &str, stdin: &[u8]) -> Said {
        let (child, writer) = self.spawn(user, false, command, stdin);
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.into()
    }

    /// Makes the host's libvirtd reachable from this machine through ssh, as OpenNebula's user.
    pub fn forward_libvirt(self) -> ForwardedLibvirt {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("libvirt-sock");
        let forward = format!("{}:/run/libvirt/libvirt-sock", socket.display());
        // This needs its own connection: the shared one ends when no command runs.
        let mut ssh = Command::new(project().join(self.script));
        ssh.args(["ssh", &self.number.to_string(), "-u", "oneadmin", "--", "-S", "none", "-N", "-L", &forward]);
        let ssh = ssh.stdin(Stdio::null()).spawn().unwrap();
        let forwarded = ForwardedLibvirt { ssh, socket, _dir: dir };
        self.wait("its libvirtd to be reached", SOON, |_| forwarded.socket.exists());
        forwarded
    }

    /// Runs a command as root.
    pub fn root(self, command: &str) -> Said {
        self.ssh("root", command, b"")
    }

    /// Runs a command as OpenNebula's user.
    pub fn oneadmin(self, command: &str) -> Said {
        self.ssh("oneadmin", command, b"")
    }

    /// Runs a command as OpenNebula's user, with the agent of the front-end.
    pub fn oneadmin_forwarding(self, command: &str) -> Said {
        let (child, writer) = self.spawn("oneadmin", true, command, b"");
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.into()
    }

    /// Writes a file as root.
    pub fn write(self, path: &str, text: &str) {
        self.ssh("root", &format!("mkdir -p \"$(dirname {path})\" && cat >{path}"), text.as_bytes()).ok();
    }

    /// Writes a file of bytes as root.
    pub fn write_bytes(self, path: &str, bytes: &[u8]) {
        self.ssh("root", &format!("cat >{path}"), bytes).ok();
    }

    /// Copies the driver to the host, as `onehost sync` does, and the command `kvm-sriov`.
    pub fn install(self, remotes: &Remotes) {
        self.install_at(remotes, REMOTES);
    }

    /// As [`install`](Self::install), with the remotes in another directory.
    pub fn install_at(self, remotes: &Remotes, at: &str) {
        let pack = |dir: &std::path::Path, name: &str| {
            Command::new("tar").args(["-c", "-C"]).arg(dir).arg(name).output().unwrap().stdout
        };
        let tree = pack(remotes.path(), ".");
        let unpack =
            format!("mkdir -p {at} && rm -rf {at}/* && tar -x --no-same-owner -C {at} && chown -R oneadmin: {at}");
        self.ssh("root", &unpack, &tree).ok();
        let command = pack(&target().join("release"), "kvm-sriov");
        self.ssh("root", "tar -x --no-same-owner -C /usr/local/bin", &command).ok();
    }

    /// Writes the maps of both adapters from sysfs, and kvmrc.
    pub fn set_up(self) {
        self.root(
            "mkdir -p /etc/kvm-sriov/vf_maps; for pf in pf0 pf1; do \
             for vf in /sys/class/net/$pf/device/virtfn*; do basename $(readlink -f $vf); done | \
             sed 's|^0000:\\(..\\):\\(..\\)\\.\\(.\\)$|0x\\1 0x\\2 0x0\\3|' | sort >/etc/kvm-sriov/vf_maps/$pf; done",
        )
        .ok();
        self.write(KVMRC, BASE_KVMRC);
    }

    /// Runs an action as OpenNebula's `one_vmm_exec` does over its ssh stream.
    pub fn action(self, action: &str, args: &[&str], vm: &Vm, stdin: &str) -> Said {
        self.ssh("oneadmin", "bash -s", self.script(action, args, vm, stdin).as_bytes())
    }

    /// Starts an action.
    pub fn begin(self, action: &str, args: &[&str], vm: &Vm, stdin: &str) -> Running {
        self.begin_with(false, action, args, vm, stdin)
    }

    /// Starts an action with the agent of the front-end.
    pub fn begin_forwarding(self, action: &str, args: &[&str], vm: &Vm, stdin: &str) -> Running {
        self.begin_with(true, action, args, vm, stdin)
    }

    fn begin_with(self, forward: bool, action: &str, args: &[&str], vm: &Vm, stdin: &str) -> Running {
        let script = self.script(action, args, vm, stdin);
        let (ssh, writer) = self.spawn("oneadmin", forward, "bash -s", script.as_bytes());
        let command = format!("{REMOTES}/vmm/kvm-sriov/{action} .*{} {}", vm.id, self.name());
        Running { host: self, command, ssh, writer }
    }

    fn script(self, action: &str, args: &[&str], vm: &Vm, stdin: &str) -> String {
        let then = "code=$?; echo \"ExitCode: $code\" 1>&2; exit $code";
        Caller::new(Version::V7, REMOTES).vm(vm.id).host(&self.name()).lines(action, args, stdin, then)
    }

    /// Deploys a VM.
    pub fn deploy(self, vm: &Vm) -> Said {
        self.begin_deploy(vm).finish()
    }

    /// Starts to deploy a VM.
    pub fn begin_deploy(self, vm: &Vm) -> Running {
        self.begin("deploy", &[&vm.deployment_file(), &self.name()], vm, &vm.deployment())
    }

    /// Cancels a VM.
    pub fn cancel(self, vm: &Vm) -> Said {
        self.begin_cancel(vm).finish()
    }

    /// Starts to cancel a VM.
    pub fn begin_cancel(self, vm: &Vm) -> Running {
        self.begin("cancel", &[&vm.uuid(), &self.name()], vm, "")
    }

    /// Saves a VM.
    pub fn save(self, vm: &Vm) -> Said {
        self.begin_save(vm).finish()
    }

    /// Starts to save a VM.
    pub fn begin_save(self, vm: &Vm) -> Running {
        let stdin = vm.action_data(&self.name()).xml();
        self.begin("save", &[&vm.uuid(), &vm.checkpoint(), &self.name()], vm, &stdin)
    }

    /// Restores a VM.
    pub fn restore(self, vm: &Vm) -> Said {
        self.begin_restore(vm).finish()
    }

    /// Starts to restore a VM.
    pub fn begin_restore(self, vm: &Vm) -> Running {
        let stdin = vm.action_data(&self.name()).xml();
        self.begin("restore", &[&vm.checkpoint(), &self.name(), &vm.uuid()], vm, &stdin)
    }

    /// Attaches the NIC with this number, which `vm` already lists.
    pub fn attach_nic(self, vm: &Vm, nic: usize) -> Said {
        self.begin_attach(vm, nic).finish()
    }

    /// Starts to attach the NIC with this number, which `vm` already lists.
    pub fn begin_attach(self, vm: &Vm, nic: usize) -> Running {
        let stdin = vm.action_data(&self.name()).attach(nic).xml();
        let target = format!("{}-{nic}", vm.name());
        self.begin("attach_nic", &[&vm.uuid(), &vm.mac(nic), vm.bridge(nic), "virtio", "bridge", &target], vm, &stdin)
    }

    /// Detaches the NIC with this number, which `vm` still lists.
    pub fn detach_nic(self, vm: &Vm, nic: usize) -> Said {
        self.begin_detach(vm, nic).finish()
    }

    /// Detaches a NIC as OpenNebula before 5.0 does, which only gives its MAC.
    pub fn detach_by_mac(self, vm: &Vm, nic: usize) -> Said {
        self.action("detach_nic", &[&vm.uuid(), &vm.mac(nic)], vm, "")
    }

    /// Starts to detach the NIC with this number, which `vm` still lists.
    pub fn begin_detach(self, vm: &Vm, nic: usize) -> Running {
        let stdin = vm.action_data(&self.name()).attach(nic).xml();
        self.begin("detach_nic", &[&vm.uuid(), &vm.mac(nic)], vm, &stdin)
    }

    /// Takes a snapshot of a VM, with this number in OpenNebula.
    pub fn snapshot_create(self, vm: &Vm, number: u32) -> Said {
        let stdin = vm.action_data(&self.name()).xml();
        self.action("snapshot_create", &[&vm.uuid(), &number.to_string()], vm, &stdin)
    }

    /// Brings a VM back to a snapshot.
    pub fn snapshot_revert(self, vm: &Vm, snapshot: &str) -> Said {
        let stdin = vm.action_data(&self.name()).xml();
        self.action("snapshot_revert", &[&vm.uuid(), snapshot], vm, &stdin)
    }

    /// Deletes a snapshot of a VM.
    pub fn snapshot_delete(self, vm: &Vm, snapshot: &str) -> Said {
        let stdin = vm.action_data(&self.name()).xml();
        self.action("snapshot_delete", &[&vm.uuid(), snapshot], vm, &stdin)
    }

    /// Migrates a running VM to another host, to the datastore of the same number there.
    pub fn migrate(self, vm: &Vm, to: Self) -> Said {
        self.begin_migration(vm, to).finish()
    }

    /// Starts to migrate a running VM to another host.
    pub fn begin_migration(self, vm: &Vm, to: Self) -> Running {
        let data = vm.action_data(&self.name()).to(&to.name(), SHARED);
        self.begin_migration_with(vm, to, &data)
    }

    /// Starts to migrate a running VM to another host, as `data` says.
    pub fn begin_migration_with(self, vm: &Vm, to: Self, data: &ActionData<'_>) -> Running {
        self.begin_forwarding("migrate", &[&vm.uuid(), &to.name(), &self.name()], vm, &data.xml())
    }

    /// The live XML of a VM. Empty when the domain does not exist.
    pub fn live_xml(self, vm: &Vm) -> String {
        self.oneadmin(&format!("virsh -c qemu:///system dumpxml {} 2>/dev/null || true", vm.name()))
            .ok()
            .trim()
            .to_owned()
    }

    /// libvirt's state of a VM, such as `running` or `paused`. Empty when the domain does not exist.
    pub fn state(self, vm: &Vm) -> String {
        self.oneadmin(&format!("virsh -c qemu:///system domstate {} 2>/dev/null || true", vm.name()))
            .ok()
            .trim()
            .to_owned()
    }

    /// The console of a VM's guest on this host.
    pub fn console(self, vm: &Vm) -> Console {
        let text = self.root(&format!("grep -a '^GUEST' {} 2>/dev/null | tr -d '\\r' || true", vm.console())).ok();
        // The last line may be incomplete.
        Console(text.rsplit_once('\n').map(|(lines, _)| lines).unwrap_or_default().to_owned())
    }

    /// The NICs that the guest of a VM showed on its console after their last change, by PCI address.
    pub fn guest_nics(self, vm: &Vm) -> Vec<GuestNic> {
        self.console(vm).nics()
    }

    /// Waits for a new sign of life of a VM's guest, and returns it.
    #[track_caller]
    pub fn wait_tick(self, vm: &Vm) -> Tick {
        let before = self.console(vm).ticks().len();
        let mut tick = None;
        self.wait(&format!("the guest of {} to tick", vm.name()), SOON, |host| {
            tick = host.console(vm).ticks().into_iter().nth(before);
            tick.is_some()
        });
        tick.unwrap()
    }

    /// Waits until a peer answers a new ping of a VM's guest.
    #[track_caller]
    pub fn wait_ping(self, vm: &Vm, peer: &str) {
        let before = self.console(vm).pings(peer).len();
        self.wait(&format!("{peer} to answer the guest of {}", vm.name()), SOON, |host| {
            host.console(vm).pings(peer).iter().skip(before).any(|ping| ping.ok)
        });
    }

    /// Waits until the guest of a VM has these IPv4 addresses on its VFs, by position.
    #[track_caller]
    pub fn wait_addresses(self, vm: &Vm, addresses: &[String]) {
        self.wait(&format!("the VFs of {} to have {addresses:?}", vm.name()), SOON, |host| {
            host.console(vm).vfs().into_iter().map(|(_, ip)| ip).eq(addresses.iter().cloned())
        });
    }

    /// Stops the QEMU process of a VM at any point.
    pub fn freeze(self, vm: &Vm) {
        self.root(&format!("kill -STOP {}", qemu_of(vm))).ok();
    }

    /// Continues a stopped QEMU.
    pub fn thaw(self, vm: &Vm) {
        self.root(&format!("kill -CONT {}", qemu_of(vm))).ok();
    }

    /// Kills the QEMU of a VM, as a crash does.
    pub fn kill_qemu(self, vm: &Vm) {
        self.root(&format!("kill -KILL {}", qemu_of(vm))).ok();
    }

    /// Kills libvirtd. Domains run on.
    pub fn kill_libvirtd(self) {
        self.root(
            "kill -KILL $(cat /run/libvirtd.pid); while kill -0 $(cat /run/libvirtd.pid); do sleep 0.1; done 2>&-",
        )
        .ok();
    }

    /// Starts libvirtd after it was killed, and waits until it answers.
    pub fn start_libvirtd(self) {
        self.root("/usr/sbin/libvirtd -d").ok();
        self.wait("libvirtd to answer", SOON, |host| host.root("virsh -q uri 2>&1").code == 0);
    }

    /// Restarts libvirtd.
    pub fn restart_libvirtd(self) {
        self.kill_libvirtd();
        self.start_libvirtd();
    }

    /// The evidence for a failed test: the host's console, its domains and their CPUs, the consoles of guests, the
    /// journal and QEMU's logs.
    pub fn evidence(self) -> String {
        let own = self.log();
        let last = own.lines().count().saturating_sub(30);
        let own: Vec<&str> = own.lines().skip(last).collect();
        let said = self.root(
            "virsh -q list --all; for name in $(virsh -q list --name); do echo \"==> $name <==\"; \
             timeout 10 virsh dumpxml $name | grep -E '<(hostdev|interface|alias|sriov)'; \
             timeout 10 virsh qemu-monitor-command $name --hmp 'info registers -a' | grep -aoE '(CPU#|[ER]IP=|[ER]FL=|[ER]SP=|CR3=|HLT=)[0-9a-f]*'; done; \
             for console in /tmp/*.console; do echo \"==> $console <==\"; grep -av '^GUEST PING' $console | tail -n 40; done; \
             echo '==> journal <=='; grep -v ' sshd[a-z-]*\\[' /var/log/syslog | tail -n 40; \
             tail -v -n 20 /var/log/libvirt/qemu/*.log 2>/dev/null",
        );
        format!("==> {} <==\n{}\n{}{}", self.name(), own.join("\n"), said.out, said.err)
    }

    /// Whether the emulated processor mixed up the host and a guest since the host's last start. That is a failure of
    /// the rig: no program of the host can cause it. Sometimes a guest gets the host's registers, or loses its
    /// interrupts. Then the guest panics, or one of its CPUs hangs for ever; or the host's kernel loses count of its
    /// interrupts, or panics.
    pub fn has_mixed_up(self) -> bool {
        let own = self.log();
        let guests = self.root("grep -al 'Kernel panic - not syncing' /tmp/*.console");
        // A stopped QEMU does not answer, and the CPUs of a paused guest do not move.
        let looks = self.root(&format!(
            "for name in $(virsh -q list --name); do echo \"DOMAIN $name\"; for look in $(seq {LOOKS}); do echo LOOK; \
             timeout 10 virsh qemu-monitor-command $name --hmp 'info registers -a' || break; \
             virsh -q domstate $name | grep -qx running || break; sleep 1; done; done",
        ));
        let is_mixed_up = |domain: &str| is_mixed_up(&domain.split("LOOK\n").skip(1).collect::<Vec<_>>());
        own.contains("Kernel panic - not syncing")
            || own.contains("BUG: scheduling while atomic")
            || guests.code == 0
            || looks.out.split("DOMAIN ").any(is_mixed_up)
    }

    /// The host's console since its last start.
    fn log(self) -> String {
        let path = Command::new(project().join(self.script)).args(["logs", &self.number.to_string()]).output().unwrap();
        let path = String::from_utf8(path.stdout).unwrap();
        fs::read(path.trim_end()).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Removes everything from the datastores, including those that both hosts share.
    pub fn empty_datastores(self) {
        self.root("rm -rf /var/lib/one/datastores/*/*").ok();
    }

    /// Ends every domain and removes everything else that tests left: claims, maps, consoles, and the definitions that
    /// libvirt writes when a domain returns to a snapshot.
    pub fn clean(self) {
        self.root(
            "for d in $(virsh -q list --name); do virsh -q destroy $d; done; \
             for d in $(virsh -q list --all --name); do virsh -q undefine $d --snapshots-metadata; done; \
             ip link set lan up; \
             rm -rf /tmp/*.console /tmp/vf_interfaces /etc/kvm-sriov /etc/libvirt/qemu/one-*.xml",
        )
        .ok();
    }

    /// The names `<root>/<index>` of the claim files, in order.
    pub fn claims(self) -> Vec<String> {
        let listed = self
            .oneadmin("cd /tmp/vf_interfaces 2>/dev/null && find . -path ./.locks -prune -o -type f -print || true");
        let mut claims: Vec<String> =
            listed.ok().lines().map(|line| line.trim_start_matches("./").to_owned()).collect();
        claims.sort();
        claims
    }

    /// Waits until `done` returns `true`, at most `limit`.
    #[track_caller]
    pub fn wait(self, what: &str, limit: Duration, done: impl FnMut(Self) -> bool) {
        assert!(self.wait_or(limit, done), "waited {} s for {what}", limit.as_secs());
    }

    /// Waits until `done` returns `true`, at most `limit`. Returns whether it did.
    pub fn wait_or(self, limit: Duration, mut done: impl FnMut(Self) -> bool) -> bool {
        let begin = Instant::now();
        while !done(self) {
            if begin.elapsed() >= limit {
                return false;
            }
            thread::sleep(Duration::from_millis(500));
        }
        true
    }
}

/// A host's libvirtd that this machine reaches until this value is dropped.
pub struct ForwardedLibvirt {
    ssh: Child,
    socket: PathBuf,
    _dir: TempDir,
}

impl ForwardedLibvirt {
    /// Its address for libvirt.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket.display())
    }
}

impl Drop for ForwardedLibvirt {
    fn drop(&mut self) {
        // The process may have ended.
        drop(self.ssh.kill().and_then(|()| self.ssh.wait()));
    }
}

/// Shell words for the process id of a VM's QEMU. The brackets keep the pattern from matching that shell.
fn qemu_of(vm: &Vm) -> String {
    format!("$(pgrep -f '[g]uest={},')", vm.name())
}

/// A running action on a host.
pub struct Running {
    host: RigHost,
    /// The beginning of its command line, for pgrep(1).
    command: String,
    ssh: Child,
    writer: JoinHandle<()>,
}

impl Running {
    /// Waits for its process id on the host. `None` when it ended before.
    pub fn pid(&mut self) -> Option<u32> {
        let begin = Instant::now();
        loop {
            let over = self.is_over();
            let found = self.host.root(&format!("pgrep -f '^{}$'", self.command)).out;
            if let Some(pid) = found.lines().next() {
                return Some(pid.parse().unwrap());
            }
            if over {
                return None;
            }
            assert!(begin.elapsed() < SOON, "{} did not begin", self.command);
        }
    }

    /// Sends its process a signal, such as `KILL`. Returns `false` when it ended before.
    pub fn signal(&mut self, signal: &str) -> bool {
        let Some(pid) = self.pid() else { return false };
        self.host.root(&format!("kill -{signal} {pid}")).code == 0
    }

    /// Kills the front-end's ssh. The action may continue.
    pub fn cut_ssh(&mut self) {
        // The process may have ended.
        drop(self.ssh.kill());
    }

    /// Whether it has ended, as OpenNebula sees it.
    pub fn is_over(&mut self) -> bool {
        self.ssh.try_wait().unwrap().is_some()
    }

    /// Waits until it ends.
    pub fn finish(self) -> Said {
        let output = self.ssh.wait_with_output().unwrap();
        self.writer.join().unwrap();
        output.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_guest_are_understood() {
        let console = Console(
            "GUEST READY 8.5\n\
             GUEST NET 8.7: eth1=aa:00:0a:00:2a:01@0000:02:00.0,virtio_net eth0=02:00:0a:00:2a:00@0000:01:00.0,virtio_net\n\
             GUEST TICK 8.7 8c0ffee0-64d6-4c0c-9b0e-2f7a4c1d9e10\nGUEST PING 10.0.44.0 lost 9.0\nGUEST PING 10.0.44.0 ok 11.5\n\
             GUEST VFS 11.6: eth3=10.0.42.1 eth2=10.0.42.2\n\
             GUEST PING 10.0.44.01 ok 12.0\nGUEST TICK 13.7 8c0ffee0-64d6-4c0c-9b0e-2f7a4c1d9e10\nGUEST POWEROFF\nGUEST TICK 18.2 8c0f"
                .into(),
        );
        let nics: Vec<String> =
            console.nics().into_iter().map(|nic| format!("{} {} {}", nic.name, nic.pci, nic.driver)).collect();
        assert_eq!(nics, ["eth0 0000:01:00.0 virtio_net", "eth1 0000:02:00.0 virtio_net"]);
        assert_eq!(
            console.ticks().last(),
            Some(&Tick { uptime: 13.7, boot: "8c0ffee0-64d6-4c0c-9b0e-2f7a4c1d9e10".into() })
        );
        let answers: Vec<bool> = console.pings("10.0.44.0").iter().map(|ping| ping.ok).collect();
        assert_eq!(answers, [false, true]);
        let vfs = [("eth3", "10.0.42.1"), ("eth2", "10.0.42.2")].map(|(nic, ip)| (nic.to_owned(), ip.to_owned()));
        assert_eq!(console.vfs(), vfs);
        assert!(console.heard_power_button());
    }
}
