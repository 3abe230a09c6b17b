//! Hosts that lose their power at any time. One reconciliation of each host repairs what that leaves.

use std::thread;
use std::time::Duration;

use kvm_sriov_tests::rig_host::{RigHost, Running};
use kvm_sriov_tests::vm::Vm;

use super::drift::{LONGEST, LONGEST_OF_A_NIC, number, seeded};
use super::moves::second_host;
use super::suspend::{boot, exists, reconciled, shows};
use super::whole::{Facts, is_whole};
use super::{GUEST_BOOT, STATE, cancel};

/// How many times a host loses its power, and the variable that sets another number. Each takes about a minute, because
/// the host boots and a guest often does, too.
const CUTS: u32 = 30;
const CUTS_VARIABLE: &str = "KVM_SRIOV_LAB_CUTS";

/// Where the claims are here. They outlive the host's boot.
const ON_DISK: &str = "/var/lib/one/state";

/// Where the VM is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Runs(RigHost),
    Saved,
    Nowhere,
}

/// Puts the claims on the host's disk, at the place where they usually are in memory.
fn claims_are_on_disk(host: RigHost) {
    host.root(&format!(
        "install -d -o oneadmin -g oneadmin -m 700 {ON_DISK} {STATE} && mount --bind {ON_DISK} {STATE}"
    ))
    .ok();
}

pub(super) fn hosts_lose_their_power(host1: RigHost) {
    let hosts = [host1, second_host()];
    for host in hosts {
        claims_are_on_disk(host);
        host.root("sync").ok();
    }
    let mut random = seeded();
    let one = Vm::new(99).with_guest().nic("sriov_pf0");
    let two = one.clone().nic("sriov_pf1");
    let (mut vm, mut place, mut hits) = (one.clone(), Place::Nowhere, 0);
    let cuts = number(CUTS_VARIABLE, CUTS);
    for cut in 1..=cuts {
        let at = if let Place::Runs(host) = place { host } else { hosts[usize::from(random.u64(..2) == 1)] };
        let other = hosts[usize::from(at == hosts[0])];
        let has_two = vm.nics() == 2;
        let (what, mut action): (&str, Running) = match (place, random.u64(..5)) {
            (Place::Nowhere, _) => ("deploy", at.begin_deploy(&vm)),
            (Place::Saved, _) => ("restore", at.begin_restore(&vm)),
            (_, 0) => ("save", at.begin_save(&vm)),
            (_, 1) => ("cancel", at.begin_cancel(&vm)),
            (_, 2) => ("migrate", at.begin_migration(&vm, other)),
            _ if has_two => ("detach_nic", at.begin_detach(&vm, 1)),
            _ => ("attach_nic", at.begin_attach(&two, 1)),
        };
        let victim = if what == "migrate" && random.u64(..2) == 1 { other } else { at };
        let after = random.u64(..if what.ends_with("_nic") { LONGEST_OF_A_NIC } else { LONGEST });
        thread::sleep(Duration::from_millis(after));
        let hit = !action.is_over();
        hits += u32::from(hit);
        victim.power_off();
        let said = action.finish();
        victim.power_on();
        claims_are_on_disk(victim);
        let step = format!(
            "cut {cut}: {} loses its power {after} ms after the start of {what} on {}{}",
            victim.name(),
            at.name(),
            if hit { "" } else { ", which has ended" }
        );
        println!("  {step}");
        let step = format!("{step}: {said:?}");
        for host in hosts {
            let mut repaired = reconciled(host);
            if repaired.code == 3 && what == "migrate" {
                // The host was lost at the hand-over, and nobody could ask the other one. A person lets it ask.
                let name = vm.name();
                println!("  {name} is in doubt on {}", host.name());
                for host in hosts {
                    host.oneadmin_forwarding(&format!("kvm-sriov resolve {name}"));
                }
                repaired = reconciled(host);
            }
            assert_eq!(repaired.code, 0, "{step}: {repaired:?}");
        }
        let facts: [Facts; 2] = hosts.map(|host| is_whole(host, &step));
        let runs: Vec<RigHost> =
            hosts.iter().zip(&facts).filter(|(_, facts)| facts.live(&vm).is_some()).map(|(host, _)| *host).collect();
        let is_saved = exists(host1, &vm.checkpoint());
        assert!(runs.len() + usize::from(is_saved) <= 1, "it is in two places, image: {is_saved}: {step}");
        place = match runs[..] {
            [host] => Place::Runs(host),
            _ if is_saved => Place::Saved,
            _ => Place::Nowhere,
        };
        match place {
            Place::Runs(host) => {
                let live = host.live_xml(&vm);
                vm = if live.matches("<sriov:nic ").count() == 2 { two.clone() } else { one.clone() };
                shows(host, &vm, 2 * vm.nics(), GUEST_BOOT);
                host.wait_tick(&vm);
            }
            // A saved VM keeps its NICs.
            Place::Saved => {}
            // OpenNebula begins anew. Half of the time the next cut comes while it runs, otherwise while it is deployed.
            Place::Nowhere => {
                vm = one.clone();
                let host = hosts[usize::from(random.u64(..2) == 1)];
                if random.u64(..2) == 1 {
                    boot(host, &vm, 2);
                    place = Place::Runs(host);
                }
            }
        }
    }
    println!("  {cuts} cuts, {hits} of them during an action");
    assert!(hits * 3 >= cuts, "only {hits} of {cuts} came during an action");
    match place {
        Place::Runs(host) => cancel(host, &vm),
        Place::Saved => {
            assert_eq!(host1.restore(&vm).code, 0, "the image of the last save");
            cancel(host1, &vm);
        }
        Place::Nowhere => {}
    }
    for host in hosts {
        is_whole(host, "the end");
        host.root(&format!("umount {STATE}; rm -rf {ON_DISK} {STATE}")).ok();
    }
}
