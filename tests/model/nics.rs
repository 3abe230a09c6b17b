//! NICs are attached and detached while their VM runs, on a model host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use kvm_sriov::actions;
use kvm_sriov::libvirt::{DeviceCalls, DomainCalls, LibvirtErrorKind, PowerCalls};
use kvm_sriov::opennebula::NicArgs;
use kvm_sriov::xml::VmData;
use kvm_sriov::{ActionError, DomainId, DomainName, HostState, PciAddress};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::every::Scenario;
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_model::{Guest, Hotplug};
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

/// The VM: two NICs with VFs of one root, one with a VF of another root, and a NIC without a VF.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("br0").nic("sriov_ib1").nic("sriov_ib0")
}

/// A second VM, which no action may touch.
fn neighbour() -> Vm {
    Vm::new(7).nic("sriov_ib0")
}

fn deploy(host: &ModelHost, vm: &Vm) {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop).unwrap();
}

/// OpenNebula's description of the NIC that an action attaches or detaches.
fn said(vm: &Vm, number: usize, bridge: &str, rest: &str) -> VmData {
    let nic = format!(
        "<NIC><ATTACH>YES</ATTACH><BRIDGE>{bridge}</BRIDGE><MAC>{}</MAC><MODEL>virtio</MODEL><NIC_ID>{number}</NIC_ID>\
         <TARGET>one-{}-{number}</TARGET>{rest}</NIC>",
        vm.mac(number),
        vm.id
    );
    VmData::parse(&format!("<VM><ID>{}</ID><TEMPLATE>{nic}</TEMPLATE></VM>", vm.id)).unwrap()
}

fn attach(host: &ModelHost, vm: &Vm, number: usize, bridge: &str) -> Result<(), ActionError> {
    let (arguments, data) = (vm.nic_arguments(number, bridge), said(vm, number, bridge, ""));
    actions::attach_nic(&host.host(), &vm.uuid().parse().unwrap(), &arguments.described(Some(&data)), Some(&data))
}

fn detach(host: &ModelHost, vm: &Vm, number: usize) -> Result<(), ActionError> {
    let (mac, data) = (vm.mac(number).parse().unwrap(), said(vm, number, "", ""));
    actions::detach_nic(&host.host(), &vm.uuid().parse().unwrap(), mac, Some(&data))
}

/// A host on which the VM and its neighbour run.
fn a_running_vm() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &neighbour());
    deploy(&host, &vm());
    host
}

/// A host on which a VM without VFs and the neighbour run.
fn a_plain_vm() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &neighbour());
    deploy(&host, &plain());
    host
}

fn plain() -> Vm {
    Vm::new(42).nic("br0")
}

/// Position, VF and guest address of each VF of a VM, and the MACs of its other interfaces.
fn portrait(host: &ModelHost) -> (Vec<String>, Vec<String>) {
    let live = host.domain("one-42").unwrap();
    let wanted = live.wanted.clone().unwrap().unwrap_or_default();
    let nics = wanted.nics.iter().map(|nic| {
        let device = live.device_of(nic).unwrap();
        format!("{} {} {} {}", nic.position, nic.mac, nic.root, device.guest.unwrap())
    });
    let interfaces = live.interfaces.iter().map(|interface| {
        format!(
            "{} {} {}",
            interface.mac,
            interface.bridge.as_deref().unwrap_or("-"),
            interface.alias.as_deref().unwrap()
        )
    });
    (nics.collect(), interfaces.collect())
}

fn repaired(host: &ModelHost) {
    let report = host.reconcile().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn the_first_vf_of_a_vm_with_every_fault() {
    fn has_it(host: &ModelHost) {
        let (nics, interfaces) = portrait(host);
        assert_eq!(nics, [format!("0 {} ib0 0000:00:10.0", plain().mac(1))]);
        assert_eq!(interfaces[1], format!("{} dummy_br ua-sriov-dummy-0", plain().dummy_mac(0, 1)));
    }
    let scenario = Scenario {
        given: a_plain_vm,
        action: |host| attach(host, &plain(), 1, "sriov_ib0"),
        done: has_it,
        repairs: &[
            repaired,
            |host| {
                attach(host, &plain(), 1, "sriov_ib0").unwrap();
                has_it(host);
            },
            // OpenNebula has dropped the NIC. The claims of a VM without VFs are not read.
            |host| {
                detach(host, &plain(), 1).unwrap();
                repaired(host);
                assert_eq!(portrait(host).1.len(), 1);
            },
            |host| {
                actions::cancel(&host.host(), &plain().uuid().parse().unwrap(), Some(&DomainName::of_vm(42))).unwrap()
            },
        ],
    };
    assert_eq!(
        scenario.without_faults(),
        [
            "find",
            "live_xml",
            "domains",
            "live_xml",
            "live_xml",
            "attach",
            "live_xml",
            "attach",
            "live_xml",
            "set_metadata"
        ]
    );
    scenario.with_every_fault();
}

#[test]
fn a_further_vf_with_every_fault() {
    fn has_it(host: &ModelHost) {
        let (nics, interfaces) = portrait(host);
        assert_eq!(nics.len(), 4);
        assert_eq!(nics[3], format!("3 {} ib1 0000:00:13.0", vm().mac(4)));
        let dummy = interfaces.last().unwrap();
        assert_eq!(*dummy, format!("{} dummy_br ua-sriov-dummy-3", vm().dummy_mac(3, 4)));
    }
    let scenario = Scenario {
        given: a_running_vm,
        action: |host| attach(host, &vm(), 4, "sriov_ib1"),
        done: has_it,
        repairs: &[
            repaired,
            |host| {
                attach(host, &vm(), 4, "sriov_ib1").unwrap();
                has_it(host);
            },
            |host| detach(host, &vm(), 4).unwrap(),
        ],
    };
    scenario.with_every_fault();
}

#[test]
fn a_vf_leaves_with_every_fault() {
    fn is_gone(host: &ModelHost) {
        let (nics, interfaces) = portrait(host);
        let left = [format!("0 {} ib0 0000:00:10.0", vm().mac(0)), format!("2 {} ib0 0000:00:12.0", vm().mac(3))];
        assert_eq!(nics, left);
        assert_eq!(interfaces.len(), 3, "{interfaces:?}");
        assert_eq!(host.claims().len(), 3, "{:?}", host.claims());
    }
    let scenario = Scenario {
        given: a_running_vm,
        action: |host| detach(host, &vm(), 2),
        done: is_gone,
        repairs: &[
            |host| {
                // VFs that may still leave stay recorded as pending. The NIC is complete, and the next detach removes
                // it.
                repaired(host);
                host.check_safe();
                let (nics, interfaces) = portrait(host);
                assert_eq!(interfaces.len(), nics.len() + 1);
                detach(host, &vm(), 2).unwrap();
                is_gone(host);
            },
            |host| {
                detach(host, &vm(), 2).unwrap();
                is_gone(host);
            },
        ],
    };
    assert_eq!(
        scenario.without_faults(),
        [
            "find",
            "live_xml",
            "state",
            "set_metadata",
            "watch",
            "detach_alias",
            "detach_alias",
            "live_xml",
            "set_metadata"
        ]
    );
    scenario.with_every_fault();
}

#[test]
fn the_middle_one_comes_back_to_its_place() {
    let host = a_running_vm();
    let before = portrait(&host);
    detach(&host, &vm(), 2).unwrap();
    attach(&host, &vm(), 2, "sriov_ib1").unwrap();
    assert_eq!(portrait(&host).0, before.0);
    host.check();
}

#[test]
fn the_last_vf_leaves_a_vm_that_is_none_of_ours() {
    let host = a_plain_vm();
    let before = host.portrait();
    attach(&host, &plain(), 1, "sriov_ib0").unwrap();
    detach(&host, &plain(), 1).unwrap();
    assert_eq!(host.portrait(), before);
    host.check();
}

#[test]
fn both_may_be_called_twice() {
    let host = a_running_vm();
    attach(&host, &vm(), 4, "sriov_ib1").unwrap();
    let once = host.portrait();
    attach(&host, &vm(), 4, "sriov_ib1").unwrap();
    assert_eq!(host.portrait(), once);
    detach(&host, &vm(), 4).unwrap();
    detach(&host, &vm(), 4).unwrap();
    host.check();
}

#[test]
fn a_nic_that_is_there_is_no_other_nic() {
    let host = a_running_vm();
    let before = host.portrait();
    for (number, bridge, expected) in [
        (
            0,
            "sriov_ib1",
            "attach_nic: one-42 already has a NIC 02:00:0a:00:2a:00: it has a VF of ib0; nothing was changed",
        ),
        (
            1,
            "sriov_ib0",
            "attach_nic: one-42 already has a NIC 02:00:0a:00:2a:01: an interface on br0; nothing was changed",
        ),
        (9, "sriov_ib9", "attach_nic: there is no VF map ib9"),
        (9, "sriov_-", "attach_nic: the bridge of NIC 02:00:0a:00:2a:09: expected a root name"),
    ] {
        let error = attach(&host, &vm(), number, bridge).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    assert_eq!(host.portrait(), before);
}

#[test]
fn a_full_map_is_said_before_anything_is_plugged() {
    let host = ModelHost::with_vfs(3);
    deploy(&host, &neighbour());
    deploy(&host, &vm());
    let before = host.portrait();
    let error = attach(&host, &vm(), 4, "sriov_ib0").unwrap_err().to_string();
    assert_eq!(
        error,
        "attach_nic: no free VF on ib0 for one-42: none of 3 is left (one-42: 2, one-7: 1); nothing was changed"
    );
    assert_eq!(host.portrait(), before);
    host.check();
}

#[test]
fn a_vf_that_libvirt_refuses_is_left_out() {
    let host = a_running_vm();
    let free = host.vfs("ib1")[1];
    host.model().refuse(free, &format!("vfio {free}: group 11 is not viable"));
    attach(&host, &vm(), 4, "sriov_ib1").unwrap();
    assert!(host.domain("one-42").unwrap().vfs().any(|vf| vf == host.vfs("ib1")[2]));
    host.check();
}

/// A cause that every VF would meet is reported once, and no other VF is tried.
#[test]
fn a_cause_that_every_vf_would_meet_is_reported_once() {
    let memory = |vf| {
        format!(
            "vfio {vf}: failed to setup container for group 11: memory listener initialization failed: Region pc.ram: \
             vfio_container_dma_map(0x1, 0x0, 0x10000, 0x2) = -12 (Cannot allocate memory)"
        )
    };
    let slots = |_| "No more available PCI slots".to_owned();
    let place =
        |_| "PCI: slot 5 function 0 not available for vfio-pci, in use by virtio-balloon-pci,id=balloon0".to_owned();
    let denied = |vf| format!("vfio {vf}: failed to open /dev/vfio/vfio: Permission denied");
    let texts: [(&dyn Fn(PciAddress) -> String, &str); 4] = [
        (&memory, "can't lock the guest's memory"),
        (&slots, "No more available PCI slots"),
        (&place, "in use by virtio-balloon-pci"),
        (&denied, "QEMU may not open /dev/vfio/vfio"),
    ];
    for (text, said) in texts {
        let host = a_running_vm();
        let before = host.portrait();
        for vf in host.vfs("ib1") {
            host.model().refuse(vf, &text(vf));
        }
        host.faults().disarm();
        let error = attach(&host, &vm(), 4, "sriov_ib1").unwrap_err().to_string();
        assert!(error.contains(said) && error.ends_with("nothing was changed"), "{error}");
        assert_eq!(host.faults().count("attach"), 1, "{error}");
        assert_eq!(host.portrait(), before);
        host.faults().disarm();
        let other = Vm::new(43).nic("sriov_ib1");
        let deployed = actions::deploy(&host.host(), &host.deployment_file(&other), &host.deployment(&other));
        let error = deployed.unwrap_err().to_string();
        assert!(error.contains(said) && error.ends_with("nothing was started"), "{error}");
        assert_eq!(host.faults().count("create"), 1, "{error}");
    }
    // If QEMU may not open two VFs, the cause is the rules of the host.
    let host = a_running_vm();
    for vf in host.vfs("ib1") {
        host.model().refuse(vf, &format!("vfio {vf}: failed to open /dev/vfio/11: Permission denied"));
    }
    host.faults().disarm();
    let error = attach(&host, &vm(), 4, "sriov_ib1").unwrap_err().to_string();
    assert!(error.contains("QEMU may not open /dev/vfio/11") && error.contains("no udev rule"), "{error}");
    assert_eq!(host.faults().count("attach"), 2, "{error}");
}

#[test]
fn a_vf_that_qemu_may_not_open_yet_is_tried_again() {
    let host = a_running_vm();
    let free = host.vfs("ib1")[1];
    host.add_vfio_rule();
    host.model().delay_udev(free, 3);
    attach(&host, &vm(), 4, "sriov_ib1").unwrap();
    assert!(host.domain("one-42").unwrap().vfs().any(|vf| vf == free));
    host.check();
}

#[test]
fn a_missing_udev_rule_is_not_waited_for() {
    let host = a_running_vm();
    let free = host.vfs("ib1")[1];
    host.model().delay_udev(free, 1);
    attach(&host, &vm(), 4, "sriov_ib1").unwrap();
    assert!(host.domain("one-42").unwrap().vfs().any(|vf| vf == host.vfs("ib1")[2]));
    host.check();
}

#[test]
fn without_a_dummy_bridge_nothing_is_plugged() {
    let host = a_running_vm();
    let before = host.portrait();
    host.set_kvmrc("DUMMY_BRIDGE=nowhere\n");
    let error = attach(&host, &vm(), 4, "sriov_ib1").unwrap_err().to_string();
    assert!(error.starts_with("attach_nic: DUMMY_BRIDGE nowhere is not a bridge of this host"), "{error}");
    assert_eq!(host.portrait(), before);
}

#[test]
fn a_dummy_that_libvirt_refuses_takes_its_vf_with_it() {
    let host = a_running_vm();
    let before = host.portrait();
    let calls = {
        let other = a_running_vm();
        other.faults().disarm();
        attach(&other, &vm(), 4, "sriov_ib1").unwrap();
        other.faults().calls()
    };
    let second = calls.iter().rposition(|call| *call == "attach").unwrap() + 1;
    host.faults().arm(second, Fault::Fails(LibvirtErrorKind::Other));
    let error = attach(&host, &vm(), 4, "sriov_ib1").unwrap_err();
    host.faults().disarm();
    assert!(error.to_string().starts_with("attach_nic: could not plug dummy interface aa:03:"), "{error}");
    assert_eq!(*error.state(), HostState::NothingChanged);
    assert_eq!(host.portrait(), before);
    host.check();
}

#[test]
fn the_dummy_has_what_the_nic_was_given() {
    let host = a_plain_vm();
    let rest = "<FILTER>clean-traffic</FILTER><IP>10.0.42.1</IP><INBOUND_AVG_BW>7</INBOUND_AVG_BW><ORDER>3</ORDER>\
                <VLAN_ID>100</VLAN_ID>";
    let data = said(&plain(), 1, "sriov_ib0", rest);
    let id = plain().uuid().parse().unwrap();
    actions::attach_nic(&host.host(), &id, &plain().nic_arguments(1, "sriov_ib0").described(Some(&data)), Some(&data))
        .unwrap();
    let live = host.domain("one-42").unwrap();
    let dummy = live.interfaces.last().unwrap();
    for part in
        ["<parameter name=\"IP\" value=\"10.0.42.1\"", "<inbound average=\"7\"", "dev=\"one-42-1\"", "\"virtio\""]
    {
        assert!(dummy.xml.replace('\'', "\"").contains(part), "{part}: {}", dummy.xml);
    }
    let nic = &live.wanted.unwrap().unwrap().nics[0];
    assert_eq!((nic.boot_order, nic.vlan, nic.nic_id), (Some(3), Some(100), Some(1)));
    host.check();
}

#[test]
fn an_old_version_sends_everything_in_arguments() {
    let host = a_plain_vm();
    let id = plain().uuid().parse().unwrap();
    actions::attach_nic(&host.host(), &id, &plain().nic_arguments(1, "sriov_ib0").described(None), None).unwrap();
    actions::attach_nic(&host.host(), &id, &plain().nic_arguments(2, "br0").described(None), None).unwrap();
    assert_eq!(portrait(&host).1.len(), 3);
    actions::detach_nic(&host.host(), &id, plain().mac(1).parse().unwrap(), None).unwrap();
    actions::detach_nic(&host.host(), &id, plain().mac(2).parse().unwrap(), None).unwrap();
    assert_eq!(portrait(&host).1.len(), 1);
    host.check();
}

#[test]
fn nics_without_a_vf_come_and_go_with_every_fault() {
    fn has_it(host: &ModelHost) {
        assert_eq!(portrait(host).1.len(), 2);
        assert_eq!(host.claims().len(), 1);
    }
    let scenario = Scenario {
        given: a_plain_vm,
        action: |host| attach(host, &plain(), 1, "br0"),
        done: has_it,
        repairs: &[
            |host| {
                attach(host, &plain(), 1, "br0").unwrap();
                has_it(host);
            },
            |host| {
                detach(host, &plain(), 1).unwrap();
                assert_eq!(portrait(host).1.len(), 1);
            },
        ],
    };
    assert_eq!(scenario.without_faults(), ["find", "live_xml", "attach", "live_xml"]);
    scenario.with_every_fault();
    let scenario = Scenario {
        given: || {
            let host = a_plain_vm();
            attach(&host, &plain(), 1, "br0").unwrap();
            host
        },
        action: |host| detach(host, &plain(), 1),
        done: |host| assert_eq!(portrait(host).1.len(), 1),
        repairs: &[|host| {
            detach(host, &plain(), 1).unwrap();
            assert_eq!(portrait(host).1.len(), 1);
        }],
    };
    scenario.with_every_fault();
}

#[test]
fn a_silent_guest_keeps_its_nic_and_what_leaves_late_comes_back() {
    let host = a_running_vm();
    host.model().set_guest("one-42", Guest::Silent);
    let before = portrait(&host);
    let error = detach(&host, &vm(), 2).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let vf = host.vfs("ib1")[0];
    assert_eq!(
        error.to_string(),
        format!(
            "detach_nic: one-42 did not release VF {vf} in 2 s; the NIC stays; the request stays pending in the guest, and \
             what leaves later is plugged back (is the guest's PCI hot-plug driver loaded?)"
        )
    );
    host.check_safe();
    assert_eq!(portrait(&host), before);
    // A reset carries out the request: both devices leave.
    host.model().set_guest("one-42", Guest::default());
    host.model().reboot_guest("one-42");
    repaired(&host);
    assert_eq!(portrait(&host).0, before.0);
    assert_eq!(portrait(&host).1.len(), before.1.len());
    host.check();
}

#[test]
fn a_dummy_that_stays_keeps_its_vf() {
    for guest in [Guest::Refuses("ua-sriov-dummy-1".into()), Guest::Refuses("ua-sriov-1".into())] {
        let host = a_running_vm();
        host.model().set_guest("one-42", guest.clone());
        let before = portrait(&host);
        let error = detach(&host, &vm(), 2).unwrap_err();
        assert!(error.to_string().contains("the NIC stays; the request stays pending"), "{error}");
        host.check_safe();
        assert_eq!(portrait(&host).0, before.0, "{guest:?}");
        let mut interfaces = portrait(&host).1;
        interfaces.sort();
        let mut expected = before.1.clone();
        expected.sort();
        assert_eq!(interfaces, expected, "{guest:?}");
        // The next detach takes over the pending request.
        host.model().set_guest("one-42", Guest::default());
        detach(&host, &vm(), 2).unwrap();
        host.check();
    }
}

#[test]
fn a_guest_that_refuses_by_event_is_left_as_it_was() {
    let host = a_running_vm();
    host.model().set_guest("one-42", Guest::RemovalFailed);
    let before = host.portrait();
    let error = detach(&host, &vm(), 2).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let error = error.to_string();
    assert!(error.contains("refused: the guest refused") && error.ends_with("nothing was changed"), "{error}");
    assert_eq!(host.portrait(), before);
    host.check();
}

#[test]
fn a_paused_vm_keeps_its_nics() {
    let host = a_running_vm();
    host.model().pause("one-42");
    let before = host.portrait();
    for number in [1, 2] {
        let error = detach(&host, &vm(), number).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let error = error.to_string();
        let expected =
            "detach_nic: one-42 is paused, so its guest can't release a device; resume it first; nothing was changed";
        assert_eq!(error, expected);
    }
    assert_eq!(host.portrait(), before);
}

#[test]
fn a_vm_that_is_not_there_has_no_nic() {
    let host = a_running_vm();
    let ghost = Vm::new(99);
    detach(&host, &ghost, 0).unwrap();
    let error = attach(&host, &ghost, 0, "sriov_ib0").unwrap_err().to_string();
    assert!(error.starts_with("attach_nic: there is no domain 7f1c2a52-"), "{error}");
    host.check();
}

#[test]
fn a_busy_controller_is_waited_for() {
    for hotplug in [Hotplug::Acpi, Hotplug::AcpiOnce] {
        let host = a_running_vm();
        host.model().set_hotplug("one-42", hotplug);
        host.model().set_guest("one-42", Guest::EventBeforeReturn);
        detach(&host, &vm(), 0).unwrap();
        host.check();
    }
}

#[test]
fn an_alias_has_no_device() {
    let host = a_running_vm();
    let before = host.portrait();
    let mac = vm().mac(9);
    let text = format!("<VM><TEMPLATE><NIC_ALIAS><ATTACH>YES</ATTACH><MAC>{mac}</MAC></NIC_ALIAS></TEMPLATE></VM>");
    let data = VmData::parse(&text).unwrap();
    let id = vm().uuid().parse().unwrap();
    actions::attach_nic(&host.host(), &id, &vm().nic_arguments(9, "sriov_ib0").described(Some(&data)), Some(&data))
        .unwrap();
    actions::detach_nic(&host.host(), &id, mac.parse().unwrap(), Some(&data)).unwrap();
    assert_eq!(host.portrait(), before);
}

#[test]
fn a_domain_that_ends_while_its_guest_is_asked_has_no_nic() {
    let host = a_running_vm();
    host.model().set_guest("one-42", Guest::Silent);
    let model = host.model().clone();
    let calls = {
        host.faults().disarm();
        host.faults().before(7, move || model.end_domain("one-42"));
        detach(&host, &vm(), 2)
    };
    calls.unwrap();
    assert!(host.domain("one-42").is_none());
    assert_eq!(host.claims().len(), 1);
    host.check();
}

#[test]
fn a_q35_keeps_the_order_of_its_vfs() {
    let host = ModelHost::default();
    let q35 = Vm::new(42).machine("q35").nic("br0").nic("sriov_ib0").nic("sriov_ib1");
    deploy(&host, &q35);
    for number in [3, 4] {
        attach(&host, &q35, number, "sriov_ib0").unwrap();
        host.check();
    }
    let before = portrait(&host).0;
    for number in [1, 2, 3] {
        detach(&host, &q35, number).unwrap();
        attach(&host, &q35, number, if number == 2 { "sriov_ib1" } else { "sriov_ib0" }).unwrap();
        assert_eq!(portrait(&host).0, before);
    }
    host.check();
}

/// An attached NIC is recognised by its alias. Its other attributes may be missing in the description, or libvirt may
/// show them differently.
#[test]
fn a_nic_is_found_again_whatever_its_description_lacks() {
    let host = a_plain_vm();
    let id: DomainId = plain().uuid().parse().unwrap();
    for (number, rest) in
        [(1, "<NETWORK_MODE>dummy</NETWORK_MODE>"), (2, "<BRIDGE_TYPE>openvswitch_dpdk</BRIDGE_TYPE>")]
    {
        let mac = plain().mac(number);
        let text = format!(
            "<VM><TEMPLATE><NIC><ATTACH>YES</ATTACH><BRIDGE>br0</BRIDGE><MAC>{mac}</MAC><NIC_ID>{number}</NIC_ID>{rest}</NIC>\
             </TEMPLATE></VM>"
        );
        let data = VmData::parse(&text).unwrap();
        for _ in 0..2 {
            let arguments = NicArgs { target: None, ..plain().nic_arguments(number, "br0") };
            actions::attach_nic(&host.host(), &id, &arguments.described(Some(&data)), Some(&data)).unwrap();
            assert_eq!(host.domain("one-42").unwrap().interfaces.len(), 2);
        }
        for _ in 0..2 {
            actions::detach_nic(&host.host(), &id, mac.parse().unwrap(), Some(&data)).unwrap();
            assert_eq!(host.domain("one-42").unwrap().interfaces.len(), 1);
        }
    }
}

/// Two NICs of one VM may have the same MAC. OpenNebula's target names the one that is detached.
#[test]
fn of_two_nics_with_one_mac_the_named_one_leaves() {
    let host = a_plain_vm();
    let id: DomainId = plain().uuid().parse().unwrap();
    let mac = plain().mac(0);
    for target in ["twin-1", "twin-2"] {
        let twin = format!(
            "<interface type='bridge'><source bridge='br0'/><mac address='{mac}'/><target dev='{target}'/></interface>"
        );
        host.model().attach(&host.model().find(&id).unwrap().unwrap(), &twin, CALL_LIMIT).unwrap();
    }
    let targets = || -> Vec<Option<String>> {
        host.domain("one-42").unwrap().interfaces.into_iter().map(|interface| interface.target).collect()
    };
    let mut left = targets();
    let data = VmData::parse(&format!(
        "<VM><ID>42</ID><TEMPLATE><NIC><ATTACH>YES</ATTACH><BRIDGE>br0</BRIDGE><MAC>{mac}</MAC><NIC_ID>1</NIC_ID>\
         <TARGET>twin-1</TARGET></NIC></TEMPLATE></VM>"
    ));
    actions::detach_nic(&host.host(), &id, mac.parse().unwrap(), Some(&data.unwrap())).unwrap();
    left.retain(|target| target.as_deref() != Some("twin-1"));
    assert_eq!((targets(), left.len()), (left.clone(), 2));
}

/// A VM as the driver of 2013 started it: without our metadata and aliases.
fn of_the_driver_of_2013(host: &ModelHost) {
    let xml = host.deployment(&plain()).replacen(
        "</devices>",
        &format!(
            "<hostdev mode='subsystem' type='pci' managed='yes'><source><address {}/></source></hostdev>\
             <interface type='bridge'><source bridge='dummy_br'/><mac address='{}'/><target dev='one-42-1'/>\
             <model type='e1000'/></interface></devices>",
            host.vfs("ib0")[2].to_attributes(),
            plain().dummy_mac(0, 1),
        ),
        1,
    );
    host.model().create(&xml, CALL_LIMIT).unwrap();
}

#[test]
fn a_nic_of_the_driver_of_2013_leaves_with_its_dummy() {
    let host = ModelHost::default();
    of_the_driver_of_2013(&host);
    detach(&host, &plain(), 1).unwrap();
    let live = host.domain("one-42").unwrap();
    assert_eq!((live.hostdevs.len(), live.interfaces.len()), (0, 1));
    assert_eq!(live.wanted, Ok(None));
    assert!(host.claims().is_empty(), "{:?}", host.claims());
    host.check();
}

#[test]
fn a_dummy_of_the_driver_of_2013_comes_back_as_it_was() {
    let host = ModelHost::default();
    of_the_driver_of_2013(&host);
    let alias = host.domain("one-42").unwrap().hostdevs[0].alias.clone().unwrap();
    host.model().set_guest("one-42", Guest::Refuses(alias));
    let error = detach(&host, &plain(), 1).unwrap_err();
    assert!(error.to_string().contains("the NIC stays"), "{error}");
    let live = host.domain("one-42").unwrap();
    let dummy = live.interfaces.iter().find(|interface| interface.mac.to_string() == plain().dummy_mac(0, 1)).unwrap();
    assert!(dummy.xml.contains("e1000") && dummy.target.as_deref() == Some("one-42-1"), "{}", dummy.xml);
}

/// A PCI device of the host that the driver did not claim, as OpenNebula describes it.
fn a_pci_nic(host: &ModelHost) -> VmData {
    let vf = host.vfs("ib1")[3];
    VmData::parse(&format!(
        "<VM><TEMPLATE><PCI><ATTACH>YES</ATTACH><MAC>{}</MAC><DOMAIN>{:04x}</DOMAIN><BUS>{:02x}</BUS><SLOT>{:02x}</SLOT>\
         <FUNCTION>{}</FUNCTION><TYPE>NIC</TYPE></PCI></TEMPLATE></VM>",
        plain().mac(9),
        vf.domain(),
        vf.bus(),
        vf.slot(),
        vf.function()
    ))
    .unwrap()
}

#[test]
fn a_pci_nic_comes_and_goes_as_with_the_stock_driver() {
    let host = a_plain_vm();
    let before = host.portrait();
    let (id, data) = (plain().uuid().parse().unwrap(), a_pci_nic(&host));
    for _ in 0..2 {
        actions::attach_nic(
            &host.host(),
            &id,
            &plain().nic_arguments(9, "onebr.100").described(Some(&data)),
            Some(&data),
        )
        .unwrap();
        let live = host.domain("one-42").unwrap();
        assert_eq!(live.interfaces.last().unwrap().vf, Some(host.vfs("ib1")[3]));
    }
    for _ in 0..2 {
        actions::detach_nic(&host.host(), &id, plain().mac(9).parse().unwrap(), Some(&data)).unwrap();
    }
    assert_eq!(host.portrait(), before);
    host.check();
}
