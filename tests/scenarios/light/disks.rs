//! Disks and CDs that are attached and detached, as the guest sees them.

use kvm_sriov_tests::caller::encoded;
use kvm_sriov_tests::vm::Vm;

use super::life::{cd, file};
use super::{SOON, Site, data, guest};

/// A disk to attach: OpenNebula's description, its target, its path in the VM's directory, its name and content in the
/// guest, and its source in libvirt.
struct Disk {
    told: &'static str,
    target: &'static str,
    number: u32,
    name: &'static str,
    seen: &'static str,
    live: &'static [&'static str],
}

const DISKS: [Disk; 8] = [
    Disk {
        told: "<TYPE>FILE</TYPE><DRIVER>raw</DRIVER><SERIAL>it is/this</SERIAL><CACHE>none</CACHE>",
        target: "vdb",
        number: 2,
        name: "vdb",
        seen: "16",
        live: &["type='file' device='disk'", "<serial>itisthis</serial>", "cache='none'"],
    },
    Disk {
        told: "<TYPE>FILE</TYPE><DRIVER>qcow2</DRIVER><TOTAL_IOPS_SEC>1000</TOTAL_IOPS_SEC>",
        target: "sda",
        number: 3,
        name: "sda",
        seen: "24",
        live: &["type='qcow2'", "bus='scsi'", "<total_iops_sec>1000</total_iops_sec>"],
    },
    Disk {
        told: "<TYPE>FILE</TYPE><DRIVER>qcow2</DRIVER>",
        target: "vdb",
        number: 4,
        name: "vdb",
        seen: "24",
        // The target of the link.
        live: &["/image.qcow2'"],
    },
    Disk {
        told: "<TYPE>BLOCK</TYPE><DRIVER>raw</DRIVER>",
        target: "vdb",
        number: 5,
        name: "vdb",
        seen: "16",
        live: &["type='block' device='disk'"],
    },
    Disk {
        told: "<TYPE>fs</TYPE><DISK_TYPE>FILE</DISK_TYPE><FORMAT>raw</FORMAT><DRIVER>raw</DRIVER>",
        target: "vdb",
        number: 2,
        name: "vdb",
        seen: "16",
        live: &["type='file' device='disk'"],
    },
    Disk {
        told: "<TYPE>CDROM</TYPE><READONLY>YES</READONLY>",
        target: "sdb",
        number: 1,
        name: "sr0",
        seen: "cd-1",
        live: &["type='file' device='cdrom'", "<readonly/>"],
    },
    Disk {
        told: "<TYPE>BLOCK_CDROM</TYPE><READONLY>YES</READONLY>",
        target: "sdb",
        number: 5,
        name: "sr0",
        seen: "a-block-device",
        live: &["type='block' device='cdrom'", "<readonly/>"],
    },
    Disk {
        told: "<TYPE>ISCSI</TYPE><DRIVER>raw</DRIVER><ISCSI_HOST>127.0.0.1</ISCSI_HOST><ISCSI_IQN>iqn.2026-01.org.example:disk/1</ISCSI_IQN>",
        target: "vdb",
        number: 6,
        name: "vdb",
        seen: "20",
        live: &["type='network' device='disk'", "protocol='iscsi'"],
    },
];

pub(super) fn disks_of_every_type(site: Site) {
    let vm = guest(20).disk();
    site.host
        .oneadmin(&format!(
            "mkdir -p {0} && cd {0} && truncate -s 16M disk.0 disk.2 && for image in disk.3 image.qcow2; do \
             qemu-img create -q -f qcow2 $image 24M; done && ln -s image.qcow2 disk.4 && ln -s /lab/block disk.5 && \
             echo cd-1 >disk.1 && truncate -s 1M disk.1 && echo a-block-device | dd of=disk.5 conv=notrunc status=none",
            vm.dir()
        ))
        .ok();
    let daemon = site.host.root(
        "set -e; truncate -s 20M /lab/iscsi.img; tgtd >/dev/null 2>&1; \
         tgt() { tgtadm --lld iscsi --op $1 --mode $2 --tid 1 $3 $4 $5 $6 $7; }; \
         n=0; until tgtadm --lld iscsi --op show --mode sys >/dev/null 2>&1; do n=$((n + 1)); [ $n -lt 100 ]; sleep 0.1; done; \
         tgt new target -T iqn.2026-01.org.example:disk; tgt new logicalunit --lun 1 -b /lab/iscsi.img; tgt bind target -I ALL",
    );
    daemon.ok();
    site.boot(&vm, |text| text);
    let before = disks(&site.host.live_xml(&vm));
    for disk in &DISKS {
        comes_and_goes(site, &vm, disk);
        assert_eq!(disks(&site.host.live_xml(&vm)), before, "{}", disk.told);
    }
    // A disk that does not exist is reported as missing.
    let told = data(
        site.host,
        &vm,
        "<DISK><ATTACH>YES</ATTACH><DISK_ID>9</DISK_ID><TYPE>FILE</TYPE><TARGET>vdb</TARGET></DISK>",
    );
    let args = [&vm.uuid(), &file(&vm, 9), "vdb", "1", &encoded(&told, 0)];
    site.fails(&vm, "attach_disk", &args, &told, "disk.9");
    site.cancel(&vm);
    site.host
        .root(&format!(
            "tgtadm --op delete --mode target --tid 1 --force --lld iscsi; tgtadm --op delete --mode system; rm -r {}",
            vm.dir()
        ))
        .ok();
}

/// The number of a domain's disks and drives.
fn disks(live: &str) -> usize {
    live.matches("<disk ").count()
}

#[track_caller]
fn comes_and_goes(site: Site, vm: &Vm, disk: &Disk) {
    let Disk { told, target, number, name, seen, live } = disk;
    let told = format!("<DISK><ATTACH>YES</ATTACH><DISK_ID>{number}</DISK_ID><TARGET>{target}</TARGET>{told}</DISK>");
    let told = data(site.host, vm, &told);
    let (id, path) = (vm.uuid(), file(vm, *number));
    let attach = || site.run(vm, "attach_disk", &[&id, &path, target, "1", &encoded(&told, 0)], &told);
    assert_eq!(attach(), "");
    site.sees(vm, name, Some(seen));
    let text = site.host.live_xml(vm);
    assert!(live.iter().all(|part| text.contains(part)), "{live:?}: {text}");
    // OpenNebula may call an action twice.
    assert_eq!(attach(), "");
    assert_eq!(site.run(vm, "detach_disk", &[&id, &path, target, "1"], &told), "");
    site.sees(vm, name, None);
}

pub(super) fn a_cd_is_swapped(site: Site) {
    let vm = guest(21);
    site.host
        .oneadmin(&format!(
            "mkdir -p {0} && cd {0} && for cd in 1 3; do echo cd-$cd >disk.$cd && truncate -s 1M disk.$cd; done",
            vm.dir()
        ))
        .ok();
    let cd = cd(&file(&vm, 1));
    site.boot(&vm, |text| text.replacen("\t\t<controller type='scsi'", &format!("{cd}\t\t<controller type='scsi'"), 1));
    site.sees(&vm, "sr0", Some("cd-1"));
    let (id, told) = (vm.uuid(), vm.action_data(&site.host.name()).xml());
    site.fails(&vm, "reconfigure", &[&id, "hda", &file(&vm, 3)], &told, "nothing was changed");
    site.fails(&vm, "prereconfigure", &[&id, "hdc"], &told, "hdc");
    for nothing in ["prereconfigure", "reconfigure"] {
        assert_eq!(site.run(&vm, nothing, &[&id, "", ""], &told), "");
    }
    for _ in 0..2 {
        assert_eq!(site.run(&vm, "prereconfigure", &[&id, "hda"], &told), "");
        site.sees(&vm, "sr0", Some("none"));
    }
    for _ in 0..2 {
        assert_eq!(site.run(&vm, "reconfigure", &[&id, "hda", &file(&vm, 3)], &told), "");
        site.sees(&vm, "sr0", Some("cd-3"));
    }
    // A guest that locks its drive can't keep a CD in it.
    site.run(&vm, "exec", &[&vm.id.to_string(), &site.host.name(), "sh -c 'exec 5</dev/sr0; sleep 1000'"], &told);
    site.host.wait("the command to run", SOON, |host| host.oneadmin("test -s /run/one/one-21").code == 0);
    assert_eq!(site.run(&vm, "prereconfigure", &[&id, "hda"], &told), "");
    site.cancel(&vm);
    site.host.oneadmin(&format!("rm -r {}", vm.dir())).ok();
}
