//! The programs, called as OpenNebula calls them, on libvirt's test driver: arguments, input, answers, exit codes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;
use std::process::Command;

use kvm_sriov_tests::remotes::{Remotes, run};
use kvm_sriov_tests::rig_host::Said;

/// A remotes directory of this version. Its driver uses libvirt's test driver, which has one domain, `test`.
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

/// Calls an action as OpenNebula does, with two arguments appended.
fn call(remotes: &Remotes, action: &str, args: &[&str], stdin: &str) -> Said {
    call_with(remotes, action, &[args, &["42", "node1"]].concat(), stdin)
}

fn call_with(remotes: &Remotes, action: &str, args: &[&str], stdin: &str) -> Said {
    run(Command::new(remotes.driver().join(action)).args(args), stdin)
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
        ("reboot", vec!["a/b", "node1"], "", 1, "reboot: deploy id: expected a UUID"),
        ("attach_nic", vec!["one-42"], "", 1, "attach_nic: MAC: expected a MAC address"),
        ("detach_nic", vec!["one-42", "02:00"], "", 1, "detach_nic: MAC: expected a MAC address"),
        ("attach_disk", vec!["one-42", "/d", "vdb", "1", "?"], "", 1, "attach_disk: message: expected base64 of UTF-8"),
        ("detach_disk", vec!["one-42", "/d", ""], "", 1, "detach_disk: target: expected a value, found none"),
        ("resize_disk", vec!["one-42", "x", "80", "", "h"], "", 1, "resize_disk: disk id: "),
        ("resize", vec!["one-42"], "", 1, "resize: cannot read the XML from standard input: there is none"),
        ("resize", vec!["one-42"], "<VMM", 1, "resize: the XML on standard input: "),
        ("prereconfigure", vec!["", "hda"], "", 1, "prereconfigure: deploy id: expected a value, found none"),
        ("exec", vec!["x", "h", "ls"], "", 1, "exec: VM id: "),
        ("exec_cancel", vec!["x", "h"], "", 1, "exec_cancel: VM id: "),
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
fn a_checkpoint_that_ceph_refuses_stays() {
    let remotes = remotes("7.4.0");
    let dir = remotes.path().join("bin");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("rbd"), "#!/bin/sh\necho 'error connecting to the cluster' >&2\nexit 1\n").unwrap();
    fs::set_permissions(dir.join("rbd"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = remotes.path().join("checkpoint");
    fs::write(&file, "x").unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let run = |hook: &str, args: &[&str], stdin: &str| {
        run(Command::new(remotes.driver().join(hook)).args(args).env("PATH", &path), stdin)
    };
    let file = file.to_str().unwrap();
    let data = "<VMM_DRIVER_ACTION_DATA><VM><ID>42</ID></VM></VMM_DRIVER_ACTION_DATA>\n";
    let said = run("save.ceph", &["one-42", file, "node1", "42", "node1"], data);
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    let why =
        "could not import the checkpoint into one/one-sys-42-checkpoint: rbd says \"error connecting to the cluster\"";
    assert_eq!(said.err, format!("save.ceph: {why}; the checkpoint stays {file}.\n"));
    assert!(Path::new(file).exists());
    let said = run("restore.ceph", &[file, "node1", "one-42", "42", "node1"], data);
    assert!(said.err.ends_with("the checkpoint stays in one/one-sys-42-checkpoint.\n"), "{said:?}");
    let said = run("save.ceph", &["one-42", file, "node1", "42", "node1"], "");
    assert!(said.err.contains("there is none"), "{said:?}");
}

/// The description of the VM that a step of a network driver gets.
fn networks(bridge: &str) -> String {
    let vm = format!(
        "<VM><ID>42</ID><TEMPLATE><NIC><BRIDGE>br0</BRIDGE><MAC>02:00:0a:00:00:01</MAC><VN_MAD>bridge</VN_MAD></NIC>\
         <NIC><BRIDGE>{bridge}</BRIDGE><MAC>02:00:0a:00:00:02</MAC><VN_MAD>sriov</VN_MAD></NIC></TEMPLATE></VM>"
    );
    run(Command::new("base64").arg("-w0"), &vm).ok()
}

#[test]
fn networks_are_checked_before_a_vm_starts() {
    // Up to 5.8, the VM is an argument.
    for (version, on_stdin) in [("5.8.0", false), ("5.10.0", true), ("7.4.0", true)] {
        let remotes = remotes(version);
        fs::write(remotes.driver().join("vf_maps/ib0"), "0x07 0x00 0x01\n").unwrap();
        let step = |name: &str, bridge: &str| {
            let mut program = Command::new(remotes.path().join("vnm/sriov").join(name));
            let vm = networks(bridge);
            match on_stdin {
                true => run(program.args(["one-42", "node1"]), &vm),
                false => run(program.args([&vm, "one-42", "node1"]), ""),
            }
        };
        let said = step("pre", "sriov_ib0");
        // `lo` is not a bridge.
        assert!(said.err.contains("vnm pre: DUMMY_BRIDGE lo is not a bridge of this host"), "{said:?}");
        for (bridge, text) in [
            ("sriov_ib1", "ib1"),
            ("sriov_", "the bridge of NIC 02:00:0a:00:00:02: expected"),
            ("br1", "whose bridge must be sriov_<root>; found \"br1\"; nothing was changed."),
        ] {
            let said = step("pre", bridge);
            assert_eq!((said.code, said.out.as_str()), (1, ""), "{version} {bridge}: {said:?}");
            assert!(said.err.contains(text), "{version} {bridge}: {said:?}");
        }
        for name in ["post", "clean"] {
            let said = step(name, "sriov_ib0");
            assert_eq!((said.code, said.out.as_str()), (0, ""), "{name}: {said:?}");
        }
        let said = run(&mut Command::new(remotes.path().join("vnm/sriov/pre")), "");
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    }
}
