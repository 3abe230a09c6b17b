//! The programs, called as OpenNebula calls them, against libvirt's test driver: arguments, input, answers, exit codes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;
use std::process::Command;

use kvm_sriov_tests::lab::Said;
use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::{Remotes, run};

/// A remotes directory of this version whose driver talks to libvirt's test driver, with its one domain `test`.
fn remotes(version: &str) -> Remotes {
    let remotes = Remotes::install(version);
    let state = remotes.path().join("state");
    fs::write(
        remotes.path().join("etc/vmm/kvm-sriov/kvmrc"),
        format!(
            "LIBVIRT_URI=test:///default\nVF_STATE_DIR={}\nDUMMY_BRIDGE=lo\nDUMMY_MAC_PREFIX=aa\n",
            state.display()
        ),
    )
    .unwrap();
    remotes
}

fn call(remotes: &Remotes, action: &str, args: &[&str], stdin: &str) -> Said {
    run(&mut remotes.program(action, args), stdin)
}

#[test]
fn an_absent_domain_is_cancelled() {
    let remotes = remotes("7.4.0");
    for id in ["one-42", "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10", "4711"] {
        let said = call(&remotes, "cancel", &[id, "node1"], "<VMM_DRIVER_ACTION_DATA/>\n");
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""), "{id}");
    }
    assert!(!remotes.path().join("state").exists(), "the state directory was made");
}

#[test]
fn an_absent_domain_is_shut_down_from_5_12_on() {
    for (version, code) in [("5.10.0", 1), ("5.12.0", 0), ("6.0.0", 0), ("7.4.0", 0)] {
        let said = call(&remotes(version), "shutdown", &["one-42", "node1"], "");
        assert_eq!((said.code, said.out.as_str()), (code, ""), "{version}: {said:?}");
    }
}

#[test]
fn a_failure_has_the_form_of_its_version() {
    for action in ["reboot", "reset"] {
        let new = call(&remotes("7.4.0"), action, &["one-42", "node1"], "");
        assert_eq!(new.code, 1);
        let text = format!("{action}: there is no domain one-42 on this host; nothing was changed.\n");
        assert_eq!(new.err, text);
        let old = call(&remotes("5.4.0"), action, &["one-42", "node1"], "");
        assert_eq!(old.err, format!("ERROR MESSAGE --8<------\n{text}ERROR MESSAGE ------>8--\n"));
    }
}

#[test]
fn a_domain_that_is_there_is_rebooted_and_destroyed() {
    let remotes = remotes("7.4.0");
    for action in ["reboot", "cancel", "shutdown"] {
        let said = call(&remotes, action, &["test", "node1"], "");
        assert_eq!((said.code, said.out.as_str()), (0, ""), "{action}: {said:?}");
    }
}

#[test]
fn missing_arguments_and_bad_input_are_one_clear_line() {
    let remotes = remotes("7.4.0");
    let dir = remotes.path().join("0/42");
    let file = dir.join("deployment.0").display().to_string();
    for (action, args, stdin, code, text) in [
        ("cancel", vec!["", "node1"], "", 1, "cancel: deploy id: expected a value, found none; "),
        ("reboot", vec!["a/b", "node1"], "", 1, "reboot: deploy id: expected a deploy id"),
        ("attach_nic", vec!["one-42"], "", 1, "attach_nic: MAC: expected a MAC address"),
        ("detach_nic", vec!["one-42", "02:00"], "", 1, "detach_nic: MAC: expected a MAC address"),
        ("snapshot_create", vec!["one-42", "x"], "", 1, "snapshot_create: snapshot id: "),
        ("snapshot_revert", vec!["one-42", "../x"], "", 1, "snapshot_revert: snapshot name: expected a snapshot name"),
        ("snapshot_delete", vec!["one-42", ""], "", 1, "snapshot_delete: snapshot name: expected a value, found none"),
        ("deploy", vec![file.as_str(), "node1"], "", 255, "deploy: the deployment file: "),
        ("deploy", vec![file.as_str(), "node1"], "<domain", 255, "deploy: the deployment file: "),
        ("deploy", vec![file.as_str(), "node1"], "<!DOCTYPE x []><domain/>", 255, "deploy: the deployment file: "),
    ] {
        let said = call(&remotes, action, &args, stdin);
        assert_eq!((said.code, said.out.as_str()), (code, ""), "{said:?}");
        assert!(said.err.starts_with(text), "{text:?} does not begin {:?}", said.err);
        assert_eq!(said.err.lines().count(), 1, "{}", said.err);
        assert!(
            said.err.ends_with("nothing was started.\n") || said.err.ends_with("nothing was changed.\n"),
            "{}",
            said.err
        );
    }
    assert!(!dir.exists(), "a deployment file that can't be read left a directory");
}

#[test]
fn standard_input_is_read_from_the_version_on_that_sends_it() {
    for (action, first) in
        [("attach_nic", "5.0.0"), ("detach_nic", "5.0.0"), ("snapshot_create", "5.4.0"), ("snapshot_revert", "5.10.0")]
    {
        let args: &[&str] = match action {
            "attach_nic" => &["one-42", "02:00:0a:00:2a:01", "br0", "-"],
            "detach_nic" => &["one-42", "02:00:0a:00:2a:01"],
            "snapshot_create" => &["one-42", "0"],
            _ => &["one-42", "snap-0"],
        };
        for (version, is_read) in [("4.14.2", false), (first, true), ("7.4.0", true)] {
            let said = call(&remotes(version), action, args, "the next command of somebody else");
            let complains = said.err.contains("the XML on standard input: 1:1: ");
            assert_eq!(complains, is_read, "{action} of {version}: {said:?}");
            let fails = is_read || action != "detach_nic";
            assert_eq!(said.code, i32::from(fails), "{action} of {version}: {said:?}");
        }
    }
}

#[test]
fn a_closed_output_is_no_crash() {
    let remotes = remotes("7.4.0");
    let program = remotes.driver().join("reboot");
    let script = format!("{} one-42 node1 42 node1 >&- 2>&-", program.display());
    assert_eq!(Command::new("sh").args(["-c", &script]).status().unwrap().code(), Some(1));
}

#[test]
fn every_recorded_call_is_understood() {
    let dir = project().join("tests/fixtures/wire");
    let mut calls: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    calls.sort();
    assert_eq!(calls.len(), 51);
    let mut called = 0;
    for path in calls {
        called += usize::from(recorded_call_is_understood(&path));
    }
    assert_eq!(called, 23, "calls of actions that are there");
}

/// Whether the call is of an action that is there already. Its domain is not: what counts is that the input was read,
/// and that the answer is about the domain.
fn recorded_call_is_understood(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let action = name.split('-').nth(1).unwrap();
    let stdin = fs::read_to_string(path.join("stdin")).unwrap();
    if action == "deploy" {
        let deployment = kvm_sriov::xml::Deployment::parse(&stdin).unwrap();
        assert_eq!(deployment.rewrite(&[], &[], "").unwrap(), stdin, "{name}");
        return true;
    }
    if !stdin.trim().is_empty() {
        let data = kvm_sriov::xml::VmData::parse(&stdin);
        assert!(data.is_ok(), "{name}: {data:?}");
    }
    let fails = match action {
        "cancel" | "shutdown" | "detach_nic" => false,
        "reboot" | "reset" | "attach_nic" | "snapshot_create" | "snapshot_revert" | "snapshot_delete" => true,
        _ => return false,
    };
    let argv = fs::read_to_string(path.join("argv")).unwrap();
    let args: Vec<&str> = argv.lines().collect();
    let said = call(&remotes("7.5.80"), action, &args[..args.len() - 2], &stdin);
    assert_eq!((said.code, said.out.as_str()), (i32::from(fails), ""), "{name}: {said:?}");
    assert_eq!(said.err.contains("there is no domain"), fails, "{name}: {said:?}");
    true
}
