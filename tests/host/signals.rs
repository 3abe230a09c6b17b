//! An action that gets a signal, or loses the reader of its output, finishes or undoes its work completely.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use fs2::FileExt;
use kvm_sriov::claims::ClaimStore;
use kvm_sriov::libvirt::DomainCalls;
use kvm_sriov::opennebula;
use kvm_sriov::{Action, DomainName, actions};
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::caller::Version;
use kvm_sriov_tests::remotes::target;
use kvm_sriov_tests::rig_host::Said;
use kvm_sriov_tests::site::{Recorded, Site};
use kvm_sriov_tests::{hand_over, until};

/// The signals that an action may get, by their names in kill(1): from a person or a lost connection, and from the
/// kernel at a limit of the process.
const SIGNALS: [&str; 4] = ["TERM", "HUP", "XFSZ", "XCPU"];

/// The signals that a process blocks, one bit for each.
///
/// # Source
/// proc(5), `/proc/pid/status`.
fn blocked(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    mask.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap())
}

/// The bits of SIGHUP (1) and SIGTERM (15).
const BOTH: u64 = 1 | 1 << 14;

/// And those of SIGXCPU (24) and SIGXFSZ (25).
const ALL: u64 = BOTH | 1 << 23 | 1 << 24;

fn tell(child: &Child, signal: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Starts a program, waits until it blocks its signals, and sends all of them while the program waits for its input.
fn told_while_it_reads(command: &mut Command, stdin: &str) -> Said {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    until("signals are held", || blocked(child.id()) & ALL == ALL);
    for signal in SIGNALS {
        tell(&child, signal);
    }
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), None, "{output:?}");
    output.into()
}

#[test]
fn an_action_finishes_after_a_signal() {
    let site = Site::new(Version::V7);
    for (action, runs) in [("deploy", true), ("snapshot_create", true), ("detach_nic", true), ("save", false)] {
        let call = Recorded::first(action).fit(&site);
        let mut program = Command::new(site.remotes().driver().join(action));
        let said = told_while_it_reads(program.args(&call.args).args(["0", "node1"]), &call.stdin);
        assert_eq!(said.code, 0, "{action}: {said:?}");
        assert_eq!(site.domain("one-0").is_some(), runs, "{action}");
    }
}

#[test]
fn an_action_that_fails_after_a_signal_says_so() {
    let site = Site::new(Version::V7);
    let call = Recorded::first("save").fit(&site);
    let said = told_while_it_reads(
        Command::new(site.remotes().driver().join("save")).args(&call.args).args(["0", "node1"]),
        &call.stdin,
    );
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.message().starts_with("save: there is no domain ") && said.message().ends_with("nothing was changed.")
    );
}

#[test]
fn an_action_finishes_whenever_the_signal_comes() {
    let site = Site::new(Version::V7);
    let deploy = Recorded::first("deploy").fit(&site);
    let program = |action: &str, args: &[&str]| {
        let mut program = Command::new(site.remotes().driver().join(action));
        program.args(args).args(["0", "node1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        program
    };
    for step in 0..12_u64 {
        let mut child = program("deploy", &deploy.args()).spawn().unwrap();
        until("signals are held", || blocked(child.id()) & ALL == ALL);
        child.stdin.take().unwrap().write_all(deploy.stdin.as_bytes()).unwrap();
        // The outcome is the same at any point.
        thread::sleep(Duration::from_millis(step * 5));
        tell(&child, SIGNALS[usize::try_from(step % 4).unwrap()]);
        let said: Said = child.wait_with_output().unwrap().into();
        assert_eq!(said.code, 0, "{step}: {said:?}");
        assert!(site.domain("one-0").is_some(), "{step}");
        let said: Said = program("cancel", &["one-0", "node1"]).output().unwrap().into();
        assert_eq!(said.code, 0, "{step}: {said:?}");
    }
}

#[test]
fn an_action_finishes_although_nobody_reads_its_output() {
    let site = Site::new(Version::V7);
    let run = |action: &str, args: &str, closed: &str, stdin: &str| {
        let line = format!("exec {}/{action} {args} 0 node1 {closed}", site.remotes().driver().display());
        let mut child = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
        child.wait().unwrap()
    };
    let call = Recorded::first("deploy").fit(&site);
    for closed in [">&- 2>&-", ">/dev/full 2>/dev/full"] {
        let status = run("deploy", &call.args.join(" "), closed, &call.stdin);
        assert_eq!(status.signal(), None, "{closed}");
        assert!(site.domain("one-0").is_some(), "{closed}: it has finished");
        assert_eq!(run("reboot", "one-0 node1", closed, "").code(), Some(0), "{closed}");
        assert_eq!(run("cancel", "one-0 node1", closed, "").code(), Some(0), "{closed}");
        assert_eq!(site.domain("one-0"), None, "{closed}");
        assert_eq!(run("reboot", "one-0 node1", closed, "").code(), Some(1), "{closed}");
    }
}

/// The reader is gone, as after a lost connection. A write into the pipe would raise SIGPIPE.
#[test]
fn a_pipe_that_nobody_reads_any_more_ends_no_action() {
    let site = Site::new(Version::V7);
    let call = Recorded::first("deploy").fit(&site);
    let mut child = Command::new(site.remotes().driver().join("deploy"))
        .args(&call.args)
        .args(["0", "node1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child.stdin.take().unwrap().write_all(call.stdin.as_bytes()).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), None);
    assert!(site.domain("one-0").is_some());
}

#[test]
fn a_lost_connection_does_not_end_reconcile() {
    let site = Site::new(Version::V7);
    // A libvirtd that never answers keeps the program busy.
    let silent = site.remotes().path().join("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    site.configure(&format!("LIBVIRT_URI=test+unix:///default?socket={}", silent.display()));
    hand_over(site.remotes().path());
    let mut child = Command::new(target().join("release/kvm-sriov"))
        .arg("--driver")
        .arg(site.remotes().driver())
        .args(["reconcile", "--timeout", "3"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("signals are held", || blocked(child.id()) & ALL == ALL);
    tell(&child, "HUP");
    tell(&child, "TERM");
    let status = child.wait().unwrap();
    assert_eq!((status.signal(), status.success()), (None, false), "it ends by itself, and says what it could not do");
}

#[test]
fn programs_that_outlive_their_action_end_at_sigterm() {
    // A libvirtd that never answers keeps the programs waiting.
    let site = Site::new(Version::V7);
    let silent = site.remotes().path().join("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    site.configure(&format!("LIBVIRT_URI=test+unix:///default?socket={}", silent.display()));
    for program in ["sriov_watcher", "sriov_clock"] {
        // An action starts them with its own blocked signals.
        let mut child = Command::new("env")
            .arg("--block-signal=TERM,HUP")
            .arg(site.remotes().driver().join(program))
            .arg("56e14855-0118-420f-b565-26fe35d8493d")
            .spawn()
            .unwrap();
        // The program works when it has its own session.
        let session = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned()
        };
        until("it has a session of its own", || session() == child.id().to_string());
        // glibc blocks all signals while it starts a thread.
        until("it holds no signals", || blocked(child.id()) & BOTH == 0);
        tell(&child, "TERM");
        assert_eq!(child.wait().unwrap().signal(), Some(15), "{program}");
    }
}

#[test]
fn poll_reconciles_the_host_at_most_every_half_minute() {
    let site = Site::new(Version::V5_10);
    let claim = site.state().join("ib0/0");
    fs::write(site.remotes().driver().join("vf_maps/ib0"), "0x07 0x00 0x01\n").unwrap();
    // Leaves a claim as the driver of 2013 did, an hour old.
    let leave_claim = || {
        fs::create_dir_all(claim.parent().unwrap()).unwrap();
        fs::set_permissions(site.state(), fs::Permissions::from_mode(0o700)).unwrap();
        let file = fs::File::create(&claim).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    };
    let poll = || assert!(site.caller(0).run("poll", &["test", "node1"], "").ok().starts_with("STATE=a "));
    leave_claim();
    poll();
    until("the first poll frees it", || !claim.exists());
    // `poll` does not wait for the probe that it starts. The probe holds this lock until it ends.
    let turn = site.state().join(".locks/probe");
    let is_over = || {
        let lock = fs::File::open(&turn).unwrap();
        FileExt::try_lock_shared(&lock).is_ok()
    };
    until("the probe is over", is_over);
    leave_claim();
    poll();
    let last: u64 = fs::read_to_string(&turn).unwrap().trim().parse().unwrap();
    assert!(claim.exists(), "the next one comes too soon");
    fs::write(&turn, format!("{}\n", last - 31)).unwrap();
    poll();
    until("half a minute later it is freed again", || !claim.exists());
    // `poll` answers also for a host that can't be repaired.
    fs::set_permissions(site.state(), fs::Permissions::from_mode(0o777)).unwrap();
    poll();
    assert_eq!(site.daemon().libvirt().domains().unwrap().len(), 1);
}

/// Holds the lock of one-42 in the state directory that the environment names, until the action is asked to end.
fn hold_the_lock(action: Action) {
    let store = ClaimStore::create(Path::new(&env::var("STATE").unwrap())).unwrap();
    let lock = store.lock_vm(&"one-42".parse().unwrap(), action, Duration::ZERO).unwrap();
    until("the wish comes", || lock.cancelled());
}

#[test]
#[ignore = "part of cancel_kills_only_programs_of_the_driver"]
fn program() {
    opennebula::run(Action::Save, |_| {
        // An action that reads the request late, in a long call of libvirt for example: only a signal ends it in time.
        let store = ClaimStore::create(Path::new(&env::var("STATE").unwrap())).unwrap();
        let _lock = store.lock_vm(&"one-42".parse().unwrap(), Action::Save, Duration::ZERO).unwrap();
        thread::sleep(Duration::from_secs(30));
        Ok(None)
    });
}

/// Like the probe or `poll`, which reconcile the whole host.
#[test]
#[ignore = "part of cancel_kills_only_programs_of_the_driver"]
fn program_with_other_work() {
    opennebula::run(Action::Poll, |_| {
        hold_the_lock(Action::Reconcile);
        Ok(None)
    });
}

/// Like a program that embeds the library.
#[test]
#[ignore = "part of cancel_kills_only_programs_of_the_driver"]
fn embedder() {
    hold_the_lock(Action::Save);
}

#[test]
fn cancel_kills_only_programs_of_the_driver() {
    for (child, is_killed) in [("program", true), ("program_with_other_work", false), ("embedder", false)] {
        let host = ModelHost::default();
        let vm = "one-42".parse().unwrap();
        let store = host.host().claims().unwrap();
        let mut holder = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--ignored", child])
            .env("STATE", host.state_dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the lock is held", || {
            store.vm_holder(&vm).unwrap().is_some_and(|other| other.token.process().pid() == holder.id())
        });
        actions::cancel(&host.host(), &"one-42".parse().unwrap(), Some(&DomainName::of_vm(42))).unwrap();
        let status = holder.wait().unwrap();
        assert_eq!((status.signal() == Some(9), status.success()), (is_killed, !is_killed), "{child}: {status}");
    }
}
