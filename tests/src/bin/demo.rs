//! Shows the driver at work: a VM with VFs is deployed, suspended, resumed, migrated and shut down, and after each step
//! its guest shows what it sees.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write;
use std::time::{Duration, Instant};

use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::rig_host::{GuestNic, RigHost, Said};
use kvm_sriov_tests::vm::Vm;

/// A guest boots in about 20 s in the emulated host.
const GUEST_BOOT: Duration = Duration::from_secs(650);

/// A guest shows returned VFs within 5 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(120);

/// One moment: the VFs that the host had plugged, and the NICs that the guest showed.
struct Moment {
    title: String,
    live: String,
    inside: Vec<GuestNic>,
}

/// Prints what starts, and how long it took at its end.
fn step<T>(text: &str, work: impl FnOnce() -> T) -> T {
    print!("  {text:<70}");
    std::io::stdout().flush().unwrap();
    let begin = Instant::now();
    let result = work();
    println!("{:6.1} s", begin.elapsed().as_secs_f32());
    result
}

/// One call from OpenNebula, which must succeed.
fn call(text: &str, action: impl FnOnce() -> Said) {
    step(text, || {
        let said = action();
        assert_eq!(said.code, 0, "{}", said.err);
    });
}

/// Prints the host's own view of its VFs.
fn show(host: RigHost) {
    println!("\n  {}$ kvm-sriov list", host.name());
    for line in host.root("kvm-sriov list").ok().lines() {
        println!("  {line}");
    }
    println!();
}

/// Waits until the guest's context scripts have configured its VFs and the guest on the other host answers it.
fn ping(host: RigHost, vm: &Vm, peer: &Vm) {
    host.wait_addresses(vm, &[vm.ip(1), vm.ip(2)]);
    let vfs: Vec<String> = host.console(vm).vfs().into_iter().map(|(nic, ip)| format!("{nic} {ip}")).collect();
    let text = format!("{} answers its VFs: {}", peer.ip(0), vfs.join(", "));
    step(&text, || host.wait_ping(vm, &peer.ip(0)));
}

/// Waits until the guest shows all its NICs, and records what host and guest show.
fn look(host: RigHost, vm: &Vm, title: &str, text: &str, limit: Duration) -> Moment {
    let mut inside = Vec::new();
    step(text, || {
        host.wait("the guest's NICs", limit, |host| {
            inside = host.guest_nics(vm);
            inside.len() == 5
        });
    });
    Moment { title: title.into(), live: host.live_xml(vm), inside }
}

fn main() {
    let [host1, host2] = RigHost::start_both();
    let neighbour = Vm::new(7).with_context().nic("sriov_pf0");
    let stays = Vm::new(8).with_context().nic("sriov_pf1");
    let vm = Vm::new(42)
        .machine("q35")
        .with_peers(&[neighbour.ip(0), stays.ip(0)])
        .with_context()
        .nic("br0")
        .nic("sriov_pf0")
        .nic("sriov_pf1");
    step("copy the driver to both hosts, as `onehost sync` does", || {
        for host in [host1, host2] {
            host.clean();
            host.install(&Remotes::default());
            host.set_up();
        }
    });
    call("deploy one-7 on host2: it gets the first VF there", || host2.deploy(&neighbour));
    call("deploy one-8 on host1: it gets a VF of pf1", || host1.deploy(&stays));
    call("deploy one-42 on host1: a bridge NIC, a VF of pf0 and one of pf1", || host1.deploy(&vm));
    show(host1);
    let mut moments = vec![look(host1, &vm, "deployed on host1", "the guest boots and finds its NICs", GUEST_BOOT)];
    ping(host1, &vm, &neighbour);
    let boot = host1.wait_tick(&vm).boot;
    call("suspend: the guest releases its VFs, then libvirt saves it", || host1.save(&vm));
    show(host1);
    call("resume: the VFs are plugged before a CPU runs", || host1.restore(&vm));
    moments.push(look(host1, &vm, "resumed on host1", "the guest finds its VFs again", GUEST_ANSWERS));
    ping(host1, &vm, &neighbour);
    call("live migration to host2", || host1.migrate(&vm, host2));
    show(host2);
    moments.push(look(host2, &vm, "migrated to host2", "the guest finds its VFs again", GUEST_ANSWERS));
    ping(host2, &vm, &stays);
    assert_eq!(host2.wait_tick(&vm).boot, boot, "the guest booted again");
    call("shutdown: the guest reacts to its power button", || {
        host2.action("shutdown", &[&vm.uuid(), &host2.name()], &vm, "")
    });
    call("cancel one-7", || host2.cancel(&neighbour));
    call("cancel one-8", || host1.cancel(&stays));
    show(host2);
    for moment in &moments {
        picture(&vm, moment);
    }
    println!("  The guest never rebooted: its boot id was {boot} all the time.");
    println!("  A dummy's MAC carries the IP address of OpenNebula's NIC: {} is {}.", vm.dummy_mac(0, 1), vm.ip(1));
    println!("  Every VF is free again. `./check` runs all tests.");
}

/// Prints one moment from libvirt's XML of the running domain and the guest's own console.
fn picture(vm: &Vm, moment: &Moment) {
    let document = roxmltree::Document::parse(&moment.live).unwrap();
    println!(
        "  {:<53} what the guest showed on its console",
        format!("one-{}, {}: what the host plugged", vm.id, moment.title)
    );
    let hostdevs = document.descendants().filter(|node| node.has_tag_name("hostdev"));
    // The guest numbers its buses itself, in the same order.
    for (hostdev, nic) in hostdevs.zip(moment.inside.iter().filter(|nic| nic.driver == "igbvf")) {
        let vf = hostdev.descendants().find(|node| node.has_tag_name("address")).map(address).unwrap();
        println!("    VF    {vf:<35} ------>  {:<5} {} at {}", nic.name, nic.mac, nic.pci);
    }
    for interface in document.descendants().filter(|node| node.has_tag_name("interface")) {
        let attribute = |tag, name| {
            let found = interface.children().find(|node: &roxmltree::Node<'_, '_>| node.has_tag_name(tag));
            found.and_then(|node| node.attribute(name)).unwrap_or_default()
        };
        let (bridge, mac) = (attribute("source", "bridge"), attribute("mac", "address"));
        let nic = moment.inside.iter().find(|nic| nic.mac == mac).unwrap();
        let what = if bridge == "dummy_br" { "dummy" } else { "NIC" };
        let outside = format!("{mac} on {bridge}");
        println!("    {what:<5} {outside:<35} ------>  {:<5} {} at {}", nic.name, nic.mac, nic.pci);
    }
    println!();
}

fn address(node: roxmltree::Node<'_, '_>) -> String {
    let hex = |name| node.attribute(name).and_then(|text| u32::from_str_radix(&text[2..], 16).ok()).unwrap();
    format!("{:04x}:{:02x}:{:02x}.{:x}", hex("domain"), hex("bus"), hex("slot"), hex("function"))
}
