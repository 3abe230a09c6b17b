//! The main job, for people to watch: a VM with VFs is deployed, looked at from inside, and shut down.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write;
use std::time::{Duration, Instant};

use kvm_sriov_tests::lab::LabHost;
use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::vm::Vm;

/// A guest boots in 60 to 130 s under two layers of emulation.
const GUEST_BOOT: Duration = Duration::from_secs(650);

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
    let seen = step("the guest boots and finds its NICs (about 90 s, all emulated)", || {
        let mut seen = String::new();
        host.wait("the guest's NICs", GUEST_BOOT, |host| {
            seen = host.root(&format!("grep -a 'GUEST NET' {} | tail -n 1", vm.console())).out;
            seen.contains(&vm.dummy_mac(1, 2)) && seen.contains(&vm.dummy_mac(0, 1)) && seen.matches('@').count() == 5
        });
        seen
    });
    let live = host.live_xml(&vm);
    step("shutdown: the guest hears its power button", || {
        let said = host.action("shutdown", &[&vm.uuid(), "host1"], &vm, "");
        assert_eq!(said.code, 0, "{}", said.err);
    });
    println!("\n{}", host.root("kvm-sriov list").ok());
    picture(&vm, &live, &seen);
}

/// What happened, from libvirt's XML of the running domain and the guest's own words.
fn picture(vm: &Vm, live: &str, seen: &str) {
    let inside: Vec<(&str, &str, &str)> = seen
        .split_whitespace()
        .filter_map(|word| {
            let (name, rest) = word.split_once('=')?;
            let (mac, pci) = rest.split_once('@')?;
            Some((name, mac, pci))
        })
        .collect();
    let document = roxmltree::Document::parse(live).unwrap();
    println!("What the host plugged (libvirt)                      What the guest saw (its console)\n");
    for hostdev in document.descendants().filter(|node| node.has_tag_name("hostdev")) {
        let addresses: Vec<String> =
            hostdev.descendants().filter(|node| node.has_tag_name("address")).map(address).collect();
        let (name, mac, _) = inside.iter().find(|(_, _, pci)| *pci == addresses[1]).unwrap();
        println!("  VF {}  at guest {} ------>  {name:<6} {mac}", addresses[0], addresses[1]);
    }
    for interface in document.descendants().filter(|node| node.has_tag_name("interface")) {
        let attribute = |tag, name| {
            let found = interface.children().find(|node: &roxmltree::Node<'_, '_>| node.has_tag_name(tag));
            found.and_then(|node| node.attribute(name)).unwrap_or_default()
        };
        let (bridge, mac) = (attribute("source", "bridge"), attribute("mac", "address"));
        let (name, _, _) = inside.iter().find(|(_, seen, _)| *seen == mac).unwrap();
        let what = if bridge == "dummy_br" { "dummy" } else { "NIC" };
        println!("  {what:<5} {mac} on {bridge:<10} ------>  {name}");
    }
    println!("\nThe dummies carry the IP addresses of OpenNebula's NICs: {} is 10.0.{}.1.", vm.dummy_mac(0, 1), vm.id);
    println!("Every VF is free again. `tests/lab/lab ssh 1` was the host; `./check` runs all tests.");
}

fn address(node: roxmltree::Node<'_, '_>) -> String {
    let hex = |name| node.attribute(name).and_then(|text| u32::from_str_radix(&text[2..], 16).ok()).unwrap();
    format!("{:04x}:{:02x}:{:02x}.{:x}", hex("domain"), hex("bus"), hex("slot"), hex("function"))
}
