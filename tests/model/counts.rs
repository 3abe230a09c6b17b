//! How many calls to libvirt each action makes, by the number of the VM's VFs; and that nothing is awaited by sleeping.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::iter::repeat_n;
use std::path::Path;

use kvm_sriov::libvirt::{DeviceCalls, DomainCalls};
use kvm_sriov::opennebula;
use kvm_sriov::xml::VmData;
use kvm_sriov::{DomainId, DomainName, MacAddress, actions};
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::project;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

/// A VM with this number of VFs.
fn vm(vfs: usize) -> Vm {
    (0..vfs).fold(Vm::new(42), |vm, _| vm.nic("sriov_ib0"))
}

fn id() -> DomainId {
    vm(1).uuid().parse().unwrap()
}

fn deploy(host: &ModelHost, vfs: usize) {
    actions::deploy(&host.host(), &host.deployment_file(&vm(vfs)), &host.deployment(&vm(vfs))).unwrap();
}

/// The guest releases all VFs.
fn all_leave(host: &ModelHost, vfs: usize) {
    let domain = host.model().find(&id()).unwrap().unwrap();
    for number in 0..vfs {
        let alias = format!("ua-sriov-{number}");
        host.model().detach_alias(&domain, &alias, CALL_LIMIT).unwrap();
        until("the guest releases it", || !host.domain("one-42").unwrap().has_alias(&alias));
    }
}

/// The expected calls. A name that ends with `*` means one call for each VF.
fn expected(calls: &[&'static str], vfs: usize) -> Vec<&'static str> {
    let each = |call: &&'static str| match call.strip_suffix('*') {
        Some(call) => repeat_n(call, vfs),
        None => repeat_n(*call, 1),
    };
    calls.iter().flat_map(each).collect()
}

/// The live XML is read twice: before (with the lock held) and after. Unplugging or plugging VFs adds one call for each
/// VF and one read for all of them. So a snapshot, which unplugs and plugs VFs, reads three times, and so does the
/// attach of a NIC with a VF and a dummy. The other calls belong to the action: it finds the domain, notes the
/// operation, and makes its own call.
#[test]
fn calls_grow_by_one_for_each_vf() {
    for vfs in 1..=3 {
        let host = ModelHost::default();
        let checkpoint = host.vm_dir(&vm(vfs)).join("checkpoint");
        let snapshot = || "snap-0".parse().unwrap();
        // Several VFs that left together and were plugged back may leave once more: the metadata note that.
        let noted: &[&str] = if vfs > 1 { &["set_metadata"] } else { &[] };
        let makes = |name: &str, action: &dyn Fn(), calls: &[&'static str]| {
            host.faults().disarm();
            action();
            assert_eq!(host.faults().calls(), expected(calls, vfs), "{name} with {vfs} VFs");
        };
        makes("deploy", &|| deploy(&host, vfs), &["find", "domains", "create", "live_xml"]);
        makes(
            "snapshot_create",
            &|| drop(actions::snapshot_create(&host.host(), &id(), 0, None).unwrap()),
            &[
                &[
                    "find",
                    "live_xml",
                    "state",
                    "watch",
                    "detach_alias*",
                    "live_xml",
                    "create_snapshot",
                    "attach*",
                    "live_xml",
                ],
                noted,
                &["snapshot_xml"],
            ]
            .concat(),
        );
        makes(
            "snapshot_revert",
            &|| actions::snapshot_revert(&host.host(), &id(), &snapshot(), None).unwrap(),
            &[
                &[
                    "find",
                    "live_xml",
                    "snapshot_xml",
                    "state",
                    "watch",
                    "detach_alias*",
                    "live_xml",
                    "revert_snapshot",
                    // After the revert, the domain is another one. It is repaired as by reconciliation.
                    "live_xml",
                    "state",
                    "job",
                    "attach*",
                    "live_xml",
                    "live_xml",
                ],
                noted,
            ]
            .concat(),
        );
        makes(
            "snapshot_delete",
            &|| actions::snapshot_delete(&host.host(), &id(), &snapshot()).unwrap(),
            &["find", "live_xml", "snapshots", "delete_snapshot"],
        );
        makes(
            "save",
            &|| actions::save(&host.host(), &id(), &checkpoint, None).unwrap(),
            &["find", "live_xml", "state", "set_metadata", "watch", "detach_alias*", "live_xml", "save"],
        );
        makes(
            "restore",
            &|| {
                actions::restore(&host.host(), &checkpoint, opennebula::vm_of_checkpoint(&checkpoint).as_ref()).unwrap()
            },
            &[
                "find",
                "image_xml",
                "find",
                "domains",
                "restore",
                "find",
                "live_xml",
                "attach*",
                "live_xml",
                "resume",
                "set_metadata",
            ],
        );
        let mac: MacAddress = "02:00:0a:00:2a:77".parse().unwrap();
        let data = VmData::parse(&format!(
            "<VM><ID>42</ID><TEMPLATE><NIC><ATTACH>YES</ATTACH><MAC>{mac}</MAC><BRIDGE>sriov_ib1</BRIDGE></NIC></TEMPLATE></VM>"
        ));
        let data = data.unwrap();
        let arguments = kvm_sriov::opennebula::NicArgs {
            mac,
            bridge: Some("sriov_ib1".into()),
            model: None,
            vn_mad: None,
            target: None,
        };
        // One VF and its dummy, whatever the number of VFs.
        makes(
            "attach_nic",
            &|| actions::attach_nic(&host.host(), &id(), &arguments.described(Some(&data)), Some(&data)).unwrap(),
            &["find", "live_xml", "domains", "live_xml", "attach", "live_xml", "attach", "live_xml", "set_metadata"],
        );
        makes(
            "detach_nic",
            &|| actions::detach_nic(&host.host(), &id(), mac, Some(&data)).unwrap(),
            &[
                "find",
                "live_xml",
                "state",
                "set_metadata",
                "watch",
                "detach_alias",
                "detach_alias",
                "live_xml",
                "set_metadata",
            ],
        );
        makes("reboot", &|| actions::reboot(&host.host(), &id()).unwrap(), &["find", "reboot"]);
        makes("reset", &|| actions::reset(&host.host(), &id()).unwrap(), &["find", "reset"]);
        let reconcile = || drop(host.reconcile().unwrap());
        // One read is for the claims of all roots and for the VM.
        let look = ["domains", "live_xml", "state", "job"];
        host.faults().disarm();
        reconcile();
        let mut calls = host.faults().calls();
        calls.sort_unstable();
        let mut sorted = look;
        sorted.sort_unstable();
        assert_eq!(calls, sorted, "reconcile with {vfs} VFs");
        all_leave(&host, vfs);
        // The pending unplug that restore noted is over.
        let plugs = ["domains", "live_xml", "state", "job", "live_xml", "state", "job", "attach*", "live_xml"];
        makes("reconcile, all VFs gone", &reconcile, &[&plugs, noted, &["live_xml"]].concat());
        makes(
            "cancel",
            &|| actions::cancel(&host.host(), &id(), Some(&DomainName::of_vm(42))).unwrap(),
            &["find", "live_xml", "find", "destroy", "find", "find"],
        );
    }
}

/// Where the program sleeps because no event tells when a wait is over: the file, how many sleeps it has, and why.
const SLEEPS: &[(&str, usize, &str)] = &[
    ("actions/shutdown.rs", 1, "a guest may take minutes to power off, and may have done so while libvirtd was away"),
    ("vm/gone.rs", 1, "a domain that was destroyed and is still there: the stock driver asks 60 times"),
    ("actions/restore.rs", 1, "after a failed call only: the stock driver tries again"),
    (
        "vm/block_job.rs",
        1,
        "after a refusal: a block job of the VM's disks ends by itself, without an event for others",
    ),
    (
        "actions/migrate/depart.rs",
        1,
        "after a refusal only: a block job of the VM's disks, while the destination is listened to",
    ),
    (
        "actions/migrate/whereabouts.rs",
        1,
        "after a failed call only: libvirt may still work on the domain at the destination",
    ),
    (
        "actions/shared/guest_command.rs",
        1,
        "a lock of flock that OpenNebula's monitoring holds has no deadline of its own",
    ),
    ("actions/exec_cancel.rs", 1, "the guest's agent has no event for a process that ends"),
    ("actions/poll.rs", 1, "the use of CPUs is measured over a second, as by the stock driver"),
    ("sysfs.rs", 1, "udev's queue has no event that a library of ours hears"),
    ("agent/serve/mod.rs", 1, "no event tells when libvirt releases a domain that is arriving"),
    ("agent/serve/source_lost.rs", 1, "a source that was lost is asked again"),
    ("agent/serve/arrival.rs", 1, "an agent that has lost its source holds the VM's lock until it has noticed"),
    (
        "host/patience.rs",
        3,
        "libvirtd is away, and is tried again; a job of libvirt or the copy of a disk, which end without an event; and the lock \
         of a VM for a program with a stop token, which must be read meanwhile",
    ),
    ("os.rs", 2, "the function that all others call"),
    ("vm/unplug.rs", 1, "libvirtd is away, and is tried again"),
    ("vm/clock.rs", 1, "in the program that sets the clock: the stock driver's time between two tries"),
];

#[test]
fn nothing_is_synchronised_by_sleeping() {
    let source = project().join("crates/kvm-sriov/src");
    let mut found = Vec::new();
    // The model is a test double: its guests take time to answer.
    for place in ["crates/kvm-sriov/src", "crates/kvm-sriov-cli/src", "shims/src"] {
        sleeps(&project().join(place), &mut found);
    }
    let name = |path: &str| path.strip_prefix(&format!("{}/", source.display())).unwrap_or(path).to_owned();
    let mut found: Vec<(String, usize)> = found.iter().map(|(path, count)| (name(path), *count)).collect();
    found.sort();
    let mut known: Vec<(String, usize)> = SLEEPS.iter().map(|(path, count, _)| ((*path).to_owned(), *count)).collect();
    known.sort();
    assert_eq!(found, known, "a sleep that is not known, or is known and gone");
}

/// The number of sleeps in each file below a directory, without its tests.
fn sleeps(dir: &Path, found: &mut Vec<(String, usize)>) {
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sleeps(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let count = text.split("#[cfg(test)]\nmod tests").next().unwrap().matches("sleep(").count();
            if count > 0 {
                found.push((path.display().to_string(), count));
            }
        }
    }
}
