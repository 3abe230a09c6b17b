//! Orders of events on two hosts: see docs/explanation/testing.md. `explore` looks at many more, and replays a run.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kvm_sriov_tests::explore::search::Search;
use kvm_sriov_tests::explore::world::World;
use kvm_sriov_tests::explore::{LARGE, STRIKES, WORLDS};
use kvm_sriov_tests::project;

/// Steps that no world comes to, each with the reason.
const NOT_EXPLORED: &[(&str, &str, &str)] = &[
    ("call", "usage", "poll reads it and changes nothing"),
    ("call", "reboot", "one call, which touches no VF"),
    ("call", "wake_up", "one call, which touches no VF"),
    ("call", "change_medium", "disks have no VFs"),
    ("call", "block_copy", "disks have no VFs"),
    ("call", "block_job", "disks have no VFs"),
    ("call", "finish_block_job", "disks have no VFs"),
    ("call", "disk_capacity", "disks have no VFs"),
    ("call", "resize_disk", "disks have no VFs"),
    ("call", "set_memory", "resize touches no VF"),
    ("call", "set_vcpus", "resize touches no VF"),
    ("call", "ask_agent", "commands in the guest touch no VF"),
    ("call", "sync_time", "the program that sets a guest's clock is not started: SYNC_TIME is off"),
    ("call", "detach", "a device of another driver"),
    ("call", "migratable_xml", "the dummies' bridges have one name on both hosts"),
    ("call", "metadata", "a move to another datastore of the same host"),
    ("call", "completed_job", "only tests call it"),
    ("file", "keep checkpoint", "an older checkpoint of a VM that runs: nobody else works on it"),
];

/// The steps in the sources of the driver and of the model.
fn steps() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    read(&project().join("crates/kvm-sriov/src"), &mut found);
    read(&project().join("crates/kvm-sriov-model/src"), &mut found);
    found
}

fn read(dir: &Path, found: &mut BTreeSet<(String, String)>) {
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            read(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let quoted = |text: &str| text.split('"').nth(1).map(str::to_owned);
        for (_, rest) in text.match_indices("os::step(\"").map(|(at, _)| text.split_at(at)) {
            let mut words = rest.split('"');
            // A step whose name is not written there is one of the calls below.
            let (kind, between, name) = (words.nth(1).unwrap(), words.next().unwrap(), words.next().unwrap());
            if between == ", " {
                found.insert((kind.to_owned(), name.to_owned()));
            }
        }
        // Of the calls to libvirtd, those of the traits, as the faults of the model know them.
        for call in ["self.call(\"", "self.long_call(\""].iter().filter(|_| path.ends_with("faults.rs")) {
            for name in text.match_indices(call).filter_map(|(at, _)| quoted(&text[at..])) {
                found.insert(("call".into(), name.clone()));
            }
        }
        for name in text.match_indices(".between(world, \"").filter_map(|(at, _)| quoted(&text[at..])) {
            found.insert(("phase".into(), name));
        }
    }
}

#[test]
fn every_order_that_is_tried_is_safe_and_settles() {
    let parsed = |names: &[&str]| -> Vec<World> { names.iter().map(|name| name.parse().unwrap()).collect() };
    let (small, large) = (parsed(&WORLDS), parsed(&LARGE));
    let all = [&small[..], &large[..]].concat();
    let search = Search::new(10);
    all.iter().for_each(|world| search.switches(world, 1));
    small.iter().for_each(|world| search.strikes(world, &STRIKES));
    search.seeds(&all, 0..3000);
    let found = search.found();
    println!("{found}");
    assert!(found.failures.is_empty(), "{} runs failed, see above", found.failures.len());
    let seen: BTreeSet<(String, String)> =
        found.seen.iter().map(|step| (step.kind.to_owned(), step.name.to_owned())).collect();
    let is_left_out = |(kind, name): &&(String, String)| {
        NOT_EXPLORED.iter().any(|(k, n, _)| (k, n) == (&kind.as_str(), &name.as_str()))
    };
    let all = steps();
    assert!(all.len() > 50, "{all:?}");
    let missed: Vec<_> = all.difference(&seen).filter(|step| !is_left_out(step)).collect();
    assert!(missed.is_empty(), "no run came to these steps: {missed:?}");
    let known: Vec<_> =
        NOT_EXPLORED.iter().filter(|(kind, name, _)| seen.contains(&((*kind).into(), (*name).into()))).collect();
    assert!(known.is_empty(), "runs came to these steps: {known:?}");
}
