//! Snapshots of a running VM, stored in its disk.

use std::time::Duration;

use kvm_sriov_tests::rig_host::RigHost;
use kvm_sriov_tests::vm::Vm;

use super::suspend::{boot, exists, has_again, identity, shows};
use super::{STATE, cancel, deploy, guest_addresses, interfaces, plugged};

/// A guest shows returned VFs, and releases requested ones, within 8 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(60);

/// Creates the VM's disk, which stores its snapshots.
fn make_disk(host: RigHost, vm: &Vm) {
    host.oneadmin(&format!("mkdir -p {0} && qemu-img create -q -f qcow2 {0}/disk.0 8M", vm.dir())).ok();
}

/// libvirt's names of a VM's snapshots.
fn snapshots(host: RigHost, vm: &Vm) -> Vec<String> {
    let names = host.oneadmin(&format!("virsh -q -c qemu:///system snapshot-list --name {}", vm.name())).ok();
    names.lines().filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

pub(super) fn snapshots_of_a_vm_with_vfs(host: RigHost) {
    let one = Vm::new(66).with_guest().disk_of("qcow2").nic("sriov_pf0");
    // Both NICs have the same MAC.
    let vm = one.clone().nic_with_mac_of(0, "sriov_pf1");
    make_disk(host, &vm);
    let before = identity(&boot(host, &vm, 4));
    let boot_id = host.wait_tick(&vm).boot;

    let said = host.snapshot_create(&vm, 0);
    assert_eq!((said.code, said.out.as_str()), (0, "snap-0\n"), "{said:?}");
    has_again(host, &vm, &before);
    assert_eq!(host.claims(), ["pf0/0", "pf1/0"]);
    let kept = format!("{}/snap-0.xml", vm.dir());
    let known = host.oneadmin(&format!("virsh -c qemu:///system snapshot-dumpxml {} snap-0", vm.name())).ok();
    for text in [&known, &host.oneadmin(&format!("cat {kept}")).ok()] {
        assert!(text.contains("<name>snap-0</name>") && !text.contains("<hostdev"), "{text}");
    }
    shows(host, &vm, 4, GUEST_ANSWERS);

    // The VM detaches a NIC that the snapshot still contains.
    let said = host.detach_nic(&vm, 1);
    assert_eq!(said.code, 0, "{said:?}");
    shows(host, &one, 2, GUEST_ANSWERS);
    // The guest may repeat the first sign of life after the revert. The third one is new in any case.
    let [_, _, later] = [(); 3].map(|()| host.wait_tick(&one));
    let said = host.snapshot_revert(&one, "snap-0");
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    host.wait_tick(&one);
    // A new QEMU runs, with a new console.
    let tick = host.console(&one).ticks().into_iter().next().unwrap();
    assert!(tick.boot == boot_id && tick.uptime < later.uptime, "it is not what it was: {later:?} {tick:?}");
    let live = host.live_xml(&one);
    assert_eq!(host.state(&one), "running");
    assert_eq!(guest_addresses(&live), [("ua-sriov-0".to_owned(), "00:10.0".to_owned())], "{said:?}");
    assert_eq!(interfaces(&live), [(one.dummy_mac(0, 0), "dummy_br".into())], "{said:?}");
    assert!(!live.contains("<sriov:operation"), "{live}");
    assert_eq!(host.claims(), ["pf0/0"]);
    shows(host, &one, 2, GUEST_ANSWERS);

    let said = host.snapshot_delete(&one, "snap-0");
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert_eq!(snapshots(host, &one), Vec::<String>::new());
    assert!(!exists(host, &kept));
    assert_eq!(plugged(&host.live_xml(&one)), plugged(&live));
    cancel(host, &one);
}

pub(super) fn snapshots_of_a_vm_without_vfs(host: RigHost) {
    let vm = Vm::new(67).disk_of("qcow2").nic("br0");
    make_disk(host, &vm);
    deploy(host, &vm);
    for number in [0, 1] {
        let said = host.snapshot_create(&vm, number);
        assert_eq!((said.code, said.out), (0, format!("snap-{number}\n")), "{:?}", said.err);
    }
    let said = host.snapshot_revert(&vm, "snap-0");
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert_eq!(host.state(&vm), "running");
    for left in [&["snap-1"][..], &[]] {
        let gone = snapshots(host, &vm).into_iter().find(|name| !left.contains(&name.as_str())).unwrap();
        let said = host.snapshot_delete(&vm, &gone);
        assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
        assert_eq!(snapshots(host, &vm), left);
    }
    assert!(!exists(host, STATE), "the state directory was made");
    cancel(host, &vm);
}
