//! The packages on a host: installed, upgraded, used, removed.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use kvm_sriov_tests::caller::{Version, encoded};
use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::target;
use kvm_sriov_tests::rig_host::{BASE_KVMRC, RigHost, SOON};
use kvm_sriov_tests::vm::{SHARED, Vm};

use super::moves::second_host;
use super::suspend::shows;
use super::{GUEST_BOOT, cancel, deploy, interfaces, plugged};

const REMOTES: &str = "/var/lib/one/remotes";

/// The Debian packages of the front-end and of a host, by name. They are made once.
fn packages() -> &'static BTreeMap<String, Vec<u8>> {
    static MADE: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new(project().join("dist/package"))
            .arg(dir.path())
            .env("CARGO_TARGET_DIR", target())
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .status();
        assert!(made.unwrap().success());
        let paths = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let debian = paths.filter_map(|path| {
            let (package, _) = path.file_name()?.to_str()?.strip_suffix(".deb")?.split_once('_')?;
            Some((package.to_owned(), fs::read(&path).unwrap()))
        });
        debian.collect()
    });
    &MADE
}

/// Removes what other scenarios installed, and installs the packages of the front-end and of a host: this host is both.
/// Returns the output of the package manager.
fn install_packages(host: RigHost) -> String {
    host.root("mv /var/tmp/one /var/tmp/one.kept; mv /usr/local/bin/kvm-sriov /tmp/kvm-sriov.kept").ok();
    for (package, bytes) in packages() {
        host.write_bytes(&format!("/tmp/{package}.deb"), bytes);
    }
    host.root("dpkg -i /tmp/kvm-sriov.deb /tmp/kvm-sriov-node.deb 2>&1").ok()
}

/// Configures the front-end and copies its files to the host, as OpenNebula does.
fn synchronise(host: RigHost) {
    host.write(&format!("{REMOTES}/etc/vmm/kvm-sriov/kvmrc"), BASE_KVMRC);
    host.root(&format!("rm -rf /var/tmp/one && cp -rL {REMOTES} /var/tmp/one && chown -R oneadmin: /var/tmp/one")).ok();
    assert!(host.root("kvm-sriov check").ok().contains("this host is ready"));
}

/// Removes everything of the packages, and installs again what other scenarios need.
fn put_back(host: RigHost) {
    host.root(&format!(
        "rm -rf {REMOTES} /tmp/later* /tmp/*.deb /var/tmp/one; mv /var/tmp/one.kept /var/tmp/one; \
         mv /tmp/kvm-sriov.kept /usr/local/bin/kvm-sriov"
    ))
    .ok();
}

pub(super) fn packages_are_installed_upgraded_and_removed(host: RigHost) {
    let installed = install_packages(host);
    assert!(installed.contains("onehost sync -f") && installed.contains("kvm-sriov check"), "{installed}");
    let owner = format!("stat -c %U {REMOTES}/vmm/kvm-sriov/deploy {REMOTES}/etc/vmm/kvm-sriov/kvmrc");
    assert_eq!(host.root(&owner).ok(), "oneadmin\noneadmin\n");

    // Configure, synchronise and use it.
    synchronise(host);
    // OpenNebula calls the network driver before it starts a VM.
    let networks = "<VM><TEMPLATE><NIC><BRIDGE>sriov_pf0</BRIDGE><MAC>02:00:0a:00:47:00</MAC><VN_MAD>sriov</VN_MAD></NIC></TEMPLATE></VM>";
    let said = host.oneadmin(&format!("echo '{networks}' | base64 -w0 | /var/tmp/one/vnm/sriov/pre 71 host1"));
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""));
    let vm = Vm::new(71).nic("sriov_pf0");
    assert_eq!(plugged(&deploy(host, &vm)).len(), 1);
    cancel(host, &vm);
    host.oneadmin("/var/tmp/one/vnm/sriov/clean host1 </dev/null").ok();

    // A later version has another sample. The operator's file is kept.
    host.root(
        "set -e; rm -rf /tmp/later; dpkg-deb -R /tmp/kvm-sriov.deb /tmp/later; cd /tmp/later; \
         sed -i 's/^Version: .*/&+later/' DEBIAN/control; echo '# later' >>var/lib/one/remotes/etc/vmm/kvm-sriov/kvmrc; \
         dpkg-deb -Zgzip -b . /tmp/later.deb; dpkg --force-confdef --force-confold -i /tmp/later.deb </dev/null",
    )
    .ok();
    assert_eq!(host.root(&format!("cat {REMOTES}/etc/vmm/kvm-sriov/kvmrc")).ok(), BASE_KVMRC);
    host.root(&format!("echo 0x01 0x10 0x00 >{REMOTES}/vmm/kvm-sriov/vf_maps/mine")).ok();
    host.root("dpkg -r kvm-sriov kvm-sriov-node 2>&1").ok();
    // dpkg has put the new sample beside the operator's file.
    let left = host.root(&format!("cd {REMOTES} && find . -type f | sort")).ok();
    let kvmrc = "./etc/vmm/kvm-sriov/kvmrc";
    assert_eq!(left, format!("{kvmrc}\n{kvmrc}.dpkg-dist\n./vmm/kvm-sriov/vf_maps/mine\n"), "an operator's files stay");
    host.root("dpkg -P kvm-sriov kvm-sriov-node 2>&1").ok();
    let left = host.root(&format!("cd {REMOTES} && find . -type f")).ok();
    assert_eq!(left, "./vmm/kvm-sriov/vf_maps/mine\n");
    put_back(host);
}

/// Calls actions on a VM as OpenNebula 7.x does.
struct Called<'a> {
    host: RigHost,
    vm: &'a Vm,
}

impl Called<'_> {
    /// Runs an action, which must succeed. Returns its standard output.
    #[track_caller]
    fn prints(&self, action: &str, args: &[&str], stdin: &str) -> String {
        self.host.called_by(Version::V7, "/var/tmp/one", self.vm, action, args, stdin).ok()
    }

    /// Runs an action on the VM, which must print nothing.
    #[track_caller]
    fn done(&self, action: &str, args: &[&str], stdin: &str) {
        assert_eq!(self.prints(action, &[&[self.vm.uuid().as_str()], args].concat(), stdin), "", "{action}");
    }
}

pub(super) fn a_fresh_host_is_called_for_a_whole_life(host1: RigHost) {
    let host2 = second_host();
    for host in [host1, host2] {
        install_packages(host);
        synchronise(host);
    }
    let one = Vm::new(81).with_guest().memory(160).disk_of("qcow2").nic("sriov_pf0");
    let vm = one.clone().nic("sriov_pf1");
    let (uuid, disk) = (vm.uuid(), format!("{}/disk.2", vm.dir()));
    host1
        .oneadmin(&format!(
            "mkdir -p {0} && cd {0} && qemu-img create -q -f qcow2 disk.0 8M && qemu-img create -q -f qcow2 disk.2 8M",
            vm.dir()
        ))
        .ok();
    let deployment = one.deployment().replacen("<vcpu><![CDATA[1]]></vcpu>", "<vcpu current='1'>2</vcpu>", 1);
    let deploy = |host: RigHost| {
        let called = Called { host, vm: &one };
        let said = called.prints("deploy", &[&one.deployment_file(), &host.name()], &deployment);
        assert_eq!(said, format!("{uuid}\n"));
    };
    deploy(host1);
    shows(host1, &one, 2, GUEST_BOOT);

    let called = Called { host: host1, vm: &vm };
    let attach = vm.action_data(&host1.name()).attach(1).xml();
    let target = format!("{}-1", vm.name());
    called.done("attach_nic", &[&vm.mac(1), "sriov_pf1", "virtio", "sriov", &target], &attach);
    let told = vm.action_data(&host1.name()).xml();
    let with = |template: &str| told.replacen("<VCPU><![CDATA[1]]></VCPU>", template, 1);
    let disks = with(
        "<VCPU>1</VCPU><DISK><ATTACH>YES</ATTACH><DISK_ID>2</DISK_ID><TYPE>FILE</TYPE><DRIVER>qcow2</DRIVER>\
         <TARGET>vdb</TARGET></DISK>",
    );
    called.done("attach_disk", &[&disk, "vdb", "1", &encoded(&disks, 0)], &disks);
    shows(host1, &vm, 4, SOON);

    called.done("save", &[&vm.checkpoint(), &host1.name()], &told);
    assert_eq!(host1.claims(), Vec::<String>::new());
    assert_eq!(called.prints("restore", &[&vm.checkpoint(), &host1.name(), &uuid], &told), "");
    let moving = vm.action_data(&host1.name()).to(&host2.name(), SHARED).xml();
    called.done("migrate", &[&host2.name(), &host1.name()], &moving);
    is_clean(host1);

    let called = Called { host: host2, vm: &vm };
    called.done(
        "resize",
        &[],
        &with("<VCPU>2</VCPU><MEMORY>160</MEMORY><RESIZE><VCPU>1</VCPU><MEMORY>160</MEMORY></RESIZE>"),
    );
    assert_eq!(kvm_sriov::xml::Sizes::parse(&host2.live_xml(&vm)).unwrap().vcpus, 2);
    assert_eq!(called.prints("snapshot_create", &[&uuid, "0"], &told), "snap-0\n");
    called.done("snapshot_revert", &["snap-0"], &told);
    called.done("snapshot_delete", &["snap-0"], &told);
    host2.wait("both VFs to be there", SOON, |host2| plugged(&host2.live_xml(&vm)).len() == 2);
    host2.wait_tick(&vm);

    called.done("detach_disk", &[&disk, "vdb", "1"], &disks);
    called.done("detach_nic", &[&vm.mac(1)], &attach);
    let live = host2.live_xml(&vm);
    assert_eq!((plugged(&live).len(), interfaces(&live).len()), (1, 1), "{live}");
    assert_eq!(host2.claims(), ["pf0/0"]);
    let boots = host2.console(&vm).boots();
    called.done("reboot", &[&host2.name()], &told);
    host2.wait("the guest to boot again", GUEST_BOOT, |host| {
        let console = host.console(&vm);
        console.boots() > boots && console.nics().len() == 2
    });
    called.done("shutdown", &[&host2.name()], &told);
    assert!(host2.console(&vm).heard_power_button());
    is_clean(host2);
    deploy(host2);
    called.done("cancel", &[&host2.name()], &told);
    is_clean(host2);
    for host in [host1, host2] {
        host.root("dpkg -P kvm-sriov kvm-sriov-node 2>&1").ok();
        put_back(host);
    }
    host1.oneadmin(&format!("rm -r {}", vm.dir())).ok();
}

/// No domain, no claim, no dummy, and no file that only root or OpenNebula's user could remove.
#[track_caller]
fn is_clean(host: RigHost) {
    let left =
        host.root("virsh -q list --all --name | grep .; ls /sys/class/net/dummy_br/brif; pgrep -a qemu-kvm-one; true");
    assert_eq!(left.out, "", "{}", host.name());
    assert_eq!(host.claims(), Vec::<String>::new(), "{}", host.name());
}

pub(super) fn programs_start_on_debian_11(host: RigHost) {
    // Its C library and libvirt's are unpacked and not installed, which needs no root.
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree.tar");
    let made = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=extract", "--include=libvirt0,libgcc-s1", "bullseye"])
        .arg(&tree)
        .status();
    assert!(made.unwrap().success());
    host.write_bytes("/tmp/older.tar", &fs::read(&tree).unwrap());
    host.root(
        "set -e; mkdir /tmp/older; tar -x -C /tmp/older -f /tmp/older.tar; mkdir -p /tmp/older/proc /tmp/older/tmp /tmp/older/var/tmp; \
         mount --bind /proc /tmp/older/proc; cp -r /var/tmp/one /tmp/older/var/tmp; cp /usr/local/bin/kvm-sriov /tmp/older/usr/bin",
    )
    .ok();
    let kvmrc = "LIBVIRT_URI=test:///default\nVF_STATE_DIR=/tmp/state\n";
    host.write("/tmp/older/var/tmp/one/etc/vmm/kvm-sriov/kvmrc", kvmrc);
    let said = host.root(
        "cd /tmp/older/var/tmp/one; for program in vmm/kvm-sriov/* im/kvm-probes.d/vm/monitor/* vnm/sriov/* ../../../usr/bin/kvm-sriov; do \
         [ -f $program ] || continue; timeout 60 chroot /tmp/older /var/tmp/one/$program </dev/null >/dev/null 2>/tmp/said; \
         echo \"$program $?\"; grep GLIBC /tmp/said; done; true",
    );
    let codes: Vec<(&str, i32)> = said
        .out
        .lines()
        .map(|line| line.rsplit_once(' ').and_then(|(name, code)| Some((name, code.parse().ok()?))).expect(line))
        .collect();
    assert!(codes.len() > 30, "{codes:?}");
    assert!(codes.iter().all(|(_, code)| (0..=3).contains(code) || *code == 255), "{codes:?}");
    let call = |action: &str, id: &str| {
        host.root(&format!("chroot /tmp/older /var/tmp/one/vmm/kvm-sriov/{action} {id} node1 42 node1 </dev/null"))
    };
    assert_eq!(call("reboot", "test").code, 0);
    assert_eq!(call("cancel", "test").code, 0);
    assert_eq!(
        call("reboot", "one-42").message(),
        "reboot: there is no domain one-42 on this host; nothing was changed."
    );
    host.root("umount /tmp/older/proc; rm -rf /tmp/older*").ok();
}
