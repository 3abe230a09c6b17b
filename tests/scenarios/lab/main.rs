//! The driver on a real host: real VFs, libvirtd, QEMU and a guest.
//!
//! `cargo test -p kvm-sriov-tests --test lab -- [NAME...]` runs every scenario of tests/scenarios/list.txt except the
//! long ones, or the named scenarios, or the long ones (`long`). Two hosts take scenarios side by side, the longest
//! ones first; every scenario leaves its host without domains and claims. Every wait is for a condition, with a limit of
//! five times the measured time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, panic, thread};

use kvm_sriov_tests::remotes::{Remotes, target};
use kvm_sriov_tests::rig_host::{BASE_KVMRC, GUEST_BOOT, KVMRC, RigHost, SOON};
use kvm_sriov_tests::runner::{Earlier, passes, side_by_side, verdict, wanted};
use kvm_sriov_tests::vm::Vm;
use kvm_sriov_tests::{project, runner, scenarios};

mod adapter;
mod behaviours;
mod disks;
mod drift;
mod ethernet;
mod kills;
mod layer;
mod moves;
mod nics;
mod package;
mod power;
mod snapshots;
mod suspend;
mod whole;

const STATE: &str = "/tmp/vf_interfaces";
const RULE: &str = "/etc/udev/rules.d/80-kvm-sriov-vfio.rules";

/// The number of VFs of each of the lab's two roots.
const VFS: usize = 4;

/// A guest powers off about 4 s after the request.
const GUEST_POWEROFF: Duration = Duration::from_secs(60);

type Scenario = runner::Scenario<RigHost>;

use adapter::*;
use behaviours::*;
use disks::*;
use drift::*;
use ethernet::*;
use kills::*;
use layer::*;
use moves::*;
use nics::*;
use package::*;
use power::*;
use snapshots::*;
use suspend::*;

/// Scenarios on one host. Both hosts take scenarios from this list.
const ON_ONE_HOST: &[Scenario] = scenarios![
    a_host_behaves_as_the_model_does,
    one_vf,
    two_nics_of_one_root_in_order_beside_a_bridge_nic,
    two_roots_on_q35,
    vm_without_vfs_goes_through_untouched,
    vm_called_sriov,
    map_exhausted,
    vf_that_vanished_is_skipped,
    existing_domain,
    same_vm_by_two_processes_at_once,
    missing_dummy_bridge,
    missing_map,
    wrong_bridge_name,
    missing_udev_rule,
    user_not_in_the_group,
    no_libvirtd,
    cancel_of_an_absent_domain,
    cancel_while_deploy_runs,
    commands_of_the_documents,
    shutdown_that_is_not_heard,
    save_of_a_paused_vm_touches_nothing,
    firmware_releases_late,
    cancel_during_a_save_that_hangs,
    guest_reboots_during_an_unplug,
    a_foreign_device_is_refused,
    detach_from_a_guest_that_does_not_answer,
    monitoring_frees_what_a_crash_left,
    killed_at_some_calls,
];

/// Scenarios on both hosts. They get the first one.
const ON_TWO_HOSTS: &[Scenario] = scenarios![
    two_hosts_behave_as_the_model_does,
    traffic_survives_suspend_and_migration_there_and_back,
    destination_with_too_few_vfs_is_refused,
    an_answer_lost_at_the_hand_over,
    mac_and_vlan_follow_a_vm_in_mode_ethernet,
    a_fresh_host_is_called_for_a_whole_life,
];

/// Long scenarios (`./check long`) on one host.
const LONG_ON_ONE_HOST: &[Scenario] = scenarios![
    the_libvirt_layer_on_a_libvirtd_of_its_own,
    save_and_restore_on_q35,
    paused_guest_releases_late_and_is_saved_afterwards,
    libvirtd_restarts_during_an_unplug,
    an_adopted_domain_is_saved,
    nics_come_and_go_on_q35,
    guest_that_powers_itself_off,
    packages_are_installed_upgraded_and_removed,
    host_reboot_with_claims_left_behind,
    attach_without_a_free_vf_changes_nothing,
    guest_sees_its_vf_and_shuts_down,
    vf_held_by_a_foreign_domain,
    reboot_and_reset,
    save_and_restore_on_pc,
    save_and_restore_on_native_hotplug,
    restore_without_a_free_vf_keeps_the_checkpoint,
    nics_come_and_go_on_pc,
    killed_at_every_step_of_a_save,
    killed_at_every_step_of_a_restore,
    snapshots_of_a_vm_with_vfs,
    snapshots_of_a_vm_without_vfs,
    firmware_is_asked_and_the_guest_boots,
    qemu_stands_still_during_an_action,
    another_datastore_of_the_host,
    udev_comes_late,
    rounds_of_attach_and_detach,
    rounds_of_save_and_restore,
    disks_come_grow_and_go_on_pc,
    disks_come_grow_and_go_on_q35,
    a_cd_is_swapped,
    cpus_and_memory_are_resized,
    programs_start_on_debian_11,
    an_adapter_fails_under_its_vms,
    a_disk_is_full,
    the_clock_is_set_back,
];

/// Long scenarios on both hosts.
const LONG_ON_TWO_HOSTS: &[Scenario] = scenarios![
    vm_without_vfs_migrates,
    cancel_during_a_migration,
    two_vms_swap_hosts_with_full_maps,
    moves_that_are_cut_off_in_every_way,
    storage_that_is_not_shared_moves_along,
    a_vm_in_doubt_is_resolved,
    killed_at_every_step_of_a_move,
    killed_at_any_time,
    killed_at_every_call,
    hosts_lose_their_power,
    rounds_of_migration,
];

/// The names in tests/scenarios/list.txt, with the seconds that each scenario takes.
fn listed() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(project().join("tests/scenarios/list.txt")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let read = |line: &&str| {
        let (name, seconds) = line.split_once(' ').unwrap_or_else(|| panic!("list.txt: {line}: no seconds"));
        (name.to_owned(), seconds.parse().unwrap_or_else(|error| panic!("list.txt: {line}: {error}")))
    };
    let listed: BTreeMap<String, u32> = lines.iter().map(read).collect();
    assert_eq!(listed.len(), lines.len(), "tests/scenarios/list.txt names a scenario twice");
    listed
}

fn main() -> ExitCode {
    let listed = listed();
    let known: Vec<&str> = [ON_ONE_HOST, ON_TWO_HOSTS, LONG_ON_ONE_HOST, LONG_ON_TWO_HOSTS]
        .concat()
        .iter()
        .map(|(name, _)| *name)
        .collect();
    let names: BTreeSet<&str> = known.iter().copied().collect();
    assert_eq!(names.len(), known.len(), "a scenario runs twice");
    assert!(names.iter().eq(listed.keys()), "tests/scenarios/list.txt and tests/scenarios/lab/main.rs differ");

    let wanted = wanted(&[&known[..], &["long"]].concat());
    let earlier = Earlier::from_environment();
    let passed = earlier.passed();
    let is_wanted = |name: &str, usually: bool| {
        let is_chosen = if usually { wanted.is_empty() } else { wanted.contains("long") };
        is_chosen || wanted.contains(name)
    };
    let choose = |usual: &'static [Scenario], long: &'static [Scenario]| -> Vec<&'static Scenario> {
        let usual = usual.iter().filter(|(name, _)| is_wanted(name, true));
        let long = long.iter().filter(|(name, _)| is_wanted(name, false));
        let (done, mut chosen): (Vec<&Scenario>, Vec<&Scenario>) =
            usual.chain(long).partition(|(name, _)| passed.contains(*name));
        done.iter().for_each(|(name, _)| println!("{name} passed before and is not run again"));
        // The longest first, so that both hosts end at about the same time.
        chosen.sort_by_key(|(name, _)| Reverse(listed[*name]));
        chosen
    };
    let alone = choose(ON_ONE_HOST, LONG_ON_ONE_HOST);
    let together = choose(ON_TWO_HOSTS, LONG_ON_TWO_HOSTS);
    let count = alone.len() + together.len();
    println!("\nrunning {count} scenarios");
    if count == 0 {
        return verdict(0, 0);
    }
    let hosts =
        if count == 1 && together.is_empty() { vec![RigHost::start(1)] } else { RigHost::start_both().to_vec() };
    for host in &hosts {
        host.install(&Remotes::default());
        host.empty_datastores();
    }
    let passes = |hosts: &[RigHost], scenario: &Scenario| {
        let passed = runs(hosts, scenario);
        if passed {
            earlier.note(scenario.0);
        }
        passed
    };
    let failed = side_by_side(&hosts, &alone, |host, scenario| passes(&[host], scenario))
        + together.iter().filter(|scenario| !passes(&hosts, scenario)).count();
    verdict(count, failed)
}

/// Runs a scenario on clean hosts. Runs it once more when the emulated processor of a host failed.
fn runs(hosts: &[RigHost], (name, scenario): &Scenario) -> bool {
    let host = hosts[0];
    let attempt = || {
        let passed = passes(name, hosts, || {
            prepare(host);
            scenario(host);
            assert_eq!(host.claims(), Vec::<String>::new(), "claims are left behind");
        });
        let is_rig = !passed && hosts.iter().any(|host| host.has_mixed_up());
        if !passed {
            hosts.iter().for_each(|host| mend(*host));
        }
        (passed, is_rig)
    };
    match attempt() {
        (false, true) => {
            println!(
                "scenario {name}: a host's emulated processor mixed it up with a guest, so the scenario runs once more"
            );
            attempt().0
        }
        (passed, _) => passed,
    }
}

/// Makes a host usable again. A failed scenario may have left it without power, network, libvirtd or driver.
fn mend(host: RigHost) {
    host.power_cycle();
    host.install(&Remotes::default());
}

/// A host without domains and claims, with the driver's configuration and the maps of both roots.
fn prepare(host: RigHost) {
    host.clean();
    host.set_up();
}

/// Writes kvmrc with the two variables that every VM with VFs needs, and these lines.
fn kvmrc(host: RigHost, more: &str) {
    host.write(KVMRC, &format!("{BASE_KVMRC}{more}"));
}

/// The VF addresses of a root, in the order of its map, as libvirt's attributes write them.
fn map(host: RigHost, root: &str) -> Vec<String> {
    let lines = host.root(&format!("cat /etc/kvm-sriov/vf_maps/{root}")).ok();
    lines
        .lines()
        .map(|line| {
            let byte: Vec<u8> = line.split(' ').map(|b| u8::from_str_radix(&b[2..], 16).unwrap()).collect();
            format!("{:02x}:{:02x}.{:x}", byte[0], byte[1], byte[2])
        })
        .collect()
}

/// A VF in a running domain.
#[derive(Debug, PartialEq)]
struct Plugged {
    alias: String,
    host: String,
    guest: String,
}

fn address(node: roxmltree::Node<'_, '_>) -> String {
    let byte = |name| u8::from_str_radix(&node.attribute(name).unwrap()[2..], 16).unwrap();
    format!("{:02x}:{:02x}.{:x}", byte("bus"), byte("slot"), byte("function"))
}

fn children<'a>(node: roxmltree::Node<'a, 'a>, name: &'static str) -> impl Iterator<Item = roxmltree::Node<'a, 'a>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

/// The VFs that libvirt shows in a domain, in the order of its XML.
fn plugged(live: &str) -> Vec<Plugged> {
    let document = roxmltree::Document::parse(live).unwrap();
    let devices = children(document.root_element(), "devices").next().unwrap();
    children(devices, "hostdev")
        .map(|hostdev| Plugged {
            alias: children(hostdev, "alias").next().unwrap().attribute("name").unwrap().into(),
            host: address(children(children(hostdev, "source").next().unwrap(), "address").next().unwrap()),
            guest: address(children(hostdev, "address").next().unwrap()),
        })
        .collect()
}

/// The aliases of the VFs with their guest addresses, by alias: libvirt's XML lists a returned VF last.
fn guest_addresses(live: &str) -> Vec<(String, String)> {
    let mut vfs: Vec<_> = plugged(live).into_iter().map(|vf| (vf.alias, vf.guest)).collect();
    vfs.sort();
    vfs
}

/// The MACs of a domain's interfaces with their bridges, in the order of its XML.
fn interfaces(live: &str) -> Vec<(String, String)> {
    let document = roxmltree::Document::parse(live).unwrap();
    let devices = children(document.root_element(), "devices").next().unwrap();
    children(devices, "interface")
        .map(|interface| {
            let of =
                |name, attribute| children(interface, name).next().unwrap().attribute(attribute).unwrap().to_owned();
            (of("mac", "address"), of("source", "bridge"))
        })
        .collect()
}

/// Whether a domain has no open operation. A note that the guest may still release a VF is not an operation.
fn is_at_rest(live: &str) -> bool {
    let document = roxmltree::Document::parse(live).unwrap();
    let operation = document.descendants().find(|node| node.has_tag_name(("urn:kvm-sriov:domain:1", "operation")));
    operation.is_none_or(|operation| operation.attribute("kind") == Some("pending-unplug"))
}

/// No domain was started and no VF was claimed.
#[track_caller]
fn nothing_is_there(host: RigHost, vm: &Vm) {
    assert_eq!(host.live_xml(vm), "", "a domain was started");
    assert!(host.claims().iter().all(|claim| !claim.is_empty() && !claim_names(host, claim, vm)), "a VF was claimed");
}

fn claim_names(host: RigHost, claim: &str, vm: &Vm) -> bool {
    host.oneadmin(&format!("grep -qx vm={} {STATE}/{claim}", vm.name())).code == 0
}

/// The user's message of a failed deploy is one line and contains all of `parts`.
#[track_caller]
fn deploy_fails(host: RigHost, vm: &Vm, parts: &[&str]) {
    let said = host.deploy(vm);
    assert_eq!(said.code, 255, "{said:?}");
    assert_eq!(said.out, "", "a failed deploy prints no deploy id");
    let message = said.message();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(message.starts_with("deploy: "), "{message}");
}

#[track_caller]
fn deploy(host: RigHost, vm: &Vm) -> String {
    let said = host.deploy(vm);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.out, format!("{}\n", vm.uuid()), "deploy prints the UUID alone");
    host.live_xml(vm)
}

#[track_caller]
fn cancel(host: RigHost, vm: &Vm) {
    let said = host.cancel(vm);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert_eq!(host.live_xml(vm), "");
}

fn one_vf(host: RigHost) {
    let vm = Vm::new(1).nic("sriov_pf0");
    let vf = &map(host, "pf0")[0];
    let driver = || host.root(&format!("basename $(readlink /sys/bus/pci/devices/0000:{vf}/driver)")).ok();
    let before = driver();
    let live = deploy(host, &vm);
    assert_eq!(driver(), "vfio-pci\n");
    assert_eq!(plugged(&live), [Plugged { alias: "ua-sriov-0".into(), host: vf.clone(), guest: "00:10.0".into() }]);
    assert_eq!(interfaces(&live), [(vm.dummy_mac(0, 0), "dummy_br".into())]);
    assert_eq!(host.claims(), ["pf0/0"]);
    assert_eq!(host.oneadmin(&format!("stat -c %a {STATE} {STATE}/pf0")).ok(), "700\n700\n");
    let stored = host.oneadmin(&format!("cat {}", vm.deployment_file())).ok();
    assert!(stored.contains("ua-sriov-0") && !stored.contains("sriov_pf0"), "{stored}");
    let listed: serde_json::Value = serde_json::from_str(&host.root("kvm-sriov list --json").ok()).unwrap();
    assert_eq!(listed[0]["state"], "used");
    assert_eq!(listed[0]["vm"], "one-1");
    assert_eq!(listed[1]["state"], "free");
    assert!(host.root("kvm-sriov check").ok().contains("this host is ready"));
    assert!(live.contains("urn:kvm-sriov:domain:1"), "our metadata is missing");
    let journal = host.root("cat /var/log/syslog").ok();
    assert!(journal.contains(&format!("vm=one-1 root=pf0 vf=0000:{vf} action=deploy result=plugged")), "{journal}");
    cancel(host, &vm);
    assert_eq!(driver(), before, "the VF has not the driver that it had");
}

fn two_nics_of_one_root_in_order_beside_a_bridge_nic(host: RigHost) {
    let vm = Vm::new(2).nic("sriov_pf0").nic("br0").nic("sriov_pf0");
    let live = deploy(host, &vm);
    let vfs = map(host, "pf0");
    let found = plugged(&live);
    assert_eq!(found.iter().map(|p| &p.alias).collect::<Vec<_>>(), ["ua-sriov-0", "ua-sriov-1"]);
    assert_eq!(found.iter().map(|p| &p.host).collect::<Vec<_>>(), [&vfs[0], &vfs[1]]);
    assert!(found[0].guest < found[1].guest, "{found:?}");
    // The dummies come last, so the bridge NIC keeps its place.
    assert_eq!(
        interfaces(&live),
        [(vm.mac(1), "br0".into()), (vm.dummy_mac(0, 0), "dummy_br".into()), (vm.dummy_mac(1, 2), "dummy_br".into())]
    );
    assert_eq!(host.claims(), ["pf0/0", "pf0/1"]);
    cancel(host, &vm);
}

fn two_roots_on_q35(host: RigHost) {
    let vm = Vm::new(3).machine("q35").nic("sriov_pf1").nic("sriov_pf0");
    let live = deploy(host, &vm);
    let found = plugged(&live);
    assert_eq!(found.iter().map(|p| &p.host).collect::<Vec<_>>(), [&map(host, "pf1")[0], &map(host, "pf0")[0]]);
    assert!(found[0].guest < found[1].guest, "{found:?}");
    assert_eq!(host.claims(), ["pf0/0", "pf1/0"]);
    cancel(host, &vm);
}

fn vm_without_vfs_goes_through_untouched(host: RigHost) {
    let vm = Vm::new(4).nic("br0");
    host.root("rm -rf /etc/kvm-sriov").ok();
    deploy(host, &vm);
    assert_eq!(host.oneadmin(&format!("cat {}", vm.deployment_file())).ok(), format!("{}\n", vm.deployment()));
    assert_ne!(host.oneadmin(&format!("test -e {STATE}")).code, 0, "the state directory was made");
    cancel(host, &vm);
    assert_ne!(host.oneadmin(&format!("test -e {STATE}")).code, 0, "the state directory was made");
}

fn vm_called_sriov(host: RigHost) {
    let line = "\n\t\t\t<one:uname><![CDATA[<source bridge='sriov_pf0'/>]]></one:uname>";
    let vm = Vm::new(5).called("sriov_pf0 sriov", line).nic("br0").nic("sriov_pf0");
    let live = deploy(host, &vm);
    assert_eq!(plugged(&live).len(), 1);
    assert_eq!(interfaces(&live).len(), 2);
    assert!(live.contains("<title>sriov_pf0 sriov</title>"), "{live}");
    assert_eq!(host.claims(), ["pf0/0"]);
    cancel(host, &vm);
}

fn map_exhausted(host: RigHost) {
    let big = (0..VFS - 1).fold(Vm::new(6), |vm, _| vm.nic("sriov_pf0"));
    deploy(host, &big);
    let late = Vm::new(7).nic("sriov_pf1").nic("sriov_pf0").nic("sriov_pf0");
    deploy_fails(host, &late, &["no free VF on pf0 for one-7", "none of 4 is left", "one-6: 3", "nothing was started"]);
    nothing_is_there(host, &late);
    assert_eq!(host.claims(), ["pf0/0", "pf0/1", "pf0/2"]);
    cancel(host, &big);
}

/// Starts a domain with a VF without the driver.
fn foreign_domain(host: RigHost, vf: &str) {
    let (bus, rest) = vf.split_once(':').unwrap();
    let (slot, function) = rest.split_once('.').unwrap();
    host.write(
        "/tmp/foreign.xml",
        &format!(
            "<domain type='qemu'><name>foreign</name><memory>65536</memory><os><type machine='pc'>hvm</type></os>\
             <devices><hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='0x{bus}' \
             slot='0x{slot}' function='0x{function}'/></source></hostdev></devices></domain>"
        ),
    );
    host.oneadmin("virsh -q -c qemu:///system create /tmp/foreign.xml").ok();
}

fn vf_held_by_a_foreign_domain(host: RigHost) {
    let vfs = map(host, "pf0");
    foreign_domain(host, &vfs[0]);
    let vm = Vm::new(8).nic("sriov_pf0");
    let live = deploy(host, &vm);
    assert_eq!(plugged(&live)[0].host, vfs[1]);
    assert_eq!(host.claims(), ["pf0/0", "pf0/1"], "a VF that a domain has gets a claim");
    cancel(host, &vm);
    assert_eq!(host.claims(), ["pf0/0"], "the claim of a domain that runs was freed");
    host.oneadmin("virsh -q -c qemu:///system destroy foreign").ok();
    assert_eq!(plugged(&deploy(host, &vm))[0].host, vfs[0]);
    cancel(host, &vm);
}

fn vf_that_vanished_is_skipped(host: RigHost) {
    let vfs = map(host, "pf0");
    let (gone, adapter) = ("0x01 0x1f 0x07", "0x01 0x00 0x00");
    host.root(&format!("sed -i '1i {gone}\\n{adapter}' /etc/kvm-sriov/vf_maps/pf0")).ok();
    let vm = Vm::new(9).nic("sriov_pf0");
    let said = host.deploy(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    let no_vfs = "0000:01:1f.7 (missing), 0000:01:00.0 (not a VF)";
    assert!(said.err.contains(&format!("WARN: deploy: pf0: skipped what no VM can have: {no_vfs}")), "{}", said.err);
    assert_eq!(plugged(&host.live_xml(&vm))[0].host, vfs[0]);
    assert_eq!(host.claims(), ["pf0/2"]);
    let listed = host.root("kvm-sriov list").ok();
    assert!(listed.contains("missing") && listed.contains("not a VF"), "{listed}");
    cancel(host, &vm);
    host.write("/etc/kvm-sriov/vf_maps/pf0", &format!("{gone}\n{adapter}\n"));
    let reason = format!("no free VF on pf0 for one-9: its map lists no VF of this host: {no_vfs}");
    deploy_fails(host, &vm, &[&reason, "nothing was started"]);
    nothing_is_there(host, &vm);
}

fn existing_domain(host: RigHost) {
    let vm = Vm::new(10).nic("sriov_pf0");
    let before = deploy(host, &vm);
    deploy_fails(host, &vm, &["one-10 is already on this host"]);
    assert_eq!(plugged(&host.live_xml(&vm)), plugged(&before));
    assert_eq!(host.claims(), ["pf0/0"]);
    cancel(host, &vm);
}

fn same_vm_by_two_processes_at_once(host: RigHost) {
    let vm = Vm::new(11).nic("sriov_pf0");
    let both: Vec<_> = (0..2)
        .map(|_| {
            let vm = vm.clone();
            thread::spawn(move || host.deploy(&vm))
        })
        .collect();
    let said: Vec<_> = both.into_iter().map(|thread| thread.join().unwrap()).collect();
    let mut codes: Vec<i32> = said.iter().map(|s| s.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 255], "{said:?}");
    assert!(said.iter().any(|s| s.message().contains("is already on this host")), "{said:?}");
    assert_eq!(plugged(&host.live_xml(&vm)).len(), 1);
    assert_eq!(host.claims(), ["pf0/0"]);
    cancel(host, &vm);
}

fn missing_dummy_bridge(host: RigHost) {
    let vm = Vm::new(12).nic("sriov_pf0");
    host.write(KVMRC, "DUMMY_BRIDGE=nobridge\nDUMMY_MAC_PREFIX=aa\n");
    deploy_fails(host, &vm, &["DUMMY_BRIDGE nobridge", "ip link add nobridge type bridge", "nothing was started"]);
    host.write(KVMRC, "DUMMY_MAC_PREFIX=aa\n");
    deploy_fails(host, &vm, &["DUMMY_BRIDGE is not set", "kvmrc", "nothing was started"]);
    host.write(KVMRC, "DUMMY_BRIDGE=dummy_br\nDUMMY_MAC_PREFIX=`id`\n");
    deploy_fails(host, &vm, &["kvmrc", "line 2", "nothing was started"]);
    nothing_is_there(host, &vm);
    assert_ne!(host.oneadmin(&format!("test -e {STATE}")).code, 0, "the state directory was made");
}

fn missing_map(host: RigHost) {
    let vm = Vm::new(13).nic("sriov_ib7");
    deploy_fails(host, &vm, &["ib7", "/etc/kvm-sriov/vf_maps", "nothing was started"]);
    host.write("/etc/kvm-sriov/vf_maps/ib7", "0x01 0x10 0x00\n0x01 0x10\n");
    deploy_fails(host, &vm, &["vf_maps/ib7, line 2", "0xBUS 0xSLOT 0xFUNC", "0x01 0x10", "nothing was started"]);
    nothing_is_there(host, &vm);
}

fn wrong_bridge_name(host: RigHost) {
    let vm = Vm::new(14).nic("sriov_..");
    deploy_fails(host, &vm, &["root name", "..", "nothing was started"]);
    let vm = Vm::new(14).nic("nosuchbridge");
    deploy_fails(host, &vm, &["could not create domain from", "nosuchbridge", "nothing was started"]);
    nothing_is_there(host, &vm);
}

fn missing_udev_rule(host: RigHost) {
    let vm = Vm::new(15).nic("sriov_pf0");
    host.root(&format!("mv {RULE} /root/ && udevadm control --reload")).ok();
    let said = panic::catch_unwind(|| {
        deploy_fails(host, &vm, &["QEMU may not open /dev/vfio/", "80-kvm-sriov-vfio.rules", "nothing was started"]);
        let checked = host.root("kvm-sriov check").ok();
        assert!(checked.contains("warn  vfio") && checked.contains("80-kvm-sriov-vfio.rules"), "{checked}");
    });
    host.root(&format!("mv /root/{} {RULE} && udevadm control --reload", RULE.rsplit('/').next().unwrap())).ok();
    if let Err(failure) = said {
        panic::resume_unwind(failure);
    }
    nothing_is_there(host, &vm);
    deploy(host, &vm);
    cancel(host, &vm);
}

fn user_not_in_the_group(host: RigHost) {
    let command = "rm -rf /tmp/nobody; mkdir -p /tmp/nobody/vmm && cp -r /var/tmp/one/vmm/kvm-sriov /tmp/nobody/vmm/ && \
         chown -R nobody /tmp/nobody && cd /tmp && \
         setpriv --reuid=nobody --regid=nogroup --clear-groups /tmp/nobody/vmm/kvm-sriov/cancel one-1 host1 1 host1";
    let said = host.root(command);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.message().contains("libvirt") && said.message().contains("group"), "{said:?}");
}

fn no_libvirtd(host: RigHost) {
    let vm = Vm::new(16).nic("sriov_pf0");
    kvmrc(host, "LIBVIRT_URI=qemu+unix:///system?socket=/run/nothing\n");
    deploy_fails(host, &vm, &["libvirtd", "nothing was started"]);
    nothing_is_there(host, &vm);
}

fn cancel_of_an_absent_domain(host: RigHost) {
    let vm = Vm::new(17).nic("sriov_pf0");
    cancel(host, &vm);
    // Once more, with a claim that nobody freed: its domain ended without the driver.
    deploy(host, &vm);
    host.root("virsh -q destroy one-17").ok();
    assert_eq!(host.claims(), ["pf0/0"]);
    cancel(host, &vm);
    assert_eq!(host.claims(), Vec::<String>::new());
    // cancel works without a usable state directory.
    deploy(host, &vm);
    host.oneadmin(&format!("mv {STATE} {STATE}.away && ln -s /etc {STATE}")).ok();
    let said = host.cancel(&vm);
    host.oneadmin(&format!("rm {STATE} && mv {STATE}.away {STATE}")).ok();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(host.live_xml(&vm), "");
    cancel(host, &vm);
}

fn cancel_while_deploy_runs(host: RigHost) {
    let vm = Vm::new(18).nic("sriov_pf0").nic("sriov_pf0");
    for delay in [0, 300, 800, 1500, 2500] {
        let deploying = {
            let vm = vm.clone();
            thread::spawn(move || host.deploy(&vm))
        };
        host.wait("the claims", Duration::from_secs(30), |host| {
            !host.claims().is_empty() || !host.live_xml(&vm).is_empty()
        });
        thread::sleep(Duration::from_millis(delay));
        let said = host.cancel(&vm);
        assert_eq!(said.code, 0, "{said:?}");
        deploying.join().unwrap();
        assert_eq!(host.live_xml(&vm), "", "the domain came back after the cancel");
        assert_eq!(host.claims(), Vec::<String>::new());
    }
}

fn reboot_and_reset(host: RigHost) {
    let vm = Vm::new(19).nic("sriov_pf0");
    for action in ["reboot", "reset"] {
        let said = host.action(action, &[&vm.uuid(), "host1"], &vm, "");
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.message().contains("there is no domain"), "{said:?}");
    }
    let before = deploy(host, &vm);
    for action in ["reboot", "reset"] {
        let said = host.action(action, &[&vm.uuid(), "host1"], &vm, "");
        assert_eq!((said.code, said.out.as_str(), said.message().as_str()), (0, "", ""), "{said:?}");
    }
    assert_eq!(plugged(&host.live_xml(&vm)), plugged(&before));
    cancel(host, &vm);
}

/// The first shell block in a document that contains this text.
fn block_with(document: &str, text: &str) -> String {
    let document = fs::read_to_string(project().join(document)).unwrap();
    let blocks = document.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.into_iter().find(|block| block.contains(text)).unwrap().to_owned()
}

fn commands_of_the_documents(host: RigHost) {
    host.root("rm -rf /etc/kvm-sriov /usr/local/bin/kvm-sriov; mkdir -p /root/project/target/release").ok();
    for file in ["dist/udev/80-kvm-sriov-vfio.rules", "dist/tmpfiles/kvm-sriov.conf", "target/release/kvm-sriov"] {
        let from = file.strip_prefix("target/").map_or_else(|| project().join(file), |built| target().join(built));
        host.root(&format!("mkdir -p $(dirname /root/project/{file})")).ok();
        host.write_bytes(&format!("/root/project/{file}"), &fs::read(from).unwrap());
    }
    host.root("chmod +x /root/project/target/release/kvm-sriov; ip link del dummy_br").ok();
    // The lab's adapter is pf0. A command stands for the editor with which an operator writes a map.
    let run = |block: String, before: &str| {
        let block = block.replace("net/ib0", "net/pf0");
        host.root(&format!("cd /root/project && set -e; {before}\n{block}")).ok()
    };
    let typed = "editor() { echo '0x01 0x10 0x00' >$1; }; EDITOR=editor";
    // The lab has the driver already, which the last step of the document copies.
    let out = run(block_with("docs/howto/install.md", "sriov_numvfs") + "kvm-sriov check\n", typed);
    assert!(out.contains("this host is ready"), "{out}");
    let out = run(block_with("docs/reference/configuration.md", "virtfn"), "");
    assert!(out.contains("ib0 (/etc/kvm-sriov/vf_maps/ib0): 4 VFs"), "{out}");
    // There is no systemd in the lab, and so no journalctl.
    let state = block_with("docs/reference/state.md", "kvm-sriov list").replace("journalctl", "true");
    host.root("mkdir -p /tmp/vf_interfaces/ib0; chown -R oneadmin: /tmp/vf_interfaces").ok();
    let out = run(state, "");
    assert!(out.contains("0000:01:10.0"), "{out}");
}

fn shutdown_that_is_not_heard(host: RigHost) {
    let vm = Vm::new(20).nic("sriov_pf0");
    deploy(host, &vm);
    let shutdown = || host.action("shutdown", &[&vm.uuid(), "host1"], &vm, "");
    kvmrc(host, "SHUTDOWN_TIMEOUT=2\n");
    let said = shutdown();
    assert_eq!(said.code, 255, "{said:?}");
    assert!(said.message().contains("timed out shutting down"), "{said:?}");
    assert_eq!(host.claims(), ["pf0/0"], "a VF of a running domain was freed");
    kvmrc(host, "SHUTDOWN_TIMEOUT=2\nFORCE_DESTROY=yes\n");
    let said = shutdown();
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert!(said.err.contains("ERROR: shutdown: Timeout shutting down"), "{said:?}");
    assert_eq!(host.live_xml(&vm), "");
    assert_eq!(host.claims(), Vec::<String>::new());
    let said = shutdown();
    assert_eq!((said.code, said.out.as_str()), (0, ""), "an absent domain is shut down: {said:?}");
}

/// A boot sector that waits 10 s and then powers the machine off through the ACPI control register of QEMU's pc.
fn boot_sector() -> Vec<u8> {
    let mut code = vec![
        0xb9, 0x98, 0x00, // mov cx, 0x0098   10 000 000 microseconds = 0x00989680
        0xba, 0x80, 0x96, // mov dx, 0x9680
        0xb4, 0x86, // mov ah, 0x86     BIOS: wait
        0xcd, 0x15, // int 0x15
        0xba, 0x04, 0x06, // mov dx, 0x604
        0xb8, 0x00, 0x20, // mov ax, 0x2000   sleep enable, type S5
        0xef, // out dx, ax
        0xf4, // hlt
        0xeb, 0xfd, // jmp to hlt
    ];
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    // The BIOS does not boot from a smaller disk.
    code.resize(1 << 20, 0);
    code
}

fn guest_that_powers_itself_off(host: RigHost) {
    let vm = Vm::new(21).nic("sriov_pf0").nic("sriov_pf0").nic("sriov_pf0").nic("sriov_pf0").disk();
    host.oneadmin(&format!("mkdir -p {}", vm.dir())).ok();
    // The disk is a link, as in datastores that link to the image.
    host.write_bytes("/var/lib/one/datastores/0/poweroff.img", &boot_sector());
    host.root(&format!(
        "chown oneadmin: /var/lib/one/datastores/0/poweroff.img; ln -s ../poweroff.img {}/disk.0",
        vm.dir()
    ))
    .ok();
    let live = deploy(host, &vm);
    assert!(live.contains("/poweroff.img'"), "the disk's link was not followed: {live}");
    host.wait("the guest to power itself off", GUEST_POWEROFF * 2, |host| host.live_xml(&vm).is_empty());
    assert_eq!(host.claims().len(), VFS, "nobody was there to free them");
    let listed = host.root("kvm-sriov list").ok();
    assert!(listed.contains("unbacked"), "{listed}");
    let next = Vm::new(22).nic("sriov_pf0");
    deploy(host, &next);
    assert_eq!(host.claims(), ["pf0/0"], "the claims of a VM that is gone were not freed");
    cancel(host, &next);
}

fn guest_sees_its_vf_and_shuts_down(host: RigHost) {
    let vm = Vm::new(23).machine("q35").with_guest().nic("br0").nic("sriov_pf0").nic("sriov_pf1");
    let live = deploy(host, &vm);
    assert_eq!(plugged(&live).len(), 2);
    let mut nics = Vec::new();
    host.wait("the guest to show its NICs", GUEST_BOOT, |host| {
        nics = host.guest_nics(&vm);
        nics.len() == 5
    });
    let macs: Vec<&str> = nics.iter().map(|nic| nic.mac.as_str()).collect();
    for mac in [vm.mac(0), vm.dummy_mac(0, 1), vm.dummy_mac(1, 2)] {
        assert!(macs.contains(&mac.as_str()), "{mac} is not in {macs:?}");
    }
    // The other two are the VFs. The guest numbers its buses itself, in the same order.
    let vfs: Vec<_> = nics.iter().filter(|nic| nic.driver == "igbvf").collect();
    assert_eq!(vfs.len(), 2, "{nics:?}");
    assert!(vfs.iter().all(|vf| nics.iter().all(|nic| nic.driver == "igbvf" || nic.pci < vf.pci)), "{nics:?}");
    kvmrc(host, &format!("SHUTDOWN_TIMEOUT={}\n", GUEST_POWEROFF.as_secs()));
    let said = host.action("shutdown", &[&vm.uuid(), "host1"], &vm, "");
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert_eq!(host.live_xml(&vm), "");
}

fn monitoring_frees_what_a_crash_left(host: RigHost) {
    let vm = Vm::new(26).nic("sriov_pf0").nic("sriov_pf1");
    deploy(host, &vm);
    let probe = || {
        let said = host.oneadmin("/var/tmp/one/im/kvm-probes.d/vm/monitor/sriov_probe kvm 1 host1 </dev/null");
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""));
        // The caller does not wait for what the program starts.
        host.wait("the probe to end", SOON, |host| host.root("pgrep -x sriov_probe").code == 1);
    };
    probe();
    assert_eq!(host.claims(), ["pf0/0", "pf1/0"], "the probe took a VF of a running VM");
    host.kill_qemu(&vm);
    host.wait("the domain to be gone", SOON, |host| host.live_xml(&vm).is_empty());
    assert_eq!(host.claims(), ["pf0/0", "pf1/0"]);
    probe();
    assert_eq!(host.claims(), Vec::<String>::new());
    host.kill_libvirtd();
    probe();
    host.start_libvirtd();
}

fn host_reboot_with_claims_left_behind(host: RigHost) {
    let on_disk = "/var/lib/one/vf_interfaces";
    kvmrc(host, &format!("VF_STATE_DIR={on_disk}\n"));
    let vm = Vm::new(24).nic("sriov_pf0").nic("sriov_pf0").nic("sriov_pf0").nic("sriov_pf0");
    deploy(host, &vm);
    host.root("sync").ok();
    host.power_cycle();
    let left = host.oneadmin(&format!("ls {on_disk}/pf0")).ok();
    assert_eq!(left, "0\n1\n2\n3\n", "the claims did not outlive the host");
    let next = Vm::new(25).nic("sriov_pf0");
    deploy(host, &next);
    assert_eq!(host.oneadmin(&format!("cd {on_disk} && ls pf0 && grep -h ^vm= pf0/*")).ok(), "0\nvm=one-25\n");
    cancel(host, &next);
    host.root(&format!("rm -rf {on_disk}")).ok();
}
