//! The guest's scripts in a distribution: Debian with systemd, udev and networkd. VFs come late, are removed and
//! return.
//!
//! There is no VF here. For the guest's scripts a VF is a PCI network device whose MAC the context does not name; an
//! emulated vmxnet3 is one.

use std::time::Duration;

use kvm_sriov_tests::rig_host::RigHost;
use kvm_sriov_tests::vm::Vm;

use super::Site;

/// Two guests that start side by side have their addresses within a minute.
const SYSTEMD_BOOT: Duration = Duration::from_secs(120);

/// A device has its address 3 to 7 s after its plug.
const SOON: Duration = Duration::from_secs(60);

const VF: &str = "52:54:00:12:34:56";

/// The guest, with a NIC of OpenNebula and a dummy for a VF at position 0.
fn debian(id: u32) -> Vm {
    Vm::new(id).emulated().with_guest().memory(512).nic("onebr0").nic("dummy_br")
}

/// Starts it with these words on its kernel's command line. The dummy's MAC is formed as by the driver.
fn start(site: Site, vm: &Vm, words: &str) {
    // The context in these words has the NIC's own MAC.
    let text = vm
        .deployment()
        .replace("guest.cpio.gz", "debian.cpio.zst")
        .replace(&vm.mac(1), &vm.dummy_mac(0, 1))
        .replace("mitigations=off", &format!("mitigations=off {words}"));
    site.run(vm, "deploy", &[&vm.deployment_file(), &site.host.name()], &text);
}

fn plug(host: RigHost, vm: &Vm) {
    host.root(&format!("virsh -q attach-interface {} bridge onebr0 --model vmxnet3 --mac {VF} --live", vm.name())).ok();
}

fn unplug(host: RigHost, vm: &Vm) {
    host.root(&format!("virsh -q detach-interface {} bridge --mac {VF} --live", vm.name())).ok();
    host.wait("the VF to leave", SOON, |host| !host.console(vm).has().iter().any(|nic| nic.mac == VF));
}

/// Waits until the VF has these addresses, and prints how long that took in the guest.
#[track_caller]
fn has_address(host: RigHost, vm: &Vm, limit: Duration, [ip, ip6]: [&str; 2], when: &str) {
    host.wait(&format!("the VF to have {ip} {ip6} {when}"), limit, |host| {
        host.console(vm).has().iter().any(|nic| nic.mac == VF && nic.is_up && nic.ip == ip && nic.ip6 == ip6)
    });
    let console = host.console(vm);
    println!("{}: {ip} {:.1} s after the VF, {when}", vm.name(), console.from_device_to_address(VF, ip).unwrap());
    let dummy = console.has().into_iter().find(|nic| nic.mac == vm.dummy_mac(0, 1)).unwrap();
    assert!(!dummy.is_up && dummy.ip.is_empty() && dummy.ip6.is_empty(), "{dummy:?}");
}

pub(super) fn a_distribution_gives_its_vfs_their_addresses(site: Site) {
    let host = site.host;
    let (alone, contextual) = (debian(70), debian(71));
    let words = format!(
        "netcfg=networkd nic=0,{},{},{} nic=1,{},{},{}",
        contextual.mac(0),
        contextual.ip(0),
        contextual.ip6(0),
        contextual.mac(1),
        contextual.ip(1),
        contextual.ip6(1)
    );
    start(site, &alone, "");
    start(site, &contextual, &words);
    // The VF is late at boot: at that time there is only a dummy.
    plug(host, &contextual);

    // The address comes from the MAC: there is no context and no renderer, and networkd does not configure the VF.
    host.wait("Debian to boot", SYSTEMD_BOOT, |host| {
        host.console(&alone).has().iter().any(|nic| nic.mac == alone.dummy_mac(0, 1))
    });
    let given = format!("{}/16", alone.ip(1));
    for when in ["when it came", "when it came back"] {
        plug(host, &alone);
        has_address(host, &alone, SYSTEMD_BOOT, [&given, ""], when);
        unplug(host, &alone);
    }
    site.cancel(&alone);

    // The address comes from the context, with networkd as the renderer.
    let given = [format!("{}/16", contextual.ip(1)), format!("{}/64", contextual.ip6(1))];
    let given = [given[0].as_str(), &given[1]];
    has_address(host, &contextual, SYSTEMD_BOOT, given, "at boot");
    let nics = host.console(&contextual).has();
    let other = nics.iter().find(|nic| nic.mac == contextual.mac(0)).unwrap();
    assert_eq!(other.ip, format!("{}/16", contextual.ip(0)), "{nics:?}");
    for _ in 0..2 {
        unplug(host, &contextual);
        plug(host, &contextual);
        has_address(host, &contextual, SOON, given, "when it came back");
    }
    site.cancel(&contextual);
    for vm in [alone, contextual] {
        host.oneadmin(&format!("rm -rf {}", vm.dir())).ok();
    }
}
