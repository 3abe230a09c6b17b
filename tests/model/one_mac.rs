//! VMs in which several NICs have the same MAC, on model hosts. OpenNebula makes such VMs from the same lease in two
//! networks.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use kvm_sriov::actions;
use kvm_sriov::libvirt::{DomainCalls, PowerCalls};
use kvm_sriov::opennebula::{self, NicArgs};
use kvm_sriov::xml::{AdoptedDevices, VmData, Wanted, alias_of};
use kvm_sriov::{ActionError, DomainName, SnapshotName};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::every::Scenario;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

/// A VM whose NICs all have the MAC of the first: two with VFs of one root, one with a VF of another root, and one
/// without a VF.
fn vm() -> Vm {
    Vm::new(42)
        .nic("sriov_ib0")
        .nic_with_mac_of(0, "br0")
        .nic_with_mac_of(0, "sriov_ib1")
        .nic_with_mac_of(0, "sriov_ib0")
}

/// The VM with two more NICs.
fn grown() -> Vm {
    vm().nic_with_mac_of(0, "sriov_ib0").nic_with_mac_of(0, "br0")
}

fn neighbour() -> Vm {
    Vm::new(7).nic("sriov_ib0")
}

/// Writes the description of a VM next to the deployment file, as OpenNebula does since 6.0.
fn describe(host: &ModelHost, vm: &Vm) {
    let dir = host.vm_dir(vm);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("vm.xml"), vm.action_data("host1").xml()).unwrap();
}

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

fn a_host() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &neighbour()).unwrap();
    describe(&host, &vm());
    host
}

fn a_running_vm() -> ModelHost {
    let host = a_host();
    deploy(&host, &vm()).unwrap();
    host
}

fn said(vm: &Vm, number: usize) -> VmData {
    VmData::parse(&vm.action_data("host1").attach(number).xml()).unwrap()
}

fn attach(host: &ModelHost, vm: &Vm, number: usize) -> Result<(), ActionError> {
    let id = vm.uuid().parse().unwrap();
    actions::attach_nic(
        &host.host(),
        &id,
        &vm.nic_arguments(number, vm.bridge(number)).described(Some(&said(vm, number))),
        Some(&said(vm, number)),
    )
}

fn detach(host: &ModelHost, vm: &Vm, number: usize) -> Result<(), ActionError> {
    let mac = vm.mac(number).parse().unwrap();
    actions::detach_nic(&host.host(), &vm.uuid().parse().unwrap(), mac, Some(&said(vm, number)))
}

fn detach_by_mac(host: &ModelHost) -> Result<(), ActionError> {
    actions::detach_nic(&host.host(), &vm().uuid().parse().unwrap(), vm().mac(0).parse().unwrap(), None)
}

/// For each NIC with a VF: its NIC_ID, position and root, and the positions in its claim and in the MAC of its dummy.
/// And the target devices of all interfaces on the host.
fn portrait(host: &ModelHost) -> (Vec<String>, Vec<String>) {
    let live = host.domain("one-42").unwrap();
    let store = host.host().existing_claims().unwrap().unwrap();
    let claimants = store.claimants().unwrap();
    let nics = live.wanted.clone().unwrap().unwrap().nics;
    let nics = nics.iter().map(|nic| {
        let device = live.device_of(nic).unwrap();
        assert_eq!(device.alias, Some(alias_of(nic.position)));
        let claim = claimants.iter().flat_map(|claimant| &claimant.claims).find(|claim| claim.vf == device.vf).unwrap();
        let dummy = live.dummy_of(nic).unwrap().mac.octets()[1];
        let (id, claim) = (nic.nic_id.unwrap(), claim.position.unwrap());
        format!("{id} at {}, {}, claim {claim}, dummy {dummy}", nic.position, nic.root)
    });
    let mut targets: Vec<String> = live.interfaces.iter().filter_map(|interface| interface.target.clone()).collect();
    targets.sort();
    (nics.collect(), targets)
}

fn has(host: &ModelHost, nics: &[&str], targets: &[usize]) {
    let targets = targets.iter().map(|number| format!("one-42-{number}")).collect();
    assert_eq!(portrait(host), (nics.iter().map(|nic| (*nic).to_owned()).collect(), targets));
    // The neighbour has one claim.
    assert_eq!(host.claims().len(), nics.len() + 1, "{:?}", host.claims());
}

const FIRST: &str = "0 at 0, ib0, claim 0, dummy 0";
const SECOND: &str = "2 at 1, ib1, claim 1, dummy 1";
const THIRD: &str = "3 at 2, ib0, claim 2, dummy 2";
const FOURTH: &str = "4 at 3, ib0, claim 3, dummy 3";

fn has_all(host: &ModelHost) {
    has(host, &[FIRST, SECOND, THIRD], &[0, 1, 2, 3]);
}

fn repaired(host: &ModelHost) {
    let report = host.reconcile().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

fn cancelled(host: &ModelHost) {
    actions::cancel(&host.host(), &vm().uuid().parse().unwrap(), Some(&DomainName::of_vm(42))).unwrap();
    assert!(host.domain("one-42").is_none());
    assert_eq!(host.claims().len(), 1);
}

#[test]
fn it_is_deployed_with_every_fault() {
    Scenario { given: a_host, action: |host| deploy(host, &vm()), done: has_all, repairs: &[cancelled] }
        .with_every_fault();
}

#[test]
fn another_comes_with_every_fault() {
    fn has_it(host: &ModelHost) {
        has(host, &[FIRST, SECOND, THIRD, FOURTH], &[0, 1, 2, 3, 4]);
    }
    let scenario = Scenario {
        given: a_running_vm,
        action: |host| attach(host, &grown(), 4),
        done: has_it,
        repairs: &[
            repaired,
            |host| {
                attach(host, &grown(), 4).unwrap();
                has_it(host);
                // A second call finds the NIC attached.
                attach(host, &grown(), 4).unwrap();
                has_it(host);
            },
            |host| {
                detach(host, &grown(), 4).unwrap();
                has_all(host);
            },
        ],
    };
    scenario.with_every_fault();
}

#[test]
fn one_without_a_vf_comes_and_goes_with_every_fault() {
    fn has_it(host: &ModelHost) {
        has(host, &[FIRST, SECOND, THIRD], &[0, 1, 2, 3, 5]);
    }
    let comes = Scenario {
        given: a_running_vm,
        action: |host| attach(host, &grown(), 5),
        done: has_it,
        repairs: &[
            |host| {
                attach(host, &grown(), 5).unwrap();
                has_it(host);
            },
            |host| {
                detach(host, &grown(), 5).unwrap();
                has_all(host);
            },
        ],
    };
    comes.with_every_fault();
    let goes = Scenario {
        given: || {
            let host = a_running_vm();
            attach(&host, &grown(), 5).unwrap();
            host
        },
        action: |host| detach(host, &grown(), 5),
        done: has_all,
        repairs: &[|host| {
            for _ in 0..2 {
                detach(host, &grown(), 5).unwrap();
                has_all(host);
            }
        }],
    };
    goes.with_every_fault();
}

#[test]
fn the_named_one_leaves_with_every_fault() {
    fn is_gone(host: &ModelHost) {
        has(host, &[FIRST, SECOND], &[0, 1, 2]);
    }
    let scenario = Scenario {
        given: a_running_vm,
        action: |host| detach(host, &vm(), 3),
        done: is_gone,
        repairs: &[
            |host| {
                repaired(host);
                host.check_safe();
                detach(host, &vm(), 3).unwrap();
                is_gone(host);
            },
            |host| {
                for _ in 0..2 {
                    detach(host, &vm(), 3).unwrap();
                    is_gone(host);
                }
            },
        ],
    };
    scenario.with_every_fault();
}

#[test]
fn each_leaves_and_comes_back() {
    let host = a_running_vm();
    let rest = [vec![SECOND, THIRD], vec![FIRST, SECOND, THIRD], vec![FIRST, THIRD], vec![FIRST, SECOND]];
    for (number, rest) in rest.iter().enumerate() {
        for _ in 0..2 {
            detach(&host, &vm(), number).unwrap();
            let targets: Vec<usize> = (0..4).filter(|other| *other != number).collect();
            has(&host, rest, &targets);
            host.check();
        }
        for _ in 0..2 {
            attach(&host, &vm(), number).unwrap();
            has_all(&host);
            host.check();
        }
    }
}

#[test]
fn a_mac_alone_names_none_of_several() {
    let host = a_running_vm();
    let before = host.portrait();
    assert_eq!(
        detach_by_mac(&host).unwrap_err().to_string(),
        "detach_nic: one-42 has several NICs with MAC 02:00:0a:00:2a:00 (a VF of ib0 at position 0, a VF of ib1 at position \
         1, a VF of ib0 at position 2, one-42-1 on br0), and OpenNebula does not say which one is meant; nothing was changed"
    );
    assert_eq!(host.portrait(), before);
    for number in [0, 1, 2] {
        detach(&host, &vm(), number).unwrap();
    }
    detach_by_mac(&host).unwrap();
    detach_by_mac(&host).unwrap();
    assert_eq!(host.domain("one-42").unwrap().interfaces, []);
    assert_eq!(host.claims().len(), 1);
    host.check();
}

#[test]
fn a_mac_alone_is_enough_for_another_network() {
    // Before OpenNebula 5.0, actions get no description.
    let host = a_host();
    let one = Vm::new(42).nic("sriov_ib0").nic_with_mac_of(0, "sriov_ib1").nic_with_mac_of(0, "br0");
    deploy(&host, &Vm::new(42).nic("sriov_ib0")).unwrap();
    let bare = |number| NicArgs { target: None, vn_mad: None, ..one.nic_arguments(number, one.bridge(number)) };
    for number in [1, 2, 1, 2] {
        actions::attach_nic(&host.host(), &one.uuid().parse().unwrap(), &bare(number).described(None), None).unwrap();
    }
    let live = host.domain("one-42").unwrap();
    assert_eq!((live.hostdevs.len(), live.interfaces.len()), (2, 3));
    host.check();
}

#[test]
fn it_is_saved_and_restored_with_every_fault() {
    fn checkpoint(host: &ModelHost) -> std::path::PathBuf {
        host.vm_dir(&vm()).join("checkpoint")
    }
    fn save(host: &ModelHost) -> Result<(), ActionError> {
        actions::save(&host.host(), &vm().uuid().parse().unwrap(), &checkpoint(host), None)
    }
    fn restore(host: &ModelHost) -> Result<(), ActionError> {
        let file = checkpoint(host);
        actions::restore(&host.host(), &file, opennebula::vm_of_checkpoint(&file).as_ref())
    }
    fn is_saved(host: &ModelHost) {
        assert!(host.domain("one-42").is_none() && checkpoint(host).exists());
        assert_eq!(host.claims().len(), 1);
    }
    let save_scenario = Scenario {
        given: a_running_vm,
        action: save,
        done: is_saved,
        repairs: &[|host| {
            repaired(host);
            if host.domain("one-42").is_some() {
                save(host).unwrap();
            }
            is_saved(host);
        }],
    };
    save_scenario.with_every_fault();
    let restore_scenario = Scenario {
        given: || {
            let host = a_running_vm();
            save(&host).unwrap();
            host
        },
        action: restore,
        done: has_all,
        repairs: &[|host| {
            repaired(host);
            if host.domain("one-42").is_none() {
                restore(host).unwrap();
            }
            has_all(host);
        }],
    };
    restore_scenario.with_every_fault();
}

#[test]
fn snapshots_with_every_fault() {
    fn id() -> kvm_sriov::DomainId {
        vm().uuid().parse().unwrap()
    }
    fn data() -> VmData {
        VmData::parse(&vm().action_data("host1").xml()).unwrap()
    }
    fn create(host: &ModelHost) -> Result<(), ActionError> {
        actions::snapshot_create(&host.host(), &id(), 0, Some(&data())).map(drop)
    }
    let takes = Scenario {
        given: a_running_vm,
        action: create,
        done: has_all,
        repairs: &[|host| {
            repaired(host);
            create(host).unwrap();
            has_all(host);
        }],
    };
    takes.with_every_fault();
    fn revert(host: &ModelHost) -> Result<(), ActionError> {
        actions::snapshot_revert(&host.host(), &id(), &SnapshotName::of(0), Some(&data()))
    }
    // Between the snapshot and the revert, one NIC is detached and the other one attached.
    let reverts = Scenario {
        given: || {
            let host = a_host();
            let before = Vm::new(42).nic("sriov_ib0").nic_with_mac_of(0, "br0").nic_with_mac_of(0, "sriov_ib1");
            describe(&host, &before);
            deploy(&host, &before).unwrap();
            create(&host).unwrap();
            attach(&host, &vm(), 3).unwrap();
            detach(&host, &vm(), 0).unwrap();
            attach(&host, &vm(), 0).unwrap();
            host
        },
        action: revert,
        done: has_all,
        repairs: &[|host| {
            repaired(host);
            revert(host).unwrap();
            has_all(host);
        }],
    };
    reverts.with_every_fault();
}

/// A VM as the driver of 2013 started it: without our metadata and aliases.
#[test]
fn a_vm_of_the_driver_of_2013_is_adopted() {
    let host = ModelHost::default();
    let plain = Vm::new(42).nic("br0");
    let pair = |number: usize, root: &str, index: usize| {
        format!(
            "<hostdev mode='subsystem' type='pci' managed='yes'><source><address {}/></source></hostdev>\
             <interface type='bridge'><source bridge='dummy_br'/><mac address='{}'/><target dev='one-42-{number}'/>\
             <model type='e1000'/></interface>",
            host.vfs(root)[index].to_attributes(),
            vm().dummy_mac(if number == 0 { 0 } else { number - 1 }, 0),
        )
    };
    let devices = pair(0, "ib0", 2) + &pair(2, "ib1", 1) + &pair(3, "ib0", 1) + "</devices>";
    // Devices that OpenNebula itself describes: a VF as a PCI device, and a NIC whose MAC looks like that of a dummy.
    let passed = host.vfs("ib0")[3];
    let own = format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address {}/></source></hostdev>\
         <interface type='bridge'><source bridge='dummy_br'/><mac address='aa:00:00:00:00:01'/></interface>",
        passed.to_attributes(),
    );
    let xml = host.deployment(&plain).replace("one-42-0", "one-42-1").replacen("</devices>", &(own + &devices), 1);
    host.model().create(&xml, CALL_LIMIT).unwrap();
    let described = format!(
        "<PCI><DOMAIN>{:04x}</DOMAIN><BUS>{:02x}</BUS><SLOT>{:02x}</SLOT><FUNCTION>{}</FUNCTION></PCI>\
         <NIC><BRIDGE>dummy_br</BRIDGE><MAC>aa:00:00:00:00:01</MAC><NIC_ID>9</NIC_ID></NIC><OS>",
        passed.domain(),
        passed.bus(),
        passed.slot(),
        passed.function()
    );
    let text = vm().action_data("host1").attach(3).xml().replacen("<OS>", &described, 1);
    let (id, mac) = (vm().uuid().parse().unwrap(), vm().mac(3).parse().unwrap());
    actions::detach_nic(&host.host(), &id, mac, Some(&VmData::parse(&text).unwrap())).unwrap();
    let live = host.domain("one-42").unwrap();
    assert!(live.hostdevs.iter().any(|device| device.vf == passed));
    let wanted = live.wanted.clone().unwrap().unwrap();
    let nics: Vec<_> =
        wanted.nics.iter().map(|nic| (nic.nic_id, nic.root.to_string(), live.device_of(nic).unwrap().vf)).collect();
    let expected = [(Some(0), "ib0".to_owned(), host.vfs("ib0")[2]), (Some(2), "ib1".to_owned(), host.vfs("ib1")[1])];
    assert_eq!(nics, expected);
    let mut targets: Vec<_> = live.interfaces.iter().filter_map(|interface| interface.target.clone()).collect();
    targets.retain(|target| target.starts_with("one-"));
    targets.sort();
    assert_eq!(targets, ["one-42-0", "one-42-1", "one-42-2"]);
    // The third claim is for the PCI device that OpenNebula gave to the VM: no other VM may get it.
    assert_eq!(host.claims().len(), 3);
    // Metadata of an earlier version, which found devices by guest address and MAC and did not name them.
    let mut earlier = wanted.clone();
    for nic in &mut earlier.nics {
        nic.adopted = AdoptedDevices::default();
    }
    let domain = host.model().find(&id).unwrap().unwrap();
    let text = earlier.to_unqualified_xml();
    host.model().set_metadata(&domain, Some(&text), Wanted::PREFIX, Wanted::NAMESPACE).unwrap();
    host.reconcile().unwrap();
    let again = host.domain("one-42").unwrap();
    assert_eq!(again.wanted.clone().unwrap().unwrap().nics[0].adopted, wanted.nics[0].adopted);
    assert_eq!((again.hostdevs.len(), again.interfaces.len()), (live.hostdevs.len(), live.interfaces.len()));
    assert_eq!(host.claims().len(), 3);
}
