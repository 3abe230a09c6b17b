//! What `shims/install` lays out, and what the programs need of a host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::{Remotes, programs};

/// Where a program lies.
fn place(remotes: &Remotes, program: &str) -> PathBuf {
    match program {
        _ if program.starts_with("vnm/") => remotes.path().join(program),
        "sriov_probe" => remotes.path().join("im/kvm-probes.d/vm/monitor").join(program),
        _ => remotes.driver().join(program),
    }
}

#[test]
fn lays_out_what_opennebula_calls() {
    let remotes = Remotes::default();
    let mut found: Vec<_> = fs::read_dir(remotes.driver())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut expected = programs();
    expected.retain(|program| place(&remotes, program).starts_with(remotes.driver()));
    expected.push("vf_maps".into());
    assert_eq!(found, expected);
    for action in programs() {
        let metadata = fs::metadata(place(&remotes, &action)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o755, "{action}");
        // OpenNebula copies every one of them to every host.
        assert!(metadata.len() <= 1_000_000, "{action} has {} bytes", metadata.len());
    }
    assert!(remotes.path().join("etc/vmm/kvm-sriov/kvmrc").is_file());
}

/// The programs that put a host right, with the arguments that they get.
const HEALERS: [(&str, &[&str]); 2] = [("sriov_probe", &["kvm", "3", "host3"]), ("vnm/sriov/clean", &["host3"])];

/// Runs one of them as OpenNebula does.
fn heal(remotes: &Remotes, (program, args): (&str, &[&str]), kvmrc: &str) -> Output {
    fs::write(remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), kvmrc).unwrap();
    Command::new(place(remotes, program)).args(args).output().unwrap()
}

#[test]
fn the_probe_frees_what_nobody_backs_and_says_nothing() {
    for healer in HEALERS {
        let remotes = Remotes::default();
        let state = remotes.path().join("state");
        fs::create_dir_all(state.join("ib0")).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        // As the driver of 2013 left it long ago.
        let claim = fs::File::create(state.join("ib0/0")).unwrap();
        claim.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        fs::write(remotes.driver().join("vf_maps/ib0"), "0x07 0x00 0x01\n").unwrap();
        let kvmrc = format!("LIBVIRT_URI=test:///default\nVF_STATE_DIR={}\n", state.display());
        let said = heal(&remotes, healer, &kvmrc);
        assert!(said.status.success() && said.stdout.is_empty(), "{said:?}");
        assert!(!state.join("ib0/0").exists(), "{said:?}");
    }
}

#[test]
fn the_probe_never_fails() {
    for (healer, name) in HEALERS.into_iter().zip(["sriov_probe", "vnm clean"]) {
        let remotes = Remotes::default();
        let said = heal(&remotes, healer, "LIBVIRT_URI=qemu+unix:///system?socket=/nonexistent\n");
        assert!(said.status.success() && said.stdout.is_empty(), "{said:?}");
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with(&format!("WARN: {name}: ")) && text.contains("/nonexistent"), "{text}");
    }
}

#[test]
fn keeps_a_kvmrc_that_is_there() {
    let remotes = Remotes::default();
    let kvmrc = remotes.path().join("etc/vmm/kvm-sriov/kvmrc");
    fs::write(&kvmrc, "DUMMY_BRIDGE=mine\n").unwrap();
    let map = remotes.driver().join("vf_maps/ib0");
    fs::write(&map, "0x07 0x00 0x01\n").unwrap();
    assert!(Remotes::run_install(remotes.path()).status.success());
    assert_eq!(fs::read_to_string(&kvmrc).unwrap(), "DUMMY_BRIDGE=mine\n");
    assert_eq!(fs::read_to_string(&map).unwrap(), "0x07 0x00 0x01\n");
}

#[test]
fn says_what_is_wrong_and_installs_nothing() {
    let out = Remotes::run_install(Path::new("/nonexistent"));
    assert!(!out.status.success());
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.contains("/nonexistent is not a directory") && text.contains("nothing was installed"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    let out = Command::new(project().join("shims/install"))
        .arg(empty.path())
        .env("CARGO_TARGET_DIR", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.contains("run cargo build --release first"), "{text}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

/// A copy of a program with some of its bytes replaced.
fn patched(patch: impl Fn(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let remotes = Remotes::default();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("deploy");
    let mut bytes = fs::read(remotes.driver().join("deploy")).unwrap();
    patch(&mut bytes);
    fs::write(&program, bytes).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (dir, program)
}

/// What bash, through which OpenNebula calls, says of a program.
fn said_by_bash(program: &Path) -> String {
    let out = Command::new("bash").arg("-c").arg(format!("{} x y 1 h", program.display())).output().unwrap();
    assert!(!out.status.success());
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn a_missing_libvirt_is_one_readable_line() {
    let (_dir, program) = patched(|bytes| {
        let name = b"libvirt.so.0";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        bytes[at + name.len() - 1] = b'9';
    });
    let text = said_by_bash(&program);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("libvirt.so.9") && text.contains("cannot open shared object file"), "{text}");
}

#[test]
fn a_wrong_architecture_is_one_readable_line() {
    // e_machine of the ELF header: 0xb7 is AArch64, 0x3e x86-64.
    let (_dir, program) = patched(|bytes| bytes[18] = if bytes[18] == 0xb7 { 0x3e } else { 0xb7 });
    let text = said_by_bash(&program);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("Exec format error") || text.contains("cannot execute binary file"), "{text}");
}

/// The newest version of a library's symbols that any program needs, by readelf.
fn newest_symbol(remotes: &Remotes, library: &str) -> (u32, u32, u32) {
    let prefix = format!("Name: {library}_");
    let mut newest = (0, 0, 0);
    for action in programs() {
        let out = Command::new("readelf").arg("-V").arg(place(remotes, &action)).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        for (at, _) in text.match_indices(&prefix) {
            let version = text[at + prefix.len()..].split_whitespace().next().unwrap();
            let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
            let mut next = || numbers.next().unwrap_or(0);
            newest = newest.max((next(), next(), next()));
        }
    }
    newest
}

/// The version in the row of docs/support.md that begins with this name.
fn documented(name: &str) -> (u32, u32, u32) {
    let text = fs::read_to_string(project().join("docs/support.md")).unwrap();
    let row = text.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap();
    let mut numbers = row.split('|').nth(2).unwrap().trim().split('.').map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
fn programs_need_no_newer_library_than_documented() {
    let remotes = Remotes::default();
    for (name, library) in [("glibc", "GLIBC"), ("libvirt", "LIBVIRT")] {
        let (needed, oldest) = (newest_symbol(&remotes, library), documented(name));
        assert!(needed > (0, 0, 0), "no symbol of {name} was found");
        assert!(needed <= oldest, "a program needs {name} {needed:?}, docs/support.md says {oldest:?}");
    }
}

#[test]
fn the_compiler_documented_is_the_one_declared() {
    let (major, minor, _) = documented("Rust");
    let declared = format!("rust-version = \"{major}.{minor}\"");
    assert!(fs::read_to_string(project().join("Cargo.toml")).unwrap().contains(&declared), "{declared}");
}
