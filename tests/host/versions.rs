//! What changed between versions of OpenNebula. Each change is tested on both sides. docs/reference/versions.md lists
//! all changes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kvm_sriov_tests::caller::{Answer, Caller, Version};
use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::site::{Recorded, Site};

const UUID: &str = "56e14855-0118-420f-b565-26fe35d8493d";

/// The VM's description as versions since 5.0 send it.
const DATA: &str = "<VMM_DRIVER_ACTION_DATA><VM><ID>0</ID></VM></VMM_DRIVER_ACTION_DATA>";

/// The deployment file of VM 0 as this version writes it.
fn deployment(site: &Site, version: Version) -> Recorded {
    let mut call = Recorded::first("deploy").fit(site);
    if version < Version::V6_0 {
        call.stdin = call.stdin.replace(&format!("\t<uuid>{UUID}</uuid>\n"), "");
    }
    if version < Version(5, 8) {
        let (before, metadata) = call.stdin.split_once("\t<metadata>").unwrap();
        call.stdin = format!("{before}{}", metadata.split_once("</metadata>\n").unwrap().1);
    }
    if version < Version(5, 0) {
        call.stdin = call.stdin.replace("<![CDATA[", "").replace("]]>", "");
    }
    call
}

fn deploy(site: &Site, version: Version) -> Answer {
    let call = deployment(site, version);
    site.caller(0).run("deploy", &call.args(), &call.stdin)
}

#[test]
fn deploy_prints_the_name_and_from_6_0_on_the_uuid() {
    let mut site = Site::new(Version::V5_12);
    for (version, is_uuid) in
        [(Version::V4_0, false), (Version::V5_12, false), (Version::V6_0, true), (Version::V7, true)]
    {
        site.becomes(version);
        let printed = deploy(&site, version).ok();
        let uuid = site.domain("one-0").unwrap().uuid;
        assert_eq!(printed, if is_uuid { format!("{uuid}\n") } else { "one-0\n".into() }, "{version}");
        // Since 5.12, monitoring tells OpenNebula the UUID, whatever `deploy` printed.
        for id in ["one-0", uuid.as_str()] {
            site.caller(0).run("reboot", &[id, "node1"], DATA).ok();
        }
        site.caller(0).run("cancel", &[uuid.as_str(), "node1"], DATA).ok();
    }
}

#[test]
fn the_stock_kvmrc_is_beside_the_scripts_until_5_4() {
    let mut site = Site::new(Version::V7);
    fs::write(site.remotes().path().join("etc/vmm/kvm-sriov/kvmrc"), "").unwrap();
    let good = format!("export LIBVIRT_URI={}\n", site.daemon().uri());
    let bad = "export LIBVIRT_URI=test+unix:///default?socket=/nonexistent\n";
    for (version, text) in [(Version(5, 4), [&good, bad]), (Version(5, 6), [bad, &good]), (Version::V7, [bad, &good])] {
        site.becomes(version);
        for (dir, text) in ["vmm/kvm", "etc/vmm/kvm"].into_iter().zip(text) {
            fs::create_dir_all(site.remotes().path().join(dir)).unwrap();
            fs::write(site.remotes().path().join(dir).join("kvmrc"), text).unwrap();
        }
        site.caller(0).run("reboot", &["test", "node1"], DATA).ok();
    }
}

#[test]
fn scripts_common_is_found_beside_the_driver_whatever_it_is_called() {
    let remotes = Remotes::of(Version::V6_0);
    fs::rename(remotes.driver(), remotes.path().join("vmm/other")).unwrap();
    let caller = Caller::new(Version::V6_0, remotes.path()).driver("other");
    let answer = caller.run("reboot", &["a/b", "node1"], DATA);
    assert!(answer.message.starts_with("reboot: deploy id: expected a UUID"), "{answer:?}");
}

#[test]
fn a_failure_is_read_by_every_version() {
    let mut site = Site::new(Version::V7);
    let text = "reboot: there is no domain one-42 on this host; nothing was changed.";
    for version in Version::FORMS {
        site.becomes(version);
        let answer = site.caller(42).run("reboot", &["one-42", "node1"], DATA);
        let seen = match version {
            version if version <= Version::V6_0 => text.to_owned(),
            version if version <= Version::V6_10 => format!("{text} ExitCode: 1"),
            _ => format!("{text}ExitCode: 1"),
        };
        assert_eq!((answer.code, answer.message.as_str()), (1, seen.as_str()), "{version}");
    }
    // Lines of the log are in the message only up to 6.10.
    fs::write(site.datastores().join("checkpoint"), "x").unwrap();
    let checkpoint = site.datastores().join("checkpoint").display().to_string();
    site.configure("VIRSH_RETRIES=2");
    for (version, is_in) in [(Version::V6_0, false), (Version::V6_10, true), (Version::V7, false)] {
        site.becomes(version);
        let answer = site.caller(42).run("restore", &[&checkpoint, "node1", "one-42"], DATA);
        assert_ne!(answer.code, 0, "{version}");
        let log = answer.stderr.lines().filter(|line| line.starts_with("WARN: restore: ")).count();
        assert_eq!(answer.message.contains("WARN: "), is_in && log > 0, "{version}: {answer:?}");
    }
}

/// All actions with arguments of the newest version, for a VM that does not exist.
const CALLS: [(&str, &[&str]); 19] = [
    ("attach_disk", &["one-42", "/d/disk.2", "vdb", "1", "PFZNLz4="]),
    ("attach_nic", &["one-42", "02:00:0a:00:2a:01", "br0", "virtio", "bridge", "one-42-1"]),
    ("cancel", &["one-42", "node1"]),
    ("detach_disk", &["one-42", "/d/disk.2", "vdb", "1"]),
    ("detach_nic", &["one-42", "02:00:0a:00:2a:01"]),
    ("exec", &["42", "node1", "ls -l /tmp"]),
    ("exec_cancel", &["42", "node1"]),
    ("migrate", &["one-42", "node2", "node1"]),
    ("poll", &["one-42", "node1"]),
    ("prereconfigure", &["one-42", "hda"]),
    ("reboot", &["one-42", "node1"]),
    ("reconfigure", &["one-42", "hda", "/d/disk.1"]),
    ("reset", &["one-42", "node1"]),
    ("resize", &["one-42"]),
    ("restore", &["/nonexistent/checkpoint", "node1", "one-42"]),
    ("save", &["one-42", "/nonexistent/checkpoint", "node1"]),
    ("shutdown", &["one-42", "node1"]),
    ("snapshot_create", &["one-42", "0"]),
    ("snapshot_revert", &["one-42", "snap-0"]),
];

/// The versions on both sides of every change of standard input.
const SENDING: [Version; 8] = [
    Version(4, 0),
    Version(4, 14),
    Version(5, 0),
    Version(5, 2),
    Version(5, 4),
    Version(5, 8),
    Version(5, 10),
    Version(7, 4),
];

/// The test double of OpenNebula checks this: the next command is on the same stream.
#[test]
fn no_action_reads_what_its_version_does_not_send() {
    let mut site = Site::new(Version::V7);
    for version in SENDING {
        site.becomes(version);
        for (action, args) in CALLS {
            let answer = site.caller(42).run(action, args, DATA);
            assert!(answer.stdout.lines().count() <= 1, "{version} {action}: {answer:?}");
            assert!(!answer.message.contains("standard input") || action == "resize", "{version} {action}: {answer:?}");
            assert_eq!(answer.code == 0, answer.message.is_empty(), "{version} {action}: {answer:?}");
        }
    }
}

#[test]
fn what_a_version_sends_is_read() {
    let mut site = Site::new(Version::V7);
    for version in SENDING {
        site.becomes(version);
        for (action, first) in [
            ("attach_nic", Version(5, 0)),
            ("detach_nic", Version(5, 0)),
            ("save", Version(5, 0)),
            ("snapshot_create", Version(5, 4)),
            ("snapshot_revert", Version(5, 10)),
        ] {
            let args = CALLS.iter().find(|(name, _)| *name == action).unwrap().1;
            let answer = site.caller(42).run(action, args, "<VMM_DRIVER_ACTION_DATA><VM>");
            let is_read = answer.message.contains("the XML on standard input: ");
            assert_eq!(is_read, version >= first, "{version} {action}: {answer:?}");
        }
    }
}

#[test]
fn what_the_shell_makes_of_xml_until_6_4_is_read_or_refused() {
    let mut site = Site::new(Version(6, 4));
    let args = ["one-42", "/nonexistent/checkpoint", "node1"];
    let data = |text: &str| DATA.replace("</ID>", &format!("</ID><NAME><![CDATA[{text}]]></NAME>"));
    for (version, text, is_read) in [
        (Version(6, 4), "$HOME `echo x` \\\\ $(echo y)", true),
        (Version(6, 4), "$(echo ']]></NAME>')", false),
        (Version(6, 6), "$(echo ']]&gt;</NAME>')", true),
    ] {
        site.becomes(version);
        let answer = site.caller(42).run("save", &args, &data(text));
        assert_eq!(answer.message.contains("there is no domain one-42"), is_read, "{version}: {answer:?}");
        assert_eq!(answer.message.contains("the XML on standard input: "), !is_read, "{version}: {answer:?}");
    }
}

#[test]
fn the_front_end_sends_base64_in_lines_and_from_5_12_on_in_one() {
    let mut site = Site::new(Version::V7);
    // No ssh connection succeeds. The test is about the input that was read before.
    let ssh = site.remotes().path().join("bin/ssh");
    fs::create_dir_all(ssh.parent().unwrap()).unwrap();
    fs::write(&ssh, "#!/bin/sh\necho 'no route to host' >&2\nexit 255\n").unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", ssh.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let data = DATA.replace("<ID>", &format!("<NAME>{}</NAME>\n<ID>", "x".repeat(200)));
    for version in Version::FORMS {
        site.becomes(version);
        let caller = site.caller(42).env("PATH", &path);
        let answer = caller.run_local("migrate_local", &["one-42", "node2", "node1"], &data);
        assert_eq!((answer.code, answer.stdout.as_str()), (1, ""), "{version}: {answer:?}");
        assert!(answer.message.contains("cannot start the agent on node1: no route to host"), "{version}: {answer:?}");
    }
}

#[test]
fn vm_xml_is_beside_the_deployment_file_from_6_0_on_and_may_be_missing() {
    let mut site = Site::new(Version::V7);
    for version in [Version::V5_12, Version::V6_0, Version::V7] {
        site.becomes(version);
        let call = deployment(&site, version);
        let dir = Path::new(&call.args[0]).parent().unwrap().to_owned();
        if version >= Version::V6_0 {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("vm.xml"), "<VM><ID>0</ID><DEPLOY_ID/></VM>").unwrap();
            fs::write(dir.join("ds.xml"), "<DATASTORE><ID>0</ID></DATASTORE>").unwrap();
        }
        site.caller(0).run("deploy", &call.args(), &call.stdin).ok();
        site.caller(0).run("cancel", &["one-0", "node1"], DATA).ok();
        fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn the_two_appended_arguments_are_never_taken_for_others() {
    let mut site = Site::new(Version::V7);
    // Version 4.0 quotes no arguments, so an empty one is missing.
    for (version, args) in [
        (Version::V4_0, vec!["one-42", "02:00:0a:00:2a:01", "br0"]),
        (Version(4, 4), vec!["one-42", "02:00:0a:00:2a:01", "br0", "", "bridge"]),
        (Version::V7, vec!["one-42", "02:00:0a:00:2a:01", "br0", "", "bridge", ""]),
    ] {
        site.becomes(version);
        let answer = site.caller(42).run("attach_nic", &args, DATA);
        assert!(answer.message.contains("there is no domain one-42"), "{version}: {answer:?}");
    }
    site.becomes(Version::V7);
    let answer = site.caller(42).run("prereconfigure", &["one-42", ""], DATA);
    assert_eq!((answer.code, answer.stderr.as_str()), (0, "ExitCode: 0\n"), "no drive is no failure");
}

#[test]
fn restore_has_two_arguments_until_4_2() {
    let mut site = Site::new(Version::V7);
    for version in Version::FORMS {
        site.becomes(version);
        let call = deployment(&site, version);
        let id = deploy(&site, version).ok().trim().to_owned();
        let checkpoint = Path::new(&call.args[0]).with_file_name("checkpoint").display().to_string();
        site.caller(0).run("save", &[&id, &checkpoint, "node1"], DATA).ok();
        assert_eq!(site.domain("one-0"), None, "{version}");
        let answer = site.caller(0).run("restore", &[&checkpoint, "node1", &id], DATA);
        assert_eq!(answer.stdout, "", "{version}");
        // Older test drivers can't start a domain with other paths than those it was saved with.
        let is_there = Path::new(&checkpoint).exists();
        assert_eq!((answer.code == 0, site.domain("one-0").is_some()), (!is_there, !is_there), "{version}: {answer:?}");
        if answer.code != 0 {
            assert!(
                answer.message.contains(&format!("could not restore from {checkpoint}: ")),
                "{version}: {answer:?}"
            );
            fs::remove_file(&checkpoint).unwrap();
        }
        site.caller(0).run("cancel", &[&id, "node1"], DATA).ok();
    }
}

#[test]
fn a_network_driver_gets_the_vm_as_an_argument_until_5_8() {
    let mut site = Site::new(Version::V7);
    let vm = "<VM><ID>42</ID><TEMPLATE><NIC><BRIDGE>sriov_ib0</BRIDGE><MAC>02:00:0a:00:00:02</MAC>\
              <VN_MAD>sriov</VN_MAD></NIC></TEMPLATE></VM>";
    for version in [Version(5, 0), Version(5, 8), Version(5, 10), Version::V7] {
        site.becomes(version);
        let answer = site.caller(42).run_network("sriov", "pre", &[], vm);
        assert!(answer.message.contains("there is no VF map ib0"), "{version}: {answer:?}");
        for (step, args) in [("post", &["one-42", "node1"][..]), ("clean", &["node1"])] {
            assert_eq!(site.caller(42).run_network("sriov", step, args, vm).ok(), "", "{version} {step}");
        }
    }
}

#[test]
fn every_action_of_every_version_has_its_program() {
    let remotes = Remotes::default();
    for (action, _) in CALLS.into_iter().chain([
        ("deploy", &[][..]),
        ("migrate_local", &[]),
        ("resize_disk", &[]),
        ("snapshot_delete", &[]),
    ]) {
        assert!(remotes.driver().join(action).is_file(), "{action}");
    }
}

#[test]
fn a_domain_that_is_gone_is_shut_down_from_5_12_on() {
    let mut site = Site::new(Version::V7);
    for version in Version::FORMS {
        site.becomes(version);
        let answer = site.caller(42).run("shutdown", &["one-42", "node1"], DATA);
        assert_eq!(answer.code == 0, version >= Version::V5_12, "{version}: {answer:?}");
    }
}

#[test]
fn snapshots_need_no_metadata_before_5_8() {
    let mut site = Site::new(Version::V7);
    for version in Version::FORMS {
        site.becomes(version);
        let id = deploy(&site, version).ok().trim().to_owned();
        let caller = site.caller(0);
        assert_eq!(caller.run("snapshot_create", &[&id, "0"], DATA).ok(), "snap-0\n", "{version}");
        let kept = site.datastores().join("0/0/snap-0.xml");
        assert_eq!(kept.exists(), version >= Version(5, 8), "{version}");
        for action in ["snapshot_revert", "snapshot_delete"] {
            assert_eq!(caller.run(action, &[&id, "snap-0"], DATA).ok(), "", "{version} {action}");
        }
        assert!(!kept.exists(), "{version}");
        caller.run("cancel", &[&id, "node1"], DATA).ok();
    }
}

#[test]
fn poll_says_one_line_to_versions_that_ask() {
    let mut site = Site::new(Version::V7);
    for version in [Version::V4_0, Version::V5_10] {
        site.becomes(version);
        let said = site.caller(0).run("poll", &["test", "node1"], "").ok();
        assert!(said.starts_with("STATE=a CPU=") && said.lines().count() == 1, "{version}: {said}");
        assert_eq!(site.caller(0).run("poll", &["one-42", "node1"], "").ok(), "STATE=-\n", "{version}");
    }
}

#[test]
fn every_change_has_its_row() {
    let text = fs::read_to_string(project().join("docs/reference/versions.md")).unwrap();
    let tests = fs::read_to_string(project().join("tests/host/versions.rs")).unwrap();
    let named = |name: &str| text.contains(&format!("`versions: {name}`"));
    let forgotten: Vec<&str> = tests
        .split("#[test]\nfn ")
        .skip(1)
        .map(|test| test.split('(').next().unwrap())
        .filter(|name| !named(name) && *name != "every_change_has_its_row")
        .collect();
    assert_eq!(forgotten, Vec::<&str>::new(), "docs/reference/versions.md does not name these");
}
