//! Disks, CDs, CPUs and memory of a running VM with a VF.

use std::io::Write;
use std::process::{Command, Stdio};

use kvm_sriov_tests::rig_host::{RigHost, Said};
use kvm_sriov_tests::vm::Vm;

use super::suspend::{identity, shows};
use super::{GUEST_BOOT, cancel};

fn done(said: &Said) {
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
}

/// The standard input of an action for a VM, with this addition to its template.
fn data(host: RigHost, vm: &Vm, template: &str) -> String {
    let text = vm.action_data(&host.name()).xml();
    assert!(text.contains("<VCPU><![CDATA[1]]></VCPU>"), "{text}");
    text.replacen("<VCPU><![CDATA[1]]></VCPU>", template, 1)
}

fn base64(text: &str) -> String {
    let mut child = Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// The size of a disk in MiB, from the hypervisor. `None` without such a disk.
fn mib(host: RigHost, vm: &Vm, target: &str) -> Option<u64> {
    let said = host.oneadmin(&format!("virsh -c qemu:///system domblkinfo {} {target}", vm.name()));
    let line = said.out.lines().find(|line| line.starts_with("Capacity:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().unwrap() >> 20)
}

/// The medium of a disk or drive, as virsh lists it.
fn holds(host: RigHost, vm: &Vm, target: &str) -> String {
    let said = host.oneadmin(&format!("virsh -q -c qemu:///system domblklist {}", vm.name())).ok();
    let found = said.lines().filter_map(|line| line.trim().split_once(' ')).find(|(name, _)| *name == target);
    found.map(|(_, source)| source.trim().to_owned()).unwrap_or_default()
}

/// Starts a VM whose guest answers, from its changed deployment file.
fn start(host: RigHost, vm: &Vm, change: impl Fn(String) -> String) {
    host.oneadmin(&format!("mkdir -p {0} && cd {0} && truncate -s 16M disk.0 disk.1 disk.2 disk.3", vm.dir())).ok();
    let text = change(vm.deployment());
    let said = host.action("deploy", &[&vm.deployment_file(), &host.name()], vm, &text);
    assert_eq!((said.code, said.out), (0, format!("{}\n", vm.uuid())), "{}", said.err);
    shows(host, vm, 2, GUEST_BOOT);
}

fn disks_come_grow_and_go(host: RigHost, vm: &Vm) {
    start(host, vm, |text| text);
    let before = identity(&host.live_xml(vm));
    let path = format!("{}/disk.2", vm.dir());
    let disk = "<DISK><ATTACH>YES</ATTACH><DISK_ID>2</DISK_ID><TYPE>FILE</TYPE><DRIVER>raw</DRIVER>\
                <CACHE>writeback</CACHE><TARGET>vdb</TARGET></DISK>";
    let told = data(host, vm, disk);
    let attach = || host.action("attach_disk", &[&vm.uuid(), &path, "vdb", "1", &base64(&told)], vm, &told);
    done(&attach());
    assert_eq!((holds(host, vm, "vdb"), mib(host, vm, "vdb")), (path.clone(), Some(16)));
    // OpenNebula may call an action twice.
    done(&attach());
    let resize =
        |mib: &str| host.action("resize_disk", &[&vm.uuid(), "2", mib, &base64(&told), &host.name()], vm, &told);
    done(&resize("32"));
    assert_eq!(mib(host, vm, "vdb"), Some(32));
    let said = resize("16");
    assert!(said.code == 1 && said.message().contains("more than 16 MiB"), "{said:?}");
    done(&host.save(vm));
    done(&host.restore(vm));
    assert_eq!((holds(host, vm, "vdb"), mib(host, vm, "vdb")), (path.clone(), Some(32)));
    host.wait_tick(vm);
    let detach = || host.action("detach_disk", &[&vm.uuid(), &path, "vdb", "1"], vm, &told);
    done(&detach());
    assert_eq!(mib(host, vm, "vdb"), None);
    let said = detach();
    assert!(said.code == 1 && said.message().contains("has no disk vdb; nothing was changed"), "{said:?}");
    assert_eq!(identity(&host.live_xml(vm)), before);
    cancel(host, vm);
}

pub(super) fn disks_come_grow_and_go_on_pc(host: RigHost) {
    disks_come_grow_and_go(host, &Vm::new(66).with_guest().disk().nic("sriov_pf0"));
}

pub(super) fn disks_come_grow_and_go_on_q35(host: RigHost) {
    disks_come_grow_and_go(host, &Vm::new(67).machine("q35").with_guest().disk().nic("sriov_pf0"));
}

pub(super) fn a_cd_is_swapped(host: RigHost) {
    let vm = Vm::new(68).machine("q35").with_guest().nic("sriov_pf0");
    let iso = |number: u32| format!("{}/disk.{number}", vm.dir());
    let cd = format!(
        "\t\t<disk type='file' device='cdrom'>\n\t\t\t<source file='{}'/>\n\t\t\t<target dev='sda' bus='sata'/>\n\
         \t\t\t<readonly/>\n\t\t\t<driver name='qemu' type='raw' cache='writeback'/>\n\t\t</disk>\n",
        iso(1)
    );
    start(host, &vm, |text| {
        text.replacen("\t\t<controller type='scsi'", &format!("{cd}\t\t<controller type='scsi'"), 1)
    });
    let before = identity(&host.live_xml(&vm));
    let told = vm.action_data(&host.name()).xml();
    let eject = || host.action("prereconfigure", &[&vm.uuid(), "sda"], &vm, &told);
    let insert = |number| host.action("reconfigure", &[&vm.uuid(), "sda", &iso(number)], &vm, &told);
    assert_eq!(holds(host, &vm, "sda"), iso(1));
    let said = insert(3);
    assert!(said.code == 1 && said.message().contains("nothing was changed"), "{said:?}");
    for _ in 0..2 {
        done(&eject());
        assert_eq!(holds(host, &vm, "sda"), "-");
    }
    for _ in 0..2 {
        done(&insert(3));
        assert_eq!(holds(host, &vm, "sda"), iso(3));
    }
    assert_eq!(identity(&host.live_xml(&vm)), before);
    cancel(host, &vm);
}

/// The virtual CPUs, the memory that the balloon leaves and all memory, both in MiB.
fn sizes(host: RigHost, vm: &Vm) -> (u32, u64, u64) {
    let sizes = kvm_sriov::xml::Sizes::parse(&host.live_xml(vm)).unwrap();
    (sizes.vcpus, sizes.balloon_kib / 1024, sizes.memory_kib / 1024)
}

pub(super) fn cpus_and_memory_are_resized(host: RigHost) {
    let vm = Vm::new(69).with_guest().nic("sriov_pf0");
    let cell = "<cpu mode='host-passthrough'><numa><cell id='0' cpus='0-1' memory='262144'/></numa></cpu>";
    start(host, &vm, |text| {
        text.replacen("<vcpu><![CDATA[1]]></vcpu>", "<vcpu current='1'>2</vcpu>", 1)
            .replacen("\t<os>", "\t<maxMemory slots='4'>1048576</maxMemory>\n\t<os>", 1)
            .replacen("<cpu mode='host-passthrough'/>", cell, 1)
    });
    let before = identity(&host.live_xml(&vm));
    assert_eq!(sizes(host, &vm), (1, 256, 256));
    let resize = |vcpus: u32, mib: u32, mode: &str| {
        let template = format!(
            "<VCPU>{vcpus}</VCPU><MEMORY>{mib}</MEMORY><MEMORY_RESIZE_MODE>{mode}</MEMORY_RESIZE_MODE>\
             <RESIZE><VCPU>1</VCPU><MEMORY>1</MEMORY></RESIZE>"
        );
        host.action("resize", &[&vm.uuid()], &vm, &data(host, &vm, &template))
    };
    let said = resize(3, 256, "BALLOONING");
    assert!(said.message().contains("could not resize VCPU to 3 on one-69: it can have from 1 to 2"), "{said:?}");
    for _ in 0..2 {
        done(&resize(2, 384, "HOTPLUG"));
        assert_eq!(sizes(host, &vm), (2, 384, 384));
    }
    let said = resize(2, 320, "BALLOONING");
    done(&said);
    assert!(
        said.err.contains("WARN: resize: the balloon of one-69") && said.err.contains("frees no memory of the host"),
        "{said:?}"
    );
    host.wait_tick(&vm);
    assert_eq!(identity(&host.live_xml(&vm)), before);
    cancel(host, &vm);
}
