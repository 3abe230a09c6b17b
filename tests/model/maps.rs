//! An address of a map is given to a VM only if it is a VF of the host. Maps on model hosts that list PFs, other
//! devices, addresses that are gone, and addresses of another map.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use kvm_sriov::actions;
use kvm_sriov::libvirt::{DeviceCalls, PowerCalls};
use kvm_sriov::opennebula::{self, NicArgs, network};
use kvm_sriov::reconcile::{Options, reconcile};
use kvm_sriov::xml::VmData;
use kvm_sriov::{ActionError, DomainName, PciAddress, VfState};
use kvm_sriov_model::agent::OneAgent;
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

/// A VM with two VFs of the same root.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("sriov_ib0")
}

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

fn attach(host: &ModelHost, vm: &Vm, number: usize) -> Result<(), ActionError> {
    let arguments = NicArgs {
        mac: vm.mac(number).parse().unwrap(),
        bridge: Some("sriov_ib0".into()),
        model: None,
        vn_mad: None,
        target: None,
    };
    actions::attach_nic(&host.host(), &vm.uuid().parse().unwrap(), &arguments.described(None), None)
}

/// A host whose map lists the PF, a VF that is gone, and three VFs, in this order.
fn a_host() -> (ModelHost, [PciAddress; 3]) {
    let host = ModelHost::with_vfs(4);
    let vfs = spoil(&host);
    (host, vfs)
}

/// Makes the map of this host list the PF, a VF that is gone, and three VFs, in this order.
fn spoil(host: &ModelHost) -> [PciAddress; 3] {
    let [gone, rest @ ..]: [PciAddress; 4] = host.vfs("ib0").try_into().unwrap();
    let adapter = PciAddress::new(0, gone.bus(), 0, 0).unwrap();
    host.add_other_function(adapter);
    host.remove_vf(gone);
    host.set_map("ib0", &[&[adapter, gone], &rest[..]].concat());
    rest
}

fn vfs(host: &ModelHost) -> Vec<PciAddress> {
    host.domain("one-42").unwrap().vfs().collect()
}

fn migrate(from: &ModelHost, to: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    let reach = OneAgent::of(to.host());
    let route = actions::Route { from: None, to: to.model().name().parse().unwrap() };
    actions::migrate(&from.host(), &vm.uuid().parse().unwrap(), &route, None, &reach)
}

#[test]
fn deploy_and_attach_skip_addresses_that_are_no_vfs() {
    let (host, free) = a_host();
    deploy(&host, &vm()).unwrap();
    assert_eq!(vfs(&host), free[..2]);
    attach(&host, &vm(), 2).unwrap();
    assert_eq!(vfs(&host), free);
    let error = attach(&host, &vm(), 3).unwrap_err().to_string();
    assert_eq!(
        error,
        "attach_nic: no free VF on ib0 for one-42: none of 3 is left (one-42: 3); its map also lists 0000:07:00.0 (not a VF), \
         0000:07:00.1 (missing); nothing was changed"
    );
    host.check();
}

#[test]
fn a_map_without_a_single_vf_says_so() {
    let (host, free) = a_host();
    for vf in free {
        host.remove_vf(vf);
    }
    let error = deploy(&host, &vm()).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "deploy: no free VF on ib0 for one-42: its map lists no VF of this host: 0000:07:00.0 (not a VF), "
        ),
        "{error}"
    );
    assert!(host.domain("one-42").is_none() && host.claims().is_empty());
}

#[test]
fn restore_skips_addresses_that_are_no_longer_vfs() {
    let host = ModelHost::default();
    deploy(&host, &vm()).unwrap();
    let checkpoint = host.vm_dir(&vm()).join("checkpoint");
    actions::save(&host.host(), &vm().uuid().parse().unwrap(), &checkpoint, None).unwrap();
    let free = spoil(&host);
    actions::restore(&host.host(), &checkpoint, opennebula::vm_of_checkpoint(&checkpoint).as_ref()).unwrap();
    assert_eq!(vfs(&host), free[..2]);
    host.check();
}

#[test]
fn a_destination_with_lines_that_are_no_vfs_takes_the_next_ones() {
    let here = ModelHost::default();
    let there = here.beside("host2", 4);
    let free = spoil(&there);
    deploy(&here, &vm()).unwrap();
    migrate(&here, &there, &vm()).unwrap();
    assert_eq!(vfs(&there), free[..2]);
    there.check();
    here.check();
}

#[test]
fn a_destination_with_too_few_vfs_names_the_addresses_that_are_no_vfs() {
    let here = ModelHost::default();
    let there = here.beside("host2", 4);
    let free = spoil(&there);
    there.remove_vf(free[0]);
    there.remove_vf(free[1]);
    deploy(&here, &vm()).unwrap();
    let error = migrate(&here, &there, &vm()).unwrap_err().to_string();
    assert!(
        error.contains("too few free VFs on ib0: 1, 2 needed; its map also lists 0000:81:00.0 (not a VF), "),
        "{error}"
    );
    assert!(there.claims().is_empty());
    here.check();
}

#[test]
fn a_claimed_vf_that_vanished_is_given_up_for_another() {
    let host = ModelHost::default();
    deploy(&host, &vm()).unwrap();
    // The guest released the VF, and the VM still wants it.
    let domain = host.host().find(&vm().uuid().parse().unwrap()).unwrap();
    host.model().detach_alias(&domain, "ua-sriov-0", CALL_LIMIT).unwrap();
    host.model().wait_for_guests();
    host.remove_vf(host.vfs("ib0")[0]);
    host.reconcile().unwrap();
    let mut now = vfs(&host);
    now.sort();
    assert_eq!(now, host.vfs("ib0")[1..3]);
    host.check();
}

#[test]
fn an_address_in_two_maps_is_given_once() {
    let host = ModelHost::default();
    let all = host.vfs("ib0");
    host.set_map("ib1", &all);
    // A claim of the driver of 2013 names only an index in a map. This VM does not ask for that map.
    std::fs::create_dir_all(host.state_dir().join("ib1")).unwrap();
    std::fs::write(host.state_dir().join("ib1/0"), "").unwrap();
    deploy(&host, &vm()).unwrap();
    assert_eq!(vfs(&host), all[1..3]);
    let other = Vm::new(7).nic("sriov_ib1");
    deploy(&host, &other).unwrap();
    assert_eq!(host.domain("one-7").unwrap().vfs().collect::<Vec<_>>(), all[3..]);
    let error = deploy(&host, &Vm::new(8).nic("sriov_ib1")).unwrap_err().to_string();
    assert!(error.contains("none of 4 is left (a VM of the driver of 2013: 1, one-42: 2, one-7: 1)"), "{error}");
}

#[test]
fn another_map_that_is_broken_stops_nothing() {
    let host = ModelHost::default();
    host.write_map("ib1", "hello\n");
    deploy(&host, &vm()).unwrap();
    attach(&host, &vm(), 2).unwrap();
    let error = deploy(&host, &Vm::new(7).nic("sriov_ib1")).unwrap_err().to_string();
    assert!(error.contains("ib1, line 1: expected \"0xBUS 0xSLOT 0xFUNC\", found \"hello\""), "{error}");
    let vfs = host.host().vfs().unwrap();
    assert_eq!(vfs.len(), 4, "the map that can be read is not listed");
}

#[test]
fn addresses_that_are_no_vfs_are_shown() {
    let (host, free) = a_host();
    let states = |host: &ModelHost| -> Vec<VfState> {
        let vfs = host.host().vfs().unwrap();
        vfs.into_iter().filter(|vf| vf.root.as_str() == "ib0").map(|vf| vf.state).collect()
    };
    let (not_vf, missing) = (VfState::NotVf { vm: None }, VfState::Missing { vm: None });
    assert_eq!(states(&host), [not_vf.clone(), missing.clone(), VfState::Free, VfState::Free, VfState::Free]);
    deploy(&host, &vm()).unwrap();
    host.remove_vf(free[0]);
    let used = || Some("one-42".to_owned());
    assert_eq!(
        states(&host),
        [not_vf, missing, VfState::Missing { vm: used() }, VfState::Used { vm: used().unwrap() }, VfState::Free]
    );
}

#[test]
fn pre_counts_the_vfs_of_the_host() {
    let (host, free) = a_host();
    let nic = |number: usize| {
        format!("<NIC><BRIDGE>sriov_ib0</BRIDGE><MAC>{}</MAC><VN_MAD>sriov</VN_MAD></NIC>", vm().mac(number))
    };
    let data = |nics: usize| {
        let nics: String = (0..nics).map(nic).collect();
        VmData::parse(&format!("<VM><ID>42</ID><TEMPLATE>{nics}</TEMPLATE></VM>")).unwrap()
    };
    network::pre(&host.host(), &data(3)).unwrap();
    let error = network::pre(&host.host(), &data(4)).unwrap_err().to_string();
    assert_eq!(
        error,
        "vnm pre: ib0 has too few VFs here: 3, 4 needed; its map also lists 0000:07:00.0 (not a VF), 0000:07:00.1 (missing) (is the \
         adapter's driver loaded, and are its VFs made?); nothing was changed"
    );
    host.remove_vf(free[0]);
    assert!(network::pre(&host.host(), &data(3)).is_err());
}

/// A foreign domain with this name and these devices.
fn wild(name: &str, number: u32, devices: &str) -> String {
    format!(
        "<domain type='kvm'><name>{name}</name><uuid>7f1c2a52-64d6-4c0c-9b0e-00000001{number:04}</uuid><memory>65536</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{devices}</devices></domain>"
    )
}

#[test]
fn odd_foreign_domains_stop_nothing() {
    let host = ModelHost::default();
    deploy(&host, &vm()).unwrap();
    host.model().create(&wild(&"x".repeat(239), 1, ""), CALL_LIMIT).unwrap();
    host.model().create(&wild("with&#9;a tab", 2, ""), CALL_LIMIT).unwrap();
    // A domain whose XML libvirt shows and the driver can't read.
    host.model().create(&wild("odd", 3, "<hostdev mode='subsystem' type='pci'/>"), CALL_LIMIT).unwrap();
    assert!(host.host().backing().unwrap().unreadable.iter().any(|owner| owner.vm.as_str() == "odd"));
    deploy(&host, &Vm::new(7).nic("sriov_ib0")).unwrap();
    attach(&host, &vm(), 2).unwrap();
    assert!(host.host().vfs().unwrap().iter().any(|vf| vf.state == VfState::Free));
    let report = reconcile(&host.host(), &Options::default()).unwrap();
    assert_eq!(report.vms.len(), 2);
    let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert!(problem.to_string().starts_with("the live XML of odd: "), "{problem}");
    let there = host.beside("host2", 4);
    there.model().create(&wild("odd", 4, "<hostdev mode='subsystem' type='pci'/>"), CALL_LIMIT).unwrap();
    migrate(&host, &there, &vm()).unwrap();
    assert_eq!(vfs(&there).len(), 3);
}

#[test]
fn a_domain_that_can_not_be_read_keeps_its_claims() {
    let host = ModelHost::default();
    let first = host.vfs("ib0")[0];
    std::fs::create_dir_all(host.state_dir().join("ib0")).unwrap();
    let claim = format!("kvm-sriov-claim 1\nvm=odd\nvf={first}\nboot=x\n");
    std::fs::write(host.state_dir().join("ib0/0"), &claim).unwrap();
    host.model().create(&wild("odd", 3, "<hostdev mode='subsystem' type='pci'/>"), CALL_LIMIT).unwrap();
    deploy(&host, &vm()).unwrap();
    assert_eq!(vfs(&host), host.vfs("ib0")[1..3]);
    assert_eq!(host.claims().get("ib0/0"), Some(&claim));
}

#[test]
fn claims_that_cannot_be_read_stop_nothing_and_are_named() {
    let host = ModelHost::default();
    let state = host.state_dir();
    std::fs::create_dir_all(state.join("ib0")).unwrap();
    std::fs::write(state.join("ib0/0"), "hello").unwrap();
    // The directory of another root is a symbolic link: a trap.
    std::os::unix::fs::symlink(host.run_dir(), state.join("ib1")).unwrap();
    deploy(&host, &vm()).unwrap();
    assert_eq!(vfs(&host), host.vfs("ib0")[1..3]);
    let error = deploy(&host, &Vm::new(7).nic("sriov_ib1")).unwrap_err().to_string();
    assert!(error.contains("ib1 is a link"), "{error}");
    let report = reconcile(&host.host(), &Options::default()).unwrap();
    let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains("ib0/0 can't be read as a claim") && problems[1].contains("is a link"),
        "{problems:?}"
    );
    actions::cancel(&host.host(), &vm().uuid().parse().unwrap(), Some(&DomainName::of_vm(42))).unwrap();
    assert_eq!(host.claims().keys().collect::<Vec<_>>(), ["ib0/0"]);
}
