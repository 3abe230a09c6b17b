//! A VM lacks a VF and no map can supply one. Only actions that ask for that VF fail.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use kvm_sriov::actions;
use kvm_sriov::libvirt::{DeviceCalls, DomainCalls, LibvirtErrorKind};
use kvm_sriov::opennebula::{Message, NicArgs};
use kvm_sriov::xml::VmData;
use kvm_sriov::{ActionError, DomainId, DomainName, SnapshotName};
use kvm_sriov_model::Course;
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

/// Two NICs on one root, one on another root, whose VF will be missing, and a NIC without a VF.
fn vm() -> Vm {
    Vm::new(42).disk().nic("sriov_ib0").nic("br0").nic("sriov_ib1").nic("sriov_ib0")
}

fn id() -> DomainId {
    vm().uuid().parse().unwrap()
}

fn deploy(host: &ModelHost, vm: &Vm, text: &str) {
    actions::deploy(&host.host(), &host.deployment_file(vm), text).map(drop).unwrap();
}

/// Why no map can supply the VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    /// All VFs of the root are in use.
    Full,
    /// The map of the root was removed.
    NoMap,
}

const WHY: [Obstacle; 2] = [Obstacle::Full, Obstacle::NoMap];

/// A host with the running VM: all its VFs, a CD, 2 of 4 CPUs, and a snapshot.
fn running() -> ModelHost {
    let host = ModelHost::default();
    let cd = "<disk type='file' device='cdrom'><source file='/ds/0/42/disk.1'/><target dev='hda' bus='ide'/><readonly/></disk>";
    let text = host.deployment(&vm()).replacen("<vcpu><![CDATA[1]]></vcpu>", "<vcpu current='2'>4</vcpu>", 1).replacen(
        "<controller type='scsi'",
        &format!("{cd}<controller type='scsi'"),
        1,
    );
    deploy(&host, &vm(), &text);
    snapshot(&host, 0).unwrap();
    host
}

/// The same host after the VM has lost the VF at position 1.
fn lacking(why: Obstacle) -> ModelHost {
    let host = running();
    let domain = host.model().find(&id()).unwrap().unwrap();
    host.model().detach_alias(&domain, "ua-sriov-1", CALL_LIMIT).unwrap();
    until("it leaves", || host.domain("one-42").unwrap().hostdevs.len() == 2);
    let own = host.claims().into_keys().find(|name| name.starts_with("ib1/")).unwrap();
    fs::remove_file(host.state_dir().join(own)).unwrap();
    match why {
        Obstacle::NoMap => host.remove_map("ib1"),
        Obstacle::Full => {
            let other = (0..4).fold(Vm::new(8), |vm, _| vm.nic("sriov_ib1"));
            deploy(&host, &other, &host.deployment(&other));
        }
    }
    host.faults().disarm();
    host
}

/// Checks that the VM runs with the VFs of its first root and without the VF of the other.
fn lacks(host: &ModelHost) {
    let live = host.domain("one-42").unwrap();
    let wanted = live.wanted.clone().unwrap().unwrap();
    let has: Vec<(String, bool)> =
        wanted.nics.iter().map(|nic| (nic.mac.to_string(), live.device_of(nic).is_some())).collect();
    assert_eq!(has, [(vm().mac(0), true), (vm().mac(2), false), (vm().mac(3), true)]);
    let operation = wanted.operation.map(|operation| operation.kind.to_string());
    assert!(operation.as_deref().is_none_or(|kind| kind == "pending-unplug"), "{operation:?}");
    host.check_safe();
}

fn save(host: &ModelHost) -> Result<(), ActionError> {
    actions::save(&host.host(), &id(), &host.vm_dir(&vm()).join("checkpoint"), None)
}

fn snapshot(host: &ModelHost, number: u32) -> Result<(), ActionError> {
    actions::snapshot_create(&host.host(), &id(), number, None).map(drop)
}

fn revert(host: &ModelHost, data: Option<&str>) -> Result<(), ActionError> {
    let data = data.map(|data| VmData::parse(data).unwrap());
    actions::snapshot_revert(&host.host(), &id(), &SnapshotName::of(0), data.as_ref())
}

/// OpenNebula's message about the VM, with this element.
fn message(what: &str) -> String {
    format!("<VMM_DRIVER_ACTION_DATA><VM><ID>42</ID><TEMPLATE>{what}</TEMPLATE></VM></VMM_DRIVER_ACTION_DATA>")
}

fn attach_nic(host: &ModelHost, number: usize, bridge: &str) -> Result<(), ActionError> {
    let arguments = NicArgs {
        mac: vm().mac(number).parse().unwrap(),
        bridge: Some(bridge.into()),
        model: None,
        vn_mad: None,
        target: Some(format!("one-42-{number}")),
    };
    actions::attach_nic(&host.host(), &id(), &arguments.described(None), None)
}

fn detach_nic(host: &ModelHost, number: usize) -> Result<(), ActionError> {
    actions::detach_nic(&host.host(), &id(), vm().mac(number).parse().unwrap(), None)
}

type Action = fn(&ModelHost) -> Result<(), ActionError>;

/// All actions after which the VM is on the same host with its VFs.
const CHANGES: [(&str, Action); 10] = [
    ("snapshot_create", |host| snapshot(host, 1)),
    ("snapshot_revert", |host| revert(host, None)),
    ("snapshot_delete", |host| actions::snapshot_delete(&host.host(), &id(), &SnapshotName::of(0))),
    ("attach_disk and detach_disk", |host| {
        let disk = "<DISK><ATTACH>YES</ATTACH><DISK_ID>2</DISK_ID><TYPE>FILE</TYPE></DISK>";
        let disk = Message::new(kvm_sriov::Action::AttachDisk, message(disk)).attached_disk()?;
        actions::attach_disk(&host.host(), &id(), &disk, "/ds/0/42/disk.2", "vdb", None)?;
        actions::detach_disk(&host.host(), &id(), "vdb", None)
    }),
    ("prereconfigure and reconfigure", |host| {
        actions::prereconfigure(&host.host(), &id(), Some("hda"), None)?;
        actions::reconfigure(&host.host(), &id(), Some("hda"), Some("/ds/new.iso".as_ref()), None)
    }),
    ("resize", |host| {
        let wanted = Message::new(kvm_sriov::Action::Resize, message("<VCPU>3</VCPU><MEMORY>64</MEMORY>")).resize()?;
        actions::resize(&host.host(), &id(), &wanted, None)
    }),
    ("attach_nic and detach_nic without a VF", |host| {
        attach_nic(host, 4, "br0")?;
        detach_nic(host, 4)
    }),
    ("attach_nic and detach_nic with a VF", |host| {
        attach_nic(host, 4, "sriov_ib0")?;
        detach_nic(host, 4)
    }),
    ("reboot", |host| actions::reboot(&host.host(), &id())),
    ("reset", |host| actions::reset(&host.host(), &id())),
];

#[test]
fn a_vm_that_lacks_a_vf_is_changed() {
    for why in WHY {
        for (name, action) in CHANGES {
            let host = lacking(why);
            eprintln!("{name}, {why:?}");
            action(&host).unwrap();
            lacks(&host);
        }
    }
}

#[test]
fn a_vm_that_lacks_a_vf_is_saved_and_no_vf_is_plugged_for_that() {
    for why in WHY {
        let host = lacking(why);
        save(&host).unwrap();
        assert_eq!(host.faults().count("attach"), 0, "{why:?}");
        assert!(host.domain("one-42").is_none());
        assert!(host.model().is_newest(&host.vm_dir(&vm()).join("checkpoint")).unwrap());
        host.check_safe();
        assert!(host.claims().values().all(|claim| !claim.contains("one-42")), "{:?}", host.claims());
    }
    // A VF that could be plugged is not plugged, because the action would unplug it at once.
    let host = running();
    let domain = host.model().find(&id()).unwrap().unwrap();
    host.model().detach_alias(&domain, "ua-sriov-1", CALL_LIMIT).unwrap();
    until("it leaves", || host.domain("one-42").unwrap().hostdevs.len() == 2);
    for action in [save as Action, |host| snapshot(host, 1)] {
        host.faults().disarm();
        host.faults().arm_first("save", Fault::Fails(LibvirtErrorKind::Other));
        drop(action(&host));
        let calls = host.faults().calls();
        let (attach, detach) =
            ["attach", "detach_alias"].map(|name| calls.iter().position(|call| *call == name).unwrap()).into();
        assert!(detach < attach, "{calls:?}");
        host.faults().disarm();
        host.check();
        host.model().detach_alias(&domain, "ua-sriov-1", CALL_LIMIT).unwrap();
        until("it leaves", || host.domain("one-42").unwrap().hostdevs.len() == 2);
    }
}

#[test]
fn a_failed_action_leaves_a_vm_that_lacks_a_vf_as_it_was() {
    for why in WHY {
        let host = lacking(why);
        host.model().set_course(Course::Fails);
        let error = save(&host).unwrap_err().to_string();
        assert!(error.ends_with("nothing was saved, the domain runs on"), "{error}");
        lacks(&host);
        host.faults().arm_first("create_snapshot", Fault::Fails(LibvirtErrorKind::Other));
        let error = snapshot(&host, 1).unwrap_err().to_string();
        assert!(error.ends_with("nothing was changed"), "{error}");
        lacks(&host);
        host.faults().arm_first("revert_snapshot", Fault::Fails(LibvirtErrorKind::Other));
        let error = revert(&host, None).unwrap_err().to_string();
        assert!(error.ends_with("the domain runs on"), "{error}");
        lacks(&host);
    }
}

/// A claimed VF needs no map.
#[test]
fn a_vm_whose_maps_are_gone_gets_its_own_vfs_back() {
    let host = running();
    let before = host.domain("one-42").unwrap().hostdevs;
    host.remove_map("ib0");
    host.remove_map("ib1");
    host.faults().disarm();
    host.model().set_course(Course::Fails);
    let error = save(&host).unwrap_err().to_string();
    assert!(error.ends_with("nothing was saved, the domain runs on"), "{error}");
    assert_eq!(host.domain("one-42").unwrap().hostdevs, before);
    snapshot(&host, 1).unwrap();
    revert(&host, None).unwrap();
    assert_eq!(host.domain("one-42").unwrap().hostdevs, before);
    host.check_safe();
    save(&host).unwrap();
}

#[test]
fn only_actions_that_ask_for_the_missing_vf_fail() {
    for (why, text) in [(Obstacle::Full, "no free VF on ib1"), (Obstacle::NoMap, "ib1")] {
        let host = lacking(why);
        for number in [2, 4] {
            let error = attach_nic(&host, number, "sriov_ib1").unwrap_err().to_string();
            assert!(error.contains(text) && error.ends_with("nothing was changed"), "{error}");
            lacks(&host);
        }
        detach_nic(&host, 2).unwrap();
        host.check_safe();
        assert_eq!(host.domain("one-42").unwrap().wanted.unwrap().unwrap().nics.len(), 2);
    }
    // A NIC that has lost its VF gets one when its attach is repeated.
    let host = lacking(Obstacle::Full);
    actions::cancel(&host.host(), &Vm::new(8).uuid().parse().unwrap(), Some(&DomainName::of_vm(8))).unwrap();
    attach_nic(&host, 2, "sriov_ib1").unwrap();
    host.check();
    // A NIC that was attached after the snapshot asks for a VF.
    let host = lacking(Obstacle::Full);
    let nic = |number: usize, root: &str| {
        let mac = vm().mac(number);
        format!("<NIC><BRIDGE>{root}</BRIDGE><MAC>{mac}</MAC><NIC_ID>{number}</NIC_ID></NIC>")
    };
    let nics = nic(0, "sriov_ib0") + &nic(2, "sriov_ib1") + &nic(3, "sriov_ib0");
    let said = |more: &str| format!("<VM><ID>42</ID><TEMPLATE>{nics}{more}</TEMPLATE></VM>");
    revert(&host, Some(&said(""))).unwrap();
    lacks(&host);
    let error = revert(&host, Some(&said(&nic(5, "sriov_ib1")))).unwrap_err().to_string();
    assert!(error.contains("no free VF on ib1") && error.contains("one-42 is reverted but may lack VFs"), "{error}");
}

#[test]
fn a_vm_that_lacks_a_vf_ends() {
    for why in WHY {
        for action in [
            |host: &ModelHost| actions::shutdown(&host.host(), &id(), true),
            |host: &ModelHost| actions::cancel(&host.host(), &id(), Some(&DomainName::of_vm(42))),
        ] {
            let host = lacking(why);
            action(&host).unwrap();
            assert!(host.domain("one-42").is_none());
            host.check_safe();
            assert!(host.claims().values().all(|claim| !claim.contains("one-42")));
        }
    }
}

#[test]
fn a_vm_that_lacks_a_vf_moves_and_gets_one_if_one_is_free() {
    for why in WHY {
        // The destination has a VF for the NIC.
        let host = lacking(why);
        let there = host.beside("host2", 4);
        host.migrate(&there, &id()).unwrap();
        assert_eq!(host.faults().count("attach"), 0, "{why:?}");
        there.check();
        // The destination has none: the NIC arrives without a VF.
        for why_there in WHY {
            let hosts = [lacking(why), ModelHost::default()];
            let there = hosts[0].beside("host2", 4);
            match why_there {
                Obstacle::NoMap => there.remove_map("ib1"),
                Obstacle::Full => {
                    let other = (0..4).fold(Vm::new(9), |vm, _| vm.nic("sriov_ib1"));
                    deploy(&there, &other, &there.deployment(&other));
                }
            }
            hosts[0].migrate(&there, &id()).unwrap();
            lacks(&there);
            assert!(hosts[0].domain("one-42").is_none());
        }
        // A NIC that has a VF at the source must get one at the destination.
        let host = lacking(why);
        let there = host.beside("host2", 4);
        there.remove_map("ib0");
        let error = host.migrate(&there, &id()).unwrap_err().to_string();
        assert!(error.contains("ib0"), "{error}");
        lacks(&host);
        assert_eq!(there.claims().len(), 0);
    }
}
