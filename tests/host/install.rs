//! What `shims/install` installs, and what the programs need from a host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use kvm_sriov_tests::caller::{Caller, Version};
use kvm_sriov_tests::remotes::{FRONT_END_STEPS, HOST_STEPS, Remotes, programs};
use kvm_sriov_tests::{project, until};

/// The path of a program.
fn place(remotes: &Remotes, program: &str) -> PathBuf {
    let place = if program.starts_with("vnm/") { remotes.path() } else { &remotes.driver() };
    place.join(program)
}

/// What all programs share.
const SHARED: &str = "libkvm_sriov_programs.so";

/// The probe that OpenNebula's monitoring runs.
const PROBE: &str = "im/kvm-probes.d/vm/monitor/sriov_probe";

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn lays_out_what_opennebula_calls() {
    let remotes = Remotes::default();
    let found = names(&remotes.driver());
    let mut expected = programs();
    expected.retain(|program| place(&remotes, program).starts_with(remotes.driver()));
    expected.extend([SHARED.into(), "vf_maps".into()]);
    expected.sort();
    assert_eq!(found, expected);
    let size = |path: PathBuf| fs::metadata(path).unwrap().len();
    for action in programs() {
        let metadata = fs::metadata(place(&remotes, &action)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o755, "{action}");
        assert!(metadata.len() <= 20_000, "{action} has {} bytes", metadata.len());
    }
    // OpenNebula copies all of it to every host.
    let all: u64 = found.iter().map(|name| size(remotes.driver().join(name))).sum();
    assert!(all <= 6_000_000, "the driver has {all} bytes");
    let mut steps = [&HOST_STEPS[..], &FRONT_END_STEPS].concat();
    steps.sort_unstable();
    assert_eq!(names(&remotes.path().join("vnm/sriov")), steps, "a network driver has all of these");
    assert_eq!(names(&remotes.path().join("im/kvm-probes.d/vm/monitor")), ["sriov_probe"]);
    assert!(remotes.path().join("etc/vmm/kvm-sriov/kvmrc").is_file());
}

/// The programs that reconcile a host and must never fail, with their arguments.
const HEALERS: [(&str, &str); 2] = [(PROBE, "kvm 3 host3"), ("vnm/sriov/clean", "'host3'")];

/// Runs one of them as OpenNebula does. OpenNebula waits until all processes have closed its pipes.
#[track_caller]
fn heal(remotes: &Remotes, (program, args): (&str, &str)) {
    let line = format!("{} {args}", remotes.path().join(program).display());
    let begin = Instant::now();
    let said = Command::new("bash").args(["-c", &line]).stdin(Stdio::null()).output().unwrap();
    assert!(said.status.success() && said.stdout.is_empty() && said.stderr.is_empty(), "{program}: {said:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{program}: {:?}", begin.elapsed());
}

#[test]
fn the_probe_frees_stale_claims_silently() {
    for healer in HEALERS {
        let remotes = Remotes::default();
        let state = remotes.path().join("state");
        fs::create_dir_all(state.join("ib0")).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        // A claim that the driver of 2013 left an hour ago.
        let claim = fs::File::create(state.join("ib0/0")).unwrap();
        claim.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        fs::write(remotes.driver().join("vf_maps/ib0"), "0x07 0x00 0x01\n").unwrap();
        let kvmrc = format!("LIBVIRT_URI=test:///default\nVF_STATE_DIR={}\n", state.display());
        fs::write(remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), kvmrc).unwrap();
        heal(&remotes, healer);
        until("the claim is freed", || !state.join("ib0/0").exists());
    }
}

#[test]
fn the_probe_itself_never_fails() {
    let remotes = Remotes::default();
    let kvmrc = "LIBVIRT_URI=qemu+unix:///system?socket=/nonexistent\n";
    fs::write(remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), kvmrc).unwrap();
    let said = Command::new(remotes.driver().join("sriov_probe")).output().unwrap();
    assert!(said.status.success() && said.stdout.is_empty(), "{said:?}");
    let text = String::from_utf8(said.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("WARN: sriov_probe: ") && text.contains("/nonexistent"), "{text}");
}

/// Monitoring runs its probes on every host, and the first probe that fails puts the host into ERROR. A `clean` that
/// fails makes the end of a VM a failure.
#[test]
fn monitoring_continues_where_the_probe_can_not_start() {
    let remotes = Remotes::default();
    let program = remotes.driver().join("sriov_probe");
    let whole = fs::read(&program).unwrap();
    let shared = remotes.driver().join(SHARED);
    let whole_shared = fs::read(&shared).unwrap();
    let machine = if whole[18] == 0xb7 { 0x3e } else { 0xb7 };
    let patched = |whole: &[u8], at: usize, byte: u8| [&whole[..at], &[byte], &whole[at + 1..]].concat();
    for (what, file, bytes) in [
        ("another architecture", &program, patched(&whole, 18, machine)),
        ("no libvirt", &shared, patched(&whole_shared, name_of_libvirt(&whole_shared) + 11, b'9')),
        ("no shared object", &shared, b"\0\0\0\0".to_vec()),
        ("no program", &program, b"\0\0\0\0".to_vec()),
        ("it fails", &program, b"#!/bin/sh\nexit 1\n".to_vec()),
        ("it speaks", &program, b"#!/bin/sh\necho out; echo err >&2\n".to_vec()),
        // It ends after 20 s, in case that the test fails.
        ("it hangs", &program, b"#!/bin/sh\nexec sleep 20\n".to_vec()),
    ] {
        // Each is tried with the other file as it was. The program may still be running, so files are renamed into place.
        for (file, bytes) in [(&program, &whole), (&shared, &whole_shared), (file, &bytes)] {
            fs::write(file.with_extension("new"), bytes).unwrap();
            fs::set_permissions(file.with_extension("new"), fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(file.with_extension("new"), file).unwrap();
        }
        println!("{what}");
        HEALERS.into_iter().for_each(|healer| heal(&remotes, healer));
    }
    fs::remove_dir_all(remotes.driver()).unwrap();
    HEALERS.into_iter().for_each(|healer| heal(&remotes, healer));
}

#[test]
fn the_probe_has_a_limit_and_a_session_of_its_own() {
    let remotes = Remotes::default();
    let told = remotes.path().join("told");
    let spy = format!(
        "#!/bin/sh\nread -r line </proc/$$/stat; set -- $line; echo \"$6 $1\" >{0}.new\n\
         tr '\\0' ' ' </proc/$4/cmdline >>{0}.new; mv {0}.new {0}\n",
        told.display()
    );
    fs::write(remotes.driver().join("sriov_probe"), spy).unwrap();
    for healer in HEALERS {
        heal(&remotes, healer);
        until("it is started", || told.exists());
        let text = fs::read_to_string(&told).unwrap();
        let (sessions, parent) = text.split_once('\n').unwrap();
        let (session, own) = sessions.split_once(' ').unwrap();
        let test = fs::read_to_string("/proc/self/stat").unwrap().rsplit_once(')').unwrap().1.to_owned();
        assert_ne!(Some(session), test.split_whitespace().nth(3), "the session of the test");
        assert!(session.parse::<u32>().unwrap() <= own.parse::<u32>().unwrap(), "{text}");
        assert!(parent.starts_with("timeout -k 10 3600 "), "{text}");
        fs::remove_file(&told).unwrap();
    }
}

/// The description of a network that its step on the front-end gets.
const VNET: &str =
    "<VNET><ID>3</ID><NAME>infiniband</NAME><VN_MAD><![CDATA[sriov]]></VN_MAD><BRIDGE>sriov_ib0</BRIDGE></VNET>";

/// A front-end has no libvirt and no libvirtd, and its architecture may differ from that of the hosts. So only shell
/// scripts run there.
#[test]
fn a_network_is_made_and_removed_on_a_front_end_without_libvirt() {
    let remotes = Remotes::default();
    let caller = Caller::new(Version::V7, remotes.path());
    // More than a pipe holds: the caller fails if the step does not read its input.
    for padding in ["", &" ".repeat(200_000)] {
        for step in FRONT_END_STEPS {
            let answer = caller.run_vnet("sriov", step, 3, &format!("{VNET}{padding}"));
            assert_eq!((answer.code, answer.stdout.as_str(), answer.stderr.as_str()), (0, "", ""), "{step}");
            let text = fs::read(remotes.path().join("vnm/sriov").join(step)).unwrap();
            assert!(text.starts_with(b"#!/bin/sh\n"), "{step}");
        }
    }
}

/// OpenNebula runs these steps for every VN_MAD of a VM. The first that fails ends the update of all.
#[test]
fn an_update_of_groups_or_networks_never_fails() {
    for version in Version::FORMS {
        let remotes = Remotes::of(version);
        let caller = Caller::new(version, remotes.path());
        for (step, args) in [
            ("update_sg", &["one-42"][..]),
            ("update_nic", &["one-42", "3"]),
            ("post", &["one-42", "node1"]),
            ("clean", &["node1"]),
        ] {
            let vm = format!("<VM><ID>42</ID>{}</VM>", "<NIC/>".repeat(10_000));
            let answer = caller.run_network("sriov", step, args, &vm);
            let said = (answer.code, answer.stdout.as_str(), answer.stderr.as_str());
            assert_eq!(said, (0, "", "ExitCode: 0\n"), "{step} of {version}");
        }
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
    assert!(text.contains("run cargo build --locked --release first"), "{text}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

/// A driver in which some bytes of one file are replaced, and its program `deploy`.
fn patched(file: &str, patch: impl Fn(&mut Vec<u8>)) -> (Remotes, PathBuf) {
    let remotes = Remotes::default();
    let place = remotes.driver().join(file);
    let mut bytes = fs::read(&place).unwrap();
    patch(&mut bytes);
    fs::write(&place, bytes).unwrap();
    let program = remotes.driver().join("deploy");
    (remotes, program)
}

/// The place of the name of libvirt's library in the shared object.
fn name_of_libvirt(bytes: &[u8]) -> usize {
    bytes.windows(12).position(|window| window == b"libvirt.so.0").unwrap()
}

/// What bash, through which OpenNebula starts programs, says of a program.
fn said_by_bash(program: &Path) -> String {
    let out = Command::new("bash").arg("-c").arg(format!("{} x y 1 h", program.display())).output().unwrap();
    assert!(!out.status.success());
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn a_missing_libvirt_is_one_readable_line() {
    let (_remotes, program) = patched(SHARED, |bytes| {
        let at = name_of_libvirt(bytes);
        bytes[at + 11] = b'9';
    });
    let text = said_by_bash(&program);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("libvirt.so.9") && text.contains("cannot open shared object file"), "{text}");
}

#[test]
fn a_missing_shared_object_is_one_readable_line() {
    let remotes = Remotes::default();
    fs::remove_file(remotes.driver().join(SHARED)).unwrap();
    let text = said_by_bash(&remotes.driver().join("deploy"));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(SHARED) && text.contains("cannot open shared object file"), "{text}");
}

/// A program is known by the name of its file.
#[test]
fn every_installed_name_is_a_program_and_no_other_is() {
    let remotes = Remotes::default();
    let unknown = ": kvm-sriov has no program of this name; nothing was changed";
    let run = |program: &Path| {
        let out = Command::new(program).stdin(Stdio::null()).env("LIBVIRT_DEFAULT_URI", "test:///default").output();
        String::from_utf8(out.unwrap().stderr).unwrap()
    };
    for program in programs() {
        let text = run(&place(&remotes, &program));
        assert!(!text.contains(unknown), "{program}: {text}");
    }
    for name in ["reboot2", "Reboot", "kvm-sriov-program"] {
        let copy = remotes.driver().join(name);
        fs::copy(remotes.driver().join("reboot"), &copy).unwrap();
        assert_eq!(run(&copy), format!("{name}{unknown}\n"));
    }
}

/// As a program of Rust's own start-up code: no file that it opens becomes a standard stream that its caller closed, and a
/// closed pipe ends nothing.
#[test]
fn closed_streams_and_pipes_do_no_harm() {
    let remotes = Remotes::default();
    let state = remotes.path().join("state");
    let kvmrc = format!("LIBVIRT_URI=test:///default\nVF_STATE_DIR={}\n", state.display());
    fs::write(remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), kvmrc).unwrap();
    let poll = remotes.driver().join("poll");
    let line = |rest: &str| format!("{} test 42 node1 {rest}", poll.display());
    let code = |rest: &str| Command::new("bash").arg("-c").arg(line(rest)).status().unwrap().code();
    assert_eq!(code(">/dev/null"), Some(0));
    assert_eq!(code("<&- >&- 2>&-"), Some(0), "the answer went to /dev/null");
    // The reader is gone before the answer comes.
    assert_eq!(code("2>/dev/null | true; exit ${PIPESTATUS[0]}"), Some(1));
}

#[test]
fn a_wrong_architecture_is_one_readable_line() {
    // e_machine of the ELF header: 0xb7 is AArch64, 0x3e x86-64.
    let (_remotes, program) = patched("deploy", |bytes| bytes[18] = if bytes[18] == 0xb7 { 0x3e } else { 0xb7 });
    let text = said_by_bash(&program);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("Exec format error") || text.contains("cannot execute binary file"), "{text}");
}

/// The newest version of a library's symbols that any program needs, by readelf.
fn newest_symbol(remotes: &Remotes, library: &str) -> (u32, u32, u32) {
    let prefix = format!("Name: {library}_");
    let mut newest = (0, 0, 0);
    for file in programs().into_iter().chain([SHARED.into()]) {
        let out = Command::new("readelf").arg("-V").arg(place(remotes, &file)).output().unwrap();
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

/// Rust starts a program in another directory with a function that glibc has only since 2.29 (dist/glibc/x86_64.s).
#[test]
fn no_program_is_started_in_another_directory() {
    let mut dirs = vec![project().join("crates/kvm-sriov/src"), project().join("crates/kvm-sriov-cli/src")];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                assert!(!text.contains(".current_dir("), "{}", path.display());
            }
        }
    }
}

/// The version in the row of docs/reference/support.md that begins with this name.
fn documented(name: &str) -> (u32, u32, u32) {
    let text = fs::read_to_string(project().join("docs/reference/support.md")).unwrap();
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
        assert!(needed <= oldest, "a program needs {name} {needed:?}, docs/reference/support.md says {oldest:?}");
    }
}

#[test]
fn the_compiler_documented_is_the_one_declared() {
    let (major, minor, _) = documented("Rust");
    let declared = format!("rust-version = \"{major}.{minor}\"");
    assert!(fs::read_to_string(project().join("Cargo.toml")).unwrap().contains(&declared), "{declared}");
}
