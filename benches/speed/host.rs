//! The host of a run: a libvirtd with libvirt's test driver, the installed driver, VFs and VMs.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_sriov::libvirt::{DomainCalls, PowerCalls};
use kvm_sriov_tests::caller::Version;
use kvm_sriov_tests::remotes::target;
use kvm_sriov_tests::site::Site;
use kvm_sriov_tests::vm::Vm;
use kvm_sriov_tests::{CALL_LIMIT, hand_over};

use crate::cost::Program;

/// How many VFs the host has.
const VFS: u32 = 128;

/// The bridge of the dummies.
pub(crate) const BRIDGE: &str = "bench_br";

/// The VM that is started and ended while others run. It is the last number that fits into a MAC.
const ONE_MORE: u32 = 255;

/// Which of the installed drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Now,
    Before,
}

pub(crate) struct BenchHost {
    site: Site,
    has_before: bool,
    /// How many VMs run.
    vms: u32,
}

/// An action, and the programs that do it: virsh first.
pub(crate) struct Case<'a> {
    pub(crate) action: &'static str,
    pub(crate) programs: Vec<Program<'a>>,
}

/// Runs this program again with a network of its own, which has that bridge.
pub(crate) fn alone() {
    let make = format!("mount -t sysfs sysfs /sys && ip link add {BRIDGE} type bridge && exec \"$@\"");
    let mut again = Command::new("unshare");
    again
        .args(["--mount", "--net", "sh", "-c", &make, "sh"])
        .arg(env::current_exe().unwrap())
        .args(env::args_os().skip(1));
    assert!(again.status().unwrap().success(), "the bench failed; root is needed");
}

pub(crate) fn virsh(uri: &str, args: &[&str]) -> Command {
    let mut command = Command::new("virsh");
    command.args(["--connect", uri]).args(args);
    command
}

fn stock(uri: &str, action: &str, domain: &str, arg: &str) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/speed/stock.sh"));
    command.args([action, uri, domain, arg]);
    command
}

impl BenchHost {
    /// * `before` - remotes with another version of the driver
    pub(crate) fn new(before: Option<&Path>) -> Self {
        let site = Site::new(Version::V7);
        if let Some(remotes) = before {
            let copy = format!(
                "cp -rL {0}/vmm/kvm-sriov {1}/vmm/before && cp {0}/kvm-sriov {1}/before",
                remotes.display(),
                site.remotes().path().display()
            );
            assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
        }
        let devices = site.remotes().path().join("devices");
        let mut map = String::new();
        for n in 0..VFS {
            let device = devices.join(format!("0000:{:02x}:{:02x}.{}", 7 + n / 256, n / 8 % 32, n % 8));
            fs::create_dir_all(&device).unwrap();
            symlink("../0000:06:00.0", device.join("physfn")).unwrap();
            map += &format!("{:#04x} {:#04x} {:#04x}\n", 7 + n / 256, n / 8 % 32, n % 8);
        }
        fs::create_dir_all(devices.join("0000:06:00.0")).unwrap();
        // The run has mounts of its own: tests/alone.
        let mounted = Command::new("mount").arg("--bind").arg(&devices).arg("/sys/bus/pci/devices").status();
        assert!(mounted.unwrap().success(), "root is needed");
        for driver in ["kvm-sriov", "before"] {
            let maps = site.remotes().path().join("vmm").join(driver).join("vf_maps");
            if maps.parent().unwrap().is_dir() {
                fs::create_dir_all(&maps).unwrap();
                fs::write(maps.join("ib0"), &map).unwrap();
            }
        }
        let host = Self { site, has_before: before.is_some(), vms: 0 };
        host.configure(&host.uri());
        // The programs work as the owner of their files, who may not be root.
        hand_over(host.site.remotes().path());
        host
    }

    pub(crate) fn drivers(&self) -> Vec<Driver> {
        if self.has_before { vec![Driver::Before, Driver::Now] } else { vec![Driver::Now] }
    }

    pub(crate) fn dir(&self, driver: Driver) -> PathBuf {
        let name = if driver == Driver::Now { "kvm-sriov" } else { "before" };
        self.site.remotes().path().join("vmm").join(name)
    }

    pub(crate) fn uri(&self) -> String {
        self.site.daemon().uri()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.uri().rsplit_once('=').unwrap().1.into()
    }

    /// Has the driver use another libvirtd, or the same one through another socket.
    pub(crate) fn configure(&self, uri: &str) {
        self.site.configure(&format!("LIBVIRT_URI={uri}\nDUMMY_BRIDGE={BRIDGE}"));
    }

    /// A program in C that opens a connection and makes one call.
    pub(crate) fn smallest_client(&self) -> PathBuf {
        let dir = self.site.remotes().path();
        let text = "#include <libvirt/libvirt.h>\nint main(int count, char **args) {\n  virConnectPtr c = virConnectOpen(args[1]);\n  \
                    int n = c ? virConnectNumOfDomains(c) : -1;\n  if (c) virConnectClose(c);\n  return n < 0;\n}\n";
        fs::write(dir.join("smallest.c"), text).unwrap();
        let made = Command::new("cc")
            .arg("-O2")
            .arg(dir.join("smallest.c"))
            .arg("-o")
            .arg(dir.join("smallest"))
            .arg("-lvirt")
            .status();
        assert!(made.unwrap().success());
        dir.join("smallest")
    }

    /// An action of an installed driver.
    pub(crate) fn action(&self, driver: Driver, action: &str, args: &[&str], stdin: &str) -> Program<'static> {
        let program = self.dir(driver).join(action);
        let args: Vec<String> = args.iter().copied().chain(["42", "node1"]).map(str::to_owned).collect();
        let command = move |_: &str| {
            let mut command = Command::new(&program);
            command.args(&args);
            command
        };
        Program::new(format!("{action}, {driver}"), command).stdin(stdin)
    }

    fn vm(&self, id: u32, vfs: usize) -> (Vm, String, String) {
        let vm = (0..vfs).fold(Vm::new(id), |vm, _| vm.nic("sriov_ib0"));
        let xml = self.site.fit(&vm.deployment());
        let file = self.site.datastores().join(format!("deployment.{id}")).display().to_string();
        (vm, xml, file)
    }

    /// Starts VMs until this many run. Those for which there is a VF get one; one VF stays free.
    pub(crate) fn grow(&mut self, size: u32) {
        // libvirt's test driver begins with one.
        self.end("test");
        while self.vms < size {
            let id = if self.vms < ONE_MORE { self.vms } else { self.vms + 1 };
            let (_, xml, file) = self.vm(id, usize::from(self.vms + 1 < VFS));
            assert!(self.action(Driver::Now, "deploy", &[&file], &xml).run("").is_some());
            self.vms += 1;
        }
    }

    /// What looks at all VMs of a host, and what starts and ends one more VM with a VF.
    pub(crate) fn whole(&self, driver: Driver) -> Vec<Program<'_>> {
        let command = if driver == Driver::Now {
            target().join("release/kvm-sriov")
        } else {
            self.site.remotes().path().join("before")
        };
        let dir = self.dir(driver);
        let cli = |words: &'static [&'static str]| {
            let (command, dir) = (command.clone(), dir.clone());
            Program::new(format!("{}, {driver}", words[0]), move |_: &str| {
                let mut program = Command::new(&command);
                program.arg("--driver").arg(&dir).args(words);
                program
            })
        };
        let (vm, xml, file) = self.vm(ONE_MORE, 1);
        let deploy = move || self.action(driver, "deploy", &[&file], &xml);
        let cancel = move || self.action(driver, "cancel", &[&vm.name()], "");
        let (first, last) = (deploy.clone(), cancel.clone());
        let done = |program: Program<'_>| assert!(program.run("").is_some());
        vec![
            cli(&["reconcile"]),
            cli(&["list"]),
            self.action(driver, "sriov_probe", &[], ""),
            deploy().after(move || done(last())),
            cancel().before(move || done(first())),
        ]
    }

    /// The VM with this number runs.
    fn ensure(&self, xml: &str, name: &str) {
        let libvirt = self.site.daemon().libvirt();
        if libvirt.find(&name.parse().unwrap()).unwrap().is_none() {
            libvirt.create(xml, CALL_LIMIT).unwrap();
        }
    }

    fn end(&self, name: &str) {
        let libvirt = self.site.daemon().libvirt();
        if let Some(domain) = libvirt.find(&name.parse().unwrap()).unwrap() {
            libvirt.destroy(&domain).unwrap();
        }
    }

    /// Every action of a VM without VFs.
    pub(crate) fn cases(&self) -> Vec<Case<'_>> {
        let (vm, xml, file) = self.vm(4242, 0);
        let name = vm.name();
        let state = self.site.datastores().join("checkpoint").display().to_string();
        fs::write(self.site.datastores().join("virsh.xml"), &xml).unwrap();
        let virsh_file = self.site.datastores().join("virsh.xml").display().to_string();
        let data = vm.action_data("node1").xml();
        let mut cases = Vec::new();
        let mut add = |action: &'static str,
                       words: Vec<String>,
                       args: Vec<String>,
                       arg: &str,
                       stdin: &str,
                       is_up: bool,
                       snapshot: bool| {
            let around = |program: Program<'static>| {
                let (xml, name) = (xml.clone(), name.clone());
                program.before(move || {
                    if !is_up || snapshot {
                        self.end(&name);
                    }
                    if is_up {
                        self.ensure(&xml, &name);
                    }
                    if snapshot && action != "snapshot_create" {
                        assert!(
                            virsh(&self.uri(), &["snapshot-create-as", &name, "--name", "snap-0"])
                                .output()
                                .unwrap()
                                .status
                                .success()
                        );
                    }
                })
            };
            let (stock_name, stock_arg) = (name.clone(), arg.to_owned());
            let one = move |uri: &str| virsh(uri, &words.iter().map(String::as_str).collect::<Vec<_>>());
            let all = move |uri: &str| stock(uri, action, &stock_name, &stock_arg);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let mut programs =
                vec![around(Program::new("virsh", one)), around(Program::new("stock", all).stdin(stdin))];
            for driver in self.drivers() {
                let ours = self.action(driver, action, &args, stdin);
                programs.push(around(ours.called(driver.to_string())));
            }
            cases.push(Case { action, programs });
        };
        let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        add("deploy", text(&["create", &virsh_file]), text(&[&file]), "", &xml, false, false);
        add("cancel", text(&["destroy", &name]), text(&[&name]), "", &data, true, false);
        add("save", text(&["save", &name, &state]), text(&[&name, &state]), &state, &data, true, false);
        add("shutdown", text(&["shutdown", &name]), text(&[&name]), "", &data, true, false);
        add("reboot", text(&["reboot", &name]), text(&[&name]), "", &data, true, false);
        add("reset", text(&["reset", &name]), text(&[&name]), "", &data, true, false);
        add(
            "snapshot_create",
            text(&["snapshot-create-as", &name, "--name", "snap-0"]),
            text(&[&name, "0"]),
            "snap-0",
            &data,
            true,
            true,
        );
        add(
            "snapshot_revert",
            text(&["snapshot-revert", &name, "snap-0"]),
            text(&[&name, "snap-0"]),
            "snap-0",
            &data,
            true,
            true,
        );
        add(
            "snapshot_delete",
            text(&["snapshot-delete", &name, "snap-0"]),
            text(&[&name, "snap-0"]),
            "snap-0",
            &data,
            true,
            true,
        );
        cases
    }
}
