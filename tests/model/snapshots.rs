//! Snapshots of VMs with and without VFs, on a model host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use kvm_sriov::actions;
use kvm_sriov::libvirt::{DomainCalls, LibvirtErrorKind, SnapshotCalls};
use kvm_sriov::opennebula::NicArgs;
use kvm_sriov::xml::VmData;
use kvm_sriov::{ActionError, SnapshotName};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::every::Scenario;
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_model::{Course, Guest};
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

/// The VM: two NICs with VFs of one root, one with a VF of another root, and a NIC without a VF.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("br0").nic("sriov_ib1").nic("sriov_ib0")
}

fn plain() -> Vm {
    Vm::new(42).nic("br0")
}

/// The NICs with which the VM was deployed, and their bridges.
const NICS: [(usize, &str); 4] = [(0, "sriov_ib0"), (1, "br0"), (2, "sriov_ib1"), (3, "sriov_ib0")];

fn deploy(host: &ModelHost, vm: &Vm) {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop).unwrap();
}

/// OpenNebula's description of a VM with these NICs.
fn said(nics: &[(usize, &str)]) -> VmData {
    let mut text = "<VM><ID>42</ID><TEMPLATE>".to_owned();
    for (number, bridge) in nics {
        let mac = vm().mac(*number);
        write!(
            text,
            "<NIC><BRIDGE>{bridge}</BRIDGE><MAC>{mac}</MAC><NIC_ID>{number}</NIC_ID><TARGET>one-42-{number}</TARGET></NIC>"
        )
        .unwrap();
    }
    VmData::parse(&(text + "</TEMPLATE></VM>")).unwrap()
}

fn name(number: u32) -> SnapshotName {
    SnapshotName::of(number)
}

fn create(host: &ModelHost, number: u32) -> Result<(), ActionError> {
    let created = actions::snapshot_create(&host.host(), &vm().uuid().parse().unwrap(), number, Some(&said(&NICS)))?;
    assert_eq!(created, name(number));
    Ok(())
}

fn revert_to(host: &ModelHost, number: u32, nics: &[(usize, &str)]) -> Result<(), ActionError> {
    actions::snapshot_revert(&host.host(), &vm().uuid().parse().unwrap(), &name(number), Some(&said(nics)))
}

fn revert(host: &ModelHost, number: u32) -> Result<(), ActionError> {
    revert_to(host, number, &NICS)
}

fn delete(host: &ModelHost, number: u32) -> Result<(), ActionError> {
    actions::snapshot_delete(&host.host(), &vm().uuid().parse().unwrap(), &name(number))
}

fn attach(host: &ModelHost, number: usize, bridge: &str) {
    let arguments = NicArgs {
        mac: vm().mac(number).parse().unwrap(),
        bridge: Some(bridge.into()),
        model: None,
        vn_mad: None,
        target: Some(format!("one-42-{number}")),
    };
    actions::attach_nic(&host.host(), &vm().uuid().parse().unwrap(), &arguments.described(None), None).unwrap();
}

fn detach(host: &ModelHost, number: usize) {
    let mac = vm().mac(number).parse().unwrap();
    actions::detach_nic(&host.host(), &vm().uuid().parse().unwrap(), mac, None).unwrap();
}

/// A host on which the VM and a neighbour run.
fn a_running_vm() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &Vm::new(7).nic("sriov_ib0"));
    deploy(&host, &vm());
    host
}

fn with_snapshot() -> ModelHost {
    let host = a_running_vm();
    create(&host, 0).unwrap();
    host
}

/// Position, MAC, root and guest address of each VF, and the MACs and aliases of the interfaces.
fn devices(host: &ModelHost) -> (Vec<String>, Vec<String>) {
    let live = host.domain("one-42").unwrap();
    let wanted = live.wanted.clone().unwrap().unwrap_or_default();
    let nics = wanted.nics.iter().map(|nic| {
        format!("{} {} {} {}", nic.position, nic.mac, nic.root, live.device_of(nic).unwrap().guest.unwrap())
    });
    let mut interfaces: Vec<String> = live
        .interfaces
        .iter()
        .map(|interface| format!("{} {}", interface.mac, interface.target.as_deref().unwrap_or("-")))
        .collect();
    interfaces.sort();
    (nics.collect(), interfaces)
}

fn snapshots(host: &ModelHost) -> Vec<String> {
    let domain = host.model().find(&vm().uuid().parse().unwrap()).unwrap().unwrap();
    host.model().snapshots(&domain).unwrap().names
}

fn repaired(host: &ModelHost) {
    let report = host.reconcile().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn create_with_every_fault() {
    fn done(host: &ModelHost) {
        assert_eq!(snapshots(host), ["snap-0"]);
        assert_eq!(devices(host).0.len(), 3);
    }
    let scenario = Scenario {
        given: a_running_vm,
        action: |host| create(host, 0),
        done,
        repairs: &[
            |host| {
                repaired(host);
                // VFs that may still leave stay recorded as pending.
                create(host, 0).unwrap();
                done(host);
            },
            |host| {
                create(host, 0).unwrap();
                done(host);
            },
        ],
    };
    let calls = scenario.without_faults();
    assert_eq!(calls.iter().filter(|call| **call == "attach").count(), 3, "{calls:?}");
    scenario.with_every_fault();
}

#[test]
fn revert_with_every_fault() {
    fn done(host: &ModelHost) {
        assert_eq!(devices(host).0.len(), 3);
        assert_eq!(devices(host).1.len(), 4);
    }
    let scenario = Scenario {
        given: with_snapshot,
        action: |host| revert(host, 0),
        done,
        repairs: &[
            |host| {
                repaired(host);
                revert(host, 0).unwrap();
                done(host);
            },
            |host| {
                revert(host, 0).unwrap();
                done(host);
            },
        ],
    };
    scenario.with_every_fault();
}

#[test]
fn delete_with_every_fault() {
    fn done(host: &ModelHost) {
        assert_eq!(snapshots(host), ["snap-1"]);
        let files = host.vm_files();
        let files: Vec<_> = files.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(files, ["snap-1.xml"]);
    }
    let scenario = Scenario {
        given: || {
            let host = with_snapshot();
            create(&host, 1).unwrap();
            host
        },
        action: |host| delete(host, 0),
        done,
        repairs: &[|host| {
            delete(host, 0).unwrap();
            done(host);
        }],
    };
    let calls = scenario.without_faults();
    assert!(!calls.contains(&"detach_alias"), "{calls:?}");
    scenario.with_every_fault();
}

#[test]
fn a_snapshot_holds_no_vf_and_its_xml_is_kept() {
    let host = with_snapshot();
    let domain = host.model().find(&vm().uuid().parse().unwrap()).unwrap().unwrap();
    let xml = host.model().snapshot_xml(&domain, "snap-0").unwrap();
    assert!(!xml.contains("<hostdev"), "{xml}");
    let file = host.vm_dir(&vm()).join("snap-0.xml");
    assert_eq!(fs::read_to_string(&file).unwrap(), xml);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    host.check();
}

#[test]
fn a_vm_without_vfs_is_snapshot_as_the_stock_driver_does_it() {
    let host = ModelHost::default();
    deploy(&host, &plain());
    let before = host.portrait();
    let id = plain().uuid().parse().unwrap();
    let data = said(&[(0, "br0")]);
    host.faults().disarm();
    actions::snapshot_create(&host.host(), &id, 0, Some(&data)).unwrap();
    assert_eq!(host.faults().calls(), ["find", "live_xml", "create_snapshot", "live_xml", "snapshot_xml"]);
    host.faults().disarm();
    actions::snapshot_revert(&host.host(), &id, &name(0), Some(&data)).unwrap();
    assert_eq!(host.faults().calls(), ["find", "live_xml", "snapshot_xml", "revert_snapshot"]);
    actions::snapshot_delete(&host.host(), &id, &name(0)).unwrap();
    actions::snapshot_delete(&host.host(), &id, &name(0)).unwrap();
    assert_eq!(host.portrait(), before);
    assert!(!host.state_dir().exists(), "the state directory was made");
}

/// A VM with two snapshots in its disks that libvirt does not know any more.
fn with_forgotten_snapshots() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &plain());
    for number in [0, 1] {
        create(&host, number).unwrap();
    }
    let domain = host.model().find(&plain().uuid().parse().unwrap()).unwrap().unwrap();
    for number in [1, 0] {
        host.model().delete_snapshot(&domain, name(number).as_str(), true).unwrap();
    }
    assert_eq!(snapshots(&host), Vec::<String>::new());
    host
}

#[test]
fn a_snapshot_that_a_killed_move_made_libvirt_forget_is_reverted_to() {
    let host = with_forgotten_snapshots();
    revert_to(&host, 1, &[(0, "br0")]).unwrap();
    assert_eq!(snapshots(&host), ["snap-0", "snap-1"]);
    let error = revert_to(&host, 2, &[(0, "br0")]).unwrap_err().to_string();
    assert!(error.contains("snap-2"), "{error}");
}

#[test]
fn a_snapshot_that_a_killed_move_made_libvirt_forget_is_deleted_from_the_disks() {
    let host = with_forgotten_snapshots();
    // To delete one snapshot, the driver has made both known to libvirt again.
    for _ in 0..2 {
        delete(&host, 1).unwrap();
        assert_eq!(snapshots(&host), ["snap-0"]);
    }
}

#[test]
fn a_snapshot_that_opennebula_does_not_know_is_replaced() {
    let host = with_snapshot();
    create(&host, 0).unwrap();
    assert_eq!(snapshots(&host), ["snap-0"]);
    host.check();
}

#[test]
fn a_silent_guest_has_no_snapshot() {
    let host = with_snapshot();
    host.model().set_guest("one-42", Guest::Silent);
    let before = devices(&host);
    for error in [create(&host, 1).unwrap_err(), revert(&host, 0).unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("the VM runs on, the request stays pending in the guest"), "{text}");
    }
    assert_eq!(snapshots(&host), ["snap-0"]);
    assert_eq!(devices(&host), before);
    host.check_safe();
}

#[test]
fn a_paused_vm_is_left_alone() {
    let host = with_snapshot();
    host.model().pause("one-42");
    let before = host.portrait();
    for error in [create(&host, 1).unwrap_err(), revert(&host, 0).unwrap_err()] {
        assert!(error.to_string().ends_with("resume it first; nothing was changed"), "{error}");
    }
    assert_eq!(host.portrait(), before);
}

#[test]
fn a_missing_snapshot_is_reported_before_a_vf_is_unplugged() {
    let host = a_running_vm();
    let before = host.portrait();
    host.faults().disarm();
    let error = revert(&host, 5).unwrap_err().to_string();
    assert!(error.starts_with("snapshot_revert: could not revert to snapshot snap-5 for domain one-42: "), "{error}");
    assert!(error.ends_with("nothing was changed"), "{error}");
    assert!(!host.faults().calls().contains(&"detach_alias"));
    assert_eq!(host.portrait(), before);
    delete(&host, 5).unwrap();
}

#[test]
fn a_failed_revert_may_leave_no_domain() {
    let host = with_snapshot();
    host.model().set_course(Course::Fails);
    let error = revert(&host, 0).unwrap_err().to_string();
    assert!(error.ends_with("one-42 is gone, its VFs are free"), "{error}");
    assert!(host.domain("one-42").is_none());
    assert_eq!(host.claims().len(), 1);
    host.check();
}

#[test]
fn a_block_job_is_waited_for() {
    let host = a_running_vm();
    host.faults().disarm();
    let number = {
        let other = a_running_vm();
        other.faults().disarm();
        create(&other, 0).unwrap();
        other.faults().calls().iter().position(|call| *call == "create_snapshot").unwrap() + 1
    };
    host.faults().arm(number, Fault::Fails(LibvirtErrorKind::ActiveBlockJob));
    create(&host, 0).unwrap();
    assert!(host.faults().fired());
    host.check();
}

/// NICs 0, 2 and 3 have VFs when the snapshot is made. Then NIC 2 is detached, and NICs 4 and 5 are attached.
fn changed_since() -> ModelHost {
    let host = with_snapshot();
    detach(&host, 2);
    attach(&host, 4, "sriov_ib0");
    attach(&host, 5, "sriov_ib1");
    host
}

const NOW: [(usize, &str); 5] = [(0, "sriov_ib0"), (1, "br0"), (3, "sriov_ib0"), (4, "sriov_ib0"), (5, "sriov_ib1")];

#[test]
fn after_a_revert_the_vm_has_the_vfs_of_now_with_every_fault() {
    fn done(host: &ModelHost) {
        let (nics, interfaces) = devices(host);
        let expected = [
            format!("0 {} ib0 0000:00:10.0", vm().mac(0)),
            format!("1 {} ib0 0000:00:11.0", vm().mac(4)),
            format!("2 {} ib0 0000:00:12.0", vm().mac(3)),
            format!("3 {} ib1 0000:00:13.0", vm().mac(5)),
        ];
        assert_eq!(nics, expected);
        let mut expected = vec![
            format!("{} one-42-1", vm().mac(1)),
            format!("{} one-42-0", vm().dummy_mac(0, 0)),
            format!("{} one-42-4", vm().dummy_mac(1, 4)),
            format!("{} one-42-3", vm().dummy_mac(2, 3)),
            format!("{} one-42-5", vm().dummy_mac(3, 5)),
        ];
        expected.sort();
        assert_eq!(interfaces, expected);
    }
    let host = changed_since();
    done(&host);
    let scenario = Scenario {
        given: changed_since,
        action: |host| revert_to(host, 0, &NOW),
        done,
        repairs: &[|host| {
            revert_to(host, 0, &NOW).unwrap();
            done(host);
        }],
    };
    scenario.with_every_fault();
}

#[test]
fn a_nic_that_only_the_snapshot_has_is_kept_if_opennebula_describes_it() {
    let host = with_snapshot();
    let before = devices(&host);
    detach(&host, 2);
    revert(&host, 0).unwrap();
    assert_eq!(devices(&host), before);
    host.check();
}

#[test]
fn a_vm_that_lost_its_last_vf_gets_none_from_an_old_snapshot() {
    let host = with_snapshot();
    for number in [0, 2, 3] {
        detach(&host, number);
    }
    let before = devices(&host);
    revert_to(&host, 0, &[(1, "br0")]).unwrap();
    assert_eq!(devices(&host), before);
    assert_eq!(host.claims().len(), 1);
    host.check();
}

#[test]
fn a_vm_whose_first_vf_came_later_keeps_it() {
    let host = ModelHost::default();
    deploy(&host, &plain());
    create(&host, 0).unwrap();
    attach(&host, 1, "sriov_ib0");
    let before = devices(&host);
    revert_to(&host, 0, &[(0, "br0"), (1, "sriov_ib0")]).unwrap();
    assert_eq!(devices(&host), before);
    // Without OpenNebula's description the VM keeps the NICs that it has.
    actions::snapshot_revert(&host.host(), &vm().uuid().parse().unwrap(), &name(0), None).unwrap();
    assert_eq!(devices(&host).0, before.0);
    host.check();
}

#[test]
fn an_interface_on_a_bridge_of_such_a_name_is_no_vf() {
    let host = ModelHost::default();
    deploy(&host, &plain());
    create(&host, 0).unwrap();
    let before = host.portrait();
    revert_to(&host, 0, &[(0, "sriov_ib0")]).unwrap();
    assert_eq!(host.portrait()[1..], before[1..]);
    host.check();
}

#[test]
fn nothing_is_reverted_if_the_vfs_lack_something() {
    let host = with_snapshot();
    let before = host.portrait();
    host.set_kvmrc("DUMMY_BRIDGE=nowhere\n");
    let error = revert(&host, 0).unwrap_err().to_string();
    assert!(error.contains("DUMMY_BRIDGE nowhere") && error.ends_with("nothing was changed"), "{error}");
    assert_eq!(host.portrait(), before);
}
