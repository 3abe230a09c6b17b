//! The packages on a host: installed, upgraded, used, removed.

use std::fs;
use std::process::Command;

use kvm_sriov_tests::lab::{BASE_KVMRC, LabHost};
use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::target;
use kvm_sriov_tests::vm::Vm;

use super::{cancel, deploy, plugged};

const REMOTES: &str = "/var/lib/one/remotes";

/// The packages of the front-end and of a host, in the host's /tmp. This host is both.
fn bring_packages(host: LabHost) {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(project().join("dist/package"))
        .arg(dir.path())
        .env("CARGO_TARGET_DIR", target())
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .status();
    assert!(made.unwrap().success());
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some((package, _)) = name.split_once('_').filter(|_| name.ends_with(".deb")) {
            host.write_bytes(&format!("/tmp/{package}.deb"), &fs::read(&path).unwrap());
        }
    }
}

pub(super) fn packages_are_installed_upgraded_and_removed(host: LabHost) {
    host.root("mv /var/tmp/one /var/tmp/one.kept; mv /usr/local/bin/kvm-sriov /tmp/kvm-sriov.kept").ok();
    bring_packages(host);
    let installed = host.root("dpkg -i /tmp/kvm-sriov.deb /tmp/kvm-sriov-node.deb 2>&1").ok();
    assert!(installed.contains("onehost sync -f") && installed.contains("kvm-sriov check"), "{installed}");
    let owner = format!("stat -c %U {REMOTES}/vmm/kvm-sriov/deploy {REMOTES}/etc/vmm/kvm-sriov/kvmrc");
    assert_eq!(host.root(&owner).ok(), "oneadmin\noneadmin\n");

    // Configured, synchronised and used.
    host.write(&format!("{REMOTES}/etc/vmm/kvm-sriov/kvmrc"), BASE_KVMRC);
    host.root(&format!("rm -rf /var/tmp/one && cp -rL {REMOTES} /var/tmp/one && chown -R oneadmin: /var/tmp/one")).ok();
    assert!(host.root("kvm-sriov check").ok().contains("this host is ready"));
    // The network driver, as OpenNebula asks it before a VM is started there.
    let networks = "<VM><TEMPLATE><NIC><BRIDGE>sriov_pf0</BRIDGE><MAC>02:00:0a:00:47:00</MAC><VN_MAD>sriov</VN_MAD></NIC></TEMPLATE></VM>";
    let said = host.oneadmin(&format!("echo '{networks}' | base64 -w0 | /var/tmp/one/vnm/sriov/pre 71 host1"));
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""));
    let vm = Vm::new(71).nic("sriov_pf0");
    assert_eq!(plugged(&deploy(host, &vm)).len(), 1);
    cancel(host, &vm);
    host.oneadmin("/var/tmp/one/vnm/sriov/clean host1 </dev/null").ok();

    // A later version brings another sample: what an operator wrote stays.
    host.root(
        "set -e; rm -rf /tmp/later; dpkg-deb -R /tmp/kvm-sriov.deb /tmp/later; cd /tmp/later; \
         sed -i 's/^Version: .*/&+later/' DEBIAN/control; echo '# later' >>var/lib/one/remotes/etc/vmm/kvm-sriov/kvmrc; \
         dpkg-deb -Zgzip -b . /tmp/later.deb; dpkg --force-confdef --force-confold -i /tmp/later.deb </dev/null",
    )
    .ok();
    assert_eq!(host.root(&format!("cat {REMOTES}/etc/vmm/kvm-sriov/kvmrc")).ok(), BASE_KVMRC);
    host.root(&format!("echo 0x01 0x10 0x00 >{REMOTES}/vmm/kvm-sriov/vf_maps/mine")).ok();
    host.root("dpkg -r kvm-sriov kvm-sriov-node 2>&1").ok();
    // dpkg has put the new sample beside what the operator wrote.
    let left = host.root(&format!("cd {REMOTES} && find . -type f | sort")).ok();
    let kvmrc = "./etc/vmm/kvm-sriov/kvmrc";
    assert_eq!(left, format!("{kvmrc}\n{kvmrc}.dpkg-dist\n./vmm/kvm-sriov/vf_maps/mine\n"), "an operator's files stay");
    host.root("dpkg -P kvm-sriov kvm-sriov-node 2>&1").ok();
    let left = host.root(&format!("cd {REMOTES} && find . -type f")).ok();
    assert_eq!(left, "./vmm/kvm-sriov/vf_maps/mine\n");

    host.root(&format!(
        "rm -rf {REMOTES} /tmp/later* /tmp/*.deb /var/tmp/one; mv /var/tmp/one.kept /var/tmp/one; \
         mv /tmp/kvm-sriov.kept /usr/local/bin/kvm-sriov"
    ))
    .ok();
}

pub(super) fn programs_start_on_debian_11(host: LabHost) {
    // Its C library and libvirt's, unpacked and not installed, which needs no root here.
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
