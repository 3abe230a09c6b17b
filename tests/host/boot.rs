//! The files and commands of docs/howto/install.md that make VFs and the dummies' bridge at a host's boot, and the unit
//! of a guest, read by the real tools of a distribution (`tests/prepare guest-root`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use kvm_sriov::PciAddress;
use kvm_sriov::config::Kvmrc;
use kvm_sriov_tests::guest::Guest;
use kvm_sriov_tests::project;

/// The blocks of this kind in the installation page.
fn blocks(language: &str) -> Vec<String> {
    let text = fs::read_to_string(project().join("docs/howto/install.md")).unwrap();
    let begin = format!("```{language}\n");
    text.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The bridge in the sample of kvmrc. Each way to make the bridge must use this name.
fn bridge() -> String {
    Kvmrc::load(&[project().join("kvmrc.example")]).settings().dummy_bridge.clone().unwrap()
}

#[test]
fn udev_reads_the_rule_for_vfs() {
    let rule = blocks("udev").concat();
    let guest = Guest::unprepared();
    let parsed = |rule: &str| {
        guest.write("/etc/udev/rules.d/70-sriov-vfs.rules", rule);
        // udevadm reads all rules before it looks for the device.
        let said = guest.run("udevadm test --action=bind /sys/devices/none 2>&1; true").ok();
        assert!(said.contains("Reading rules file: /etc/udev/rules.d/70-sriov-vfs.rules\n"), "{said}");
        !said.contains("70-sriov-vfs.rules:1")
    };
    assert!(parsed(&rule), "{rule}");
    assert!(!parsed(&rule.replace("SUBSYSTEM", "SUBSYSTEMM")), "udev says nothing of a wrong rule");
    // The driver of an adapter may be bound in the initramfs, before this rule exists. Then udev gets only "add".
    assert!(rule.contains(r#"ACTION=="add|bind", SUBSYSTEM=="pci", "#), "{rule}");
    let address = rule.split("KERNEL==\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(address.parse::<PciAddress>().is_ok(), "{address}");
    assert!(rule.contains("ATTR{sriov_numvfs}=\"4\""), "{rule}");
}

#[test]
fn networkd_makes_the_bridge() {
    let (guest, bridge) = (Guest::unprepared(), bridge());
    let files = blocks("networkd");
    assert_eq!(files.len(), 2);
    for (end, text) in ["netdev", "network"].iter().zip(&files) {
        guest.write(&format!("/etc/systemd/network/{bridge}.{end}"), text);
    }
    let up = format!("ip -d link show {bridge} 2>/dev/null | grep -q 'BROADCAST,MULTICAST,UP'");
    let script = format!(
        "mkdir -p /run/systemd/netif; /lib/systemd/systemd-networkd >/tmp/log 2>&1 & pid=$!; \
         for try in $(seq 100); do if {up}; then break; fi; sleep 0.1; done; \
         ip -d link show {bridge}; ip -o addr show {bridge}; cat /tmp/log; kill $pid"
    );
    let said = guest.run(&script).ok();
    assert!(said.contains("BROADCAST,MULTICAST,UP") && said.contains(" bridge forward_delay "), "{said}");
    assert!(!said.contains("inet") && !said.contains("Unknown"), "{said}");
}

#[test]
fn ifupdown_reads_the_bridge() {
    let (guest, bridge) = (Guest::unprepared(), bridge());
    guest.write("/etc/network/interfaces", &blocks("interfaces").concat());
    let said = guest.run(&format!("ifquery --list -a; ifquery {bridge}")).ok();
    assert_eq!(said, format!("lo\n{bridge}\nbridge_ports: none\n"));
}

#[test]
fn network_manager_reads_the_bridge() {
    let commands = blocks("sh").concat();
    let command = commands.lines().find(|line| line.starts_with("nmcli ")).unwrap();
    let said = Guest::unprepared().run(&command.replacen("nmcli ", "nmcli --offline ", 1)).ok();
    let device = format!("interface-name={}\n", bridge());
    for line in ["type=bridge\n", &device, "stp=false\n", "[ipv4]\nmethod=disabled\n", "method=disabled\n\n[proxy]"] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn systemd_accepts_the_unit_of_a_guest() {
    let guest = Guest::bare();
    let unit = "/lib/systemd/system/kvm-sriov-guest@.service";
    let verify = || guest.run("systemd-analyze --man=no verify kvm-sriov-guest@add-2.service 2>&1; true").ok();
    assert_eq!(verify(), "");
    guest.write(unit, &guest.read(unit).replace("ExecStart=/usr/sbin/", "ExecStart=/none/"));
    assert!(verify().contains("/none/kvm-sriov-guest is not executable"));
}
