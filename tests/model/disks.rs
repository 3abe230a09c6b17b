//! Disks are attached, detached and resized while their VM runs, CDs are swapped, and a VM gets more CPUs and memory,
//! on a model host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::symlink;

use kvm_sriov::actions;
use kvm_sriov::libvirt::{DiskCalls, DomainCalls, LibvirtErrorKind, RunState};
use kvm_sriov::opennebula::Message;
use kvm_sriov::xml::Sizes;
use kvm_sriov::{Action, ActionError, DomainId};
use kvm_sriov_model::Guest;
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::every::Scenario;
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

/// The VM, which has two VFs and a disk.
fn vm() -> Vm {
    Vm::new(42).disk().nic("sriov_ib0").nic("sriov_ib1")
}

fn plain() -> Vm {
    Vm::new(42).disk().nic("br0")
}

fn id() -> DomainId {
    vm().uuid().parse().unwrap()
}

/// A host on which this VM and a neighbour run. The VM has a CD drive, 2 of 4 CPUs, and free slots for DIMMs.
fn running(vm: &Vm) -> ModelHost {
    let host = ModelHost::default();
    let neighbour = Vm::new(7).nic("sriov_ib0");
    let deploy =
        |vm: &Vm, text: &str| actions::deploy(&host.host(), &host.deployment_file(vm), text).map(drop).unwrap();
    deploy(&neighbour, &host.deployment(&neighbour));
    let cd = "<disk type='file' device='cdrom'><source file='/ds/0/42/disk.1'/><target dev='hda' bus='ide'/><readonly/></disk>";
    let text = host
        .deployment(vm)
        .replacen("<vcpu><![CDATA[1]]></vcpu>", "<vcpu current='2'>4</vcpu>", 1)
        .replacen(
            "<os>",
            "<maxMemory slots='4' unit='KiB'>4194304</maxMemory><cpu><numa><cell id='0'/></numa></cpu><os>",
            1,
        )
        .replacen("<controller type='scsi'", &format!("{cd}<controller type='scsi'"), 1);
    deploy(vm, &text);
    host
}

fn a_running_vm() -> ModelHost {
    running(&vm())
}

/// OpenNebula's message that describes a disk.
fn message(disk: &str) -> String {
    format!(
        "<VMM_DRIVER_ACTION_DATA><VM><ID>42</ID><TEMPLATE><DISK><ATTACH>YES</ATTACH><DISK_ID>2</DISK_ID>{disk}</DISK>\
         </TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>"
    )
}

fn attach(host: &ModelHost, target: &str, disk: &str) -> Result<(), ActionError> {
    attach_described(host, "/ds/0/42/disk.2", target, message(disk))
}

/// Attaches the disk that OpenNebula's message describes.
fn attach_described(host: &ModelHost, path: &str, target: &str, message: String) -> Result<(), ActionError> {
    let disk = Message::new(Action::AttachDisk, message).attached_disk()?;
    actions::attach_disk(&host.host(), &id(), &disk, path, target, None)
}

fn detach(host: &ModelHost, target: &str) -> Result<(), ActionError> {
    actions::detach_disk(&host.host(), &id(), target, None)
}

/// The source of each disk, by target.
fn disks(host: &ModelHost) -> Vec<(String, String)> {
    let live = host.domain("one-42").unwrap();
    let disks = live.disks.iter().map(|disk| (disk.target.clone(), disk.source.clone().unwrap_or_default()));
    disks.collect()
}

fn has_two(host: &ModelHost) {
    let disks = disks(host);
    assert_eq!(disks.len(), 3);
    assert_eq!(disks[2], ("vdb".into(), "/ds/0/42/disk.2".into()));
}

fn has_one(host: &ModelHost) {
    assert_eq!(disks(host).iter().map(|(target, _)| target.as_str()).collect::<Vec<_>>(), ["vda", "hda"]);
}

/// OpenNebula's message may lack the settings that the domain was started with, or hold those of its next start.
#[test]
fn a_disk_gets_an_io_thread_of_the_running_domain_and_the_queues_of_the_vm() {
    for (threads, disk, features, expected) in [
        ("2", "<DISK_ID>1</DISK_ID>", "", &["iothread='2'"][..]),
        ("2", "<DISK_ID>1</DISK_ID><IOTHREAD>1</IOTHREAD>", "", &["iothread='1'"]),
        ("2", "<DISK_ID>1</DISK_ID>", "<IOTHREADS>8</IOTHREADS>", &["iothread='2'"]),
        ("2", "<DISK_ID>4</DISK_ID>", "<VIRTIO_BLK_QUEUES>4</VIRTIO_BLK_QUEUES>", &["iothread='1'", "queues='4'"]),
        (
            "0",
            "<DISK_ID>1</DISK_ID>",
            "<IOTHREADS>2</IOTHREADS><VIRTIO_BLK_QUEUES>auto</VIRTIO_BLK_QUEUES>",
            &["queues='3'"],
        ),
    ] {
        let host = ModelHost::default();
        let vm = plain();
        let text = host.deployment(&vm).replacen("<os>", &format!("<iothreads>{threads}</iothreads><os>"), 1);
        actions::deploy(&host.host(), &host.deployment_file(&vm), &text).unwrap();
        let message = format!(
            "<VMM_DRIVER_ACTION_DATA><VM><ID>42</ID><TEMPLATE><VCPU>3</VCPU><FEATURES>{features}</FEATURES>\
             <DISK><ATTACH>YES</ATTACH><TYPE>FILE</TYPE>{disk}</DISK></TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>"
        );
        attach_described(&host, "/ds/0/42/disk.1", "vdb", message).unwrap();
        let domain = host.model().find(&id()).unwrap().unwrap();
        let live = host.model().live_xml(&domain).unwrap().unwrap();
        let disk = live.split("<disk ").find(|disk| disk.contains("'vdb'")).unwrap();
        for attribute in expected {
            assert!(disk.contains(attribute), "{attribute}: {disk}");
        }
        for attribute in ["iothread=", "queues="] {
            let is_meant = expected.iter().any(|expected| expected.starts_with(attribute));
            assert_eq!(disk.contains(attribute), is_meant, "{attribute}: {disk}");
        }
    }
}

/// New packages of OVMF have NVRAM templates for images of 4 MiB only. libvirt chooses the template that belongs to the
/// loader.
#[test]
fn a_uefi_vm_starts_without_the_template_that_kvmrc_names() {
    let host = ModelHost::default();
    host.set_kvmrc("OVMF_NVRAM=/nonexistent/OVMF_VARS.fd\n");
    let vm = plain();
    let nvram = host.vm_dir(&vm).join("web-42_VARS.fd");
    let os = format!(
        "<os><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>{}</nvram>",
        nvram.display()
    );
    let text = host.deployment(&vm).replacen("<os>", &os, 1);
    actions::deploy(&host.host(), &host.deployment_file(&vm), &text).unwrap();
    assert!(!nvram.exists(), "libvirt makes it");
    host.check();
}

#[test]
fn a_disk_is_attached_with_every_fault() {
    Scenario {
        given: a_running_vm,
        action: |host| attach(host, "vdb", "<TYPE>FILE</TYPE>"),
        done: has_two,
        repairs: &[
            |host| {
                attach(host, "vdb", "<TYPE>FILE</TYPE>").unwrap();
                has_two(host);
            },
            |host| {
                // The disk may or may not be attached.
                drop(detach(host, "vdb"));
                has_one(host);
            },
        ],
    }
    .with_every_fault();
}

fn with_two_disks() -> ModelHost {
    let host = a_running_vm();
    attach(&host, "vdb", "").unwrap();
    host
}

#[test]
fn a_disk_is_detached_with_every_fault() {
    Scenario {
        given: with_two_disks,
        action: |host| detach(host, "vdb"),
        done: has_one,
        repairs: &[|host| {
            drop(detach(host, "vdb"));
            has_one(host);
        }],
    }
    .with_every_fault();
}

#[test]
fn a_vm_without_vfs_gets_disks_as_the_stock_driver_does_it() {
    let host = running(&plain());
    let (before, claims) = (host.portrait(), host.claims());
    host.faults().disarm();
    attach(&host, "vdb", "").unwrap();
    assert_eq!(host.faults().calls(), ["find", "live_xml", "attach", "live_xml"]);
    has_two(&host);
    attach(&host, "vdb", "").unwrap();
    detach(&host, "vdb").unwrap();
    assert_eq!(host.portrait(), before);
    assert_eq!(host.claims(), claims);
}

#[test]
fn a_disk_of_another_name_at_the_same_target_is_refused() {
    let host = a_running_vm();
    let before = host.portrait();
    let error = attach(&host, "vda", "").unwrap_err().to_string();
    let start = "attach_disk: could not attach /ds/0/42/disk.2 (vda) to one-42: one-42 has /";
    assert!(error.starts_with(start) && error.ends_with("disk.0 there; nothing was changed"), "{error}");
    let error = attach(&host, "hdb", "").unwrap_err().to_string();
    assert!(
        error.contains("disk bus 'ide' cannot be hotplugged.") && error.ends_with("nothing was changed"),
        "{error}"
    );
    assert_eq!(host.portrait(), before);
}

#[test]
fn a_message_without_a_disk_touches_nothing() {
    let host = a_running_vm();
    host.faults().disarm();
    let nothing = message("").replace("YES", "NO");
    for (text, problem) in [(nothing.as_str(), "names no disk to attach"), ("<VM", "OpenNebula's message: ")] {
        let error = attach_described(&host, "/d", "vdb", text.to_owned()).unwrap_err().to_string();
        assert!(error.contains(problem) && error.ends_with("nothing was changed"), "{error}");
    }
    assert!(host.faults().calls().is_empty());
}

#[test]
fn the_image_behind_a_link_is_attached() {
    let host = a_running_vm();
    let dir = host.vm_dir(&vm());
    fs::create_dir_all(dir.join("disk.2.snap")).unwrap();
    fs::write(dir.join("disk.2.snap/0"), "").unwrap();
    symlink("disk.2.snap/0", dir.join("disk.2")).unwrap();
    let path = dir.join("disk.2").display().to_string();
    let attach = || attach_described(&host, &path, "vdb", message(""));
    attach().unwrap();
    attach().unwrap();
    assert_eq!(disks(&host)[2].1, dir.join("disk.2.snap/0").display().to_string());
}

#[test]
fn a_disk_that_is_not_there_can_not_be_detached() {
    let host = a_running_vm();
    let before = host.portrait();
    let error = detach(&host, "vdz").unwrap_err().to_string();
    let text = "detach_disk: could not detach vdz from one-42: one-42 has no disk vdz; nothing was changed";
    assert_eq!(error, text);
    assert_eq!(host.portrait(), before);
}

#[test]
fn a_silent_guest_keeps_its_disk_and_the_error_says_so() {
    let host = with_two_disks();
    host.model().set_guest("one-42", Guest::Silent);
    let error = detach(&host, "vdb").unwrap_err().to_string();
    assert!(error.contains("one-42 did not release disk vdb in 2 s"), "{error}");
    assert!(error.ends_with("the request stays pending in the guest, which may release it later"), "{error}");
    has_two(&host);
    host.model().stop_cpus("one-42", RunState::PausedByUser);
    let error = detach(&host, "vdb").unwrap_err().to_string();
    assert!(error.contains("one-42 is paused") && error.ends_with("nothing was changed"), "{error}");
}

fn resize_disk(host: &ModelHost, mib: u64) -> Result<(), ActionError> {
    let target = Message::new(Action::ResizeDisk, message("<TARGET>vda</TARGET>")).target_of(2)?;
    actions::resize_disk(&host.host(), &id(), 2, &target, mib, None)
}

fn capacity(host: &ModelHost) -> u64 {
    let domain = host.model().find(&id()).unwrap().unwrap();
    host.model().disk_capacity(&domain, "vda").unwrap() >> 20
}

#[test]
fn a_disk_grows_with_every_fault() {
    Scenario {
        given: a_running_vm,
        action: |host| resize_disk(host, 80),
        done: |host| assert_eq!(capacity(host), 80),
        repairs: &[|host| {
            resize_disk(host, 80).unwrap();
            assert_eq!(capacity(host), 80);
        }],
    }
    .with_every_fault();
}

#[test]
fn a_disk_is_never_cut_off() {
    let host = a_running_vm();
    let before = host.portrait();
    let error = resize_disk(&host, 63).unwrap_err().to_string();
    let text = "resize_disk: could not resize disk 2 on one-42: it has 67108864 bytes, which are more than 63 MiB; nothing \
                was changed";
    assert_eq!(error, text);
    let nameless = Message::new(Action::ResizeDisk, message("")).target_of(3).unwrap_err().to_string();
    assert!(nameless.contains("names no target of disk 3"), "{nameless}");
    assert_eq!(host.portrait(), before);
    resize_disk(&host, 64).unwrap();
}

#[test]
fn a_copy_of_the_disk_is_waited_for() {
    let host = a_running_vm();
    host.faults().arm_first("resize_disk", Fault::Fails(LibvirtErrorKind::ActiveBlockJob));
    resize_disk(&host, 80).unwrap();
    assert!(host.faults().fired());
    assert_eq!(capacity(&host), 80);
}

fn eject(host: &ModelHost) -> Result<(), ActionError> {
    actions::prereconfigure(&host.host(), &id(), Some("hda"), None)
}

fn insert(host: &ModelHost, iso: &str) -> Result<(), ActionError> {
    actions::reconfigure(&host.host(), &id(), Some("hda"), Some(iso.as_ref()), None)
}

/// The medium in the CD drive.
fn medium(host: &ModelHost) -> Option<String> {
    host.domain("one-42").unwrap().disk("hda").unwrap().source.clone()
}

#[test]
fn a_cd_is_ejected_with_every_fault() {
    Scenario {
        given: a_running_vm,
        action: eject,
        done: |host| assert_eq!(medium(host), None),
        repairs: &[|host| {
            eject(host).unwrap();
            assert_eq!(medium(host), None);
        }],
    }
    .with_every_fault();
}

#[test]
fn a_cd_is_inserted_with_every_fault() {
    Scenario {
        given: || {
            let host = a_running_vm();
            eject(&host).unwrap();
            host
        },
        action: |host| insert(host, "/ds/new.iso"),
        done: |host| assert_eq!(medium(host).as_deref(), Some("/ds/new.iso")),
        repairs: &[|host| {
            insert(host, "/ds/new.iso").unwrap();
            assert_eq!(medium(host).as_deref(), Some("/ds/new.iso"));
        }],
    }
    .with_every_fault();
}

#[test]
fn a_drive_that_is_full_keeps_its_cd() {
    let host = a_running_vm();
    let before = host.portrait();
    let error = insert(&host, "/ds/new.iso").unwrap_err().to_string();
    let text = "reconfigure: could not insert CDROM /ds/new.iso to hda: one-42 has /ds/0/42/disk.1 in hda there; nothing was \
                changed";
    assert_eq!(error, text);
    insert(&host, "/ds/0/42/disk.1").unwrap();
    let error = actions::prereconfigure(&host.host(), &id(), Some("hdz"), None).unwrap_err().to_string();
    assert_eq!(error, "prereconfigure: could not eject CDROM hdz: one-42 has no disk hdz; nothing was changed");
    assert_eq!(host.portrait(), before);
    host.faults().disarm();
    actions::prereconfigure(&host.host(), &id(), None, None).unwrap();
    actions::reconfigure(&host.host(), &id(), Some("hda"), None, None).unwrap();
    actions::reconfigure(&host.host(), &id(), None, Some("/x".as_ref()), None).unwrap();
    assert!(host.faults().calls().is_empty());
    eject(&host).unwrap();
    attach(&host, "hda", "<TYPE>CDROM</TYPE>").unwrap();
    assert_eq!(medium(&host).as_deref(), Some("/ds/0/42/disk.2"), "a CD goes into a drive that is empty");
    let error = detach(&host, "hda").unwrap_err().to_string();
    assert!(error.contains("cannot be detached") && error.ends_with("nothing was changed"), "{error}");
}

/// Asks for these sizes: virtual CPUs, and MiB of memory.
fn resize(host: &ModelHost, vcpus: u32, mib: u64, mode: &str) -> Result<(), ActionError> {
    let message = format!(
        "<VMM_DRIVER_ACTION_DATA><VM><ID>42</ID><TEMPLATE><VCPU>{vcpus}</VCPU><MEMORY>{mib}</MEMORY>\
         <MEMORY_RESIZE_MODE>{mode}</MEMORY_RESIZE_MODE></TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>"
    );
    let wanted = Message::new(Action::Resize, message).resize()?;
    actions::resize(&host.host(), &id(), &wanted, None)
}

/// The virtual CPUs, the MiB of memory, and the MiB of it that the balloon leaves to the guest.
fn sizes(host: &ModelHost) -> (u32, u64, u64) {
    let domain = host.model().find(&id()).unwrap().unwrap();
    let sizes = Sizes::parse(&host.model().live_xml(&domain).unwrap().unwrap()).unwrap();
    (sizes.vcpus, sizes.memory_kib / 1024, sizes.balloon_kib / 1024)
}

#[test]
fn cpus_and_balloon_change_with_every_fault() {
    Scenario {
        given: a_running_vm,
        action: |host| resize(host, 4, 32, "BALLOONING"),
        done: |host| assert_eq!(sizes(host), (4, 64, 32)),
        repairs: &[|host| {
            resize(host, 4, 32, "BALLOONING").unwrap();
            assert_eq!(sizes(host), (4, 64, 32));
        }],
    }
    .with_every_fault();
}

#[test]
fn a_dimm_comes_in_with_every_fault() {
    Scenario {
        given: a_running_vm,
        action: |host| resize(host, 3, 320, "HOTPLUG"),
        done: |host| assert_eq!(sizes(host), (3, 320, 320)),
        repairs: &[|host| {
            resize(host, 3, 320, "HOTPLUG").unwrap();
            assert_eq!(sizes(host), (3, 320, 320));
        }],
    }
    .with_every_fault();
}

#[test]
fn a_dimm_leaves_with_every_fault() {
    Scenario {
        given: || {
            let host = a_running_vm();
            resize(&host, 2, 320, "HOTPLUG").unwrap();
            host
        },
        action: |host| resize(host, 1, 64, "HOTPLUG"),
        done: |host| assert_eq!(sizes(host), (1, 64, 64)),
        repairs: &[|host| {
            resize(host, 1, 64, "HOTPLUG").unwrap();
            assert_eq!(sizes(host), (1, 64, 64));
        }],
    }
    .with_every_fault();
}

#[test]
fn cpus_that_do_not_come_leave_memory_as_it_was() {
    for (mode, mib) in [("BALLOONING", 32), ("HOTPLUG", 320)] {
        let host = a_running_vm();
        let before = sizes(&host);
        host.faults().arm_first("set_vcpus", Fault::Fails(LibvirtErrorKind::Other));
        let error = resize(&host, 4, mib, mode).unwrap_err().to_string();
        assert!(error.starts_with("resize: could not resize VCPU to 4 on one-42: "), "{error}");
        assert!(error.ends_with("nothing was changed"), "{error}");
        assert_eq!(sizes(&host), before, "{mode}");
    }
}

#[test]
fn what_has_no_room_is_refused_before_anything_changes() {
    let host = a_running_vm();
    let before = host.portrait();
    for (vcpus, mib, mode, problem) in [
        (5, 32, "", "could not resize VCPU to 5 on one-42: it can have from 1 to 4, as it was started"),
        (0, 32, "", "it can have from 1 to 4"),
        (2, 65, "", "could not resize memory to 65 MiB on one-42: it can have 64 MiB at the most, as it was started"),
        (2, 63, "HOTPLUG", "a DIMM of 1 MiB would have to leave, and it has none"),
        (2, 8192, "HOTPLUG", "guest memory 65536 KiB, its hard_limit not set, free on the host 4194304 KiB"),
        (2, 4160, "HOTPLUG", "memory device total size exceeds hotplug space"),
    ] {
        let error = resize(&host, vcpus, mib, mode).unwrap_err().to_string();
        assert!(error.contains(problem) && error.ends_with("nothing was changed"), "{error}");
    }
    assert_eq!(host.portrait(), before);
}

/// A DIMM of a VM on huge pages takes only huge pages, of the same size and on the same NUMA node.
#[test]
fn a_dimm_of_huge_pages_needs_huge_pages() {
    let running_on = |pages: &str| {
        let host = ModelHost::default();
        let text = host
            .deployment(&vm())
            .replacen("<vcpu><![CDATA[1]]></vcpu>", "<vcpu current='2'>4</vcpu>", 1)
            .replacen(
                "<os>",
                &format!(
                    "<maxMemory slots='4' unit='KiB'>8388608</maxMemory><cpu><numa><cell id='0'/></numa></cpu>{pages}<os>"
                ),
                1,
            );
        actions::deploy(&host.host(), &host.deployment_file(&vm()), &text).unwrap();
        host
    };
    let backing = "<memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages></memoryBacking>";
    let host = running_on(&format!("{backing}<numatune><memnode cellid='0' mode='strict' nodeset='1'/></numatune>"));
    let before = host.portrait();
    // 4 GiB of normal memory are free.
    for (nodes, free) in [(&[][..], 0), (&[512, 127], 127)] {
        host.set_huge_pages(nodes);
        let error = resize(&host, 2, 320, "HOTPLUG").unwrap_err().to_string();
        let said = format!(
            "resize: could not resize memory to 320 MiB on one-42: a DIMM of 256 MiB needs 128 huge pages of 2048 KiB on NUMA \
             node 1, but only {free} are free"
        );
        assert!(error.starts_with(&said) && error.ends_with("; nothing was changed"), "{error}");
        assert_eq!(host.portrait(), before);
    }
    host.set_huge_pages(&[0, 128]);
    resize(&host, 2, 320, "HOTPLUG").unwrap();
    assert_eq!(sizes(&host), (2, 320, 320));
    // 5 GiB are asked for, while 4 GiB of normal memory are free.
    let host = running_on(backing);
    host.set_huge_pages(&[2560, 0]);
    resize(&host, 2, 64 + 5120, "HOTPLUG").unwrap();
    host.check();
}

#[test]
fn a_guest_that_keeps_its_cpus_keeps_all() {
    let host = a_running_vm();
    host.model().set_guest("one-42", Guest::Silent);
    let before = sizes(&host);
    let error = resize(&host, 1, 32, "").unwrap_err().to_string();
    let text = "one-42 has 2 VCPUs, and its guest may still release others";
    assert!(error.contains("vcpu unplug request timed out") && error.ends_with(text), "{error}");
    assert_eq!(sizes(&host), before);
}
