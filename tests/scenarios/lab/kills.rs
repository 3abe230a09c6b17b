//! Actions that are killed at every operation on a file, and at calls to libvirtd. One reconciliation repairs what they
//! leave.

use std::collections::BTreeMap;
use std::thread;

use fastrand::Rng;
use kvm_sriov_tests::rig_host::{RigHost, Said};
use kvm_sriov_tests::vm::Vm;

use super::drift::{number, seeded};
use super::moves::second_host;
use super::suspend::boot;
use super::whole::{Facts, is_whole_after_one_reconcile};
use super::{STATE, cancel};

/// The system calls of a call to libvirtd: a `write` to its socket, and a `poll` for the answer. An action is killed at
/// each of these and of [`FILES`]. A process that is killed at a system call does not make it.
const CALLS: [&str; 2] = ["write", "poll"];

/// The system calls of operations on files.
const FILES: [&str; 10] =
    ["fsync", "flock", "mkdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "linkat", "ftruncate"];

/// How many actions the long scenario must kill, and the variable that sets another number.
const KILLS: u32 = 500;
const KILLS_VARIABLE: &str = "KVM_SRIOV_LAB_KILLS";

/// How many kills of each action the short scenario makes.
const SAMPLE: usize = 3;

/// Where an action is killed: at the call with this number of this kind, as one of its threads counts them.
type Point = (&'static str, u32);

/// Two actions that undo each other, on one VM.
struct Pair {
    /// Their names: the first one makes `is_there` true, the second one makes it false.
    actions: [&'static str; 2],
    /// Their command lines, without the name of the host at the end.
    args: fn(&Vm, &str) -> [String; 2],
    is_there: fn(&Facts, &Vm) -> bool,
}

const NIC: Pair = Pair {
    actions: ["attach_nic", "detach_nic"],
    args: |vm, host| {
        let (uuid, mac, id) = (vm.uuid(), vm.mac(1), vm.id);
        [format!("{uuid} {mac} sriov_pf1 virtio bridge one-{id}-1 {id} {host}"), format!("{uuid} {mac} {id} {host}")]
    },
    is_there: |facts, vm| facts.live(vm).unwrap().matches("<sriov:nic ").count() == 2,
};

const IMAGE: Pair = Pair {
    actions: ["save", "restore"],
    args: |vm, host| {
        let (uuid, image, id) = (vm.uuid(), vm.checkpoint(), vm.id);
        [format!("{uuid} {image} {host} {id} {host}"), format!("{image} {host} {uuid} {id} {host}")]
    },
    is_there: |facts, vm| {
        let (is_saved, runs) = (facts.has_image(vm), facts.live(vm).is_some());
        assert!(is_saved != runs, "{} has an image: {is_saved}, it runs: {runs}", vm.name());
        is_saved
    },
};

const DOMAIN: Pair = Pair {
    actions: ["deploy", "cancel"],
    args: |vm, host| {
        let (uuid, file, id) = (vm.uuid(), vm.deployment_file(), vm.id);
        [format!("{file} {host} {id} {host} <{DEPLOYMENT}"), format!("{uuid} {host} {id} {host}")]
    },
    is_there: |facts, vm| facts.live(vm).is_some(),
};

/// A file with the input of a deploy.
const DEPLOYMENT: &str = "/tmp/kvm-sriov.deployment";

/// strace's output.
const TRACE: &str = "/tmp/kvm-sriov.strace";

/// Runs an action under strace with these options. A program that it starts, such as a watcher, is let go at its
/// `execve`.
fn traced(host: RigHost, action: &str, args: &str, options: &str) -> Said {
    let input = if args.contains('<') { "" } else { "</dev/null" };
    host.oneadmin(&format!(
        "rm -f {TRACE}; strace -f -b execve -o {TRACE} {options} /var/tmp/one/vmm/kvm-sriov/{action} {args} {input}; \
         code=$?; grep -q 'killed by SIGKILL' {TRACE} && echo KILLED; exit $code"
    ))
}

/// Lets an action end, and returns `most` of the points that it has, in a random order: operations on files, which are
/// fewer, up to the half, and calls.
fn points(host: RigHost, action: &str, args: &str, most: usize, random: &mut Rng) -> Vec<Point> {
    let said = traced(host, action, args, &format!("-e trace={},{}", CALLS.join(","), FILES.join(",")));
    assert_eq!(said.code, 0, "{action}: {said:?}");
    let text = host.oneadmin(&format!("cat {TRACE}")).ok();
    // strace counts the calls of each thread by themselves, each kind by itself.
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        *counts.entry((thread, call.trim_start().split('(').next().unwrap())).or_default() += 1;
    }
    let of = |kind: &'static str| {
        let most = counts.iter().filter(|((_, k), _)| *k == kind).map(|(_, count)| *count).max().unwrap_or(0);
        (1..=most).map(move |number| (kind, number))
    };
    let mut files: Vec<Point> = FILES.into_iter().flat_map(of).collect();
    let mut calls: Vec<Point> = CALLS.into_iter().flat_map(of).collect();
    println!("  {action}: {} points at files, {} at calls", files.len(), calls.len());
    random.shuffle(&mut files);
    files.truncate(most.div_ceil(2));
    random.shuffle(&mut calls);
    calls.truncate(most - files.len());
    let mut points = [files, calls].concat();
    random.shuffle(&mut points);
    points
}

/// Kills two actions at their points in turn, in a random order, each `most` times. After each kill the host is
/// reconciled once. Returns how many actions were killed.
fn walk(host: RigHost, pair: &Pair, vm: &Vm, most: usize, random: &mut Rng) -> usize {
    let args = (pair.args)(vm, &host.name());
    host.write(DEPLOYMENT, &vm.deployment());
    let mut is_there = (pair.is_there)(&Facts::of(host), vm);
    assert!(!is_there, "it begins without");
    let mut left = [0, 1].map(|n| points(host, pair.actions[n], &args[n], most, random));
    let (mut killed, mut ended) = (0, 0);
    while left.iter().any(|points| !points.is_empty()) {
        let n = usize::from(is_there);
        let action = pair.actions[n];
        let Some((kind, number)) = left[n].pop() else {
            let said = host.oneadmin(&format!(
                "/var/tmp/one/vmm/kvm-sriov/{action} {} {}",
                args[n],
                if args[n].contains('<') { "" } else { "</dev/null" }
            ));
            assert_eq!(said.code, 0, "{action}: {said:?}");
            is_there = !is_there;
            continue;
        };
        let step = format!("{action} is killed at {kind} {number}");
        let said =
            traced(host, action, &args[n], &format!("-e trace={kind} -e inject={kind}:signal=KILL:when={number}"));
        // Another run may have fewer calls: an answer may be there before it is waited for.
        let was_killed = said.out.contains("KILLED");
        let step = if was_killed { step } else { format!("{action} has no {kind} {number} this time") };
        *(if was_killed { &mut killed } else { &mut ended }) += 1;
        let facts = is_whole_after_one_reconcile(host, &format!("{step}: {said:?}"));
        is_there = (pair.is_there)(&facts, vm);
    }
    println!("  {} and {}: {killed} were killed, {ended} ended before", pair.actions[0], pair.actions[1]);
    if is_there {
        let said = host.oneadmin(&format!("/var/tmp/one/vmm/kvm-sriov/{} {} </dev/null", pair.actions[1], args[1]));
        assert_eq!(said.code, 0, "{said:?}");
    }
    // The unfinished file of a process that died while it wrote a claim is no claim, and is removed after a minute.
    host.root(&format!("rm -f {STATE}/*/.new-*")).ok();
    killed
}

/// A few kills of the actions that plug and unplug.
pub(super) fn killed_at_some_calls(host: RigHost) {
    let vm = Vm::new(95).with_guest().nic("sriov_pf0");
    boot(host, &vm, 2);
    let killed = walk(host, &NIC, &vm, SAMPLE, &mut seeded());
    // Some points of another run may not exist in this one.
    assert!(killed >= SAMPLE, "only {killed} were killed");
    cancel(host, &vm);
}

/// Kills at every operation on a file and at calls to libvirtd, on both hosts side by side.
pub(super) fn killed_at_every_call(host1: RigHost) {
    let host2 = second_host();
    let kills = usize::try_from(number(KILLS_VARIABLE, KILLS)).unwrap();
    // Six actions. Some points of another run do not exist in this one.
    let most = kills.div_ceil(6) * 9 / 8 + 1;
    let nics = || {
        let vm = Vm::new(96).with_guest().nic("sriov_pf0");
        boot(host1, &vm, 2);
        let killed = walk(host1, &NIC, &vm, most, &mut seeded());
        cancel(host1, &vm);
        let vm = Vm::new(97).nic("sriov_pf0").nic("sriov_pf1");
        killed + walk(host1, &DOMAIN, &vm, most, &mut seeded())
    };
    let images = || {
        let vm = Vm::new(98).with_guest().nic("sriov_pf0").nic("sriov_pf1");
        boot(host2, &vm, 4);
        let killed = walk(host2, &IMAGE, &vm, most, &mut seeded());
        cancel(host2, &vm);
        killed
    };
    let killed = thread::scope(|scope| {
        let images = scope.spawn(images);
        nics() + images.join().unwrap()
    });
    println!("  {killed} actions were killed");
    assert!(killed >= kills, "only {killed} of {kills}");
}
