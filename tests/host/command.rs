//! The command `kvm-sriov` as a person calls it, on libvirt's test driver: its output and its exit codes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kvm_sriov_tests::hand_over;
use kvm_sriov_tests::remotes::target;
use serde_json::Value;
use tempfile::TempDir;

/// The numbers of domain states in libvirt's test driver.
const RUNNING: u32 = 1;
const PAUSED: u32 = 3;

/// A host with one running domain, with these metadata of ours or without any.
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
        hand_over(dir.path());
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

/// Our metadata with this content.
fn ours(inside: &str) -> String {
    format!("<sriov:domain xmlns:sriov='urn:kvm-sriov:domain:1' version='1.0'>{inside}</sriov:domain>")
}

fn in_doubt() -> Site {
    Site::with(PAUSED, &ours("<sriov:operation kind='migrate' to='host2.invalid' id='7'/>"))
}

#[test]
fn a_consistent_host_is_reported_as_such() {
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
fn an_abandoned_operation_is_closed() {
    let site = Site::with(RUNNING, &ours("<sriov:operation kind='save'/>"));
    let planned = site.json(&["reconcile", "--dry-run"], 1);
    assert_eq!(planned["vms"][0]["operation"], "save");
    assert_eq!(planned["vms"][0]["left"][0]["word"], "close");
    let (out, text) = site.run(&["explain", "one-42"]);
    assert_eq!(out.status.code(), Some(1));
    for said in ["open operation: save", "locked by: nobody", "would close the operation", "because"] {
        assert!(text.contains(said), "{text}");
    }
    let done = site.json(&["reconcile"], 0);
    assert_eq!(done["vms"][0]["done"][0], "close the operation");
}

#[test]
fn a_vm_in_doubt_waits_for_a_person() {
    let site = in_doubt();
    let report = site.json(&["reconcile"], 3);
    assert_eq!((&report["verdict"], &report["vms"][0]["verdict"]), (&"in-doubt".into(), &"in-doubt".into()));
    assert_eq!(site.json(&["explain", "one-42"], 3)["left"][0]["word"], "in doubt");
    // The other host can't be reached, so the VM stays in doubt.
    let known = site.json(&["resolve", "one-42"], 3);
    assert_eq!(known["there"]["host"], "host2.invalid");
    assert!(known["there"]["says"].is_null() && known["there"]["problem"].is_string(), "{known}");
    let (_, text) = site.run(&["resolve", "one-42"]);
    assert!(text.contains("--here") && text.contains("--there"), "{text}");
    // `--here` is not enough either: the VM may run there.
    let unsure = site.json(&["resolve", "one-42", "--here"], 3);
    assert_eq!(unsure["done"], Value::Array(Vec::new()));
    let (_, text) = site.run(&["resolve", "one-42", "--here"]);
    assert!(text.contains("nobody knows whether one-42 runs there") && text.contains("--here --force"), "{text}");
    let here = site.json(&["resolve", "one-42", "--here", "--force"], 0);
    assert_eq!(here["done"][0], "resume the VM");
    let there = site.json(&["resolve", "one-42", "--there"], 0);
    assert_eq!(there["done"][0], "destroy the domain");
}

/// A libvirtd that accepts a connection and never answers.
#[test]
fn reconciliation_ends_although_libvirtd_hangs() {
    let site = Site::with(RUNNING, "");
    let socket = site.dir.path().join("hangs");
    let _listener = UnixListener::bind(&socket).unwrap();
    hand_over(&socket);
    let state = site.dir.path().join("state");
    let uri = format!("qemu+unix:///system?socket={}", socket.display());
    // One call may take five minutes, the default.
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
        (&["resolve", "one-42", "--force"], 2),
        (&["resolve", "one-42", "--there", "--force"], 2),
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
    hand_over(site.dir.path());
    let vfs = site.json(&["list"], 0);
    assert_eq!((&vfs[1]["operation"], &vfs[1]["in_doubt"]), (&"migrate".into(), &true.into()));
    assert_eq!((&vfs[0]["operation"], &vfs[0]["in_doubt"]), (&Value::Null, &false.into()));
    assert!(site.run(&["list"]).1.contains("migrate, in doubt"));
}

#[test]
fn a_number_is_opennebulas_vm_id() {
    // libvirt's own id of the domain is 1.
    let site = in_doubt();
    for args in [["explain", "42"], ["resolve", "42"]] {
        let (out, text) = site.run(&args);
        assert_eq!(out.status.code(), Some(3), "{args:?}: {text}");
        assert!(text.starts_with("one-42"), "{args:?}: {text}");
    }
    for args in [&["explain", "1"][..], &["resolve", "1", "--there"]] {
        let (out, text) = site.run(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("there is no domain one-1 on this host"), "{args:?}: {text}");
    }
}

/// All commands that read or change a host.
const COMMANDS: [&[&str]; 6] = [
    &["list"],
    &["check"],
    &["reconcile"],
    &["reconcile", "--dry-run"],
    &["explain", "one-42"],
    &["resolve", "one-42", "--there"],
];

#[test]
fn without_a_driver_nothing_is_made() {
    let site = Site::with(RUNNING, "");
    let missing = site.dir.path().join("vmm/other");
    // `file` is a file in place of the directory. If the test does not run as root, the command refuses the file
    // because of its type.
    let file = site.driver().join("kvmrc");
    for driver in [&missing, &file] {
        for args in COMMANDS {
            let (out, text) = run(driver, args);
            assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
            assert!(text.contains("there is no driver in") && text.contains("nothing was changed"), "{args:?}: {text}");
        }
    }
    for driver in ["/", "/usr"] {
        for args in COMMANDS {
            let (out, text) = run(Path::new(driver), args);
            assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
            assert!(text.contains("belongs to") && text.contains("nothing was changed"), "{args:?}: {text}");
        }
    }
    assert!(!site.dir.path().join("state").exists());
}

#[test]
fn commands_that_only_read_create_nothing() {
    let site = Site::with(RUNNING, &ours("<sriov:operation kind='save'/>"));
    let state = site.dir.path().join("state");
    let looks = || {
        for args in [&["list"][..], &["check"], &["reconcile", "--dry-run"], &["explain", "42"], &["resolve", "42"]] {
            site.run(args);
        }
    };
    looks();
    assert!(!state.exists(), "it was made by somebody who only looked");
    // They write nothing into an empty state directory either.
    fs::create_dir(&state).unwrap();
    hand_over(&state);
    looks();
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    site.run(&["reconcile"]);
    assert!(state.join(".locks").exists());
}

#[test]
fn a_state_directory_of_another_user_is_left_alone() {
    let site = Site::with(RUNNING, "");
    let state = site.dir.path().join("state");
    fs::create_dir(&state).unwrap();
    // Only root can make a directory that belongs to another user.
    if !Command::new("chown").arg("4711").arg(&state).status().unwrap().success() {
        return;
    }
    for args in [&["list"][..], &["check"], &["reconcile"]] {
        let (out, text) = site.run(args);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains("belongs to user 4711 instead of 65534; leave it as it is"), "{text}");
        assert!(!text.contains("remove") && !text.contains("chown"), "{text}");
    }
}

#[test]
fn a_check_names_every_line_of_kvmrc_that_is_odd() {
    let site = Site::with(RUNNING, "");
    let kvmrc = site.driver().join("kvmrc");
    let good = fs::read_to_string(&kvmrc).unwrap();
    fs::write(&kvmrc, format!("{good}DUMY_BRIDGE=br0\nFORCE_DESTROY=true\nX=$(id)\nSRIOV_LOCK_TIMEOUT=-1\n")).unwrap();
    hand_over(&kvmrc);
    let findings = site.json(&["check"], 1);
    let said = |result: &str| {
        let of = |finding: &&Value| finding["check"] == "kvmrc" && finding["result"] == result;
        let found = findings.as_array().unwrap().iter().filter(of);
        found.map(|finding| finding["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let fail = said("fail");
    assert_eq!(fail.len(), 2, "{fail:?}");
    assert!(
        fail.iter().any(|text| text.contains("line 4: FORCE_DESTROY: expected yes or no, found \"true\"")),
        "{fail:?}"
    );
    let warn = said("warn");
    assert!(warn[0].contains("line 3: DUMY_BRIDGE sets nothing; is DUMMY_BRIDGE meant?"), "{warn:?}");
    assert!(warn[1].contains("line 5: ") && warn.len() == 2, "{warn:?}");
}

#[test]
fn check_names_every_word_that_a_migration_would_refuse() {
    let site = Site::with(RUNNING, "");
    let path = site.driver().join("kvmrc");
    let before = fs::read_to_string(&path).unwrap();
    for (options, result, words) in [
        ("", "ok", vec!["no MIGRATE_OPTIONS"]),
        ("--unsafe", "ok", vec!["--unsafe"]),
        ("--postcopy --postcopy-after-precopy", "warn", vec!["no post-copy for a VM with VFs"]),
        ("--unsave --p2p --timeout 0", "fail", vec!["\"--unsave\"", "\"--p2p\"", "\"--timeout 0\""]),
    ] {
        fs::write(&path, format!("{before}MIGRATE_OPTIONS=\"{options}\"\n")).unwrap();
        let findings = site.json(&["check"], 1);
        let of_moves = |finding: &&Value| finding["check"] == "migrate";
        let found: Vec<&Value> = findings.as_array().unwrap().iter().filter(of_moves).collect();
        assert_eq!(found.len(), words.len(), "{found:?}");
        for (finding, word) in found.iter().zip(words) {
            assert_eq!(finding["result"], result, "{finding}");
            assert!(finding["text"].as_str().unwrap().contains(word), "{finding}");
        }
    }
}
