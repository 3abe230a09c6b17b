//! Programs in a hostile place: an environment, limits and closed descriptors that nobody expects, and arguments, names
//! and documents that try to become commands, lines of a log, or commands of a terminal.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kvm_sriov_tests::caller::Version;
use kvm_sriov_tests::hand_over;
use kvm_sriov_tests::remotes::{Remotes, run, target};
use kvm_sriov_tests::site::{Recorded, Site};

/// More than any answer of a program needs.
const LONG: usize = 10_000;

/// Fails if a terminal would obey a part of the text, if it is longer than anybody reads, or if OpenNebula would take a
/// part of it for the end of the step.
#[track_caller]
fn is_harmless(what: &str, text: &str) {
    let odd = text.chars().find(|c| (c.is_control() && *c != '\n') || matches!(c, '\u{202a}'..='\u{202e}'));
    assert_eq!(odd, None, "{what}: {text:?}");
    assert!(text.len() < LONG, "{what}: {} bytes", text.len());
    // SSHStream and CommandManager of OpenNebula look for these at the beginning of a line.
    let ends = |line: &&str| ["ExitCode: ", "ExitSSHCode: ", "EOF_"].iter().any(|end| line.starts_with(end));
    assert_eq!(text.lines().find(ends), None, "{what}: {text:?}");
}

/// Texts that try to be more than a value.
fn hostile() -> Vec<String> {
    let texts = [
        "$(touch canary)",
        "`touch canary`",
        "; touch canary #",
        "' ; touch canary ; '",
        "|touch canary",
        "-oProxyCommand=touch canary",
        "--help",
        "../../../../etc/passwd",
        "x\nExitCode: 0 EOF_ERR\n",
        "x\r\nERROR MESSAGE --8<------\nall is well\nERROR MESSAGE ------>8--\n",
        "x\rwell done",
        "\u{1b}]0;title\u{7}\u{1b}[2J\u{1b}[31m",
        "\u{9b}2J\u{9b}31m",
        "one-\u{202e}24",
        "%n%s%x{0}",
        "",
    ];
    texts.into_iter().map(str::to_owned).chain(["x".repeat(100_000)]).collect()
}

/// Every action that OpenNebula calls, with a hostile text in place of one of its arguments or of its input.
#[test]
fn no_argument_is_more_than_a_value() {
    let remotes = Remotes::default();
    let place = remotes.path().join("here");
    fs::create_dir(&place).unwrap();
    let kvmrc = format!(
        "LIBVIRT_URI=test:///default\nVF_STATE_DIR={}\nSRIOV_CALL_TIMEOUT=5\n",
        remotes.path().join("state").display()
    );
    fs::write(remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), kvmrc).unwrap();
    let calls = Recorded::all();
    let mut actions: BTreeMap<&str, &Recorded> = calls.iter().rev().map(|call| (&*call.action, call)).collect();
    // It would copy to the host that is named, for which ssh waits.
    actions.remove("migrate");
    assert!(actions.len() > 15, "{actions:?}");
    let (texts, mut ran) = (hostile(), 0);
    for (turn, (action, call)) in actions.into_iter().enumerate() {
        // Each text comes to each action, in one place after the other.
        let places = call.args.len().min(4) + 1;
        for (number, text) in texts.iter().enumerate() {
            let place_of_text = (turn + number) % places;
            let mut args = call.args();
            let stdin = match args.get_mut(place_of_text).filter(|_| place_of_text + 1 < places) {
                Some(arg) => {
                    *arg = text;
                    "<VM/>"
                }
                None => text,
            };
            let said = run(remotes.program(action, &args).current_dir(&place), stdin);
            let what = format!("{action} {place_of_text} {:?}", text.chars().take(60).collect::<String>());
            is_harmless(&what, &said.err);
            is_harmless(&what, &said.out);
            assert!(!said.err.contains("panicked"), "{what}: {}", said.err);
            ran += 1;
        }
    }
    assert!(ran > 250, "{ran}");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "something ran, or was written where the program stands");
}

/// The recorded deploy with a hostile text as each value of its document.
#[test]
fn no_document_is_more_than_values() {
    let site = Site::new(Version::V7);
    let call = Recorded::first("deploy").fit(&site);
    let entities = "<!DOCTYPE d [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;'>]>";
    let file = "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>";
    for (what, stdin) in [
        ("entities", format!("{entities}<domain>&c;</domain>")),
        ("a file", format!("{file}<domain>&a;</domain>")),
        ("depth", "<a>".repeat(150_000)),
        ("attributes", format!("<domain {}/>", (0..50_000).map(|n| format!("a{n}=''")).collect::<String>())),
        ("size", format!("<domain>{}</domain>", "x".repeat(9 << 20))),
        ("many elements", format!("<domain>{}</domain>", "<x/>".repeat(300_000))),
        (
            "many namespaces",
            format!("<domain {}/>", (0..999).map(|n| format!(" xmlns:n{n}='{n}'")).collect::<String>()),
        ),
        ("a name that is long", format!("<{}/>", "x".repeat(1 << 20))),
        ("a name of C1", "<domain><name>one&#x9b;2J</name></domain>".into()),
        ("a bridge of C1", call.stdin.replace("bridge='onebr0'", "bridge='sriov_&#x9b;2J'")),
        ("a bridge of lines", call.stdin.replace("bridge='onebr0'", "bridge='sriov_ib0&#10;ExitCode: 0 EOF_ERR&#10;'")),
        ("a MAC", call.stdin.replace("<mac address='", "<mac address='$(touch canary)")),
    ] {
        assert_ne!(stdin, call.stdin, "{what}");
        // A gigabyte: the limits of the documents are far below it.
        let mut program = Command::new("prlimit");
        program
            .arg("--as=1073741824")
            .arg(site.remotes().driver().join("deploy"))
            .args(call.args())
            .args(["0", "node1"]);
        let said = run(&mut program, &stdin);
        assert!(said.code == 255 && said.out.is_empty(), "{what}: {said:?}");
        is_harmless(what, &said.err);
        assert_eq!(site.domain("one-0"), None, "{what}");
    }
}

/// A domain that somebody else made, with odd texts in the places that the driver reads.
#[test]
fn the_command_shows_no_text_that_a_terminal_obeys() {
    let dir = tempfile::tempdir().unwrap();
    let driver = dir.path().join("vmm/kvm-sriov");
    fs::create_dir_all(driver.join("vf_maps")).unwrap();
    fs::write(driver.join("vf_maps/ib0"), "0x07 0x00 0x01\n").unwrap();
    fs::write(driver.join("vf_maps/ib1"), "\u{1b}[2J\n\u{9b}2J\n").unwrap();
    let node = dir.path().join("node.xml");
    let domain = |number: u32, ours: &str| {
        format!(
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>one-{number}&#x202e;x</name>\
             <uuid>7f1c2a52-64d6-4c0c-9b0e-0000000000{number}</uuid><memory>65536</memory><os><type>hvm</type></os>\
             <metadata><sriov:domain xmlns:sriov='urn:kvm-sriov:domain:1' {ours}</sriov:domain></metadata>\
             <test:transient/><test:runstate>3</test:runstate></domain>"
        )
    };
    let odd = "&#x9b;31m&#x202e;&#10;well&#13;x";
    let domains = [
        format!("version='1.0'><sriov:operation kind='migrate' to='{odd}' from='{odd}' id='{odd}'/>"),
        format!("version='1.0'><sriov:operation kind='restore' checkpoint='/x/{odd}'/>"),
        format!("version='1.0'><sriov:operation kind='{odd}'/>"),
        format!("version='{odd}'>"),
        format!("version='1.0'><sriov:nic mac='{odd}' root='{odd}' position='{odd}'/>"),
        format!("version='1.0'><sriov:nic mac='02:00:0a:00:00:01' root='ib0' position='0' mode='{odd}'/>"),
    ];
    let domains: Vec<String> = (41..).zip(&domains).map(|(number, ours)| domain(number, ours)).collect();
    fs::write(&node, format!("<node>{}</node>", domains.concat())).unwrap();
    let kvmrc = format!(
        "LIBVIRT_URI=test://{}\nVF_STATE_DIR={}\nX=$(\u{9b}\n",
        node.display(),
        dir.path().join("state").display()
    );
    fs::write(driver.join("kvmrc"), kvmrc).unwrap();
    // A claim of a VM whose name is odd, and a file that is no claim.
    let claims = dir.path().join("state/ib0");
    fs::create_dir_all(&claims).unwrap();
    fs::write(claims.join("0"), "\u{1b}[2J\n\u{9b}2J").unwrap();
    fs::write(claims.join("1"), "kvm-sriov-claim 1\nvm=one-\u{202e}42\nvf=0000:07:00.2\nboot=x\n").unwrap();
    for place in [dir.path().join("state"), claims] {
        fs::set_permissions(place, fs::Permissions::from_mode(0o700)).unwrap();
    }
    hand_over(dir.path());
    let uuid = |number: u32| format!("7f1c2a52-64d6-4c0c-9b0e-0000000000{number}");
    let all: Vec<String> =
        (41..47).flat_map(|n| [format!("explain {}", uuid(n)), format!("resolve {}", uuid(n))]).collect();
    let mut printed = 0;
    for command in ["list", "check", "reconcile --dry-run", "reconcile"].map(str::to_owned).iter().chain(&all) {
        for json in ["", "--json"] {
            let words = command.split(' ').chain([json]).filter(|word| !word.is_empty());
            let mut program = Command::new(target().join("release/kvm-sriov"));
            program.arg("--driver").arg(&driver).args(words).env("RUST_LOG", "debug");
            let said = run(&mut program, "");
            let what = format!("{command} {json}");
            for text in [&said.out, &said.err] {
                let odd = text.chars().find(|c| c.is_control() && *c != '\n');
                assert_eq!(odd, None, "{what}: {text:?}");
                assert!(!text.lines().any(|line| line.starts_with("well")), "{what}: {text}");
            }
            if json.is_empty() {
                assert!(!said.out.contains('\u{202e}') && !said.err.contains('\u{202e}'), "{what}: {}", said.out);
            } else if !said.out.is_empty() {
                serde_json::from_str::<serde_json::Value>(&said.out).unwrap();
            }
            printed += usize::from(format!("{}{}", said.out, said.err).contains("\\u{9b}"));
        }
    }
    assert!(printed > 5, "the odd texts are nowhere to be seen: {printed}");
}

/// Runs an action of a VM behind these words of a shell, such as `ulimit -n 5;`.
fn behind(site: &Site, before: &str, action: &str, after: &str, stdin: &str, args: &[&str]) -> Output {
    let line = format!("{before} exec {}/{action} \"$@\" {after}", site.remotes().driver().display());
    let mut shell = Command::new("bash");
    shell.args(["-c", &line, "bash"]).args(args).args(["0", "node1"]);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that can't read its input is no failure.
    drop(std::io::Write::write_all(&mut child.stdin.take().unwrap(), stdin.as_bytes()));
    child.wait_with_output().unwrap()
}

/// An action under a limit does all of its work, or fails and leaves nothing. GLib, a library of libvirt's, ends a
/// process that can't have the few descriptors of its event loop (SIGTRAP), before libvirt is called.
#[test]
fn limits_of_a_process_end_no_action_halfway() {
    let site = Site::new(Version::V7);
    let deploy = Recorded::first("deploy").fit(&site);
    let data = "<VMM_DRIVER_ACTION_DATA><VM><ID>0</ID></VM></VMM_DRIVER_ACTION_DATA>";
    let limits = (4..24).map(|number| format!("ulimit -n {number};"));
    let limits = limits.chain(["ulimit -f 0;", "ulimit -c 0 -l 0 -q 0 -i 0;"].map(str::to_owned));
    let (mut failed, mut done) = (0, 0);
    for limit in limits {
        let out = behind(&site, &limit, "deploy", "", &deploy.stdin, &deploy.args());
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(matches!(out.status.signal(), None | Some(5)), "{limit} {text}");
        assert_eq!(out.status.signal().is_some(), text.contains("GLib-ERROR"), "{limit} {text}");
        assert!(!text.contains("panicked"), "{limit} {text}");
        // Without a descriptor the dynamic loader can't start it (127), and nothing has happened.
        if out.status.success() {
            done += 1;
            assert!(site.domain("one-0").is_some(), "{limit}");
        } else {
            failed += 1;
            assert_eq!(site.domain("one-0"), None, "{limit} {text}");
            assert!(!text.is_empty(), "{limit}");
        }
        if out.status.signal().is_none() {
            is_harmless(&limit, &text);
        }
        site.caller(0).run("cancel", &["one-0", "node1"], data).ok();
        assert_eq!(site.domain("one-0"), None, "{limit}");
    }
    assert!(failed > 2 && done > 5, "the limits are all too low or too high: {failed} failed, {done} done");
}

/// The kernel sends SIGXFSZ to a process that writes more than it may.
#[test]
fn a_file_that_may_not_grow_is_an_error_and_not_the_end() {
    let site = Site::new(Version::V7);
    let deploy = Recorded::first("deploy").fit(&site);
    let out = behind(&site, "ulimit -f 0;", "deploy", "", &deploy.stdin, &deploy.args());
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.signal(), out.status.code()), (None, Some(255)), "{text}");
    assert!(text.contains("File too large") && text.contains("nothing was started"), "{text}");
}

/// Where no thread can be started, an action fails and says so.
#[test]
fn without_threads_an_action_fails_and_changes_nothing() {
    let site = Site::new(Version::V7);
    hand_over(site.remotes().path());
    let deploy = Recorded::first("deploy").fit(&site);
    let out = behind(&site, "ulimit -u 1;", "deploy", "", &deploy.stdin, &deploy.args());
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.signal(), out.status.code()), (None, Some(255)), "{text}");
    assert!(text.contains("thread") && !text.contains("panicked"), "{text}");
    assert_eq!(site.domain("one-0"), None);
}

/// A program that opens a file while one of its first three descriptors is closed gets that number for the file, and
/// would write its messages into it.
#[test]
fn closed_descriptors_are_not_taken_for_files() {
    let site = Site::new(Version::V7);
    let deploy = Recorded::first("deploy").fit(&site);
    let file = deploy.args()[0].to_owned();
    for closed in ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let out = behind(&site, "", "deploy", closed, &deploy.stdin, &deploy.args());
        assert_eq!(out.status.signal(), None, "{closed}");
        assert_eq!(site.domain("one-0").is_some(), !closed.contains('<'), "{closed}");
        if let Ok(text) = fs::read_to_string(&file) {
            assert!(text == deploy.stdin, "{closed}: {text}");
        }
        behind(&site, "", "cancel", closed, "", &["one-0", "node1"]);
        assert_eq!(site.domain("one-0"), None, "{closed}");
        drop(fs::remove_file(&file));
    }
}

/// What the environment says of libvirt, languages and programs changes nothing.
#[test]
fn the_environment_chooses_nothing() {
    let site = Site::new(Version::V7);
    let deploy = Recorded::first("deploy").fit(&site);
    let bait = site.remotes().path().join("bait");
    fs::create_dir(&bait).unwrap();
    for program in ["virsh", "sh", "bash", "rm", "flock", "libvirtd"] {
        fs::write(bait.join(program), format!("#!/bin/sh\ntouch '{}/canary'\n", bait.display())).unwrap();
        fs::set_permissions(bait.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let bytes = std::os::unix::ffi::OsStrExt::from_bytes;
    let odd: &std::ffi::OsStr = bytes(b"\xff\xfe\x1b[2J");
    let environments: [&[(&str, &std::ffi::OsStr)]; 6] = [
        &[],
        &[("PATH", bait.as_os_str())],
        &[("PATH", odd), ("HOME", odd), ("TMPDIR", odd), ("XDG_RUNTIME_DIR", odd)],
        &[
            ("LIBVIRT_DEFAULT_URI", "test:///nonexistent".as_ref()),
            ("VIRSH_DEFAULT_CONNECT_URI", odd),
            ("LIBVIRT_AUTH_FILE", odd),
        ],
        &[("LANG", "de_DE.UTF-8".as_ref()), ("LC_ALL", "xx".as_ref()), ("LANGUAGE", "ja:de".as_ref())],
        &[("RUST_BACKTRACE", "full".as_ref()), ("RUST_LOG", "trace".as_ref()), ("RUST_MIN_STACK", "1".as_ref())],
    ];
    let program = |action: &str, args: &[&str]| {
        let mut program = Command::new(site.remotes().driver().join(action));
        program.args(args).args(["0", "node1"]).env_clear();
        program
    };
    for environment in environments {
        let said = run(program("deploy", &deploy.args()).envs(environment.iter().copied()), &deploy.stdin);
        assert_eq!(said.code, 0, "{environment:?} {said:?}");
        assert!(site.domain("one-0").is_some(), "{environment:?}");
        is_harmless("deploy", &said.err);
        let said = run(program("reboot", &["one-9", "node1"]).envs(environment.iter().copied()), "");
        assert!(said.err.ends_with("there is no domain one-9 on this host; nothing was changed.\n"), "{said:?}");
        let said = run(program("cancel", &["one-0", "node1"]).envs(environment.iter().copied()), "");
        assert_eq!(said.code, 0, "{environment:?} {said:?}");
        assert_eq!(site.domain("one-0"), None, "{environment:?}");
    }
    assert!(!Path::new(&bait).join("canary").exists());
}
