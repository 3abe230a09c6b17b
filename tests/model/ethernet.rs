//! MODE=ethernet: the VF itself has the NIC's MAC and VLAN, in every action, and the guest needs no dummy.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use kvm_sriov::libvirt::{DeviceCalls, DomainCalls};
use kvm_sriov::xml::{LiveHostdev, VmData, alias_of};
use kvm_sriov::{ActionError, Cause, DomainId, DomainName, MacAddress, NicMode, Position, actions, opennebula};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::every::Scenario;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

/// Two NICs of a root with MODE=ethernet, in two VLANs, one of the other root, and one on a bridge.
fn vm() -> Vm {
    Vm::new(42).nic_in_vlan("sriov_ib0", 100).nic("br0").nic("sriov_ib1").nic_in_vlan("sriov_ib0", 200)
}

/// A host whose root `ib0` has MODE=ethernet.
fn host() -> ModelHost {
    let host = ModelHost::default();
    host.write_map("ib0.conf", "# frames of each tenant\nMODE=ethernet\n");
    host
}

/// A host that has no dummies: both roots have MODE=ethernet, and kvmrc sets nothing for dummies.
fn host_without_dummies() -> ModelHost {
    let host = host();
    host.write_map("ib1.conf", "MODE=ethernet\n");
    host.set_kvmrc("DUMMY_BRIDGE=\nDUMMY_MAC_PREFIX=\n");
    host
}

fn id() -> DomainId {
    vm().uuid().parse().unwrap()
}

/// Writes the VM's description into its directory, as OpenNebula 6.0 and later do before they deploy the VM.
fn describe(host: &ModelHost, vm: &Vm) {
    fs::create_dir_all(host.vm_dir(vm)).unwrap();
    fs::write(host.vm_dir(vm).join("vm.xml"), vm.action_data("host1").xml()).unwrap();
}

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    if !host.vm_dir(vm).join("vm.xml").exists() {
        describe(host, vm);
    }
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

fn running() -> ModelHost {
    let host = host();
    deploy(&host, &vm()).unwrap();
    host
}

fn data(vm: &Vm, nic: usize) -> VmData {
    VmData::parse(&vm.action_data("host1").attach(nic).xml()).unwrap()
}

fn attach(host: &ModelHost, vm: &Vm, nic: usize) -> Result<(), ActionError> {
    let data = data(vm, nic);
    let described = vm.nic_arguments(nic, vm.bridge(nic)).described(Some(&data));
    actions::attach_nic(&host.host(), &id(), &described, Some(&data))
}

fn detach(host: &ModelHost, vm: &Vm, nic: usize) -> Result<(), ActionError> {
    actions::detach_nic(&host.host(), &id(), vm.mac(nic).parse().unwrap(), Some(&data(vm, nic)))
}

/// Position, MAC and VLAN of each VF that is an interface.
fn interfaces(host: &ModelHost) -> Vec<(String, String, Option<u16>)> {
    let live = host.domain("one-42").unwrap();
    let shown = |device: &LiveHostdev| {
        Some((device.alias.clone()?.replace("ua-sriov-", ""), device.mac?.to_string(), device.vlan))
    };
    let mut interfaces: Vec<_> = live.hostdevs.iter().filter_map(shown).collect();
    interfaces.sort();
    interfaces
}

/// What [`interfaces`] shows when everything is there.
fn expected(nics: &[usize]) -> Vec<(String, String, Option<u16>)> {
    let vlans = [Some(100), None, None, Some(200), Some(300)];
    let positions = ["0", "-", "1", "2", "3"];
    nics.iter().map(|nic| (positions[*nic].to_owned(), vm().mac(*nic), vlans[*nic])).collect()
}

fn has_all(host: &ModelHost) {
    assert_eq!(interfaces(host), expected(&[0, 3]));
    host.check();
}

#[test]
fn the_vf_takes_the_place_of_the_nic() {
    let host = running();
    has_all(&host);
    let live = host.domain("one-42").unwrap();
    let modes: Vec<NicMode> = live.wanted.unwrap().unwrap().nics.iter().map(|nic| nic.mode).collect();
    assert_eq!(modes, [NicMode::Ethernet, NicMode::Hostdev, NicMode::Ethernet]);
    // The NIC on a bridge, and the dummy of the NIC in mode hostdev.
    let mut macs: Vec<String> = live.interfaces.iter().map(|interface| interface.mac.to_string()).collect();
    macs.sort();
    assert_eq!(macs, [vm().mac(1), vm().dummy_mac(1, 2)]);
    actions::cancel(&host.host(), &id(), Some(&DomainName::of_vm(42))).unwrap();
    assert_eq!(host.claims().len(), 0);
}

#[test]
fn a_host_without_dummies_needs_no_bridge_for_them() {
    let host = host_without_dummies();
    let ethernet = Vm::new(42).nic_in_vlan("sriov_ib0", 100).nic("br0").nic("sriov_ib1");
    let networks = Vm::new(43).nic_in_vlan("sriov_ib0", 100).nic("sriov_ib1").action_data("host1").xml();
    let networks = VmData::parse(&networks.replace("[bridge]", "[sriov]")).unwrap();
    opennebula::network::pre(&host.host(), &networks).unwrap();
    deploy(&host, &ethernet).unwrap();
    host.check();
    let more = ethernet.nic_in_vlan("sriov_ib0", 300);
    attach(&host, &more, 3).unwrap();
    host.check();
    let checkpoint = host.datastore().join("42/checkpoint");
    actions::save(&host.host(), &id(), &checkpoint, None).unwrap();
    actions::restore(&host.host(), &checkpoint, None).unwrap();
    host.check();
    detach(&host, &more, 3).unwrap();
    let there = host.beside("host2", 4);
    there.write_map("ib0.conf", "MODE=ethernet");
    there.write_map("ib1.conf", "MODE=ethernet");
    there.set_kvmrc("DUMMY_BRIDGE=\nDUMMY_MAC_PREFIX=\n");
    host.migrate(&there, &id()).unwrap();
    there.check();
}

#[test]
fn nics_come_and_go() {
    let host = running();
    let more = vm().nic_in_vlan("sriov_ib0", 300);
    attach(&host, &more, 4).unwrap();
    assert_eq!(interfaces(&host), expected(&[0, 3, 4]));
    host.check();
    // Both may be called twice.
    attach(&host, &more, 4).unwrap();
    assert_eq!(interfaces(&host).len(), 3);
    for nic in [0, 0, 4, 4] {
        detach(&host, &more, nic).unwrap();
        host.check();
    }
    assert_eq!(interfaces(&host), expected(&[3]));
    attach(&host, &more, 0).unwrap();
    has_all(&host);
}

#[test]
fn a_vm_is_saved_restored_and_returns_to_a_snapshot() {
    let host = running();
    let checkpoint = host.datastore().join("42/checkpoint");
    actions::save(&host.host(), &id(), &checkpoint, None).unwrap();
    assert_eq!(host.claims().len(), 0);
    actions::restore(&host.host(), &checkpoint, None).unwrap();
    has_all(&host);
    let data = VmData::parse(&vm().action_data("host1").xml()).unwrap();
    let snapshot = actions::snapshot_create(&host.host(), &id(), 0, Some(&data)).unwrap();
    has_all(&host);
    detach(&host, &vm(), 3).unwrap();
    actions::snapshot_revert(&host.host(), &id(), &snapshot, Some(&data)).unwrap();
    has_all(&host);
    actions::snapshot_delete(&host.host(), &id(), &snapshot).unwrap();
    has_all(&host);
}

/// A root that is changed serves new NICs. The guest keeps the ones that it has.
#[test]
fn a_nic_keeps_its_mode() {
    let host = running();
    host.write_map("ib0.conf", "MODE=hostdev\n");
    let checkpoint = host.datastore().join("42/checkpoint");
    actions::save(&host.host(), &id(), &checkpoint, None).unwrap();
    actions::restore(&host.host(), &checkpoint, None).unwrap();
    has_all(&host);
    attach(&host, &vm().nic("sriov_ib0"), 4).unwrap();
    has_all(&host);
    let nics = host.domain("one-42").unwrap().wanted.unwrap().unwrap().nics;
    assert_eq!(nics.iter().filter(|nic| nic.has_dummy()).count(), 2);
}

#[test]
fn mac_and_vlan_move_with_the_vm() {
    let host = running();
    let there = host.beside("host2", 4);
    let error = host.migrate(&there, &id()).unwrap_err().to_string();
    assert!(
        error.contains("NIC 02:00:0a:00:2a:00 is in mode ethernet, and ib0 is in mode hostdev on this host"),
        "{error}"
    );
    has_all(&host);
    assert_eq!(there.claims().len(), 0);
    there.write_map("ib0.conf", "MODE=ethernet");
    host.migrate(&there, &id()).unwrap();
    has_all(&there);
    assert_eq!(host.claims().len(), 0);
    there.migrate(&host, &id()).unwrap();
    has_all(&host);
}

/// What was lost is plugged again with its MAC and VLAN.
#[test]
fn reconciliation_plugs_what_is_missing() {
    let host = running();
    let domain = host.model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
    let alias = alias_of(Position::new(2).unwrap());
    host.model().detach_alias(&domain, &alias, CALL_LIMIT).unwrap();
    until("the guest releases it", || interfaces(&host).len() == 1);
    host.reconcile().unwrap();
    has_all(&host);
}

/// What a VF can't do is refused before anything is claimed, and so is a NIC whose VLAN nobody knows.
#[test]
fn what_a_vf_can_not_do_is_refused() {
    let host = host();
    let vm = Vm::new(42).nic_in_vlan("sriov_ib0", 100);
    let refused = |text: &str| {
        let error = actions::deploy(&host.host(), &host.deployment_file(&vm), text).unwrap_err();
        assert_eq!(host.claims().len(), 0);
        error.to_string()
    };
    assert_eq!(
        refused(&host.deployment(&vm)),
        "deploy: the VLAN of NIC 02:00:0a:00:2a:00 is not known: MODE=ethernet needs the VM's description that OpenNebula \
         writes since 6.0; nothing was started"
    );
    for (element, what) in [
        ("<bandwidth><inbound average='1'/></bandwidth>", "limits of traffic (INBOUND_*, OUTBOUND_*)"),
        ("<filterref filter='clean-traffic'/>", "a network filter (FILTER)"),
    ] {
        let model = "<model type='virtio'/>";
        let text = host.deployment(&vm).replacen(model, &format!("{model}{element}"), 1);
        let expected = format!(
            "deploy: NIC 02:00:0a:00:2a:00 asks for {what}, which the VF of a root with MODE=ethernet can't have; nothing \
             was started"
        );
        assert_eq!(refused(&text), expected);
    }
    describe(&host, &vm);
    let described = host.vm_dir(&vm).join("vm.xml");
    let tagged = fs::read_to_string(&described).unwrap();
    fs::write(&described, tagged.replace("<VLAN_ID>", "<VLAN_TAGGED_ID>7,8</VLAN_TAGGED_ID><VLAN_ID>")).unwrap();
    let error = refused(&host.deployment(&vm));
    assert!(error.contains("asks for tagged VLANs (VLAN_TAGGED_ID, CVLANS)"), "{error}");
    fs::write(&described, tagged).unwrap();
    deploy(&host, &vm).unwrap();
    let before = host.portrait();
    let more = vm.nic("sriov_ib0");
    let error = actions::attach_nic(&host.host(), &id(), &more.nic_arguments(1, "sriov_ib0").described(None), None);
    assert!(matches!(error.unwrap_err().cause(), Cause::NoVlanKnown { .. }));
    let limited = more.action_data("host1").attach(1).xml().replace("[bridge]", "[sriov]");
    let limited = limited.replace("<MODEL>", "<INBOUND_AVG_BW>1</INBOUND_AVG_BW><MODEL>");
    let limited = VmData::parse(&limited).unwrap();
    let nic = more.nic_arguments(1, "sriov_ib0").described(Some(&limited));
    let error = actions::attach_nic(&host.host(), &id(), &nic, Some(&limited)).unwrap_err();
    assert!(matches!(error.cause(), Cause::NeedsBridge { .. }), "{error}");
    let error = opennebula::network::pre(&host.host(), &limited).unwrap_err();
    assert!(matches!(error.cause(), Cause::NeedsBridge { .. }), "{error}");
    assert_eq!(host.portrait(), before);
}

/// A program that embeds the crate knows its NIC and plugs it without a VLAN.
#[test]
fn a_program_plugs_a_vf_by_its_mac() {
    let host = host();
    host.start_domain("vm-1").unwrap();
    let mac: MacAddress = "02:00:00:00:00:01".parse().unwrap();
    host.host().plug(&"vm-1".parse().unwrap(), &"ib0".parse().unwrap(), mac).unwrap();
    let live = host.domain("vm-1").unwrap();
    assert_eq!((live.hostdevs[0].mac, live.hostdevs[0].vlan, live.interfaces.len()), (Some(mac), None, 0));
    host.check();
}

/// A setting that can't be read stops what needs the root, and nothing else.
#[test]
fn a_broken_setting_stops_its_root_alone() {
    let host = running();
    host.write_map("ib0.conf", "MODE=ethernet\nVLAN=7\n");
    let error = attach(&host, &vm().nic_in_vlan("sriov_ib0", 300), 4).unwrap_err().to_string();
    assert!(
        error.ends_with("ib0.conf, line 2: VLAN is no setting of a root: expected MODE; nothing was changed"),
        "{error}"
    );
    attach(&host, &vm().nic("sriov_ib1"), 4).unwrap();
    detach(&host, &vm(), 0).unwrap();
    let problems = host.reconcile().unwrap().problems;
    assert!(problems.iter().any(|problem| problem.to_string().contains("ib0.conf, line 2")), "{problems:?}");
    actions::cancel(&host.host(), &id(), Some(&DomainName::of_vm(42))).unwrap();
    assert_eq!(host.claims().len(), 0);
}

fn cancelled(host: &ModelHost) {
    actions::cancel(&host.host(), &id(), Some(&DomainName::of_vm(42))).unwrap();
    assert_eq!(host.claims().len(), 0);
}

fn repaired(host: &ModelHost) {
    host.reconcile().unwrap();
}

fn deployed_again(host: &ModelHost) {
    match deploy(host, &vm()) {
        Ok(()) => {}
        Err(error) => assert!(matches!(error.cause(), Cause::Exists { .. }), "{error}"),
    }
}

#[test]
fn deploy_with_every_fault() {
    Scenario {
        given: || {
            let host = host();
            describe(&host, &vm());
            host
        },
        action: |host| deploy(host, &vm()),
        done: has_all,
        repairs: &[deployed_again, cancelled],
    }
    .with_every_fault();
}

#[test]
fn attach_with_every_fault() {
    Scenario {
        given: running,
        action: |host| attach(host, &vm().nic_in_vlan("sriov_ib0", 300), 4),
        done: |host| assert_eq!(interfaces(host), expected(&[0, 3, 4])),
        repairs: &[repaired, |host| attach(host, &vm().nic_in_vlan("sriov_ib0", 300), 4).unwrap()],
    }
    .with_every_fault();
}

#[test]
fn detach_with_every_fault() {
    Scenario {
        given: running,
        action: |host| detach(host, &vm(), 0),
        done: |host| assert_eq!(interfaces(host), expected(&[3])),
        repairs: &[repaired, |host| detach(host, &vm(), 0).unwrap()],
    }
    .with_every_fault();
}

#[test]
fn save_with_every_fault() {
    Scenario {
        given: running,
        action: |host| actions::save(&host.host(), &id(), &host.datastore().join("42/checkpoint"), None),
        done: |host| assert!(host.domain("one-42").is_none() && host.claims().is_empty()),
        repairs: &[repaired],
    }
    .with_every_fault();
}
