//! The calls that were recorded from OpenNebula, in their order, on domains of libvirt's test driver. If the test
//! driver can't do something, the action says so and changes nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kvm_sriov_tests::caller::{Answer, Version};
use kvm_sriov_tests::site::{Recorded, Site};

/// The expected answer to a call.
enum Answered {
    /// The call succeeds and prints this.
    Done(String),
    /// The call succeeds, or fails with one of these texts because the test driver can't do it. Newer test drivers can
    /// do more.
    DoneOrRefused(&'static [&'static str]),
    /// The call fails, with this text in the message.
    Refused(&'static str),
}

fn expected(call: &Recorded, uuid: &str) -> Answered {
    match call.action.as_str() {
        "deploy" if call.name.starts_with("44") => {
            Answered::Refused("already active; a domain of this name or UUID runs.")
        }
        "deploy" => Answered::Done(format!("{uuid}\n")),
        "snapshot_create" => Answered::Done("snap-0\n".into()),
        "attach_disk" | "attach_nic" | "prereconfigure" | "reconfigure" | "resize" | "restore" => {
            Answered::DoneOrRefused(&["not supported by the connection driver", "unsupported"])
        }
        // A disk that could not be attached is missing. The test driver chooses the sizes of its disks.
        "detach_disk" => Answered::DoneOrRefused(&["one-0 has no disk vdb", "not supported by the connection driver"]),
        "resize_disk" => Answered::Refused("which are more than 80 MiB"),
        // Only the lab has a second host, and guests with an agent.
        "migrate" => Answered::Refused("cannot start the agent on hostB: "),
        "exec" | "exec_cancel" => Answered::Refused("; nothing was changed."),
        _ => Answered::Done(String::new()),
    }
}

/// Whether the domain runs afterwards, for an action that starts or ends it.
fn runs_after(call: &Recorded, answer: &Answer) -> bool {
    match call.action.as_str() {
        "cancel" | "shutdown" | "save" => answer.code != 0,
        "restore" => answer.code == 0,
        _ => true,
    }
}

#[test]
fn every_recorded_call_is_answered_in_its_order() {
    let hosts: BTreeMap<&str, Site> = ["hostA", "hostB"].map(|host| (host, Site::new(Version::V7))).into();
    let calls = Recorded::all();
    assert_eq!(calls.len(), 51);
    // The deployment file and the UUID of each VM.
    let mut vms: BTreeMap<u32, (Recorded, String)> = BTreeMap::new();
    for call in calls {
        let site = &hosts[call.host.as_str()];
        if call.action == "deploy" {
            let uuid = call.stdin.split("<uuid>").nth(1).unwrap().split('<').next().unwrap().to_owned();
            vms.insert(call.vm, (call.clone(), uuid));
        }
        let call = call.fit(site);
        let (deploy, uuid) = &vms[&call.vm];
        // The test driver may have been unable to restore or move the domain to this host. Then it is deployed.
        let starts = matches!(call.action.as_str(), "deploy" | "restore");
        if !starts && site.domain(uuid).is_none() {
            let deploy = deploy.clone().fit(site);
            site.caller(call.vm).run("deploy", &deploy.args(), &deploy.stdin).ok();
        }
        let before = site.live(uuid);
        let answer = site.caller(call.vm).host(&call.host).run(&call.action, &call.args(), &call.stdin);
        check(&call, &answer, &expected(&call, uuid));
        if call.action == "deploy" {
            // The here-document adds a line break.
            assert_eq!(fs::read_to_string(&call.args[0]).unwrap(), format!("{}\n", call.stdin), "{}", call.name);
        }
        let after = site.live(uuid);
        assert_eq!(after.is_some(), runs_after(&call, &answer), "{}: {answer:?}", call.name);
        if answer.code != 0 {
            assert_eq!(before, after, "{}: {answer:?}", call.name);
        }
        if call.action == "migrate" {
            site.caller(call.vm).run("cancel", &[uuid, &call.host], "").ok();
        }
        assert!(!site.state().exists(), "{}: a VM without VFs has claims", call.name);
    }
}

fn check(call: &Recorded, answer: &Answer, expected: &Answered) {
    let name = &call.name;
    assert!(answer.stdout.lines().count() <= 1, "{name}: {answer:?}");
    let refused = |texts: &[&str]| {
        assert_ne!(answer.code, 0, "{name}: {answer:?}");
        assert!(texts.iter().any(|text| answer.message.contains(text)), "{name}: {answer:?}");
        assert!(answer.message.starts_with(&format!("{}: ", call.action)), "{name}: {answer:?}");
        assert_eq!(answer.stdout, "", "{name}");
    };
    match expected {
        Answered::Done(text) => assert_eq!((answer.code, &answer.stdout), (0, text), "{name}: {answer:?}"),
        Answered::DoneOrRefused(texts) if answer.code != 0 => refused(texts),
        Answered::DoneOrRefused(_) => assert_eq!(answer.stdout, "", "{name}"),
        Answered::Refused(text) => refused(&[text]),
    }
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.display().to_string());
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn xml_that_is_cut_short_is_refused_before_anything_is_touched() {
    let site = Site::new(Version::V7);
    let deploy = Recorded::first("deploy").fit(&site);
    let cut = |text: &str| text.replacen("acc vm", "first line\nEOT\nlast line", 1);
    let empty = files(&site.datastores());
    let refused = |action: &str, args: &[&str], stdin: &str, code: i32, what: &str| {
        assert!(stdin.contains("\nEOT\n"), "{action}");
        let answer = site.caller(0).run(action, args, stdin);
        assert_eq!((answer.code, answer.stdout.as_str()), (code, ""), "{action}: {answer:?}");
        let begin = format!("{action}: the {what}: ");
        assert!(
            answer.message.starts_with(&begin) && answer.message.contains("; nothing was "),
            "{action}: {answer:?}"
        );
    };
    refused("deploy", &deploy.args(), &cut(&deploy.stdin), 255, "deployment file");
    assert_eq!((files(&site.datastores()), site.domain("one-0")), (empty, None));

    let uuid = site.caller(0).run("deploy", &deploy.args(), &deploy.stdin).ok();
    let (before, made) = (site.live(uuid.trim()), files(&site.datastores()));
    // Without the actions that OpenNebula starts with their own command: their input is never cut. Also without those
    // that read no input.
    for action in [
        "save",
        "migrate",
        "attach_nic",
        "detach_nic",
        "attach_disk",
        "detach_disk",
        "resize_disk",
        "prereconfigure",
        "reconfigure",
        "snapshot_revert",
    ] {
        let call = Recorded::first(action).fit(&site);
        refused(action, &call.args(), &cut(&call.stdin), 1, "XML on standard input");
        assert_eq!((site.live(uuid.trim()), files(&site.datastores())), (before.clone(), made.clone()), "{action}");
    }
    let save = Recorded::first("save").fit(&site);
    site.caller(0).run("save", &save.args(), &save.stdin).ok();
    let saved = files(&site.datastores());
    let restore = Recorded::first("restore").fit(&site);
    refused("restore", &restore.args(), &cut(&restore.stdin), 1, "XML on standard input");
    assert_eq!((files(&site.datastores()), site.domain("one-0")), (saved, None));
}
