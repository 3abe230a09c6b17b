//! Migration with storage of the VM, moves by the front-end, and moves to another datastore.

use kvm_sriov_tests::caller::encoded;
use kvm_sriov_tests::rig_host::RigHost;
use kvm_sriov_tests::vm::{PRIVATE, SHARED, SHARED_TOO, Vm};

use super::life::{cd, file};
use super::{Site, guest};

/// A program that stands for rbd: a directory is the pool.
const RBD: &str = include_str!("../../fixtures/rbd");

fn sum(host: RigHost, path: &str) -> String {
    host.root(&format!("sha256sum <{path}")).ok()
}

/// Creates the VM's two disks and its CD.
fn make_disks(site: Site, vm: &Vm) {
    site.host
        .oneadmin(&format!(
            "mkdir -p {0} && cd {0} && head -c 2M /dev/urandom >disk.0 && echo cd-1 >disk.1 && truncate -s 1M disk.1",
            vm.dir()
        ))
        .ok();
}

pub(super) fn storage_that_is_not_shared_moves_along(site: Site) {
    let vm = guest(40).datastore(PRIVATE).disk().nic("br0");
    make_disks(site, &vm);
    let cd = cd(&file(&vm, 1));
    site.boot(&vm, |text| text.replacen("\t\t<controller type='scsi'", &format!("{cd}\t\t<controller type='scsi'"), 1));
    site.sees(&vm, "sr0", Some("cd-1"));
    let boot = site.host.wait_tick(&vm).boot;
    let sums = |host| [0, 1].map(|number| sum(host, &file(&vm, number)));
    let before = sums(site.host);
    assert_ne!(site.other.root(&format!("test -e {}", vm.dir())).code, 0);
    let told = vm.action_data(&site.host.name()).to(&site.other.name(), PRIVATE).xml();
    assert_eq!(site.run(&vm, "migrate", &[&vm.uuid(), &site.other.name(), &site.host.name()], &told), "");
    site.is_gone(&vm);
    let there = site.turned();
    assert_eq!(there.host.wait_tick(&vm).boot, boot, "its memory is not what it was");
    assert_eq!(sums(there.host), before);
    there.cancel(&vm);
    // OpenNebula's transfer driver does this after a migration.
    for host in [site.host, site.other] {
        host.root(&format!("rm -rf {}", vm.dir())).ok();
    }
}

pub(super) fn the_front_end_moves_a_vm(site: Site) {
    let vm = guest(41).disk().cache("none").nic("br0");
    make_disks(site, &vm);
    site.boot(&vm, |text| text);
    let boot = site.host.wait_tick(&vm).boot;
    // A host can be the front-end as well. Its agent authenticates it at the source, and the source at the destination.
    let told = vm.action_data(&site.host.name()).to(&site.other.name(), SHARED).xml();
    let (from, to) = (site.host.name(), site.other.name());
    let line = |uuid: &str| {
        format!(
            "echo {} | /var/tmp/one/vmm/kvm-sriov/migrate_local '{uuid}' '{to}' '{from}' {} {from}",
            encoded(&told, 0).trim(),
            vm.id
        )
    };
    let said = site.other.oneadmin_forwarding(&line("one-999"));
    assert!(said.code != 0 && said.message().contains("there is no domain one-999"), "{said:?}");
    let said = site.other.oneadmin_forwarding(&line(&vm.uuid()));
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    site.is_gone(&vm);
    assert_eq!(site.other.wait_tick(&vm).boot, boot, "its memory is not what it was");
    site.turned().cancel(&vm);
    site.host.oneadmin(&format!("rm -r {}", vm.dir())).ok();
}

/// A file, and two logical volumes as in OpenNebula's fs_lvm_ssh: a disk and a CD. Afterwards their own parts are
/// removed, as `postmigrate` does. A process holds each volume open, and its device ends with the process.
pub(super) fn another_datastore_of_the_host(site: Site) {
    let vm = guest(42).disk().nic("br0");
    make_disks(site, &vm);
    let moved = vm.clone().datastore(SHARED_TOO);
    // OpenNebula's transfer driver does this before: it creates the new volumes and copies the links unchanged.
    site.host
        .root(&format!(
            "set -e; mkdir -p /dev/vg-one-{SHARED} /dev/vg-one-{SHARED_TOO}; \
             for lv in {SHARED}/lv-one-42-2 {SHARED}/lv-one-42-3 {SHARED_TOO}/lv-one-42-2 {SHARED_TOO}/lv-one-42-3; do \
             image=/lab/$(echo $lv | tr / -).img; truncate -s 16M $image; loop=$(losetup -f --show $image); \
             exec 9<$loop; sleep 600 <&9 >/dev/null 2>&1 & exec 9<&-; losetup -d $loop; chown oneadmin: $loop; ln -sfn $loop /dev/vg-one-$lv; done; \
             head -c 1M /dev/urandom >/dev/vg-one-{SHARED}/lv-one-42-2; echo a-volume >/dev/vg-one-{SHARED}/lv-one-42-3"
        ))
        .ok();
    site.host
        .oneadmin(&format!(
            "set -e; mkdir -p {1}; for n in 2 3; do for dir in {0} {1}; do ln -s /dev/vg-one-{SHARED}/lv-one-42-$n $dir/disk.$n; done; done",
            vm.dir(),
            moved.dir()
        ))
        .ok();
    let volumes = format!(
        "\t\t<disk type='block' device='disk'><source dev='{0}/disk.2'/><target dev='vdb' bus='virtio'/>\
         <driver name='qemu' type='raw'/></disk>\n\t\t<disk type='block' device='cdrom'><source dev='{0}/disk.3'/>\
         <target dev='sda' bus='scsi'/><readonly/><driver name='qemu' type='raw'/></disk>\n",
        vm.dir()
    );
    let controller = "\t\t<controller type='scsi'";
    site.boot(&vm, |text| text.replacen(controller, &format!("{volumes}{controller}"), 1));
    let boot = site.host.wait_tick(&vm).boot;
    site.sees(&vm, "vdb", Some("16"));
    site.sees(&vm, "sr0", Some("a-volume"));
    let volume = |datastore: u32, number: u32| format!("/dev/vg-one-{datastore}/lv-one-42-{number}");
    let contents =
        [sum(site.host, &file(&vm, 0)), sum(site.host, &volume(SHARED, 2)), sum(site.host, &volume(SHARED, 3))];
    let host = site.host.name();
    let told = vm.action_data(&host).to(&host, SHARED_TOO).xml();
    assert_eq!(site.run(&vm, "migrate", &[&vm.uuid(), &host, &host], &told), "");
    let live = site.host.live_xml(&moved);
    let [old, new] = [SHARED, SHARED_TOO].map(|datastore| format!("/datastores/{datastore}/{}", vm.id));
    assert!(live.contains(&format!("{new}/disk.0")) && !live.contains(&format!("{old}/disk.0")), "{live}");
    assert!(live.contains(&format!("{new}/disk.2'")) && live.contains(&format!("{new}/disk.3'")), "{live}");
    let copies = [file(&moved, 0), volume(SHARED_TOO, 2), volume(SHARED_TOO, 3)].map(|copy| sum(site.host, &copy));
    assert_eq!(copies, contents);
    // The origin is wiped, and no process has it open.
    site.host
        .root(&format!(
            "dd if=/dev/zero of={} bs=1M count=16; rm -r {}; rm -r /dev/vg-one-{SHARED}",
            volume(SHARED, 2),
            vm.dir()
        ))
        .ok();
    let open = site
        .host
        .root("ls -l /proc/[0-9]*/fd 2>/dev/null | grep -e '/datastores/0*/42/' -e '(deleted)' | grep disk; true")
        .out;
    assert_eq!(open, "");
    assert_eq!(site.host.wait_tick(&vm).boot, boot);
    site.sees(&vm, "vdb", Some("16"));
    site.sees(&vm, "sr0", Some("a-volume"));
    assert_eq!(sum(site.host, &volume(SHARED_TOO, 2)), contents[1]);
    site.cancel(&moved);
    site.host.root(&format!("rm -r {} /dev/vg-one-{SHARED_TOO}", moved.dir())).ok();
}

/// With Ceph the directory of a VM is on one host only, and its checkpoint reaches the other host through the pool.
pub(super) fn a_checkpoint_goes_through_ceph(site: Site) {
    let vm = guest(43).datastore(PRIVATE).nic("br0");
    let pool = "/var/lib/one/datastores/1/pool";
    for host in [site.host, site.other] {
        host.write(&format!("{pool}/rbd"), RBD);
        host.root(&format!("chmod 755 {pool}/rbd; chown -R oneadmin {pool}; ln -sf {pool}/rbd /usr/local/bin/rbd"))
            .ok();
    }
    let told = |host: RigHost| {
        let text = vm.action_data(&host.name()).xml();
        let (ssh, ceph) = ("<TM_MAD><![CDATA[ssh]]>", "<TM_MAD><![CDATA[ceph]]>");
        assert!(text.contains(ssh), "{text}");
        text.replace(ssh, ceph)
    };
    let is_there = |host: RigHost, path: &str| host.root(&format!("test -e {path}")).code == 0;
    let image = format!("{pool}/one_one-sys-{}-checkpoint", vm.id);

    site.boot(&vm, |text| text);
    let boot = site.host.wait_tick(&vm).boot;
    assert_eq!(site.run(&vm, "save", &[&vm.uuid(), &vm.checkpoint(), &site.host.name()], &told(site.host)), "");
    site.is_gone(&vm);
    assert!(!is_there(site.host, &vm.checkpoint()) && is_there(site.host, &image));

    let there = site.turned();
    there.host.oneadmin(&format!("mkdir -p {}", vm.dir())).ok();
    assert_eq!(there.run(&vm, "restore", &[&vm.checkpoint(), &there.host.name(), &vm.uuid()], &told(there.host)), "");
    assert_eq!(there.host.wait_tick(&vm).boot, boot, "its memory is not what it was");
    assert!(!is_there(there.host, &image));
    there.cancel(&vm);
    for host in [site.host, site.other] {
        host.root(&format!("rm -rf {} {pool} /usr/local/bin/rbd", vm.dir())).ok();
    }
}
