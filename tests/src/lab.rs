//! A lab host: a machine with real VFs (of an emulated adapter), libvirtd and QEMU, reached by ssh.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::project;
use crate::remotes::{Remotes, target};
use crate::vm::Vm;

/// The driver's configuration on a host.
pub const KVMRC: &str = "/var/tmp/one/etc/vmm/kvm-sriov/kvmrc";

/// What a VM with VFs needs to be set in it.
pub const BASE_KVMRC: &str = "DUMMY_BRIDGE=dummy_br\nDUMMY_MAC_PREFIX=aa\n";

/// One lab host.
#[derive(Clone, Copy)]
pub struct LabHost {
    number: u8,
}

/// A NIC as a guest sees it.
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

/// What a program said.
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

    /// The line that OpenNebula (7.x) shows to a user: what is no log line.
    pub fn message(&self) -> String {
        let log = ["ERROR: ", "INFO: ", "WARN: ", "DEBUG: ", "ExitCode: "];
        self.err.lines().filter(|line| !log.iter().any(|prefix| line.starts_with(prefix))).collect()
    }
}

impl LabHost {
    /// Starts the host with this number, or takes the one that runs.
    pub fn start(number: u8) -> Self {
        let host = Self { number };
        host.lab(&["start"]);
        host
    }

    /// Turns the host off as a power failure does, and on again with its old disk.
    pub fn power_cycle(self) {
        self.lab(&["reboot"]);
    }

    fn lab(self, verb: &[&str]) {
        let status =
            Command::new(project().join("tests/lab/lab")).args(verb).arg(self.number.to_string()).status().unwrap();
        assert!(status.success(), "tests/lab/lab {verb:?} {} failed", self.number);
    }

    fn ssh(self, user: &str, command: &str, stdin: &[u8]) -> Said {
        let mut child = Command::new(project().join("tests/lab/lab"))
            .args(["ssh", &self.number.to_string(), "-u", user, "--", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let text = stdin.to_vec();
        let writer = thread::spawn(move || {
            // A program that does not read its input is no failure.
            drop(pipe.write_all(&text));
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.into()
    }

    /// Runs a command as root.
    pub fn root(self, command: &str) -> Said {
        self.ssh("root", command, b"")
    }

    /// Runs a command as OpenNebula's user.
    pub fn oneadmin(self, command: &str) -> Said {
        self.ssh("oneadmin", command, b"")
    }

    /// Writes a file as root.
    pub fn write(self, path: &str, text: &str) {
        self.ssh("root", &format!("mkdir -p \"$(dirname {path})\" && cat >{path}"), text.as_bytes()).ok();
    }

    /// Writes a file of bytes as root.
    pub fn write_bytes(self, path: &str, bytes: &[u8]) {
        self.ssh("root", &format!("cat >{path}"), bytes).ok();
    }

    /// Copies the driver there, as `onehost sync` does, and the command `kvm-sriov`.
    pub fn install(self, remotes: &Remotes) {
        let pack = |dir: &std::path::Path, name: &str| {
            Command::new("tar").args(["-c", "-C"]).arg(dir).arg(name).output().unwrap().stdout
        };
        let tree = pack(remotes.path(), ".");
        let unpack =
            "rm -rf /var/tmp/one/* && tar -x --no-same-owner -C /var/tmp/one && chown -R oneadmin: /var/tmp/one";
        self.ssh("root", unpack, &tree).ok();
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

    /// Calls an action as OpenNebula's `one_vmm_exec` does over its ssh stream.
    pub fn action(self, action: &str, args: &[&str], vm: &Vm, stdin: &str) -> Said {
        let args: String = args.iter().map(|arg| format!("'{arg}' ")).collect();
        let host = format!("host{}", self.number);
        let script = format!(
            "(cat << 'EOT' | /var/tmp/one/vmm/kvm-sriov/{action} {args}{} {host}); \
             code=$?; echo \"ExitCode: $code\" 1>&2; exit $code\n{stdin}\nEOT\n",
            vm.id
        );
        self.ssh("oneadmin", "bash -s", script.as_bytes())
    }

    /// Deploys a VM.
    pub fn deploy(self, vm: &Vm) -> Said {
        self.action("deploy", &[&vm.deployment_file(), &format!("host{}", self.number)], vm, &vm.deployment())
    }

    /// Cancels a VM.
    pub fn cancel(self, vm: &Vm) -> Said {
        self.action("cancel", &[&vm.uuid(), &format!("host{}", self.number)], vm, "")
    }

    /// The live XML of a VM; empty when it is not there.
    pub fn live_xml(self, vm: &Vm) -> String {
        self.oneadmin(&format!("virsh -c qemu:///system dumpxml {} 2>/dev/null || true", vm.name()))
            .ok()
            .trim()
            .to_owned()
    }

    /// The NICs that the guest of a VM showed on its console the last time they changed, by PCI address.
    pub fn guest_nics(self, vm: &Vm) -> Vec<GuestNic> {
        // The last line may be half written.
        let console = self.root(&format!("grep -a 'GUEST NET' {} || true", vm.console())).ok();
        let line = console.split_inclusive('\n').rfind(|line| line.ends_with('\n')).unwrap_or_default();
        let read = |word: &str| {
            let (name, rest) = word.split_once('=')?;
            let (mac, rest) = rest.split_once('@')?;
            let (pci, driver) = rest.split_once(',')?;
            let [name, mac, pci, driver] = [name, mac, pci, driver].map(str::to_owned);
            Some(GuestNic { name, mac, pci, driver })
        };
        let mut nics: Vec<GuestNic> = line.split_whitespace().filter_map(read).collect();
        nics.sort_by(|a, b| a.pci.cmp(&b.pci));
        nics
    }

    /// The claim files, as `<root>/<index>` in order.
    pub fn claims(self) -> Vec<String> {
        let listed = self
            .oneadmin("cd /tmp/vf_interfaces 2>/dev/null && find . -path ./.locks -prune -o -type f -print || true");
        let mut claims: Vec<String> =
            listed.ok().lines().map(|line| line.trim_start_matches("./").to_owned()).collect();
        claims.sort();
        claims
    }

    /// Waits until `true` comes of `done`, at most `limit`.
    #[track_caller]
    pub fn wait(self, what: &str, limit: Duration, mut done: impl FnMut(Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < limit, "waited {} s for {what}", limit.as_secs());
            thread::sleep(Duration::from_millis(500));
        }
    }
}
