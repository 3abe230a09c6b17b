//! VFs as adapters have them, on model hosts: they go from one VM to the next, run out, vanish and come back, and have
//! addresses of every form. docs/reference/faults.md names these tests.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use kvm_sriov::actions;
use kvm_sriov::libvirt::DomainCalls;
use kvm_sriov::opennebula::NicArgs;
use kvm_sriov::reconcile::{Options, reconcile};
use kvm_sriov::xml::VmData;
use kvm_sriov::{ActionError, DomainName, PciAddress, VfState};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

fn cancel(host: &ModelHost, vm: &Vm) {
    actions::cancel(&host.host(), &vm.uuid().parse().unwrap(), Some(&DomainName::of_vm(vm.id))).unwrap();
    assert!(host.domain(&vm.name()).is_none());
}

fn attach_with(host: &ModelHost, vm: &Vm, mac: &str, number: usize) -> Result<(), ActionError> {
    let arguments = NicArgs {
        mac: mac.parse().unwrap(),
        bridge: Some("sriov_ib0".into()),
        model: None,
        vn_mad: Some("sriov".into()),
        target: None,
    };
    let nic =
        format!("<NIC><ATTACH>YES</ATTACH><BRIDGE>sriov_ib0</BRIDGE><MAC>{mac}</MAC><NIC_ID>{number}</NIC_ID></NIC>");
    let data = VmData::parse(&format!("<VM><ID>{}</ID><TEMPLATE>{nic}</TEMPLATE></VM>", vm.id)).unwrap();
    actions::attach_nic(&host.host(), &vm.uuid().parse().unwrap(), &arguments.described(Some(&data)), Some(&data))
}

fn attach(host: &ModelHost, vm: &Vm, number: usize) -> Result<(), ActionError> {
    attach_with(host, vm, &vm.mac(number), number)
}

fn detach(host: &ModelHost, vm: &Vm, number: usize) -> Result<(), ActionError> {
    actions::detach_nic(&host.host(), &vm.uuid().parse().unwrap(), vm.mac(number).parse().unwrap(), None)
}

fn vfs(host: &ModelHost, vm: &Vm) -> Vec<PciAddress> {
    host.domain(&vm.name()).map(|domain| domain.vfs().collect()).unwrap_or_default()
}

/// A call on the connection that broke fails. The processes that start later have one of their own.
fn reconnect(host: &ModelHost) {
    assert!(host.model().domains().is_err() && host.model().domains().is_ok());
}

fn restart(host: &ModelHost) {
    host.model().restart_daemon();
    reconnect(host);
}

/// Makes a VF of the host.
fn add_vf(host: &ModelHost, vf: PciAddress) {
    fs::create_dir_all(host.root_dir().join("sys/bus/pci/devices").join(vf.to_string()).join("physfn")).unwrap();
}

/// Case 7.
#[test]
fn a_vf_goes_from_one_vm_to_another_and_comes_back() {
    let host = ModelHost::with_vfs(1);
    let (first, second) = (Vm::new(42).nic("sriov_ib0"), Vm::new(43).nic("br0"));
    let only = host.vfs("ib0");
    deploy(&host, &first).unwrap();
    deploy(&host, &second).unwrap();
    for _ in 0..3 {
        let error = attach(&host, &second, 1).unwrap_err().to_string();
        assert!(error.contains("none of 1 is left (one-42: 1)"), "{error}");
        detach(&host, &first, 0).unwrap();
        attach(&host, &second, 1).unwrap();
        assert_eq!((vfs(&host, &first), vfs(&host, &second)), (vec![], only.clone()));
        host.check();
        let error = attach(&host, &first, 0).unwrap_err().to_string();
        assert!(error.contains("none of 1 is left (one-43: 1)"), "{error}");
        detach(&host, &second, 1).unwrap();
        attach(&host, &first, 0).unwrap();
        assert_eq!((vfs(&host, &first), vfs(&host, &second)), (only.clone(), vec![]));
        host.check();
    }
}

/// Case 9: the position has one digit in the MAC of the dummy.
#[test]
fn a_vm_has_sixteen_vfs_and_not_one_more() {
    let host = ModelHost::with_vfs(20);
    let vm = (0..16).fold(Vm::new(42), |vm, _| vm.nic("sriov_ib0"));
    deploy(&host, &vm).unwrap();
    assert_eq!(vfs(&host, &vm).len(), 16);
    let before = host.portrait();
    let error = attach(&host, &vm, 16).unwrap_err().to_string();
    assert_eq!(error, "attach_nic: one-42 already has 16 SR-IOV NICs, and no VM can have more; nothing was changed");
    assert_eq!(host.portrait(), before);
    host.check();
    let error = deploy(&host, &(0..17).fold(Vm::new(43), |vm, _| vm.nic("sriov_ib1"))).unwrap_err().to_string();
    assert!(error.contains("at most 16 SR-IOV NICs in a VM") && error.ends_with("nothing was started"), "{error}");
    assert_eq!(host.portrait(), before);
    cancel(&host, &vm);
    assert!(host.claims().is_empty());
}

/// Case 10.
#[test]
fn after_a_restart_of_libvirtd_vfs_come_and_go_as_before() {
    let host = ModelHost::default();
    let vm = Vm::new(42).nic("sriov_ib0").nic("sriov_ib0");
    deploy(&host, &vm).unwrap();
    let claims = host.claims();
    for round in 0..3 {
        restart(&host);
        let report = reconcile(&host.host(), &Options::default()).unwrap();
        assert!(report.claims.is_empty() && report.vms.iter().all(|vm| vm.done.is_empty()), "{round}: {report:?}");
        assert_eq!(host.claims(), claims, "{round}");
        attach(&host, &vm, 2).unwrap();
        host.check();
        restart(&host);
        detach(&host, &vm, 2).unwrap();
        host.check();
        assert_eq!(vfs(&host, &vm), host.vfs("ib0")[..2], "{round}");
    }
}

/// Cases 12 and 53: the adapter's driver is unloaded, or makes another number of VFs, while VMs have some of them.
#[test]
fn an_adapter_goes_away_under_its_vms_and_comes_back() {
    let host = ModelHost::with_vfs(4);
    let (vm, other) = (Vm::new(42).nic("sriov_ib0").nic("sriov_ib0"), Vm::new(43).nic("sriov_ib0"));
    deploy(&host, &vm).unwrap();
    let all = host.vfs("ib0");
    all.iter().for_each(|vf| host.remove_vf(*vf));
    // Nothing hangs, nothing is given away, and every answer names the VFs.
    let states = || host.host().vfs().unwrap().into_iter().filter(|vf| vf.root.as_str() == "ib0").map(|vf| vf.state);
    assert!(states().all(|state| matches!(state, VfState::Missing { .. })), "{:?}", states().collect::<Vec<_>>());
    let error = deploy(&host, &other).unwrap_err().to_string();
    assert!(error.contains("0000:07:00.1 (missing)") && error.ends_with("nothing was started"), "{error}");
    let error = attach(&host, &vm, 2).unwrap_err().to_string();
    assert!(error.contains("(missing)") && error.ends_with("nothing was changed"), "{error}");
    reconcile(&host.host(), &Options::default()).unwrap();
    assert_eq!(vfs(&host, &vm), all[..2], "no VF is taken out of a running VM");
    // The driver is back with fewer VFs, then with more than before.
    all[..3].iter().for_each(|vf| add_vf(&host, *vf));
    deploy(&host, &other).unwrap();
    assert_eq!(vfs(&host, &other), all[2..3]);
    let error = attach(&host, &vm, 2).unwrap_err().to_string();
    assert!(error.contains("0000:07:00.4 (missing)"), "{error}");
    let more: Vec<PciAddress> = (5..=7).map(|n| PciAddress::new(0, 0x07, 0, n).unwrap()).collect();
    more.iter().for_each(|vf| add_vf(&host, *vf));
    host.set_map("ib0", &[&all[..], &more].concat());
    attach(&host, &vm, 2).unwrap();
    assert_eq!(vfs(&host, &vm)[2], more[0]);
    host.check();
    cancel(&host, &vm);
    cancel(&host, &other);
    assert!(host.claims().is_empty());
}

/// A VM ends while the VFs that it has are gone from the host.
#[test]
fn a_vm_ends_without_the_adapter_that_it_had() {
    let host = ModelHost::default();
    let vm = Vm::new(42).nic("sriov_ib0");
    deploy(&host, &vm).unwrap();
    host.vfs("ib0").iter().for_each(|vf| host.remove_vf(*vf));
    fs::remove_dir_all(host.root_dir().join("sys/bus")).unwrap();
    cancel(&host, &vm);
    assert!(host.claims().is_empty());
}

/// Case 14: OpenNebula has no call that changes the MAC of a NIC. It takes the NIC out, and attaches another one.
#[test]
fn a_nic_gets_another_mac_by_leaving_and_coming_back() {
    let host = ModelHost::default();
    let vm = Vm::new(42).nic("sriov_ib0").nic("sriov_ib0");
    deploy(&host, &vm).unwrap();
    let before = host.domain("one-42").unwrap();
    let places = |domain: &kvm_sriov::xml::LiveDomain| {
        let mut places: Vec<_> = domain.hostdevs.iter().map(|device| device.guest).collect();
        places.sort();
        places
    };
    // The NIC that is there keeps its MAC.
    let error = attach_with(&host, &vm, "02:00:0a:00:63:63", 0).map(|()| vfs(&host, &vm).len());
    assert!(!matches!(error, Ok(2)), "a NIC changed its MAC while it was plugged");
    let host = ModelHost::default();
    deploy(&host, &vm).unwrap();
    detach(&host, &vm, 0).unwrap();
    attach_with(&host, &vm, "02:00:0a:00:63:63", 0).unwrap();
    let after = host.domain("one-42").unwrap();
    assert_eq!(places(&after), places(&before), "the guest finds it in the same place");
    let dummies =
        |domain: &kvm_sriov::xml::LiveDomain| domain.interfaces.iter().map(|it| it.mac.to_string()).collect::<Vec<_>>();
    assert!(dummies(&after).contains(&"aa:00:0a:00:63:63".to_owned()), "{:?}", dummies(&after));
    assert!(!dummies(&after).contains(&vm.dummy_mac(0, 0)), "{:?}", dummies(&after));
    host.check();
}

/// Case 5. The driver asks for managed devices only: libvirt binds a VF to vfio and gives it back to its driver. Where
/// libvirt does not do that, its refusal is passed on, and the next VF is taken.
#[test]
fn a_vf_that_somebody_must_bind_by_hand_is_left_out_and_named() {
    let host = ModelHost::with_vfs(2);
    let vm = Vm::new(42).nic("sriov_ib0");
    let all = host.vfs("ib0");
    let manually = |vf: PciAddress| format!("Unmanaged PCI device {vf} must be manually detached from the host");
    host.model().refuse(all[0], &manually(all[0]));
    deploy(&host, &vm).unwrap();
    assert_eq!(vfs(&host, &vm), all[1..]);
    let domain = host.model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
    let live = host.model().live_xml(&domain).unwrap().unwrap();
    assert_eq!((live.matches("<hostdev ").count(), live.matches("managed='yes'").count()), (1, 1), "{live}");
    cancel(&host, &vm);
    host.model().refuse(all[1], &manually(all[1]));
    let error = deploy(&host, &vm).unwrap_err().to_string();
    assert!(all.iter().all(|vf| error.contains(&manually(*vf))) && error.ends_with("nothing was started"), "{error}");
    assert!(host.claims().is_empty());
}

/// Case 30.
#[test]
fn a_q35_without_a_free_port_gets_no_vf_and_leaves_no_claim() {
    let host = ModelHost::with_vfs(32);
    let q35 = (0..10).fold(Vm::new(42).machine("q35"), |vm, _| vm.nic("br0")).nic("sriov_ib0");
    deploy(&host, &q35).unwrap();
    let mut number = 11;
    let error = loop {
        let before = host.portrait();
        match attach(&host, &q35, number) {
            Ok(()) => number += 1,
            Err(error) => {
                assert_eq!(host.portrait(), before);
                break error.to_string();
            }
        }
        assert!(number < 32, "the ports never end");
    };
    assert!(error.contains("slot") && error.ends_with("nothing was changed"), "{error}");
    host.check();
    detach(&host, &q35, 10).unwrap();
    attach(&host, &q35, 10).unwrap();
    host.check();
}

/// Case 54: two ports, a PCI domain other than 0, and every function that an address can have.
#[test]
fn vfs_of_every_address_live_a_whole_life() {
    let host = ModelHost::with_vfs(1);
    let addresses: Vec<PciAddress> = [(1, 0x07, 0x00, 1), (0x1_0000, 0xff, 0x1f, 7), (0, 0x81, 0x02, 0)]
        .into_iter()
        .map(|(domain, bus, slot, function)| PciAddress::new(domain, bus, slot, function).unwrap())
        .collect();
    addresses.iter().for_each(|vf| add_vf(&host, *vf));
    host.set_map("ib0", &addresses);
    let vm = Vm::new(42).nic("sriov_ib0").nic("sriov_ib1").nic("sriov_ib0");
    deploy(&host, &vm).unwrap();
    assert_eq!(vfs(&host, &vm), [addresses[0], host.vfs("ib1")[0], addresses[1]]);
    attach(&host, &vm, 3).unwrap();
    host.check();
    let checkpoint = host.vm_dir(&vm).join("checkpoint");
    fs::create_dir_all(host.vm_dir(&vm)).unwrap();
    actions::save(&host.host(), &vm.uuid().parse().unwrap(), &checkpoint, None).unwrap();
    assert!(host.claims().is_empty());
    // The map was written anew in another order meanwhile.
    host.set_map("ib0", &[addresses[2], addresses[0], addresses[1]]);
    actions::restore(&host.host(), &checkpoint, Some(&DomainName::of_vm(42))).unwrap();
    assert_eq!(vfs(&host, &vm).len(), 4);
    host.check();
    let names: Vec<String> = host.claims().into_keys().collect();
    assert_eq!(names, ["ib0/0", "ib0/1", "ib0/2", "ib1/0"]);
    cancel(&host, &vm);
    assert!(host.claims().is_empty());
}

/// Case 45: after a boot the adapter may number its VFs in another way, and all claims are void.
#[test]
fn after_a_boot_claims_are_void_and_every_vf_can_be_given() {
    let host = ModelHost::with_vfs(2);
    let vm = Vm::new(42).nic("sriov_ib0").nic("sriov_ib0");
    deploy(&host, &vm).unwrap();
    host.model().power_off();
    host.model().start_daemon();
    for (name, claim) in host.claims() {
        let (before, after) = claim.split_once("boot=").unwrap();
        let after = after.split_once('\n').unwrap().1;
        fs::write(host.state_dir().join(name), format!("{before}boot=another\n{after}")).unwrap();
    }
    let all = host.vfs("ib0");
    host.set_map("ib0", &[all[1], all[0]]);
    let next = Vm::new(43).nic("sriov_ib0").nic("sriov_ib0");
    deploy(&host, &next).unwrap();
    assert_eq!(vfs(&host, &next), [all[1], all[0]]);
    assert!(host.claims().values().all(|claim| claim.contains("one-43")), "{:?}", host.claims());
    host.check();
}
