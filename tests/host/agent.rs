//! The agent as a process. A script replaces ssh, and libvirt's test driver is the libvirtd of each "host".

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvm_sriov::HostName;
use kvm_sriov::actions::{Route, migrate_local};
use kvm_sriov::agent::{Presence, Ssh, ask_state};
use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::{Remotes, run};
use kvm_sriov_tests::rig_host::Said;

/// The UUID of the test driver's domain.
const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

fn remotes() -> Remotes {
    let remotes = Remotes::default();
    let kvmrc = format!("LIBVIRT_URI=test:///default\nVF_STATE_DIR={}\n", remotes.path().join("state").display());
    fs::write(remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), kvmrc).unwrap();
    remotes
}

/// Writes a program `ssh` that runs this script and records its arguments.
fn ssh(remotes: &Remotes, script: &str) -> PathBuf {
    let bin = remotes.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let path = bin.join("ssh");
    let text = format!("#!/bin/sh\necho \"$@\" >>'{}'\n{script}\n", remotes.path().join("args").display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Prints a greeting and runs the last argument on this host.
const HERE: &str = "echo 'Welcome to node2'; echo 'Last login: never' >&2; for command; do :; done; exec \"$command\"";

fn state(remotes: &Remotes, script: &str, uuid: &str) -> Result<Presence, String> {
    let reach = Ssh::new(&remotes.driver()).with_program(ssh(remotes, script));
    let host: HostName = "node2".parse().unwrap();
    ask_state(&reach, &host, &uuid.parse().unwrap()).map_err(|error| error.to_string())
}

#[test]
fn a_host_is_asked_where_a_vm_is() {
    let remotes = remotes();
    assert_eq!(state(&remotes, HERE, UUID).unwrap(), Presence::Running);
    assert_eq!(state(&remotes, HERE, "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10").unwrap(), Presence::Absent);
    let args = fs::read_to_string(remotes.path().join("args")).unwrap();
    let first = args.lines().next().unwrap();
    assert!(first.starts_with("-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 "), "{first}");
    assert!(first.ends_with(&format!(" -- node2 {}", remotes.driver().join("sriov_agent").display())), "{first}");
    assert!(!remotes.path().join("state").exists(), "the state directory was made");
}

#[test]
fn an_agent_that_does_not_start_says_why() {
    let remotes = remotes();
    for (script, said) in [
        ("echo 'node2: Permission denied (publickey).' >&2; exit 255", "node2: Permission denied (publickey)."),
        ("echo 'Welcome'; exit 0", "the connection ended before its first line"),
    ] {
        let error = state(&remotes, script, UUID).unwrap_err();
        assert_eq!(error, format!("cannot start the agent on node2: {said}"));
    }
    let error = state(&remotes, "echo 'kvm-sriov-agent 99 7.0.0'; cat", UUID).unwrap_err();
    assert!(error.starts_with("the agent on node2 speaks version 99 of the protocol, this host version 2"), "{error}");
    let error = state(&remotes, "echo 'kvm-sriov-agent 2 0.1.0'; read line; echo 'nonsense'", UUID).unwrap_err();
    assert_eq!(error, "the agent on node2 said \"nonsense\"");
    let error = state(&remotes, "echo 'kvm-sriov-agent 2 0.1.0'; read line; echo 'broken pipe' >&2", UUID).unwrap_err();
    assert_eq!(error, "the agent on node2 was lost: broken pipe");
    // A program that ssh started lives on, and keeps ssh's standard error open.
    let begin = Instant::now();
    let script = "sleep 60 </dev/null >/dev/null & echo 'node2: broken' >&2; exit 255";
    let error = state(&remotes, script, UUID).unwrap_err();
    assert_eq!(error, "cannot start the agent on node2: node2: broken");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

/// The other host may be broken, or somebody else's. It can make a move fail, but not hang, and not fill the memory.
#[test]
fn a_host_that_says_anything_is_an_error_and_not_a_hang() {
    let remotes = remotes();
    const FIRST: &str = "echo 'kvm-sriov-agent 2 0.2.0'";
    let cannot = |why: &str| format!("cannot start the agent on node2: {why}");
    let said = |what: &str| format!("the agent on node2 said \"{what}\"");
    let flood = "it sent 65536 bytes, and no line of an agent";
    for (script, expected) in [
        ("exec yes welcome", cannot(flood)),
        ("exec yes ''", cannot(flood)),
        ("exec tr '\\0' x </dev/zero", cannot("the connection ended before its first line")),
        ("printf 'kvm-sriov-agent 2'; exit 0", cannot("the connection ended before its first line")),
        ("printf '\\377\\376 broken\\n' >&2; exit 255", cannot("\u{fffd}\u{fffd} broken")),
        ("echo \"$(printf '\\033[2J')\" >&2; exit 1", cannot("\u{1b}[2J")),
        (&format!("{FIRST}; read line; exec yes 'state is=running x'"), said("state is=running x")),
        (&format!("{FIRST}; read line; printf 'state is=none'; exit 0"), "the agent on node2 was lost".into()),
        (&format!("{FIRST}; read line; printf 'state is=none\\033[2J\\n'; cat"), said("state is=none\\u{1b}[2J")),
        (&format!("{FIRST}; read line; echo done; cat"), said("done")),
        (&format!("{FIRST}; read line; echo 'refused why=%1b%5b2J%ff'; cat"), said("refused why=%1b%5b2J%ff")),
        (&format!("{FIRST}; read line; exec tr '\\0' x </dev/zero"), "the agent on node2 was lost".into()),
        (&format!("{FIRST}; read line; echo \"$line\"; cat"), said(&format!("state uuid={UUID}"))),
    ] {
        assert_eq!(state(&remotes, script, UUID).unwrap_err(), expected, "{script}");
    }
    // What the other host writes to standard error is read to its end, whatever it is.
    let noise =
        "printf '\\377\\n' >&2; i=0; while [ $i -lt 20000 ]; do echo 'WARN: sriov_agent: x' >&2; i=$((i+1)); done";
    let script = format!("{noise}; {FIRST}; read line; echo 'state is=paused'; cat");
    assert_eq!(state(&remotes, &script, UUID).unwrap(), Presence::Paused);
    // A user sees no text of the other host that a terminal obeys.
    ssh(&remotes, "printf '\\033]0;x\\007\\233' >&2; printf '\\r\\nExitCode: 0 EOF_ERR\\n' >&2; exit 255");
    let path = format!("{}:{}", remotes.path().join("bin").display(), std::env::var("PATH").unwrap());
    let said = run(remotes.program("migrate", &[UUID, "node2", "node1"]).env("PATH", path), &recorded());
    let text = "migrate: cannot start the agent on node2: \\u{1b}]0;x\\u{7}\u{fffd} ExitCode: 0 EOF_ERR; nothing was changed.\n";
    assert_eq!((said.code, said.err.as_str()), (1, text));
}

#[test]
fn an_agent_that_cannot_read_its_kvmrc_refuses() {
    let remotes = remotes();
    // A program that plugs VFs fails if it can't read a line of kvmrc.
    let kvmrc = remotes.path().join("etc/vmm/kvm-sriov/kvmrc");
    fs::write(&kvmrc, "LIBVIRT_URI=$(x)\n").unwrap();
    let error = state(&remotes, HERE, UUID).unwrap_err();
    assert!(error.starts_with(&format!("node2: {}, line 1: expected", kvmrc.display())), "{error}");
}

fn call(remotes: &Remotes, action: &str, args: &[&str], stdin: &str) -> Said {
    ssh(remotes, HERE);
    let path = format!("{}:{}", remotes.path().join("bin").display(), std::env::var("PATH").unwrap());
    run(remotes.program(action, args).env("PATH", path), stdin)
}

/// A definition that is shut off is not a domain. Reverting to a snapshot or `--persistent` leaves such definitions.
#[test]
fn a_definition_that_is_shut_off_is_ignored() {
    let remotes = remotes();
    let domain = |name: &str, uuid: &str, state: &str| {
        format!(
            "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>8192</memory><os><type>hvm</type></os>\
             <metadata><test:domain xmlns:test='http://libvirt.org/schemas/domain/test/1.0'/></metadata>\
             <test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>{state}</test:runstate></domain>"
        )
    };
    let off = "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10";
    let node = format!("<node>{}{}</node>", domain("one-42", off, "5"), domain("one-43", UUID, "1"));
    let path = remotes.path().join("node.xml");
    fs::write(&path, node).unwrap();
    let kvmrc =
        format!("LIBVIRT_URI=test://{}\nVF_STATE_DIR={}\n", path.display(), remotes.path().join("state").display());
    fs::write(remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), kvmrc).unwrap();
    let ask = |request: &str| {
        let mut agent = Command::new(remotes.driver().join("sriov_agent"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        lines.next().unwrap();
        let mut input = agent.stdin.take().unwrap();
        writeln!(input, "{request}").unwrap();
        let answer = lines.next().unwrap();
        drop(input);
        agent.wait().unwrap();
        answer
    };
    assert_eq!(ask(&format!("state uuid={off}")), "state is=none");
    assert_eq!(ask(&format!("prepare vm=one-42 uuid={off} id=7")), "ready");
    assert_eq!(
        ask(&format!("prepare vm=one-43 uuid={UUID} id=7")),
        "refused why=one-43%20is%20already%20on%20this%20host"
    );
    // Other actions don't find the definition either.
    let said = call(&remotes, "poll", &[off, "node1"], "");
    let other = call(&remotes, "poll", &["one-99", "node1"], "");
    assert_eq!((said.code, said.out), (other.code, other.out));
    let said = call(&remotes, "shutdown", &[off, "node1"], "");
    assert_eq!((said.code, said.err.as_str()), (0, ""));
}

/// The standard input of a recorded call.
fn recorded() -> String {
    fs::read_to_string(project().join("tests/fixtures/wire/31-migrate-on-hostA/stdin")).unwrap()
}

#[test]
fn a_destination_that_has_the_vm_already_refuses_it() {
    let remotes = remotes();
    let said = call(&remotes, "migrate", &[UUID, "node2", "node1"], &recorded());
    let text = "migrate: node2: test is already on this host; nothing was changed.\n";
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (1, "", text));
    let said = call(&remotes, "migrate", &["one-42", "-oProxyCommand=x", "node1"], &recorded());
    let text =
        "migrate: destination: expected a host name such as node3, found \"-oProxyCommand=x\"; nothing was changed.\n";
    assert_eq!((said.code, said.err.as_str()), (1, text));
}

#[test]
fn the_front_end_asks_the_source() {
    let remotes = remotes();
    let parent = remotes.path().parent().unwrap();
    assert!(!parent.join("config").exists(), "{} is in the way of this test", parent.join("config").display());
    let encoded = encode(recorded().as_bytes());
    // The front-end knows only OpenNebula's place for the driver on hosts. On this machine there is nothing in that
    // place.
    let said = call(&remotes, "migrate_local", &[UUID, "node2", "node1"], &encoded);
    let text = "/var/tmp/one/vmm/kvm-sriov/sriov_agent: not found; nothing was changed.\n";
    assert!(said.code == 1 && said.err.starts_with("migrate_local: cannot start the agent on node1: "), "{said:?}");
    assert!(said.err.ends_with(text), "{said:?}");
    let args = fs::read_to_string(remotes.path().join("args")).unwrap();
    assert!(args.contains(" ForwardAgent=yes -- node1 /var/tmp/one/vmm/kvm-sriov/sriov_agent"), "{args}");
    let said = call(&remotes, "migrate_local", &[UUID, "node2", "node1"], "<VM/>");
    let text = "migrate_local: cannot read the XML from standard input: it is not base64; nothing was changed.\n";
    assert_eq!((said.code, said.err.as_str()), (1, text));
}

#[test]
fn an_agent_is_asked_for_the_whole_move() {
    let remotes = remotes();
    ssh(&remotes, HERE);
    let path = format!("{}:{}", remotes.path().join("bin").display(), std::env::var("PATH").unwrap());
    let mut agent = Command::new(remotes.driver().join("sriov_agent"))
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.next().unwrap().starts_with("kvm-sriov-agent 2 "));
    let mut input = agent.stdin.take().unwrap();
    writeln!(input, "migrate vm={UUID} from=node1 to=node2").unwrap();
    assert_eq!(
        lines.next().unwrap(),
        "failed cause=node2:%20test%20is%20already%20on%20this%20host state=nothing%20was%20changed"
    );
    writeln!(input, "finish uuid=7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10 id=7").unwrap();
    assert_eq!(lines.next().unwrap(), "refused why=no%20VM%20was%20announced%20to%20this%20agent");
    drop(input);
    assert!(agent.wait().unwrap().success());
}

/// The result of a move that the front-end orders. The source's `migrate` is this script, or the real program.
fn moved(remotes: &Remotes, script: Option<&str>) -> Result<(), String> {
    if let Some(script) = script {
        let migrate = remotes.driver().join("migrate");
        fs::write(&migrate, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&migrate, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // The source reaches the destination through the same program.
    let here = format!("PATH='{}':$PATH; export PATH; {HERE}", remotes.path().join("bin").display());
    let reach = Ssh::new(&remotes.driver()).with_program(ssh(remotes, &here));
    let route = Route { from: "node1".parse().ok(), to: "node2".parse().unwrap() };
    migrate_local(&UUID.parse().unwrap(), &route, Some(recorded()), &reach).map_err(|error| error.to_string())
}

#[test]
fn the_source_moves_with_its_own_program() {
    let remotes = remotes();
    let error = moved(&remotes, None).unwrap_err();
    assert_eq!(error, "migrate_local: node1: node2: test is already on this host; nothing was changed");
    let args = fs::read_to_string(remotes.path().join("args")).unwrap();
    let hosts: Vec<&str> = args.lines().filter_map(|line| line.split(" -- ").nth(1)?.split(' ').next()).collect();
    assert_eq!(hosts, ["node1", "node2"]);

    let note = remotes.path().join("note");
    let script =
        format!("echo \"$@\" >'{0}'; cat >>'{0}'; echo 'INFO: migrate: half of it is copied' >&2", note.display());
    moved(&remotes, Some(&script)).unwrap();
    assert_eq!(fs::read_to_string(&note).unwrap(), format!("{UUID} node2 node1\n{}", recorded()));

    let block = "echo 'ERROR MESSAGE --8<------'; echo 'migrate: no; a; b.'; echo 'ERROR MESSAGE ------>8--'";
    let unclear = format!("the move may go on there; kvm-sriov explain {UUID} on both hosts tells where the VM is");
    for (script, said) in [
        ("echo 'WARN: migrate: well' >&2; echo 'migrate: it broke; it is left.' >&2; exit 1", "it broke; it is left"),
        (&format!("( {block} ) >&2; exit 1"), "no; a; b"),
        ("kill -9 $$", &format!("migrate ended early (signal: 9 (SIGKILL)); {unclear}")),
        ("echo 'what?' >&2; exit 3", &format!("migrate ended early (exit status: 3) what?; {unclear}")),
    ] {
        assert_eq!(moved(&remotes, Some(script)).unwrap_err(), format!("migrate_local: node1: {said}"));
    }
    let migrate = remotes.driver().join("migrate");
    fs::remove_file(&migrate).unwrap();
    let error = moved(&remotes, None).unwrap_err();
    let said = format!("migrate_local: node1: cannot start {}: No such file", migrate.display());
    assert!(error.starts_with(&said) && error.ends_with("; nothing was changed"), "{error}");
}

fn encode(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number =
            chunk.iter().fold(0_u32, |number, byte| (number << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = digits[(number >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
