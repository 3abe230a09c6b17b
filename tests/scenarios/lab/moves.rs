//! Migration of VMs with VFs between two hosts, and everything that interrupts it.

use std::thread;
use std::time::Duration;

use kvm_sriov_tests::rig_host::{RigHost, Running, Said};
use kvm_sriov_tests::vm::{PRIVATE, SHARED, SHARED_TOO, Vm};

use super::suspend::{
    CLAIM, Identity, NEW_CLAIM, SYNC, UNLINK, boot, exists, has_again, identity, shows, under_strace, was_killed,
};
use super::{GUEST_BOOT, KVMRC, cancel, deploy, is_at_rest, map, plugged};

/// A migration of the lab's guest takes about 15 s.
const MOVE: Duration = Duration::from_secs(120);

/// A guest shows returned VFs within 5 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(60);

/// Settings for a migration. Memory is copied at 4 MiB a second when a test acts in the middle of the copy.
const SLOWLY: &str = "DUMMY_BRIDGE=dummy_br\nDUMMY_MAC_PREFIX=aa\nMIGRATE_OPTIONS=\"--bandwidth 4\"\n";

/// The second host, clean, with the driver.
pub(super) fn second_host() -> RigHost {
    let [_, host] = RigHost::start_both();
    host.clean();
    host.set_up();
    host
}

/// OpenNebula was told that the VM has migrated.
pub(super) fn migrated(said: &Said) {
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
}

/// The VM runs only on `at`, with all its VFs, and no other VF is claimed.
pub(super) fn is_only_at(vm: &Vm, at: RigHost, other: RigHost, vfs: usize) {
    assert_eq!(at.state(vm), "running", "on {}", at.name());
    assert_eq!(other.live_xml(vm), "", "it is on {}, too", other.name());
    assert_eq!(plugged(&at.live_xml(vm)).len(), vfs);
    assert_eq!(at.claims().len(), vfs, "{:?}", at.claims());
    assert_eq!(other.claims(), Vec::<String>::new());
    let live = at.live_xml(vm);
    assert!(is_at_rest(&live), "an operation is open: {live}");
}

/// The guest's context scripts gave each VF the addresses of its NIC, and the peer answers through both.
#[track_caller]
fn reaches(host: RigHost, vm: &Vm, peer: &Vm) {
    host.wait_addresses(vm, &[vm.ip(0), vm.ip(2), vm.ip(3)]);
    host.wait_ping(vm, &peer.ip(0));
    host.wait_ping(vm, &peer.ip6(0));
}

pub(super) fn traffic_survives_suspend_and_migration_there_and_back(host1: RigHost) {
    let host2 = second_host();
    let peer = Vm::new(51).with_context().nic("sriov_pf0");
    let vm = Vm::new(50)
        .machine("q35")
        .with_peers(&[peer.ip(0), peer.ip6(0)])
        .with_context()
        .nic("sriov_pf0")
        .nic("br0")
        .nic("sriov_pf1")
        .nic("sriov_pf0");
    let booting = {
        let peer = peer.clone();
        thread::spawn(move || boot(host2, &peer, 2))
    };
    let before = identity(&boot(host1, &vm, 7));
    booting.join().unwrap();
    reaches(host1, &vm, &peer);
    let boot_id = host1.wait_tick(&vm).boot;

    assert_eq!(host1.save(&vm).code, 0);
    assert_eq!(host1.restore(&vm).code, 0);
    has_again(host1, &vm, &before);
    reaches(host1, &vm, &peer);

    // The map of the other host has another order, and one of its VFs is in use.
    let lines = host2.root("tac /etc/kvm-sriov/vf_maps/pf0").ok();
    host2.write("/etc/kvm-sriov/vf_maps/pf0", &lines);
    migrated(&host1.migrate(&vm, host2));
    assert_eq!(host1.live_xml(&vm), "");
    assert_eq!(host1.claims(), Vec::<String>::new());
    assert_eq!(identity(&host2.live_xml(&vm)), before);
    let used: Vec<String> = plugged(&host2.live_xml(&vm)).into_iter().map(|vf| vf.host).collect();
    assert_eq!([&used[0], &used[2]], [&map(host2, "pf0")[0], &map(host2, "pf0")[1]]);
    assert_eq!(host2.wait_tick(&vm).boot, boot_id, "its memory is not what it was");
    shows(host2, &vm, 7, GUEST_ANSWERS);
    host2.wait_addresses(&vm, &[vm.ip(0), vm.ip(2), vm.ip(3)]);

    migrated(&host2.migrate(&vm, host1));
    is_gone_from(&vm, host2);
    assert_eq!(identity(&host1.live_xml(&vm)), before);
    reaches(host1, &vm, &peer);
    assert_eq!(host1.wait_tick(&vm).boot, boot_id);
    cancel(host1, &vm);
    cancel(host2, &peer);
}

fn is_gone_from(vm: &Vm, host: RigHost) {
    assert_eq!(host.live_xml(vm), "", "on {}", host.name());
}

pub(super) fn destination_with_too_few_vfs_is_refused(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(52).nic("sriov_pf0").nic("sriov_pf0");
    let before = plugged(&deploy(host1, &vm));
    let full = (0..3).fold(Vm::new(53), |vm, _| vm.nic("sriov_pf0"));
    deploy(host2, &full);
    let said = host1.migrate(&vm, host2);
    assert_eq!(said.code, 1, "{said:?}");
    let message = said.message();
    assert!(message.contains("host2: too few free VFs on pf0: 1, 2 needed"), "{message}");
    assert_eq!(plugged(&host1.live_xml(&vm)), before, "the source was touched");
    assert_eq!(host2.claims().len(), 3);
    let unplugged = host1.root("grep -c 'vm=one-52 .*result=unplugged' /var/log/syslog").out;
    assert_eq!(unplugged.trim(), "0");
    cancel(host1, &vm);
    cancel(host2, &full);
}

/// What interrupts a migration, and how the hosts are repaired afterwards.
struct Fault {
    name: &'static str,
    strikes: fn(RigHost, RigHost, &mut Running, &Vm),
    /// Whether the destination does not answer until it is repaired.
    silent: bool,
    mended: fn(RigHost, RigHost),
}

const FAULTS: [Fault; 7] = [
    Fault {
        name: "the job is aborted",
        strikes: |host1, _, _, vm| {
            host1.oneadmin(&format!("virsh -q -c qemu:///system domjobabort {}", vm.name())).ok();
        },
        silent: false,
        mended: |_, _| {},
    },
    Fault {
        name: "our process is killed",
        strikes: |_, _, moving, _| {
            moving.signal("KILL");
        },
        silent: false,
        mended: |_, _| {},
    },
    Fault {
        name: "the agent is killed",
        strikes: |_, host2, _, _| {
            host2.root("pkill -KILL -f '[s]riov_agent'").ok();
        },
        silent: false,
        mended: |_, _| {},
    },
    Fault {
        name: "the front-end's ssh is killed",
        strikes: |_, _, moving, _| moving.cut_ssh(),
        silent: false,
        mended: |_, _| {},
    },
    Fault {
        name: "the destination's libvirtd is killed",
        strikes: |_, host2, _, _| host2.kill_libvirtd(),
        silent: true,
        mended: |_, host2| host2.start_libvirtd(),
    },
    Fault {
        name: "the destination loses its power",
        strikes: |_, host2, _, _| host2.power_off(),
        silent: true,
        mended: |_, host2| host2.power_on(),
    },
    Fault {
        name: "the network between the hosts is cut",
        strikes: |_, host2, _, _| host2.cut_network(),
        silent: true,
        mended: |_, host2| host2.mend_network(),
    },
];

pub(super) fn moves_that_are_cut_off_in_every_way(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(54).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host1, &vm, 4));
    let boot_id = host1.wait_tick(&vm).boot;
    for Fault { name, strikes, silent, mended } in &FAULTS {
        println!("  {name}");
        for host in [host1, host2] {
            host.write(KVMRC, SLOWLY);
        }
        let mut moving = host1.begin_migration(&vm, host2);
        is_copied(host1, &vm);
        strikes(host1, host2, &mut moving, &vm);
        if *silent {
            host1.wait(&format!("the VFs to be back: {name}"), MOVE, |host| identity(&host.live_xml(&vm)) == before);
        }
        let said = moving.finish();
        mended(host1, host2);
        let at = settles([host1, host2], &vm, &before, &format!("{name}: {said:?}"));
        assert_eq!(at.wait_tick(&vm).boot, boot_id, "{name}");
        shows(at, &vm, 4, GUEST_ANSWERS);
        if at.name() != host1.name() {
            migrated(&at.migrate(&vm, host1));
        }
    }
    cancel(host1, &vm);
}

/// Waits until the memory of a VM is being copied.
fn is_copied(host: RigHost, vm: &Vm) {
    host.wait("memory to be copied", MOVE, |host| {
        let job = host.oneadmin(&format!("virsh -c qemu:///system domjobinfo {}", vm.name())).out;
        job.contains("Outgoing migration") && job.contains("Memory processed")
    });
}

/// Reconciles both hosts until the VM runs on one host with all its VFs, and no other VF is claimed. Returns that host.
/// The CPUs never run on both.
#[track_caller]
pub(super) fn settles(hosts: [RigHost; 2], vm: &Vm, before: &Identity, after: &str) -> RigHost {
    let [host1, host2] = hosts;
    // Without its client the copy goes on until libvirt ends it with the connection.
    host1.wait(&format!("one place: {after}"), MOVE, |host1| {
        let [here, there] = [host1.state(vm), host2.state(vm)];
        assert!(here != "running" || there != "running", "its CPUs run in two places: {after}");
        for host in hosts {
            host.root("timeout 60 kvm-sriov reconcile");
        }
        [host1.live_xml(vm), host2.live_xml(vm)].iter().filter(|live| !live.is_empty()).count() == 1
            && [host1.state(vm), host2.state(vm)].contains(&"running".to_owned())
    });
    let (at, other) = if host1.live_xml(vm).is_empty() { (host2, host1) } else { (host1, host2) };
    at.wait(&format!("all VFs to be back: {after}"), GUEST_ANSWERS, |at| identity(&at.live_xml(vm)) == *before);
    // The unfinished file of a process that died while it wrote a claim is no claim, and is removed after a minute.
    for host in hosts {
        host.root("rm -f /tmp/vf_interfaces/*/.new-*").ok();
    }
    is_only_at(vm, at, other, plugged(&at.live_xml(vm)).len());
    at
}

pub(super) fn two_vms_swap_hosts_with_full_maps(host1: RigHost) {
    let host2 = second_host();
    let [left, right] = [Vm::new(55), Vm::new(56)].map(|vm| vm.with_guest().nic("sriov_pf0"));
    let fillers = [Vm::new(57), Vm::new(58)].map(|vm| vm.nic("sriov_pf0").nic("sriov_pf0"));
    deploy(host1, &fillers[0]);
    deploy(host2, &fillers[1]);
    deploy(host1, &left);
    deploy(host2, &right);
    shows(host1, &left, 2, GUEST_BOOT);
    shows(host2, &right, 2, GUEST_BOOT);
    let moving = [host1.begin_migration(&left, host2), host2.begin_migration(&right, host1)];
    let said = moving.map(Running::finish);
    said.iter().for_each(migrated);
    assert_eq!(plugged(&host2.live_xml(&left)).len(), 1, "{said:?}");
    assert_eq!(plugged(&host1.live_xml(&right)).len(), 1, "{said:?}");
    assert_eq!((host1.claims().len(), host2.claims().len()), (3, 3));
    for (host, vm) in [(host1, &right), (host2, &left), (host1, &fillers[0]), (host2, &fillers[1])] {
        cancel(host, vm);
    }
}

pub(super) fn cancel_during_a_migration(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(59).with_guest().nic("sriov_pf0");
    boot(host1, &vm, 2);
    for host in [host1, host2] {
        host.write(KVMRC, SLOWLY);
    }
    let before = identity(&host1.live_xml(&vm));
    let moving = host1.begin_migration(&vm, host2);
    is_copied(host1, &vm);
    // OpenNebula cleans up at the destination. The VM stays at the source.
    cancel(host2, &vm);
    let said = moving.finish();
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(settles([host1, host2], &vm, &before, "it was cancelled there").name(), host1.name(), "{said:?}");

    let moving = host1.begin_migration(&vm, host2);
    is_copied(host1, &vm);
    // OpenNebula cancels the VM on both hosts.
    cancel(host1, &vm);
    cancel(host2, &vm);
    let said = moving.finish();
    assert_ne!(said.code, 0, "{said:?}");
    has_no_agent(host2);
    for host in [host1, host2] {
        is_gone_from(&vm, host);
        host.root("timeout 60 kvm-sriov reconcile").ok();
        assert_eq!(host.claims(), Vec::<String>::new(), "on {}", host.name());
    }
}

pub(super) fn vm_without_vfs_migrates(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(60).nic("br0").disk();
    host1.oneadmin(&format!("mkdir -p {0} && truncate -s 1M {0}/disk.0", vm.dir())).ok();
    deploy(host1, &vm);
    migrated(&host1.migrate(&vm, host2));
    is_gone_from(&vm, host1);
    assert_eq!(host2.state(&vm), "running");
    cancel(host2, &vm);
    assert_eq!(SHARED, 0);
}

pub(super) fn storage_that_is_not_shared_moves_along(host1: RigHost) {
    let host2 = second_host();
    // Both NICs have one MAC.
    let vm = Vm::new(72).datastore(PRIVATE).with_guest().disk().nic("sriov_pf0").nic_with_mac_of(0, "sriov_pf1");
    let disk = format!("{}/disk.0", vm.dir());
    host1.oneadmin(&format!("mkdir -p {} && head -c 2M /dev/urandom >{disk}", vm.dir())).ok();
    let sum = |host: RigHost| host.root(&format!("sha256sum {disk}")).ok();
    let content = sum(host1);
    let before = identity(&boot(host1, &vm, 4));
    assert!(!exists(host2, &vm.dir()));
    let data = vm.action_data(&host1.name()).to(&host2.name(), PRIVATE);
    let said = host1.begin_migration_with(&vm, host2, &data).finish();
    migrated(&said);
    is_only_at(&vm, host2, host1, 2);
    assert_eq!(identity(&host2.live_xml(&vm)), before, "{said:?}");
    assert_eq!(sum(host2), content, "{said:?}");
    shows(host2, &vm, 4, GUEST_ANSWERS);
    cancel(host2, &vm);
    // OpenNebula's transfer driver does this after a migration.
    for host in [host1, host2] {
        host.root(&format!("rm -rf {}", vm.dir())).ok();
    }
}

pub(super) fn another_datastore_of_the_host(host: RigHost) {
    let vm = Vm::new(73).disk().nic("sriov_pf0").nic("sriov_pf1");
    host.oneadmin(&format!("mkdir -p {0} && head -c 2M /dev/urandom >{0}/disk.0", vm.dir())).ok();
    let live = deploy(host, &vm);
    let moved = vm.clone().datastore(SHARED_TOO);
    let sum = |vm: &Vm| host.root(&format!("sha256sum <{}/disk.0", vm.dir())).ok();
    let content = sum(&vm);
    let data = vm.action_data(&host.name()).to(&host.name(), SHARED_TOO);
    migrated(&host.begin_migration_with(&vm, host, &data).finish());
    let after = host.live_xml(&moved);
    assert_eq!(plugged(&after), plugged(&live), "a VF was touched");
    assert_eq!(identity(&after), identity(&live));
    let [old, new] = [SHARED, SHARED_TOO].map(|datastore| format!("/datastores/{datastore}/{}", vm.id));
    assert!(after.contains(&new) && !after.contains(&format!("{old}/disk.0")), "{after}");
    assert!(
        after.contains(&format!("{new}]]></one:system_datastore>")) || after.contains(&format!("{new}</one:")),
        "{after}"
    );
    assert_eq!(sum(&moved), content);
    assert_eq!(host.claims(), ["pf0/0", "pf1/0"]);
    let unplugged = host.root(&format!("grep -c 'vm={} .*result=unplugged' /var/log/syslog", vm.name())).out;
    assert_eq!(unplugged.trim(), "0");
    cancel(host, &moved);
    host.root(&format!("rm -rf {} {}", vm.dir(), moved.dir())).ok();
}

/// virsh's state of a VM that has arrived and is paused until it has ended at the source.
const HAS_COME: &str = "paused (user)";

/// The state of a VM and the reason for it, in virsh's words.
fn reason(host: RigHost, vm: &Vm) -> String {
    let said = host.oneadmin(&format!("virsh -q -c qemu:///system domstate --reason {}", vm.name()));
    said.out.trim().to_owned()
}

/// Migrates a VM until all of its memory is at the destination, and the destination's libvirtd, which is stopped, is
/// asked to finish.
fn up_to_the_hand_over(from: RigHost, to: RigHost, vm: &Vm) -> Running {
    for host in [from, to] {
        // The limit of an agent that can't ask its source.
        host.write(KVMRC, &format!("{SLOWLY}SRIOV_CALL_TIMEOUT=30\n"));
    }
    let moving = from.begin_migration(vm, to);
    is_copied(from, vm);
    to.root("kill -STOP $(cat /run/libvirtd.pid)").ok();
    from.oneadmin(&format!("virsh -q -c qemu:///system migrate-setspeed {} 1000", vm.name())).ok();
    let phase = format!("grep -q \"phase='perform3_done'\" /run/libvirt/qemu/{}.xml", vm.name());
    from.wait("the source to have sent everything", MOVE, |from| from.root(&phase).code == 0);
    moving
}

/// Continues the destination's libvirtd, which carries out its requests.
fn comes(to: RigHost, vm: &Vm) {
    to.root("kill -CONT $(cat /run/libvirtd.pid)").ok();
    to.wait("it to have come", MOVE, |to| reason(to, vm) == HAS_COME);
}

/// Kills the driver before the source learns the result of the migration.
///
/// * `arrives` - whether the VM is at the destination
fn cut_off_at_the_hand_over(from: RigHost, to: RigHost, vm: &Vm, arrives: bool) {
    let mut moving = up_to_the_hand_over(from, to, vm);
    if arrives {
        from.kill_libvirtd();
        comes(to, vm);
    }
    moving.signal("KILL");
    let said = moving.finish();
    assert_ne!(said.code, 0, "{said:?}");
    if arrives {
        from.start_libvirtd();
    }
}

/// Waits until no agent runs on a host.
fn has_no_agent(host: RigHost) {
    host.wait("the agent to be gone", MOVE, |host| host.root("pgrep -f '[s]riov_agent'").code != 0);
}

/// The destination's last answer is lost, and libvirt resumes the source. The domain at the destination never runs.
pub(super) fn an_answer_lost_at_the_hand_over(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(77).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host1, &vm, 4));
    let boot_id = host1.wait_tick(&vm).boot;
    let name = vm.name();
    // First only libvirt's own connection to the destination breaks, then every connection.
    for (way, ssh) in [("libvirt's", "-f '[v]irt-ssh-helper|[l]ibvirt-sock'"), ("every", "-x ssh")] {
        let moving = up_to_the_hand_over(host1, host2, &vm);
        // Its libvirtd has the request, and nobody receives the answer.
        thread::sleep(Duration::from_secs(2));
        let is_cut = way == "every";
        if is_cut {
            host2.cut_network();
        }
        host1.root(&format!("pkill -STOP {ssh}")).ok();
        comes(host2, &vm);
        host1.root(&format!("pkill -KILL {ssh}")).ok();
        let said = moving.finish();
        assert_eq!(said.code, 1, "{way}: {said:?}");
        assert_eq!(host1.state(&vm), "running", "{way}: {said:?}");
        assert_ne!(host2.state(&vm), "running", "{way}: {said:?}");
        if is_cut {
            host2.mend_network();
            has_no_agent(host2);
            // It could not ask its source: its keys were gone with the connection.
            assert_eq!(reason(host2, &vm), HAS_COME);
            let said = host2.root("timeout 60 kvm-sriov reconcile");
            assert_eq!((said.code, reason(host2, &vm).as_str()), (3, HAS_COME), "{said:?}");
            let said = host2.oneadmin_forwarding(&format!("kvm-sriov resolve {name}"));
            assert!(said.code == 0 && said.out.contains("host1 reports: one-77 is running there"), "{said:?}");
        }
        has_no_agent(host2);
        is_only_at(&vm, host1, host2, 2);
        assert_eq!(identity(&host1.live_xml(&vm)), before);
        assert_eq!(host1.wait_tick(&vm).boot, boot_id);
        shows(host1, &vm, 4, GUEST_ANSWERS);
    }
    cancel(host1, &vm);
}

pub(super) fn a_vm_in_doubt_is_resolved(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(74).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host1, &vm, 4));
    let boot_id = host1.wait_tick(&vm).boot;
    let name = vm.name();

    // The destination never answers again.
    cut_off_at_the_hand_over(host1, host2, &vm, false);
    host2.power_off();
    host1.wait("libvirt to let go of it", MOVE, |host| {
        host.oneadmin(&format!("virsh -c qemu:///system domjobinfo {name}")).out.contains("None")
    });
    let said = host1.root("timeout 60 kvm-sriov reconcile");
    assert_eq!((said.code, host1.state(&vm).as_str()), (3, "paused"), "{said:?}");
    let said = host1.root(&format!("kvm-sriov explain {name}"));
    assert_eq!(said.code, 3, "{said:?}");
    for part in ["paused", "open operation: migrate to host2", "locked by: nobody", "in doubt"] {
        assert!(said.out.contains(part), "{part:?} is not in: {}", said.out);
    }
    let refused = host1.save(&vm);
    assert_ne!(refused.code, 0, "a VM in doubt was saved: {refused:?}");
    let said = host1.oneadmin_forwarding(&format!("kvm-sriov resolve {name}"));
    assert_eq!(said.code, 3, "{said:?}");
    for part in ["the other host can't be asked", "--here", "--there"] {
        assert!(said.out.contains(part), "{part:?} is not in: {}", said.out);
    }
    assert_eq!(host1.state(&vm), "paused");
    let said = host1.oneadmin_forwarding(&format!("kvm-sriov resolve {name} --here"));
    assert_eq!((said.code, host1.state(&vm).as_str()), (3, "paused"), "{said:?}");
    let said = host1.oneadmin_forwarding(&format!("kvm-sriov resolve {name} --here --force"));
    assert_eq!(said.code, 0, "{said:?}");
    host2.power_on();
    is_only_at(&vm, host1, host2, 2);
    assert_eq!(identity(&host1.live_xml(&vm)), before);
    assert_eq!(host1.wait_tick(&vm).boot, boot_id);
    shows(host1, &vm, 4, GUEST_ANSWERS);

    // It has arrived, and the source does not know.
    second_host();
    cut_off_at_the_hand_over(host1, host2, &vm, true);
    // It is paused on both hosts, and the agent could not ask its source: the source's libvirtd was away, or the agent
    // had no keys.
    has_no_agent(host2);
    assert_eq!([host1, host2].map(|host| host.state(&vm)), ["paused", "paused"]);
    for host in [host1, host2] {
        let said = host.root("timeout 60 kvm-sriov reconcile");
        assert_eq!((said.code, host.state(&vm).as_str()), (3, "paused"), "{said:?}");
    }
    let said = host2.oneadmin_forwarding(&format!("kvm-sriov resolve {name}"));
    assert!(said.code == 3 && said.out.contains("host1 reports: one-74 is "), "{said:?}");
    let said = host2.oneadmin_forwarding(&format!("kvm-sriov resolve {name} --here"));
    assert_eq!((said.code, host2.state(&vm).as_str()), (0, "running"), "{said:?}");
    let said = host1.oneadmin_forwarding(&format!("kvm-sriov resolve {name} --here"));
    assert!(said.out.contains("runs there, so it can't be resumed here; nothing was changed"), "{said:?}");
    let said = host1.oneadmin_forwarding(&format!("kvm-sriov resolve {name}"));
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("host2 reports: one-74 is running there"), "{said:?}");
    let at = settles([host1, host2], &vm, &before, &said.out);
    assert_eq!(at.name(), host2.name());
    assert_eq!(at.wait_tick(&vm).boot, boot_id);
    cancel(at, &vm);
}

/// Kills the driver at each of its own steps in turn, at the source and at the destination. The VM may be on either
/// host.
pub(super) fn killed_at_every_step_of_a_move(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(75).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host1, &vm, 4));
    let boot_id = host1.wait_tick(&vm).boot;
    let mut at = host1;
    // At the source two claims get a holder (a sync and a rename each) and are removed. At the destination they are
    // created and settled.
    let source = [(SYNC, 1), (CLAIM, 1), (CLAIM, 2), (UNLINK, 2), (UNLINK, 3)].map(|step| ("migrate", step));
    let agent = [(SYNC, 1), (NEW_CLAIM, 1), (SYNC, 3), (NEW_CLAIM, 2), (CLAIM, 1), (CLAIM, 2)]
        .map(|step| ("sriov_agent", step));
    for (program, (syscall, number)) in source.into_iter().chain(agent) {
        let (from, to) = if at.name() == host1.name() { (host1, host2) } else { (host2, host1) };
        let step = format!("{program} is killed at {syscall} {number}");
        let on = if program == "migrate" { from } else { to };
        let path = format!("/var/tmp/one/vmm/kvm-sriov/{program}");
        let wrapper = format!("#!/bin/sh\nexec {} \"$@\"\n", under_strace(&format!("{path}.real"), syscall, number));
        on.root(&format!("mv {path} {path}.real")).ok();
        on.write(&path, &wrapper);
        on.root(&format!("chmod 755 {path}")).ok();
        let said = from.migrate(&vm, to);
        on.root(&format!("mv {path}.real {path}")).ok();
        println!("  {step}: {}", said.code);
        assert!(was_killed(on), "it makes no such call: {step}: {said:?}");
        at = settles([host1, host2], &vm, &before, &format!("{step}: {said:?}"));
        assert_eq!(at.wait_tick(&vm).boot, boot_id, "{step}");
        shows(at, &vm, 4, GUEST_ANSWERS);
    }
    cancel(at, &vm);
}
