//! MODE=ethernet: the adapter has the MAC and the VLAN of the NIC for each VF. The lab's guest has our package installed,
//! which finds no dummy and does nothing.

use std::time::Duration;

use kvm_sriov::xml::{LiveDomain, LiveHostdev};
use kvm_sriov_tests::rig_host::{RigHost, SOON};
use kvm_sriov_tests::vm::Vm;

use super::moves::{migrated, second_host};
use super::suspend::boot;
use super::{cancel, deploy};

/// A guest shows a returned VF within 5 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(60);

/// What an adapter is set to for one of its VFs.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    mac: String,
    vlan: Option<u16>,
}

fn ethernet(host: RigHost) {
    host.write("/etc/kvm-sriov/vf_maps/pf0.conf", "MODE=ethernet\n");
}

/// Writes the VM's description into its directory, as OpenNebula does before it deploys the VM.
fn describe(host: RigHost, vm: &Vm) {
    host.oneadmin(&format!("mkdir -p {}", vm.dir())).ok();
    host.write(&format!("{}/vm.xml", vm.dir()), &vm.action_data(&host.name()).xml());
}

/// The VFs of a VM by position.
fn vfs(host: RigHost, vm: &Vm) -> Vec<LiveHostdev> {
    let mut vfs = LiveDomain::parse(&host.live_xml(vm)).unwrap().hostdevs;
    vfs.sort_by(|a, b| a.alias.cmp(&b.alias));
    vfs
}

/// What the kernel's driver of the adapter says of each VF of `pf0`.
fn ports(host: RigHost) -> Vec<Port> {
    let text = host.root("ip link show dev pf0").ok();
    let vfs = text.lines().filter(|line| line.trim_start().starts_with("vf "));
    vfs.map(|line| {
        let after = |word: &str| Some(line.split_once(word)?.1.split([' ', ',']).next()?.to_owned());
        Port { mac: after("link/ether ").unwrap(), vlan: after("vlan ").map(|vlan| vlan.parse().unwrap()) }
    })
    .collect()
}

/// The ports of the VFs that the VM has are set as its NICs are, and so the guest sees their MACs.
fn is_set(host: RigHost, vm: &Vm, nics: &[(usize, Option<u16>)]) {
    let all = ports(host);
    let vfs = vfs(host, vm);
    assert_eq!(vfs.len(), nics.len(), "{vfs:?}");
    for (vf, (nic, vlan)) in vfs.iter().zip(nics) {
        let number = host.root(&format!(
            "for n in 0 1 2 3; do readlink /sys/class/net/pf0/device/virtfn$n | grep -q {} && echo $n; done; true",
            vf.vf
        ));
        let number: usize = number.ok().trim().parse().unwrap();
        assert_eq!(all[number], Port { mac: vm.mac(*nic), vlan: *vlan }, "{vf:?}");
    }
    let expected: Vec<String> = nics.iter().map(|(nic, _)| vm.mac(*nic)).collect();
    host.wait(&format!("the guest to show {expected:?}"), GUEST_ANSWERS, |host| {
        let shown: Vec<String> =
            host.guest_nics(vm).into_iter().filter(|nic| nic.driver == "igbvf").map(|nic| nic.mac).collect();
        shown == expected
    });
}

/// Whether the guest's address answers this host through an interface on `pf0`: one in a VLAN, or `pf0` itself.
fn answers(host: RigHost, interface: &str, ip: &str) -> bool {
    host.root(&format!("busybox ping -c 1 -W 2 -I {interface} {ip}")).code == 0
}

pub(super) fn mac_and_vlan_follow_a_vm_in_mode_ethernet(host1: RigHost) {
    let host2 = second_host();
    let before = [ports(host1), ports(host2)];
    for host in [host1, host2] {
        ethernet(host);
        // No dummies: neither the bridge nor the prefix of their MACs is set.
        host.write(super::KVMRC, "");
    }
    let vm = Vm::new(54).with_context().nic_in_vlan("sriov_pf0", 100);
    describe(host1, &vm);
    boot(host1, &vm, 1);
    is_set(host1, &vm, &[(0, Some(100))]);
    let live = LiveDomain::parse(&host1.live_xml(&vm)).unwrap();
    assert_eq!(live.interfaces.len(), 0, "{:?}", live.interfaces);

    // The guest has its address by the context, which finds the NIC by its MAC. It answers in its VLAN, and nowhere else.
    let vlan = |tag: u16| format!("ip link add link pf0 name pf0.{tag} type vlan id {tag} && ip link set pf0.{tag} up");
    host1.root(&format!("ip link set pf0 up; {}; {}", vlan(100), vlan(200))).ok();
    let network = "10.0.54.250/16";
    let only_on = |interface: &str| {
        for other in ["pf0", "pf0.100", "pf0.200"] {
            host1.root(&format!("ip addr flush dev {other}")).ok();
        }
        host1.root(&format!("ip addr add {network} dev {interface}")).ok();
    };
    only_on("pf0.100");
    host1.wait("the guest to answer in its VLAN", SOON, |host| answers(host, "pf0.100", &vm.ip(0)));
    for other in ["pf0", "pf0.200"] {
        only_on(other);
        assert!(!answers(host1, other, &vm.ip(0)), "the guest answers on {other}");
    }
    host1.root("ip link del pf0.100; ip link del pf0.200; ip addr flush dev pf0").ok();

    let two = vm.clone().nic_in_vlan("sriov_pf0", 200);
    let said = host1.attach_nic(&two, 1);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    let both = [(0, Some(100)), (1, Some(200))];
    is_set(host1, &two, &both);
    let boot_id = host1.wait_tick(&vm).boot;

    let said = host1.save(&two);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert_eq!(ports(host1), before[0], "a VF that nobody has keeps its MAC or VLAN");
    // Another VM gets the first VF, so the ports of the VM are others now.
    let other = Vm::new(55).nic_in_vlan("sriov_pf0", 300);
    describe(host1, &other);
    deploy(host1, &other);
    let said = host1.restore(&two);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    host1.wait("both VFs to be back", GUEST_ANSWERS, |host| vfs(host, &two).len() == 2);
    is_set(host1, &two, &both);
    cancel(host1, &other);

    migrated(&host1.migrate(&two, host2));
    host2.wait("both VFs to be there", GUEST_ANSWERS, |host| vfs(host, &two).len() == 2);
    is_set(host2, &two, &both);
    assert_eq!(ports(host1), before[0]);
    assert_eq!(host2.wait_tick(&vm).boot, boot_id, "its memory is not what it was");

    let said = host2.detach_nic(&two, 0);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    is_set(host2, &two, &both[1..]);
    cancel(host2, &two);
    assert_eq!(ports(host2), before[1]);
}
