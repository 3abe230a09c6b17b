//! The main job, for people to watch: a VM with VFs is deployed, looked at from inside, and shut down.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write;
use std::time::Instant;

use kvm_sriov_tests::lab::{GUEST_BOOT, GuestNic, LabHost};
use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::vm::Vm;

/// Says what begins, and how long it took when it is over.
fn step<T>(text: &str, work: impl FnOnce() -> T) -> T {
    print!("  {text:<62}");
    std::io::stdout().flush().unwrap();
    let begin = Instant::now();
    let result = work();
    println!("{:6.1} s", begin.elapsed().as_secs_f32());
    result
}

fn main() {
    let host = LabHost::start(1);
    let vm = Vm::new(42).machine("q35").with_guest().nic("br0").nic("sriov_pf0").nic("sriov_pf1");
    host.cancel(&vm);
    step("the driver is copied to host1 as OpenNebula does", || {
        host.install(&Remotes::default());
        host.set_up();
    });
    println!("\n{}", host.root("kvm-sriov list").ok());
    step("deploy: one-42 with a bridge NIC and a VF of pf0 and of pf1", || {
        let said = host.deploy(&vm);
        assert_eq!(said.code, 0, "{}", said.err);
    });
    println!("\n{}", host.root("kvm-sriov list").ok());
    let inside = step("the guest boots and finds its NICs (about 20 s, all emulated)", || {
        let mut nics = Vec::new();
        host.wait("the guest's NICs", GUEST_BOOT, |host| {
            nics = host.guest_nics(&vm);
            nics.len() == 5
        });
        nics
    });
    let live = host.live_xml(&vm);
    step("shutdown: the guest hears its power button", || {
        let said = host.action("shutdown", &[&vm.uuid(), "host1"], &vm, "");
        assert_eq!(said.code, 0, "{}", said.err);
    });
    println!("\n{}", host.root("kvm-sriov list").ok());
    picture(&vm, &live, &inside);
}

/// What happened, from libvirt's XML of the running domain and the guest's own words.
fn picture(vm: &Vm, live: &str, inside: &[GuestNic]) {
    let document = roxmltree::Document::parse(live).unwrap();
    println!("  What the host plugged (libvirt)                       What the guest saw (its console)\n");
    let hostdevs = document.descendants().filter(|node| node.has_tag_name("hostdev"));
    // The guest numbers its buses itself; the order is the same.
    for (hostdev, nic) in hostdevs.zip(inside.iter().filter(|nic| nic.driver == "igbvf")) {
        let vf = hostdev.descendants().find(|node| node.has_tag_name("address")).map(address).unwrap();
        println!("  VF    {vf:<35} ------>  {:<5} {} at {}", nic.name, nic.mac, nic.pci);
    }
    for interface in document.descendants().filter(|node| node.has_tag_name("interface")) {
        let attribute = |tag, name| {
            let found = interface.children().find(|node: &roxmltree::Node<'_, '_>| node.has_tag_name(tag));
            found.and_then(|node| node.attribute(name)).unwrap_or_default()
        };
        let (bridge, mac) = (attribute("source", "bridge"), attribute("mac", "address"));
        let nic = inside.iter().find(|nic| nic.mac == mac).unwrap();
        let what = if bridge == "dummy_br" { "dummy" } else { "NIC" };
        let outside = format!("{mac} on {bridge}");
        println!("  {what:<5} {outside:<35} ------>  {:<5} {} at {}", nic.name, nic.mac, nic.pci);
    }
    println!("\nThe dummies carry the IP addresses of OpenNebula's NICs: {} is 10.0.{}.1.", vm.dummy_mac(0, 1), vm.id);
    println!("Every VF is free again. `tests/lab/lab ssh 1` was the host; `./check` runs all tests.");
}

fn address(node: roxmltree::Node<'_, '_>) -> String {
    let hex = |name| node.attribute(name).and_then(|text| u32::from_str_radix(&text[2..], 16).ok()).unwrap();
    format!("{:04x}:{:02x}:{:02x}.{:x}", hex("domain"), hex("bus"), hex("slot"), hex("function"))
}
