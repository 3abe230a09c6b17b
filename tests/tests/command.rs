//! The command `kvm-sriov` as a person calls it, on libvirt's test driver: what it prints, and its exit codes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kvm_sriov_tests::remotes::target;
use serde_json::Value;
use tempfile::TempDir;

/// How libvirt's test driver numbers the states of a domain.
const RUNNING: u32 = 1;
const PAUSED: u32 = 3;

/// A host on which one domain runs, with these metadata of ours, or none.
struct Site {
    dir: TempDir,
}

impl Site {
    fn with(state: u32, ours: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = dir.path().join("vmm/kvm-sriov");
        fs::create_dir_all(driver.join("vf_maps")).unwrap();
        fs::write(driver.join("vf_maps/ib0"), "0x07 0x00 0x01\n0x07 0x00 0x02\n").unwrap();
        let node = dir.path().join("node.xml");
        let (dir_text, node_text) = (dir.path().display(), node.display());
        let kvmrc = format!("LIBVIRT_URI=test://{node_text}\nVF_STATE_DIR={dir_text}/state\n");
        fs::write(driver.join("kvmrc"), kvmrc).unwrap();
        let domain = format!(
            "<node><domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>one-42</name>\
             <uuid>7f1c2a52-64d6-4c0c-9b0e-000000000042</uuid><memory>65536</memory><vcpu>1</vcpu>\
             <os><type>hvm</type></os><metadata>{ours}</metadata><test:transient/>\
             <test:runstate>{state}</test:runstate></domain></node>"
        );
        fs::write(node, domain).unwrap();
        Self { dir }
    }

    fn driver(&self) -> PathBuf {
        self.dir.path().join("vmm/kvm-sriov")
    }

    fn run(&self, args: &[&str]) -> (Output, String) {
        run(&self.driver(), args)
    }

    fn json(&self, args: &[&str], code: i32) -> Value {
        let (out, text) = self.run(&[args, &["--json"]].concat());
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        serde_json::from_slice(&out.stdout).unwrap()
    }
}

fn run(driver: &Path, args: &[&str]) -> (Output, String) {
    let out = Command::new(target().join("release/kvm-sriov")).arg("--driver").arg(driver).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out, text)
}

/// Our metadata with this inside.
fn ours(inside: &str) -> String {
    format!("<sriov:domain xmlns:sriov='urn:kvm-sriov:domain:1' version='1.0'>{inside}</sriov:domain>")
}

fn in_doubt() -> Site {
    Site::with(PAUSED, &ours("<sriov:operation kind='migrate' to='host2.invalid' id='7'/>"))
}

#[test]
fn a_host_that_is_as_it_should_be_is_said_to_be() {
    for metadata in [String::new(), ours("")] {
        let site = Site::with(RUNNING, &metadata);
        for args in [&["reconcile"][..], &["reconcile", "--dry-run"]] {
            let report = site.json(args, 0);
            assert_eq!((&report["verdict"], &report["problems"]), (&"right".into(), &Value::Array(Vec::new())));
            let (out, text) = site.run(args);
            assert!(out.status.success() && text.contains("0 in doubt"), "{text}");
            assert!(!text.contains('\x1b'), "colours without a terminal");
        }
        let (out, text) = site.run(&["explain", "one-42"]);
        assert!(out.status.success() && text.contains("reconcile would do nothing"), "{text}");
        let (out, text) = site.run(&["resolve", "one-42", "--there"]);
        assert!(out.status.success() && text.contains("is not in doubt; nothing was changed"), "{text}");
    }
}

#[test]
fn an_operation_that_nobody_goes_on_with_is_closed() {
    let site = Site::with(RUNNING, &ours("<sriov:operation kind='save'/>"));
    let planned = site.json(&["reconcile", "--dry-run"], 1);
    assert_eq!(planned["vms"][0]["operation"], "save");
    assert_eq!(planned["vms"][0]["left"][0]["word"], "close");
    let (out, text) = site.run(&["explain", "one-42"]);
    assert_eq!(out.status.code(), Some(1));
    for said in ["open operation: save", "works on it: nobody", "would note that no operation is open", "because"] {
        assert!(text.contains(said), "{text}");
    }
    let done = site.json(&["reconcile"], 0);
    assert_eq!(done["vms"][0]["done"][0], "note that no operation is open");
}

#[test]
fn a_vm_in_doubt_waits_for_a_word() {
    let site = in_doubt();
    let report = site.json(&["reconcile"], 3);
    assert_eq!((&report["verdict"], &report["vms"][0]["verdict"]), (&"in-doubt".into(), &"in-doubt".into()));
    assert_eq!(site.json(&["explain", "one-42"], 3)["left"][0]["word"], "in doubt");
    // The other host can't be reached, and that decides nothing.
    let known = site.json(&["resolve", "one-42"], 3);
    assert_eq!(known["there"]["host"], "host2.invalid");
    assert!(known["there"]["says"].is_null() && known["there"]["problem"].is_string(), "{known}");
    let (_, text) = site.run(&["resolve", "one-42"]);
    assert!(text.contains("--here") && text.contains("--there"), "{text}");
    let here = site.json(&["resolve", "one-42", "--here"], 0);
    assert_eq!(here["done"][0], "let its CPUs run");
    let there = site.json(&["resolve", "one-42", "--there"], 0);
    assert_eq!(there["done"][0], "destroy the domain");
}

/// A libvirtd that takes a connection and says nothing.
#[test]
fn reconciliation_ends_although_libvirtd_hangs() {
    let site = Site::with(RUNNING, "");
    let socket = site.dir.path().join("hangs");
    let _listener = UnixListener::bind(&socket).unwrap();
    let state = site.dir.path().join("state");
    let uri = format!("qemu+unix:///system?socket={}", socket.display());
    // One call may take five minutes, which is the default.
    let kvmrc = format!("LIBVIRT_URI='{uri}'\nVF_STATE_DIR={}\n", state.display());
    fs::write(site.driver().join("kvmrc"), kvmrc).unwrap();
    let begin = Instant::now();
    let (out, text) = site.run(&["reconcile", "--timeout", "4"]);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("libvirt has not answered virConnectOpen for 1 s"), "{text}");
    assert!(!state.exists());
    assert_eq!(site.run(&["reconcile", "--timeout", "2"]).0.status.code(), Some(2));
}

#[test]
fn wrong_usage_and_what_is_not_there_have_codes_of_their_own() {
    let site = in_doubt();
    for (args, code) in [
        (&["resolve", "one-42", "--here", "--there"][..], 2),
        (&["explain"], 2),
        (&["explain", "one/42"], 2),
        (&["explain", "one-43"], 1),
        (&["resolve", "one-43", "--there"], 1),
    ] {
        let (out, text) = site.run(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    }
}

#[test]
fn a_vf_of_a_vm_shows_what_is_open_on_it() {
    let site = in_doubt();
    let claims = site.dir.path().join("state/ib0");
    fs::create_dir_all(&claims).unwrap();
    let claim = "kvm-sriov-claim 1\nvm=one-42\nuuid=7f1c2a52-64d6-4c0c-9b0e-000000000042\nvf=0000:07:00.2\nboot=x\n";
    fs::write(claims.join("1"), claim).unwrap();
    let vfs = site.json(&["list"], 0);
    assert_eq!((&vfs[1]["operation"], &vfs[1]["in_doubt"]), (&"migrate".into(), &true.into()));
    assert_eq!((&vfs[0]["operation"], &vfs[0]["in_doubt"]), (&Value::Null, &false.into()));
    assert!(site.run(&["list"]).1.contains("migrate, in doubt"));
}
