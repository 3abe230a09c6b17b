//! The guest's part: which VF belongs to which dummy, and what the real tools of distributions do with them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_sriov_tests::guest::Guest;
use kvm_sriov_tests::project;
use tempfile::TempDir;

/// Plugs dummies at these positions, each for the NIC with the address 10.0.7.<position>.
fn dummies(guest: &mut Guest, positions: &[u8]) {
    for position in positions {
        let (pci, name) = (format!("0000:00:{:02x}.0", 0x10 + position), format!("dum{position}"));
        guest.virtio(&pci, &name, &format!("aa:{position:02x}:0a:00:07:{position:02x}"));
    }
}

/// Plugs VFs at these guest PCI buses, with MACs of their own. Their names are vf<bus>.
fn vfs(guest: &mut Guest, buses: &[u8]) {
    for bus in buses {
        guest.function(&format!("0000:{bus:02x}:00.0"), &format!("vf{bus}"), &format!("d2:11:22:33:44:{bus:02x}"));
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// The output of `kvm-sriov-guest list` without the kind of the devices.
fn list(guest: &Guest) -> Vec<String> {
    let said = guest.run("kvm-sriov-guest list").ok();
    said.lines().map(|line| line.replace(" ethernet", "")).collect()
}

// --- which VF belongs to which dummy ---------------------------------------------------------------------------------

#[test]
fn the_kth_vf_belongs_to_the_kth_dummy_also_where_positions_have_holes() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[2, 0, 10]);
    vfs(&mut guest, &[0x1a, 7, 9]);
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0", "2 vf9 10.0.7.2", "10 vf26 10.0.7.10"]);
}

#[test]
fn neither_an_e1000_nor_a_pci_nic_of_opennebula_is_a_vf() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0, 1]);
    vfs(&mut guest, &[7, 9]);
    guest.virtio("0000:00:03.0", "eth0", "02:00:0a:00:07:63");
    guest.function("0000:00:04.0", "eth1", "02:00:0a:00:07:64");
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0", "1 vf9 10.0.7.1"], "without a context OpenNebula's prefix tells");
    // A dummy can be an e1000, too. MACs of the context are compared without regard to case.
    guest.unplug("dum1");
    guest.function("0000:00:05.0", "dum1", "aa:01:0a:00:07:01");
    guest.function("0000:08:00.0", "eth2", "de:ad:be:ef:00:01");
    guest.context("ETH0_MAC='02:00:0a:00:07:63'\nETH1_MAC='02:00:0A:00:07:64'\nPCI0_MAC='DE:AD:be:ef:00:01'\n");
    let said = guest.run("set -a; . /context/context.sh; kvm-sriov-guest list").ok();
    assert_eq!(lines(&said), ["0 vf7 ethernet 10.0.7.0", "1 vf9 ethernet 10.0.7.1"]);
}

#[test]
fn a_vf_whose_driver_is_one_for_vfs_may_have_any_mac() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0, 1]);
    guest.function("0000:07:00.0", "eth1", "aa:05:b9:55:14:71");
    guest.function("0000:09:00.0", "eth2", "02:00:b9:55:14:71");
    guest.bind("0000:07:00.0", "igbvf");
    guest.bind("0000:09:00.0", "iavf");
    assert_eq!(list(&guest), ["0 eth1 10.0.7.0", "1 eth2 10.0.7.1"]);
    assert_eq!(guest.run("kvm-sriov-guest describe eth1 aa:05:b9:55:14:71").ok(), "");
    assert_eq!(guest.run("kvm-sriov-guest describe dum0 AA:00:0a:00:07:00").ok(), "KVM_SRIOV_DUMMY=1\n");
}

#[test]
fn no_vf_gets_anothers_address_while_the_middle_one_is_detached_and_attached() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0, 1, 2]);
    vfs(&mut guest, &[7, 8, 9]);
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0", "1 vf8 10.0.7.1", "2 vf9 10.0.7.2"]);
    let others = ["0 vf7 10.0.7.0", "2 vf9 10.0.7.2"];
    guest.unplug("vf8");
    assert_eq!(list(&guest), others, "its dummy is there yet");
    guest.unplug("dum1");
    assert_eq!(list(&guest), others);
    // Another NIC is attached at its position, the VF before the dummy.
    vfs(&mut guest, &[8]);
    assert_eq!(list(&guest), others, "its dummy is not there yet");
    guest.virtio("0000:00:11.0", "dum1", "aa:01:0a:00:07:09");
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0", "1 vf8 10.0.7.9", "2 vf9 10.0.7.2"]);
}

#[test]
fn vfs_that_come_back_one_after_the_other_have_their_own_addresses_at_once() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0, 1, 2]);
    vfs(&mut guest, &[7, 8, 9]);
    list(&guest);
    for bus in [7, 8, 9] {
        guest.unplug(&format!("vf{bus}"));
        list(&guest);
    }
    vfs(&mut guest, &[9]);
    assert_eq!(list(&guest), ["2 vf9 10.0.7.2"]);
    vfs(&mut guest, &[7]);
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0", "2 vf9 10.0.7.2"]);
    vfs(&mut guest, &[8]);
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0", "1 vf8 10.0.7.1", "2 vf9 10.0.7.2"]);
}

#[test]
fn a_vf_that_comes_late_at_boot_is_waited_for_and_reported() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0, 1]);
    vfs(&mut guest, &[9]);
    let said = guest.run("kvm-sriov-guest list");
    assert_eq!((said.code, said.out.as_str()), (0, ""));
    let wanted = "kvm-sriov-guest: 2 dummies and 1 VFs: those whose partner is not known yet wait\n";
    assert_eq!(said.err, wanted);
    vfs(&mut guest, &[7]);
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0", "1 vf9 10.0.7.1"]);
    assert_eq!(guest.run("kvm-sriov-guest list").err, "");
}

#[test]
fn an_infiniband_vf_is_its_functions_ipoib_device_and_is_named_by_its_position() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[1, 12]);
    guest.infiniband("0000:07:00.0", "ib0");
    guest.infiniband("0000:07:00.0", "ib5");
    guest.attribute("ib5", "dev_port", "1");
    guest.infiniband("0000:07:00.0", "ib0.8001");
    guest.infiniband("0000:09:00.0", "ib1");
    assert_eq!(list(&guest), ["1 ib0 infiniband 10.0.7.1", "12 ib1 infiniband 10.0.7.12"]);
    // The kernel numbers the devices without gaps. The name ib1 is in use until that device is renamed to ib12.
    let said = guest.run("kvm-sriov-guest apply 2>/dev/null; ip -o link show ib12 && ! ip link show ib1").ok();
    assert!(said.contains("ib12"), "{said}");
}

#[test]
fn the_prefix_is_what_the_file_or_the_kernels_command_line_says() {
    let mut guest = Guest::bare();
    guest.virtio("0000:00:10.0", "dum0", "be:00:0a:00:07:00");
    vfs(&mut guest, &[7]);
    assert_eq!(list(&guest), Vec::<String>::new());
    guest.write("/etc/kvm-sriov-guest.conf", "# MACs\nDUMMY_MAC_PREFIX = \"BE\"  # as in kvmrc\n");
    assert_eq!(list(&guest), ["0 vf7 10.0.7.0"]);
    guest.write("/tmp/cmdline", "quiet kvm-sriov.dummy_mac_prefix=$(reboot) *\n");
    let said = guest.run("SRIOV_CMDLINE=/tmp/cmdline kvm-sriov-guest list");
    assert_eq!(said.out, "");
    let wanted = "DUMMY_MAC_PREFIX is \"$(reboot)\", expected two hexadecimal digits; nothing is configured";
    assert!(said.err.contains(wanted), "{}", said.err);
    guest.write("/tmp/cmdline", "quiet kvm-sriov.dummy_mac_prefix=be\n");
    guest.write("/etc/kvm-sriov-guest.conf", "DUMMY_MAC_PREFIX=ab\n");
    assert_eq!(guest.run("SRIOV_CMDLINE=/tmp/cmdline kvm-sriov-guest list").out, "0 vf7 ethernet 10.0.7.0\n");
}

#[test]
fn udev_starts_a_run_and_keeps_everybody_from_a_dummy() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0]);
    vfs(&mut guest, &[7]);
    let event = |action: &str, nic: &str| {
        let test = format!(
            "rm -f /lib/udev/rules.d/85-nm-unmanaged.rules; mkdir -p /run/systemd/system; export SYSTEMD_DEVICE_VERIFY_SYSFS=0; \
             udevadm test --action={action} $(readlink -f /sys/class/net/{nic}) 2>/dev/null"
        );
        guest.run(&test).ok()
    };
    let dummy = event("add", "dum0");
    for line in
        ["KVM_SRIOV_DUMMY=1", "NM_UNMANAGED=1", "run: '/bin/systemctl --no-block start kvm-sriov-guest@add-10.service'"]
    {
        assert!(dummy.lines().any(|said| said == line), "{line}: {dummy}");
    }
    let vf = event("add", "vf7");
    assert!(vf.contains("start kvm-sriov-guest@add-11.service"), "{vf}");
    assert!(!vf.contains("DUMMY") && !vf.contains("NM_UNMANAGED"), "{vf}");
    let gone = event("remove", "vf7");
    assert!(gone.contains("start kvm-sriov-guest@remove-11.service"), "{gone}");
}

#[test]
fn udev_knows_a_dummy_where_the_pci_host_bridge_is_a_platform_device() {
    let mut guest = Guest::bare();
    guest.on_arm();
    dummies(&mut guest, &[0]);
    let said = guest.run(
        "mkdir -p /run/systemd/system; export SYSTEMD_DEVICE_VERIFY_SYSFS=0; \
         udevadm test --action=add $(readlink -f /sys/class/net/dum0) 2>/dev/null",
    );
    assert!(said.out.lines().any(|line| line == "KVM_SRIOV_DUMMY=1"), "{said:?}");
}

#[test]
fn udev_is_asked_again_about_what_the_context_names() {
    let (mut guest, script) = guest_of("interfaces");
    guest.virtio("0000:00:04.0", "eth1", "aa:01:01:01:01:28");
    let describe = "kvm-sriov-guest describe eth1 aa:01:01:01:01:28";
    assert_eq!(guest.run(describe).ok(), "KVM_SRIOV_DUMMY=1\n", "at boot nobody knows better");
    // udev's database. The index of a dummy is 11, that of eth1 is 19.
    for index in [11, 19] {
        guest.write(&format!("/run/udev/data/n{index}"), "I:1\nE:KVM_SRIOV_DUMMY=1\n");
    }
    guest.write("/run/udev/data/n10", "I:1\nE:ID_BUS=pci\n");
    guest.program("/usr/bin/udevadm", "#!/bin/sh\necho \"$*\" >>/tmp/asked\n");
    guest.context(&format!("{CONTEXT}ETH5_MAC='AA:01:01:01:01:28'\nETH5_IP='10.0.9.1'\n"));
    guest.run(&script).ok();
    // Once in each of the two stages, because the program in place of udevadm changes nothing.
    let asked = "trigger --action=change --subsystem-match=net --sysname-match=eth1\n";
    assert_eq!(guest.read("/tmp/asked"), asked.repeat(2));
    assert_eq!(guest.run(describe).ok(), "", "the context is written down");
    assert_eq!(guest.run("kvm-sriov-guest describe dum0 aa:00:0a:00:07:00").ok(), "KVM_SRIOV_DUMMY=1\n");
}

// --- today's context packages ----------------------------------------------------------------------------------------

/// A NIC on a bridge, and VFs: one with all settings, one with only SLAAC, one with only DHCP, one with only DHCPv6.
const CONTEXT: &str = "\
ETH0_MAC='02:00:0a:00:07:63'
ETH0_IP='10.0.7.99'
ETH1_MAC='02:00:0a:00:07:00'
ETH1_IP='10.1.0.7'
ETH1_MASK='255.255.0.0'
ETH1_GATEWAY='10.1.0.1'
ETH1_DNS='10.1.0.2 10.1.0.3'
ETH1_MTU='1400'
ETH1_ROUTES='10.9.0.0/16 via 10.1.0.9, 10.8.0.0/16 via 10.1.0.8'
ETH1_IP6='fd00:1::7'
ETH1_IP6_PREFIX_LENGTH='48'
ETH1_IP6_GATEWAY='fd00:1::1'
ETH2_MAC='02:00:0A:00:07:02'
ETH2_METHOD='skip'
ETH2_IP6_METHOD='auto'
ETH3_MAC='02:00:0a:00:07:0a'
ETH3_METHOD='dhcp'
ETH3_IP6_METHOD='disable'
ETH4_MAC='02:00:0a:00:07:0b'
ETH4_METHOD='skip'
ETH4_IP6_METHOD='dhcp'
";

/// A guest with that context and this renderer.
fn guest_of(renderer: &str) -> (Guest, String) {
    let mut guest = Guest::new();
    guest.context(CONTEXT);
    guest.virtio("0000:00:03.0", "eth0", "02:00:0a:00:07:63");
    dummies(&mut guest, &[0, 2, 10, 11]);
    vfs(&mut guest, &[7, 9, 10, 12]);
    let script = format!(
        "set -e; mkdir -p /run/systemd /run/network /run/NetworkManager /var/lib/NetworkManager; umask 022; \
         export NETCFG_TYPE={renderer}; one-contextd local; one-contextd online; "
    );
    (guest, script)
}

/// Waits until the VFs are configured as the context says, and shows all settings.
const LOOK: &str = "\
tries=0
until ip addr show vf7 | grep -q 'inet6 fd00:1::7/48 scope global' && ip route | grep -q 10.8.0.0/16; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || break
    sleep 0.1
done
ip -o addr; ip route; ip -6 route; ip -o link show; ";

/// Checks that the VF is configured as the context says, and that the dummies have no address.
#[track_caller]
fn is_configured(said: &str) {
    for (what, wanted) in [
        ("IPv4", "vf7    inet 10.1.0.7/16"),
        ("IPv6", "vf7    inet6 fd00:1::7/48"),
        ("gateway", "default via 10.1.0.1 dev vf7"),
        ("IPv6 gateway", "default via fd00:1::1 dev vf7"),
        ("route", "10.9.0.0/16 via 10.1.0.9 dev vf7"),
        ("second route", "10.8.0.0/16 via 10.1.0.8 dev vf7"),
    ] {
        assert!(said.contains(wanted), "{what}: {said}");
    }
    let mtu = |line: &&str| line.contains(": vf7@") && line.contains("mtu 1400");
    assert!(said.lines().any(|line| mtu(&line)), "MTU: {said}");
    assert!(!said.contains(" dum0    inet"), "a dummy has an address: {said}");
}

/// Checks that the dummies are down. networkd and ifup leave them alone. Only udev keeps NetworkManager from them, and
/// there is no udev here.
#[track_caller]
fn dummies_are_down(said: &str) {
    assert!(!said.lines().any(|line| line.contains(": dum") && line.contains(",UP")), "a dummy is up: {said}");
}

/// Runs networkd, which configures links from the files of the renderer.
const NETWORKD: &str = "/lib/systemd/systemd-networkd >/tmp/networkd.log 2>&1 & pid=$!; ";

#[test]
fn netplan_makes_networkd_configure_the_vf() {
    let (guest, script) = guest_of("netplan");
    let said = guest.run(&format!("{script} {NETWORKD} {LOOK} kill $pid")).ok();
    is_configured(&said);
    dummies_are_down(&said);
    let file = |vf: &str| guest.read(&format!("/run/systemd/network/10-netplan-{vf}.network"));
    assert!(file("vf7").contains("DNS=10.1.0.2\nDNS=10.1.0.3\n"), "{}", file("vf7"));
    assert!(file("vf9").contains("IPv6AcceptRA=yes") && !file("vf9").contains("DHCP=ipv6"), "{}", file("vf9"));
    assert!(file("vf10").contains("DHCP=ipv4"), "{}", file("vf10"));
    assert!(file("vf10").contains("LinkLocalAddressing=no") && file("vf10").contains("IPv6AcceptRA=no"));
    assert!(file("vf12").contains("DHCP=ipv6") && file("vf12").contains("IPv6AcceptRA=yes"), "{}", file("vf12"));
}

#[test]
fn networkd_configures_the_vf() {
    let (guest, script) = guest_of("networkd");
    let said = guest.run(&format!("{script} {NETWORKD} {LOOK} kill $pid")).ok();
    is_configured(&said);
    dummies_are_down(&said);
    assert!(guest.read("/etc/systemd/network/vf9.network").contains("DHCPv6Client=no"));
    for name in ["dum0", "dum2"] {
        assert!(!guest.wrote(&format!("/etc/systemd/network/{name}.network")), "{name}");
    }
}

#[test]
fn networkmanager_configures_the_vf() {
    let (guest, script) = guest_of("nm");
    let nm = "NetworkManager --debug --configure-and-quit=initrd >/tmp/nm.log 2>&1 & pid=$!; ";
    // Debian's image lists only lo in this file. With Debian's configuration, NetworkManager leaves NICs that the file
    // lists to ifup.
    let said =
        guest.run(&format!("{script} echo 'iface lo inet loopback' >/etc/network/interfaces; {nm} {LOOK} kill $pid"));
    is_configured(&said.ok());
    // nmcli reads the file and prints it in its own order.
    let read = |vf: &str, fields: &str| {
        let file = format!("/etc/NetworkManager/system-connections/{vf}.nmconnection");
        let said = guest.run(&format!("nmcli --offline connection modify connection.id read <{file}")).ok();
        for field in fields.split_whitespace() {
            assert!(said.lines().any(|line| line == field), "{vf}: {field}: {said}");
        }
    };
    read(
        "vf7",
        "interface-name=vf7 mtu=1400 address1=10.1.0.7/16,10.1.0.1 dns=10.1.0.2;10.1.0.3; address1=fd00:1::7/48,fd00:1::1",
    );
    read("vf9", "method=disabled method=ignore");
    read("vf10", "method=auto method=disabled");
    read("vf12", "method=disabled method=auto");
}

#[test]
fn ifup_configures_the_vf() {
    let (guest, script) = guest_of("interfaces");
    let said = guest.run(&format!("{script} ifup vf7 eth0 >&2; {LOOK} ifquery --list -a; ifquery vf7")).ok();
    is_configured(&said);
    dummies_are_down(&said);
    assert!(said.contains("eth0    inet 10.0.7.99/24"), "{said}");
    for field in [
        "address: 10.1.0.7",
        "netmask: 255.255.0.0",
        "gateway: 10.1.0.1",
        "mtu: 1400",
        "address: fd00:1::7",
        "netmask: 48",
    ] {
        assert!(said.lines().any(|line| line == field), "{field}: {said}");
    }
    assert!(said.contains("lo\neth0\nvf7\nvf9\nvf10\nvf12\n"), "{said}");
    let interfaces = guest.read("/etc/network/interfaces");
    for stanza in ["iface vf9 inet6 auto", "iface vf10 inet dhcp", "iface vf12 inet6 dhcp"] {
        assert!(interfaces.lines().any(|line| line == stanza), "{stanza}: {interfaces}");
    }
}

#[test]
fn network_scripts_get_files_of_the_vf() {
    let (guest, script) = guest_of("scripts");
    guest.run(&format!("mkdir -p /etc/sysconfig/network-scripts; {script}")).ok();
    let file = |vf: &str| guest.read(&format!("/etc/sysconfig/network-scripts/ifcfg-{vf}"));
    assert!(file("vf7").contains("DEVICE=vf7\n") && file("vf7").contains("IPADDR=10.1.0.7\nNETMASK=255.255.0.0\n"));
    assert!(file("vf7").contains("IPV6ADDR=fd00:1::7/48\nIPV6_DEFAULTGW=fd00:1::1\n"), "{}", file("vf7"));
    assert!(file("vf9").contains("IPV6_AUTOCONF=yes\nDHCPV6C=no\n") && file("vf10").contains("IPV6INIT=no\n"));
    assert!(!guest.wrote("/etc/sysconfig/network-scripts/ifcfg-dum0"));
}

#[test]
fn an_upgrade_of_the_context_package_is_survived_and_removal_leaves_it_as_it_was() {
    let functions = "/etc/one-context.d/loc-10-network.d/functions";
    let (guest, script) = guest_of("interfaces");
    let original = guest.read(functions);
    for _ in 0..2 {
        guest.run(&script).ok();
        assert!(guest.read("/etc/network/interfaces").contains("iface vf7 inet static"));
        let line = guest.read(functions).strip_prefix(&original).unwrap().to_owned();
        assert_eq!(line.lines().count(), 1, "{line}");
        guest.run(&script).ok();
        assert_eq!(guest.read(functions), format!("{original}{line}"), "it is put in once");
        // An upgrade replaces the file.
        guest.write(functions, &original);
    }
    guest.run(&script).ok();
    let said = guest.package("--remove").ok();
    assert!(said.starts_with("removed kvm-sriov-guest"), "{said}");
    assert_eq!(guest.read(functions), original);
    guest.run(&script).ok();
    assert!(!guest.read("/etc/network/interfaces").contains("vf7"));
    for file in ["/usr/sbin/kvm-sriov-guest", "/usr/lib/kvm-sriov-guest", "/etc/one-context.d/loc-09-kvm-sriov"] {
        assert!(!guest.wrote(file), "{file}");
    }
}

#[test]
fn a_vf_that_is_late_or_comes_back_is_configured_without_another_contextualisation() {
    let (mut guest, script) = guest_of("interfaces");
    guest.unplug("vf7");
    guest.run(&script).ok();
    assert!(!guest.read("/etc/network/interfaces").contains("iface vf"), "which VF belongs where is not known yet");
    vfs(&mut guest, &[7]);
    // There is no DHCP server here, so the DHCP client ends at once.
    guest.program("/sbin/dhclient", "#!/bin/sh\nexit 0\n");
    let apply = "export NETCFG_TYPE=interfaces; kvm-sriov-guest apply >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }; ";
    let show = "ip -o addr; ip route; ip -6 route; ip -o link";
    is_configured(&guest.run(&format!("{apply}{show}")).ok());
    let written = guest.read("/etc/network/interfaces");
    // A suspend: all VFs leave. Nothing is rewritten while they are away, and the first VF that is back does not wait
    // for the others.
    for bus in [7, 9, 10, 12] {
        guest.unplug(&format!("vf{bus}"));
        guest.run(apply).ok();
    }
    vfs(&mut guest, &[7]);
    guest.run("mv /etc/one-context.d/loc-10-network.d/netcfg-interfaces /tmp").ok();
    is_configured(&guest.run(&format!("{apply}{show}")).ok());
    assert_eq!(guest.read("/etc/network/interfaces"), written);
    // The VF was not brought up twice.
    let said = guest.run(&format!("{apply}{show}")).ok();
    assert!(!said.contains("vf7    inet "), "{said}");
}

#[test]
fn a_vf_that_can_not_be_brought_up_at_first_is_tried_again() {
    let (mut guest, script) = guest_of("interfaces");
    guest.program("/sbin/dhclient", "#!/bin/sh\nexit 0\n");
    guest.run(&format!("{script} ifup -a")).ok();
    guest.unplug("vf7");
    vfs(&mut guest, &[7]);
    // Each try calls ifup twice, once for each form of its option.
    guest.program(
        "/tmp/bin/ifup",
        "#!/bin/sh\n[ $(wc -l </tmp/tries) -ge 4 ] || { echo >>/tmp/tries; exit 1; }\nexec /sbin/ifup \"$@\"\n",
    );
    let apply = "export NETCFG_TYPE=interfaces; >/tmp/tries; PATH=/tmp/bin:$PATH kvm-sriov-guest apply 2>&1; echo \"code $?\"; ";
    let said = guest.run(&format!("{apply} ip -o addr; ip route; ip -6 route; ip -o link")).ok();
    assert!(said.contains("kvm-sriov-guest: cannot bring up vf7\n") && said.contains("code 0\n"), "{said}");
    is_configured(&said);
}

#[test]
fn vfs_that_come_back_under_each_others_names_have_their_own_addresses() {
    let (mut guest, script) = guest_of("interfaces");
    guest.program("/sbin/dhclient", "#!/bin/sh\nexit 0\n");
    guest.run(&format!("{script} ifup -a")).ok();
    guest.unplug("vf7");
    guest.unplug("vf9");
    guest.function("0000:07:00.0", "vf9", "d2:11:22:33:44:07");
    guest.function("0000:09:00.0", "vf7", "d2:11:22:33:44:09");
    let said =
        guest.run("NETCFG_TYPE=interfaces kvm-sriov-guest apply >/tmp/log 2>&1 || cat /tmp/log; ip -o addr").ok();
    assert!(said.contains("vf9    inet 10.1.0.7/16") && said.contains("vf9    inet6 fd00:1::7/48"), "{said}");
    assert!(!said.contains("vf7    inet 10.1.0.7"), "{said}");
}

#[test]
fn a_vf_that_is_back_is_configured_within_two_seconds() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0, 1, 2, 3]);
    vfs(&mut guest, &[7, 8, 9, 10]);
    let took = "began=$(date +%s%N); kvm-sriov-guest apply; echo $((($(date +%s%N) - began) / 1000000))";
    let millis: u64 = guest.run(took).ok().trim().parse().unwrap();
    assert!(millis < 2000, "{millis} ms");
}

// --- the scripts of 2013 ---------------------------------------------------------------------------------------------

#[test]
fn the_scripts_of_2013_write_what_they_wrote_then() {
    let mut guest = Guest::bare();
    guest.virtio("0000:00:03.0", "eth0", "02:00:0a:00:07:63");
    dummies(&mut guest, &[0, 10]);
    guest.infiniband("0000:07:00.0", "ib0");
    guest.context("ETH0_IP=10.0.7.0\nETH0_MASK=255.255.0.0\nETH0_GATEWAY=10.0.0.1\nETH1_IP=10.0.7.10\n");
    let run = |script: &str| {
        guest.run(&format!(
            "set -a; . /context/context.sh; SRIOV_ROOT=/new; mkdir -p /new/etc/sysconfig/network-scripts /new/etc/network; \
             /usr/lib/kvm-sriov-guest/2013/00-network.{script} 2>/dev/null"
        ))
    };
    run("centos6").ok();
    let file = |name: &str| guest.read(&format!("/new/etc/sysconfig/network-scripts/ifcfg-{name}"));
    assert_eq!(
        file("ib0"),
        "DEVICE=ib0\nBOOTPROTO=none\nONBOOT=yes\nTYPE=Infiniband\nNETMASK=255.255.0.0\nIPADDR=10.0.7.0\nGATEWAY=10.0.0.1\n"
    );
    // The VF of this dummy is not there yet, but its name is known.
    assert!(
        file("ib10").starts_with("DEVICE=ib10\n")
            && file("ib10").ends_with("NETMASK=255.255.255.0\nIPADDR=10.0.7.10\n")
    );
    assert!(file("eth0").contains("TYPE=Ethernet\n") && file("eth0").contains("IPADDR=10.0.7.99\n"));
    run("debian").ok();
    let said =
        guest.run("ifquery -i /new/etc/network/interfaces --list -a; ifquery -i /new/etc/network/interfaces ib0").ok();
    assert!(
        said.contains("ib0\nib10\n") && said.contains("address: 10.0.7.0\nnetmask: 255.255.0.0\ngateway: 10.0.0.1\n"),
        "{said}"
    );
}

#[test]
fn the_scripts_of_2013_know_ethernet_vfs() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[3]);
    vfs(&mut guest, &[7]);
    guest.run("SRIOV_ROOT= ; export SRIOV_ROOT=/new; mkdir -p /new/etc/network; /usr/lib/kvm-sriov-guest/2013/00-network.debian").ok();
    let said = guest.read("/new/etc/network/interfaces");
    assert!(said.contains("iface vf7 inet static\n  address 10.0.7.3\n") && !said.contains("ib3"), "{said}");
}

#[test]
fn the_scripts_of_2013_leave_devices_alone_that_are_no_nics() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[3]);
    vfs(&mut guest, &[7]);
    guest.virtual_device("docker0", "02:42:0a:00:07:01");
    guest.virtual_device("veth1", "aa:01:41:00:00:01");
    guest
        .run("export SRIOV_ROOT=/new; mkdir -p /new/etc/network; /usr/lib/kvm-sriov-guest/2013/00-network.debian")
        .ok();
    let said = guest.read("/new/etc/network/interfaces");
    assert_eq!(said.lines().filter(|line| line.starts_with("auto ")).collect::<Vec<_>>(), ["auto lo", "auto vf7"]);
}

// --- without context packages ----------------------------------------------------------------------------------------

#[test]
fn without_context_packages_the_macs_are_enough() {
    let mut guest = Guest::bare();
    guest.virtio("0000:00:03.0", "eth0", "02:00:0a:00:07:63");
    dummies(&mut guest, &[0, 1]);
    vfs(&mut guest, &[7, 9]);
    guest.write("/etc/kvm-sriov-guest.conf", "PREFIX_LENGTH=28\nPREFIX_LENGTH_1=16\nGATEWAY=10.0.7.14\nMTU_1=1400\n");
    // A second run changes nothing.
    let said = guest.run("set -e; kvm-sriov-guest apply; ip addr show vf9 >/tmp/1; kvm-sriov-guest apply; ip addr show vf9 >/tmp/2; test \"$(cat /tmp/1)\" = \"$(cat /tmp/2)\"; ip -o -4 addr; ip route; ip -o link").ok();
    assert!(said.contains("vf7    inet 10.0.7.0/28") && said.contains("vf9    inet 10.0.7.1/16"), "{said}");
    assert_eq!(said.matches("default via 10.0.7.14 dev vf7").count(), 1, "{said}");
    assert_eq!(said.matches("default").count() - said.matches("group default").count(), 1, "{said}");
    assert!(said.lines().any(|line| line.contains(": vf9@") && line.contains("mtu 1400")), "{said}");
    assert!(!said.contains("dum0    inet") && !said.contains("eth0    inet"), "{said}");
}

#[test]
fn a_vf_that_gets_another_address_loses_the_old_one() {
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0]);
    vfs(&mut guest, &[7]);
    let said = guest.run("ip addr add 10.0.7.77/24 dev vf7; kvm-sriov-guest apply; ip -o -4 addr show vf7").ok();
    assert!(said.contains("10.0.7.0/24") && !said.contains("10.0.7.77"), "{said}");
}

#[test]
fn a_bad_setting_is_reported_and_changes_nothing() {
    for (setting, error) in [
        ("PREFIX_LENGTH=33", "PREFIX_LENGTH is \"33\", expected a number from 1 to 32"),
        ("PREFIX_LENGTH=$(reboot)", "PREFIX_LENGTH is \"$(reboot)\", expected a number from 1 to 32"),
        ("MTU=12", "MTU is \"12\", expected a number from 68 to 65535"),
        ("MTU=999999999999999999999", "expected a number from 68 to 65535"),
        ("GATEWAY=10.0.7", "GATEWAY is \"10.0.7\", expected an IPv4 address"),
        ("GATEWAY=10.0.7.256", "GATEWAY is \"10.0.7.256\", expected an IPv4 address"),
        ("GATEWAY=10.0.07.1", "GATEWAY is \"10.0.07.1\", expected an IPv4 address"),
    ] {
        let mut guest = Guest::bare();
        dummies(&mut guest, &[0]);
        vfs(&mut guest, &[7]);
        guest.write("/etc/kvm-sriov-guest.conf", setting);
        let said =
            guest.run("kvm-sriov-guest apply; code=$?; ip -o -4 addr show vf7; ip -o link show up vf7; exit $code");
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{setting}: {said:?}");
        assert!(said.err.contains(error), "{setting}: {}", said.err);
    }
}

#[test]
fn a_wrong_call_says_what_is_right() {
    let guest = Guest::bare();
    for call in ["", "nonsense", "list more", "describe"] {
        let said = guest.run(&format!("kvm-sriov-guest {call}"));
        assert_eq!(said.code, 2, "{call}: {said:?}");
        assert!(said.err.contains("apply") && said.out.is_empty(), "{call}: {said:?}");
    }
    let scripts = fs::read_to_string(project().join("guest/kvm-sriov-guest")).unwrap();
    assert!(scripts.starts_with("#!/bin/sh\n"));
}

// --- packages, and what docs/howto/guest.md says
// ---------------------------------------------------------------------------

/// The packages that `dist/package-guest` makes.
fn packages() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut make = Command::new(project().join("dist/package-guest"));
    let made = make.arg(dir.path()).env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap();
    assert!(made.status.success(), "{made:?}");
    dir
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect();
    found.sort();
    found
}

/// The commands of docs/howto/guest.md that begin with this text.
fn documented(begin: &str) -> String {
    let text = fs::read_to_string(project().join("docs/howto/guest.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let found: Vec<&str> = blocks.filter(|block| block.starts_with(begin)).collect();
    assert_eq!(found.len(), 1, "{begin}");
    found[0].to_owned()
}

#[test]
fn the_same_input_gives_the_same_packages() {
    let (first, second) = (packages(), packages());
    let names: Vec<PathBuf> = files(first.path()).into_iter().map(|(name, _)| name).collect();
    let version = env!("CARGO_PKG_VERSION");
    let expected = [
        format!("kvm-sriov-guest-{version}-1.noarch.rpm"),
        format!("kvm-sriov-guest-{version}.tar.gz"),
        format!("kvm-sriov-guest_{version}_all.deb"),
    ];
    assert_eq!(names, expected.map(PathBuf::from));
    assert_eq!(files(first.path()), files(second.path()));
}

#[test]
fn the_packages_are_installed_and_removed_as_the_document_says() {
    assert_eq!(documented("dist/"), "dist/package-guest\n");
    let packages = packages();
    // The packages' dependencies: the databases of dpkg and rpm in this tree don't list them.
    let status = ["iproute2", "util-linux"].map(|name| {
        format!("Package: {name}\nStatus: install ok installed\nMaintainer: x\nArchitecture: amd64\nVersion: 6\nDescription: x\n\n")
    });
    for (install, remove, name) in [
        (documented("dpkg -i"), documented("dpkg -r"), "all.deb"),
        (documented("rpm").replace("rpm ", "rpm --nodeps "), "rpm -e kvm-sriov-guest".into(), "noarch.rpm"),
        (documented("tar"), "kvm-sriov-guest-*/install --remove".into(), "tar.gz"),
    ] {
        let mut guest = Guest::unprepared();
        guest.context(CONTEXT);
        dummies(&mut guest, &[0]);
        vfs(&mut guest, &[7]);
        for entry in fs::read_dir(packages.path()).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            if file.ends_with(name) {
                guest.copy(&path, &format!("/root/{file}"));
            }
        }
        guest.write("/var/lib/dpkg/status", &status.concat());
        let functions = "/etc/one-context.d/loc-10-network.d/functions";
        let original = guest.read(functions);
        let list = documented("kvm-sriov-guest");
        let said = guest.run(&format!("set -e; cd /root; {install} {list} NETCFG_TYPE=interfaces one-contextd local"));
        assert!(said.code == 0 && said.out.contains("0 vf7 ethernet 10.0.7.0\n"), "{name}: {said:?}");
        assert!(guest.read("/etc/network/interfaces").contains("iface vf7 inet static"), "{name}");
        assert_ne!(guest.read(functions), original);
        // An upgrade of our own package keeps the line.
        let again = install.replace("rpm --nodeps -U", "rpm --nodeps -U --force");
        guest.run(&format!("set -e; cd /root; {again}")).ok();
        assert_ne!(guest.read(functions), original, "{name}");
        guest.run(&format!("set -e; cd /root; {remove}")).ok();
        assert_eq!(guest.read(functions), original, "{name}");
        assert_eq!(
            guest
                .run("test ! -e /usr/sbin/kvm-sriov-guest && test ! -e /lib/udev/rules.d/80-kvm-sriov-guest.rules")
                .code,
            0,
            "{name}"
        );
    }
}

#[test]
fn everybody_can_read_what_is_installed_whatever_the_umask_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    let install = project().join("guest/install");
    let script = format!("umask 077; exec {} {}", install.display(), dir.path().display());
    assert!(Command::new("sh").args(["-c", &script]).output().unwrap().status.success());
    let found = Command::new("find").arg(dir.path()).args(["-mindepth", "1", "!", "-perm", "-044"]).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
}

#[test]
fn the_documents_sample_and_the_script_of_2013_do_what_it_says() {
    let text = fs::read_to_string(project().join("docs/howto/guest.md")).unwrap();
    let sample = text.split("```guest_conf\n").nth(1).unwrap().split("```").next().unwrap();
    let mut guest = Guest::bare();
    dummies(&mut guest, &[0, 1]);
    vfs(&mut guest, &[7, 9]);
    guest.write("/etc/kvm-sriov-guest.conf", sample);
    let said = guest.run("kvm-sriov-guest apply && ip -o -4 addr && ip route && ip -o link show vf9").ok();
    for wanted in ["vf7    inet 10.0.7.0/16", "vf9    inet 10.0.7.1/24", "default via 10.0.0.1 dev vf7", "mtu 9000"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    guest.run(&format!("set -e; {} test -x /etc/one-context.d/00-network", documented("cp "))).ok();
}
