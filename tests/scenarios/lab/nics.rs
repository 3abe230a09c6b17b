//! NICs that are attached to a running VM and detached from it.

use std::thread;
use std::time::Duration;

use kvm_sriov_tests::rig_host::RigHost;
use kvm_sriov_tests::vm::Vm;

use super::suspend::{boot, shows};
use super::{cancel, guest_addresses, interfaces, plugged};

/// A guest shows a new NIC, and releases one, within 5 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(60);

fn done(said: &kvm_sriov_tests::rig_host::Said) {
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
}

/// Three NICs have the same MAC, as with the same lease in several networks of OpenNebula.
fn nics_come_and_go(host: RigHost, first: Vm) {
    boot(host, &first, 2);
    let begin = guest_addresses(&host.live_xml(&first));
    let two = first.clone().nic_with_mac_of(0, "sriov_pf1");
    done(&host.attach_nic(&two, 1));
    shows(host, &two, 4, GUEST_ANSWERS);
    // OpenNebula may call an action twice.
    done(&host.attach_nic(&two, 1));
    let three = two.clone().nic("sriov_pf0");
    done(&host.attach_nic(&three, 2));
    let four = three.clone().nic_with_mac_of(0, "br0");
    done(&host.attach_nic(&four, 3));
    shows(host, &four, 7, GUEST_ANSWERS);
    let all = guest_addresses(&host.live_xml(&four));
    assert!(all.is_sorted_by_key(|(_, guest)| guest.clone()), "{all:?}");
    assert_eq!(all[0], begin[0]);
    assert_eq!(host.claims(), ["pf0/0", "pf0/1", "pf1/0"]);
    let macs = [four.dummy_mac(0, 0), four.dummy_mac(1, 1), four.dummy_mac(2, 2), four.mac(3)];
    let there: Vec<String> = interfaces(&host.live_xml(&four)).into_iter().map(|(mac, _)| mac).collect();
    assert!(macs.iter().all(|mac| there.contains(mac)), "{macs:?} {there:?}");

    // The NIC in the middle is detached, and attached again at its place.
    done(&host.detach_nic(&four, 1));
    shows(host, &four, 5, GUEST_ANSWERS);
    assert_eq!(guest_addresses(&host.live_xml(&four)), [all[0].clone(), all[2].clone()]);
    assert_eq!(host.claims(), ["pf0/0", "pf0/1"]);
    done(&host.detach_nic(&four, 1));
    // Two other NICs have its MAC.
    let said = host.detach_by_mac(&four, 0);
    assert!(said.code != 0 && said.message().contains("has several NICs with MAC"), "{said:?}");
    done(&host.attach_nic(&four, 1));
    assert_eq!(guest_addresses(&host.live_xml(&four)), all);
    shows(host, &four, 7, GUEST_ANSWERS);
    done(&host.detach_nic(&four, 3));
    shows(host, &four, 6, GUEST_ANSWERS);
    done(&host.save(&four));
    done(&host.restore(&four));
    // A guest may release a VF once more that it has just got. It gets a VF again.
    host.wait("all VFs to be back", GUEST_ANSWERS, |host| guest_addresses(&host.live_xml(&four)) == all);
    cancel(host, &four);
}

pub(super) fn nics_come_and_go_on_pc(host: RigHost) {
    nics_come_and_go(host, Vm::new(61).with_guest().nic("sriov_pf0"));
}

pub(super) fn nics_come_and_go_on_q35(host: RigHost) {
    nics_come_and_go(host, Vm::new(62).machine("q35").with_guest().nic("sriov_pf0"));
}

pub(super) fn attach_without_a_free_vf_changes_nothing(host: RigHost) {
    let vm = Vm::new(63).nic("sriov_pf0");
    super::deploy(host, &vm);
    let full = (0..3).fold(Vm::new(64), |vm, _| vm.nic("sriov_pf0"));
    super::deploy(host, &full);
    let before = host.live_xml(&vm);
    let more = vm.clone().nic("sriov_pf0");
    let said = host.attach_nic(&more, 1);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.message().contains("no free VF on pf0 for one-63: none of 4 is left"), "{said:?}");
    assert_eq!(host.live_xml(&vm), before);
    assert_eq!(host.claims().len(), 4);
    cancel(host, &vm);
    cancel(host, &full);
}

pub(super) fn detach_from_a_guest_that_does_not_answer(host: RigHost) {
    let vm = Vm::new(65).nic("sriov_pf0");
    super::kvmrc(host, "SRIOV_UNPLUG_TIMEOUT=3\n");
    super::deploy(host, &vm);
    let before = guest_addresses(&host.live_xml(&vm));
    let said = host.detach_nic(&vm, 0);
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.message().contains("did not release"), "{said:?}");
    assert_eq!(guest_addresses(&host.live_xml(&vm)), before);
    assert_eq!(host.claims(), ["pf0/0"]);
    cancel(host, &vm);
}

pub(super) fn udev_comes_late(host: RigHost) {
    let vm = Vm::new(78).nic("sriov_pf0");
    super::deploy(host, &vm);
    host.root("udevadm control --stop-exec-queue").ok();
    // QEMU may not open the device, and libvirt removes it again.
    let devices = |number: u8| format!("until [ $(ls /dev/vfio | wc -l) = {number} ]; do sleep 0.02; done");
    let denied = format!("timeout 120 sh -c '{}; {}'", devices(3), devices(2));
    let denied = thread::spawn(move || host.root(&denied));
    let two = vm.clone().nic("sriov_pf0");
    let attaching = host.begin_attach(&two, 1);
    denied.join().unwrap().ok();
    host.root("udevadm control --start-exec-queue").ok();
    let said = attaching.finish();
    done(&said);
    assert!(said.err.contains("waiting for udev, then trying again"), "{said:?}");
    let used: Vec<String> = plugged(&host.live_xml(&vm)).into_iter().map(|vf| vf.host).collect();
    assert_eq!(used, super::map(host, "pf0")[..2], "another VF was taken: {said:?}");
    cancel(host, &vm);
}
