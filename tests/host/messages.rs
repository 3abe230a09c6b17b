//! What a user of OpenNebula sees of every failure, after the caller has filtered it: tests/fixtures/messages. Run with
//! KVM_SRIOV_MESSAGES=write to write these files again, and read what has changed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;
use std::{fs, io};

use kvm_sriov::AgentError;
use kvm_sriov::UnplugOutcome;
use kvm_sriov::actions;
use kvm_sriov::claims::{ClaimError, Holder, Process, Token};
use kvm_sriov::config::OneVersion;
use kvm_sriov::libvirt::{LibvirtError, LibvirtErrorKind, RunState};
use kvm_sriov::opennebula::NicArgs;
use kvm_sriov::reconcile::{Doubt, Obstacle};
use kvm_sriov::sysfs::NoVf;
use kvm_sriov::xml::Deployment;
use kvm_sriov::{Action, ActionError, Cause, HostState, NicMode, Position};
use kvm_sriov_model::Guest;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::caller::Version;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::site::{Recorded, Site};
use kvm_sriov_tests::vm::Vm;

/// One file of messages: what happened, the exit code, and what a user sees.
struct Messages {
    part: &'static str,
    seen: Vec<(String, i32, String)>,
}

impl Messages {
    fn of(part: &'static str) -> Self {
        Self { part, seen: Vec::new() }
    }

    /// Adds a message. Fails if it is badly formed.
    fn note(&mut self, what: &str, code: i32, message: &str) {
        let said = message.strip_suffix(&format!("ExitCode: {code}")).unwrap_or(message).trim_end();
        assert!(said.contains(": ") && said.ends_with(['.', ')', '?', '!']), "{what}: {message}");
        assert!(!said.contains("..") || said.contains("../"), "{what}: {message}");
        assert!(!said.contains(['\n', '\t']) && !said.contains("  ") && said.len() < 1000, "{what}: {message}");
        assert_ne!(code, 0, "{what}");
        self.seen.push((what.to_owned(), code, message.to_owned()));
    }

    /// Fails unless the file has the same messages.
    fn compare(&self) {
        let mut text = String::new();
        for (what, code, message) in &self.seen {
            writeln!(text, "{what} [{code}]\n    {message}").unwrap();
        }
        agrees(self.part, &text);
    }
}

/// Masks the text between `begin` and `end`: it is libvirt's and differs between versions, or the kernel's and differs
/// between runs.
fn mask(text: &str, begin: &str, end: &str, mask: &str) -> String {
    let Some((before, rest)) = text.split_once(begin) else { panic!("{begin:?} is not in {text:?}") };
    let Some((_, after)) = rest.split_once(end) else { panic!("{end:?} is not in {rest:?}") };
    format!("{before}{begin}<{mask}>{end}{after}")
}

#[test]
fn messages_of_the_programs() {
    let mut site = Site::new(Version::V7);
    let mut messages = Messages::of("programs.txt");
    let deploy = Recorded::first("deploy").fit(&site);
    let data = "<VMM_DRIVER_ACTION_DATA><VM><ID>0</ID></VM></VMM_DRIVER_ACTION_DATA>";
    let place = site.remotes().path().display().to_string();
    let said = |site: &Site, action: &str, args: &[&str], stdin: &str| {
        let answer = site.caller(0).run(action, args, stdin);
        assert_eq!(answer.stdout, "", "{action}");
        (answer.code, answer.message.replace(&place, "<remotes>"))
    };
    for (what, action, args, stdin) in [
        ("no deploy id", "cancel", &["", "node1"][..], data),
        ("a deploy id that is none", "reboot", &["a/b", "node1"], data),
        ("no such domain", "reset", &["one-42", "node1"], data),
        ("no such domain", "save", &["one-42", "/d/checkpoint", "node1"], data),
        ("no such domain", "attach_nic", &["one-42", "02:00:0a:00:2a:01", "br0", "-", "bridge", ""], data),
        ("a MAC that is none", "attach_nic", &["one-42", "02:00", "br0", "-", "", ""], data),
        ("a message that is none", "attach_disk", &["one-42", "/d/disk.2", "vdb", "1", "?"], data),
        ("XML that is cut short", "detach_disk", &["one-42", "/d/disk.2", "vdb", "1"], "<VMM_DRIVER_ACTION_DATA>"),
        ("no XML", "resize", &["one-42"], ""),
        ("a destination that is none", "migrate", &["one-42", "-oProxyCommand=x", "node1"], data),
        ("a snapshot that is none", "snapshot_revert", &["one-42", "a/b"], data),
        ("an empty deployment file", "deploy", &deploy.args(), ""),
        ("an XML with a DTD", "deploy", &deploy.args(), "<!DOCTYPE x []><domain/>"),
        ("a disk that is not there", "detach_disk", &["test", "/d/disk.2", "vdz", "1"], data),
    ] {
        let (code, message) = said(&site, action, args, stdin);
        messages.note(&format!("{action}: {what}"), code, &message);
    }
    let args = ["/nonexistent/checkpoint", "node1", "one-42"];
    let (code, message) = said(&site, "restore", &args, data);
    let message = mask(&message, "checkpoint: ", "; nothing was restored", "libvirt's reason");
    messages.note("restore: no checkpoint", code, &message);
    let (code, message) = said(&site, "snapshot_revert", &["test", "snap-9"], data);
    let message = mask(&message, "for domain test: ", "; nothing was changed", "libvirt's reason");
    messages.note("snapshot_revert: a snapshot that is not there", code, &message);
    // A network that asks for a VF, on a host that is not set up for VFs.
    let vf = deploy.stdin.replace("bridge='onebr0'", "bridge='sriov_ib0'");
    let (code, message) = said(&site, "deploy", &deploy.args(), &vf);
    messages.note("deploy: no map", code, &message);
    site.write_map("ib0", "0x07 0x00 0x01\n");
    let (code, message) = said(&site, "deploy", &deploy.args(), &vf);
    messages.note("deploy: the dummies' bridge is none", code, &message);
    site.configure("DUMMY_BRIDGE=");
    let (code, message) = said(&site, "deploy", &deploy.args(), &vf);
    messages.note("deploy: no dummies' bridge", code, &message);
    site.configure("DUMMY_BRIDGE=$(id)");
    let (code, message) = said(&site, "deploy", &deploy.args(), &vf);
    messages.note("deploy: a kvmrc that can't be read", code, &message);
    site.configure("");
    site.write_map("ib0.conf", "MODE=ethernet\nVLAN=7\n");
    let (code, message) = said(&site, "deploy", &deploy.args(), &vf);
    messages.note("deploy: a root's settings that can't be read", code, &message);
    site.caller(0).run("deploy", &deploy.args(), &deploy.stdin).ok();
    let (code, message) = said(&site, "deploy", &deploy.args(), &deploy.stdin);
    let message = mask(&message, "deployment.0: ", "; a domain of this name or UUID runs", "libvirt's reason");
    messages.note("deploy: the domain is there", code, &message);
    site.configure("LIBVIRT_URI=test+unix:///default?socket=/nonexistent/socket");
    for action in ["deploy", "cancel"] {
        let args = if action == "deploy" { deploy.args() } else { vec!["one-0", "node1"] };
        let (code, message) = said(&site, action, &args, &deploy.stdin);
        let message = mask(&message, "?socket=/nonexistent/socket: ", " (is libvirtd", "libvirt's reason");
        messages.note(&format!("{action}: libvirtd does not run"), code, &message);
    }
    site.becomes(Version::V6_10);
    let (code, message) = said(&site, "reboot", &["a/b", "node1"], data);
    messages.note("reboot: a deploy id that is none, in 6.10", code, &message);
    site.becomes(Version::V6_0);
    let (code, message) = said(&site, "reboot", &["a/b", "node1"], data);
    messages.note("reboot: a deploy id that is none, in 6.0", code, &message);
    messages.compare();
}

/// Shows failures as a user sees them, in each of the three forms.
struct Seen {
    remotes: [(Version, Remotes); 3],
}

impl Seen {
    fn new() -> Self {
        Self { remotes: [Version::V6_0, Version::V6_10, Version::V7].map(|version| (version, Remotes::of(version))) }
    }

    fn note(&self, messages: &mut Messages, what: &str, error: &ActionError) {
        let code = i32::from(error.exit_code());
        let [old, middle, new] = &self.remotes.each_ref().map(|(version, remotes)| {
            let text = OneVersion::detect(&remotes.driver()).failure(&error.to_string());
            version.message(&format!("{text}ExitCode: {code}\n"))
        });
        assert_eq!(middle, &format!("{old} ExitCode: {code}"), "{what}");
        assert_eq!(new, &format!("{old}ExitCode: {code}"), "{what}");
        messages.note(what, code, new);
    }
}

fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("sriov_ib1")
}

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

/// A host on which the VM runs.
fn a_running_vm() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &vm()).unwrap();
    host
}

fn attach(host: &ModelHost, number: usize) -> Result<(), ActionError> {
    let nic = NicArgs {
        mac: vm().mac(number).parse().unwrap(),
        bridge: Some("sriov_ib0".into()),
        model: None,
        vn_mad: None,
        target: None,
    };
    actions::attach_nic(&host.host(), &"one-42".parse().unwrap(), &nic.described(None), None)
}

fn detach(host: &ModelHost) -> Result<(), ActionError> {
    actions::detach_nic(&host.host(), &"one-42".parse().unwrap(), vm().mac(0).parse().unwrap(), None)
}

fn save(host: &ModelHost) -> Result<(), ActionError> {
    let file = host.vm_dir(&vm()).join("checkpoint");
    actions::save(&host.host(), &"one-42".parse().unwrap(), &file, None)
}

#[test]
fn messages_of_actions_on_the_model() {
    let (seen, messages) = (Seen::new(), RefCell::new(Messages::of("actions.txt")));
    let note = |what: &str, result: Result<(), ActionError>| {
        seen.note(&mut messages.borrow_mut(), what, &result.unwrap_err());
    };
    let note_masked = |what: &str, result: Result<(), ActionError>, begin: &str, end: &str, name: &str| {
        let error = result.unwrap_err();
        let message = mask(&format!("{error}."), begin, end, name);
        messages.borrow_mut().note(what, i32::from(error.exit_code()), &message);
    };

    let host = ModelHost::with_vfs(1);
    deploy(&host, &Vm::new(7).nic("sriov_ib0")).unwrap();
    note("deploy: a full map", deploy(&host, &vm()));
    let host = ModelHost::with_vfs(1);
    deploy(&host, &vm()).unwrap();
    note("attach_nic: a full map", attach(&host, 2));
    note("deploy: it runs already", deploy(&host, &vm()));

    let host = ModelHost::default();
    let unmapped = deploy(&host, &Vm::new(42).nic("sriov_ib7"));
    note_masked("deploy: a root without a map", unmapped, "looked in ", ";", "directories");
    for vf in host.vfs("ib0") {
        host.model().refuse(vf, &format!("vfio {vf}: group 11 is not viable"));
    }
    note("deploy: libvirt refuses every VF", deploy(&host, &vm()));

    let host = a_running_vm();
    host.set_kvmrc("SRIOV_UNPLUG_TIMEOUT=1\nSRIOV_LOCK_TIMEOUT=1\n");
    host.model().set_guest("one-42", Guest::Silent);
    note("detach_nic: a guest that does not answer", detach(&host));
    note("save: a guest that does not answer", save(&host));
    let snapshot = actions::snapshot_create(&host.host(), &"one-42".parse().unwrap(), 0, None).map(drop);
    note("snapshot_create: a guest that does not answer", snapshot);

    let host = a_running_vm();
    host.set_kvmrc("SRIOV_LOCK_TIMEOUT=1\n");
    let store = host.host().claims().unwrap();
    let lock = store.lock_vm(&"one-42".parse().unwrap(), Action::Migrate, Duration::ZERO).unwrap();
    note_masked("save: another action has the VM", save(&host), "migrate, ", "; ", "process");
    drop(lock);

    host.model().pause("one-42");
    note("save: a VM that is paused", save(&host));
    note("detach_nic: a VM that is paused", detach(&host));
    host.model().stop_cpus("one-42", RunState::Running);
    host.model().set_guest("one-42", Guest::Silent);
    host.set_kvmrc("SHUTDOWN_TIMEOUT=1\nFORCE_DESTROY=no\n");
    note("shutdown: a guest that does not answer", actions::shutdown(&host.host(), &"one-42".parse().unwrap(), true));
    let absent = actions::shutdown(&host.host(), &"one-43".parse().unwrap(), false);
    note("shutdown: no such domain, until 5.10", absent);
    messages.into_inner().compare();
}

/// Fails unless the file of this name says the same.
fn agrees(name: &str, text: &str) {
    let place = project().join("tests/fixtures/messages").join(name);
    if std::env::var_os("KVM_SRIOV_MESSAGES").is_some_and(|value| value == "write") {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(&place, text).unwrap();
    }
    let expected = fs::read_to_string(&place).unwrap_or_default();
    for (line, (expected, found)) in expected.lines().zip(text.lines()).enumerate() {
        assert_eq!(expected, found, "{}, line {}", place.display(), line + 1);
    }
    assert_eq!(expected.lines().count(), text.lines().count(), "{}", place.display());
}

/// One example of each cause, with an action that reports it.
fn causes() -> Vec<(Action, Cause)> {
    let vm = || "one-42".parse().unwrap();
    let root = || "ib0".parse().unwrap();
    let host = || "node2".parse().unwrap();
    let mac = || "02:00:c0:a8:01:05".parse().unwrap();
    let vf = || "0000:07:00.3".parse().unwrap();
    let position = || Position::new(0).unwrap();
    let text = |text: &str| text.to_owned();
    let denied = || io::Error::from_raw_os_error(13);
    let libvirt = || LibvirtError::new(LibvirtErrorKind::DomainBusy, 55, "Requested operation is not valid");
    let call = |what: &str| Cause::Call { what: what.to_owned(), source: libvirt() };
    let xml = || Deployment::parse("<domain>").unwrap_err();
    let no_mac = || "02:00".parse::<kvm_sriov::MacAddress>().unwrap_err();
    let holder = Holder {
        action: text("migrate"),
        token: Token::new(Process::new(4711, 1), None),
        since: u64::MAX,
        program: None,
    };
    let users = BTreeMap::from([(text("one-7"), 3), (text("one-9"), 1)]);
    let no_vfs = || vec![("0000:07:00.0".parse().unwrap(), NoVf::NotVf), (vf(), NoVf::Missing)];
    let agent: fn(AgentError) -> Cause = Cause::Agent;
    vec![
        (Action::AttachNic, Cause::Argument { name: "MAC", problem: no_mac().to_string() }),
        (Action::Save, Cause::Stdin { why: text("it is longer than 8388608 bytes") }),
        (Action::Deploy, Cause::Xml { what: text("the deployment file"), source: xml() }),
        (Action::AttachNic, Cause::Value { what: text("the MAC of the NIC"), source: no_mac() }),
        (Action::Deploy, Cause::NotSet { variable: "DUMMY_BRIDGE", why: "a VM with VFs has dummy interfaces on it" }),
        (Action::Deploy, Cause::NoBridge { bridge: text("dummy_br") }),
        (Action::NetworkPre, Cause::NotSriov { mac: mac(), bridge: text("br0") }),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Unsafe {
                path: "/tmp/vf_interfaces".into(),
                what: text("is a link"),
                advice: text("set VF_STATE_DIR in kvmrc to a directory that is not a link"),
            }),
        ),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Shared { path: "/var/lib/one/vf_interfaces".into(), kind: text("NFS") }),
        ),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Unreadable {
                path: "/tmp/vf_interfaces/ib0/0".into(),
                why: text("vf is missing"),
            }),
        ),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Elsewhere {
                path: "/tmp/vf_interfaces/ib0/0".into(),
                vm: vm(),
                host: text("5d1b2c7e9a0f4f4d8a0d3d3f1e2b6c71"),
            }),
        ),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::File { verb: "write", path: "/tmp/vf_interfaces/ib0/0".into(), error: denied() }),
        ),
        (Action::Save, Cause::Claims(ClaimError::Busy { vm: vm(), holder })),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Locked { path: "/tmp/vf_interfaces/.locks/claims".into(), seconds: 30 }),
        ),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Exhausted {
                root: root(),
                vm: vm(),
                total: 4,
                users: users.clone(),
                no_vfs: vec![],
            }),
        ),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Exhausted {
                root: root(),
                vm: vm(),
                total: 4,
                users: users.clone(),
                no_vfs: no_vfs(),
            }),
        ),
        (
            Action::Deploy,
            Cause::Claims(ClaimError::Exhausted {
                root: root(),
                vm: vm(),
                total: 0,
                users: Default::default(),
                no_vfs: no_vfs(),
            }),
        ),
        (Action::Deploy, Cause::Claims(ClaimError::NoMap { root: root() })),
        (Action::Reboot, Cause::Libvirt(libvirt())),
        (Action::Save, call("save one-42 to /d/checkpoint")),
        (Action::Restore, Cause::File { verb: "read", path: "/d/checkpoint".into(), source: denied() }),
        (Action::Deploy, Cause::Exists { name: vm() }),
        (Action::Reset, Cause::Absent { id: text("one-42") }),
        (Action::Shutdown, Cause::ShutdownTimeout { id: text("one-42"), seconds: 180 }),
        (Action::Cancel, Cause::StillThere { id: text("one-42"), seconds: 60 }),
        (
            Action::Deploy,
            Cause::VfioDenied {
                device: text("/dev/vfio/11"),
                text: text("Permission denied"),
                advice: "install dist/udev/80-kvm-sriov-vfio.rules",
            },
        ),
        (
            Action::Deploy,
            Cause::NoMemory {
                text: text("cannot limit locked memory"),
                guest_kib: 2_097_152,
                limit_kib: None,
                free_kib: 1_048_576,
            },
        ),
        (
            Action::Deploy,
            Cause::AllRefused {
                exhausted: Box::new(ClaimError::Exhausted { root: root(), vm: vm(), total: 4, users, no_vfs: vec![] }),
                reasons: text("0000:07:00.3 (group 11 is not viable)"),
            },
        ),
        (Action::Deploy, Cause::NotAsAsked { name: vm(), what: text("VF 0000:07:00.3 is not there") }),
        (
            Action::Save,
            Cause::NotReleased { vm: vm(), seconds: 60, kept: vec![(position(), vf(), UnplugOutcome::Pending)] },
        ),
        (
            Action::DetachDisk,
            Cause::DeviceNotReleased {
                vm: vm(),
                device: text("disk vdb"),
                seconds: 60,
                outcome: UnplugOutcome::DaemonGone,
            },
        ),
        (Action::SnapshotCreate, Cause::NoVmDir { vm: vm() }),
        (Action::AttachNic, Cause::OtherNic { vm: vm(), mac: mac(), what: text("it is on bridge br0") }),
        (Action::DetachDisk, Cause::NoDisk { vm: vm(), target: text("vdb"), what: text("detach vdb from one-42") }),
        (
            Action::AttachDisk,
            Cause::OtherDisk { vm: vm(), what: text("attach /d/disk.2 (vdb) to one-42"), found: text("/d/disk.3") },
        ),
        (Action::AttachDisk, Cause::NotNamed { what: text("disk to attach") }),
        (Action::Exec, Cause::GuestAgent { vm: vm(), text: text("command not found") }),
        (
            Action::SaveCeph,
            Cause::Program { what: text("import the checkpoint into one/x"), why: text("rbd says \"no\"") },
        ),
        (
            Action::Resize,
            Cause::NoRoom { what: text("resize VCPU to 8 on one-42"), why: text("it was started for at most 4") },
        ),
        (Action::AttachNic, Cause::TooMany { vm: vm() }),
        (
            Action::DetachNic,
            Cause::SeveralNics { vm: vm(), mac: mac(), nics: text("a VF of ib0 at position 0, one-42-1 on br0") },
        ),
        (Action::Save, Cause::ForeignDevice { vm: vm(), device: text("0000:81:00.0"), what: "saved" }),
        (Action::Save, Cause::NotRunning { vm: vm(), how: "paused" }),
        (Action::Save, Cause::Unmapped { vm: vm(), vf: vf(), root: root() }),
        (Action::Save, Cause::Unresolved { vm: vm(), doubt: Doubt::Migration }),
        (Action::Save, Cause::OpenOperation { vm: vm(), operation: text("migrate"), why: Obstacle::Newer }),
        (Action::AttachNic, Cause::JobRuns { vm: vm(), what: "its migration" }),
        (Action::Migrate, agent(AgentError::NotStarted { host: host(), why: text("no route to host") })),
        (Action::Migrate, agent(AgentError::Version { host: host(), found: text("3"), own: 2 })),
        (Action::Migrate, agent(AgentError::Refused { host: host(), why: text("no free VF") })),
        (Action::Migrate, agent(AgentError::Lost { host: host(), why: text(": ssh ended") })),
        (Action::Migrate, agent(AgentError::Unexpected { host: host(), what: text("\"x\"") })),
        (Action::Migrate, agent(AgentError::Copy { host: host(), what: text("disk.1"), why: text("no space") })),
        (Action::MigrateLocal, Cause::Elsewhere { host: host(), text: text("no free VF") }),
        (Action::Migrate, Cause::NothingPrepared),
        (
            Action::Migrate,
            Cause::TooFew { root: root(), free: 1, needed: 2, users: text(" (one-7: 3)"), no_vfs: no_vfs() },
        ),
        (Action::NetworkPre, Cause::FewVfs { root: root(), vfs: 1, needed: 2, no_vfs: no_vfs() }),
        (Action::AttachNic, Cause::NoMode { mac: mac(), mode: NicMode::Infiniband }),
        (
            Action::Migrate,
            Cause::OtherMode { mac: mac(), mode: NicMode::Ethernet, root: root(), here: NicMode::Hostdev },
        ),
        (Action::Deploy, Cause::NeedsBridge { mac: mac(), what: "a network filter (FILTER)" }),
        (Action::AttachNic, Cause::NoVlanKnown { mac: mac() }),
        (Action::Migrate, Cause::NotInVmDir { path: "/etc/passwd".into() }),
        (Action::Migrate, Cause::NoMove { vm: vm(), how: text("to node2: it has a disk in memory") }),
        (
            Action::Migrate,
            Cause::UnknownThere { cause: Box::new(call("migrate one-42 to node2")), vm: vm(), to: host() },
        ),
        (Action::Save, Cause::Stopped { kept: Vec::new() }),
        (Action::Save, Cause::Stopped { kept: vec![(position(), vf(), UnplugOutcome::Pending)] }),
        (Action::Deploy, Cause::Cancelled { name: vm() }),
        (Action::Restore, Cause::BadImage { path: "/d/checkpoint".into() }),
        (Action::Cancel, Cause::Identity { path: "/var/tmp/one/vmm/kvm-sriov".into(), uid: 9869, source: denied() }),
        (
            Action::AttachNic,
            Cause::Twice { cause: Box::new(call("attach NIC to one-42")), undo: Box::new(Cause::Libvirt(libvirt())) },
        ),
    ]
}

/// One example of each state.
fn states() -> Vec<HostState> {
    vec![
        HostState::NothingStarted,
        HostState::NothingChanged,
        HostState::RunsOn,
        HostState::MayEnd,
        HostState::NothingSaved,
        HostState::NothingMoved,
        HostState::NothingRestored,
        HostState::Left("one-42 is saved in /d/.checkpoint".to_owned()),
        HostState::InDoubt("whether one-42 is saved is not known".to_owned()),
        HostState::Done,
    ]
}

/// The name of a cause, as in the library's sources.
fn name(cause: &Cause) -> String {
    format!("{cause:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()
}

/// The text of a cause does not depend on the action, so each is shown with one action.
#[test]
fn messages_of_every_cause() {
    let (seen, mut messages) = (Seen::new(), Messages::of("causes.txt"));
    let mut shown = BTreeSet::new();
    for (action, cause) in causes() {
        let what = name(&cause);
        seen.note(&mut messages, &what, &ActionError::untouched(action, cause));
        shown.insert(what);
    }
    for (text, map) in [("", ""), ("x", "0x07\n")] {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display().to_string();
        let kvmrc = dir.path().join("kvmrc");
        fs::write(&kvmrc, format!("DUMMY_BRIDGE=$(id){text}\n")).unwrap();
        fs::write(dir.path().join("ib0"), map).unwrap();
        let kvmrc = kvm_sriov::config::Kvmrc::load(&[kvmrc]).strict().unwrap_err();
        let map = kvm_sriov::config::MapDirs::new(vec![dir.path().into()]).load(&"ib0".parse().unwrap()).unwrap_err();
        for cause in [Cause::Kvmrc(kvmrc), Cause::Map(map)] {
            let what = name(&cause);
            let error = ActionError::untouched(Action::Deploy, cause).to_string().replace(&place, "<dir>");
            messages.note(&what, 255, &format!("{error}.ExitCode: 255"));
            shown.insert(what);
        }
    }
    let source = fs::read_to_string(project().join("crates/kvm-sriov/src/error/cause.rs")).unwrap();
    let body = source.split("pub enum Cause {").nth(1).unwrap().split("\n}\n").next().unwrap();
    let declared: BTreeSet<String> = body
        .lines()
        .filter_map(|line| line.strip_prefix("    ").filter(|line| line.starts_with(char::is_uppercase)))
        .map(|line| line.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned())
        .collect();
    assert_eq!(shown, declared);
    messages.compare();
}

/// Programs that embed the library print an error with its chain of sources.
#[test]
fn no_message_repeats_the_text_of_its_source() {
    for (action, cause) in causes() {
        let error = ActionError::untouched(action, cause);
        let mut outer: &dyn std::error::Error = &error;
        while let Some(inner) = outer.source() {
            let (said, again) = (outer.to_string(), inner.to_string());
            assert!(!said.contains(&again), "{said}\n{again}");
            outer = inner;
        }
        let cause: &dyn std::error::Error = error.cause();
        assert!(cause.source().is_none_or(|source| !cause.to_string().contains(&source.to_string())), "{cause}");
    }
}

/// What a program can conclude from every cause and from every state.
#[test]
fn conclusions_of_a_program() {
    let word = |is: bool| if is { "yes" } else { "no" };
    let mut text = String::from("cause: the same call may succeed later, the VM is in doubt\n");
    for (action, cause) in causes() {
        let (what, error) = (name(&cause), ActionError::untouched(action, cause));
        let line = format!("{what}: {}, {}: {}", word(error.is_retryable()), word(error.leaves_doubt()), error.cause());
        writeln!(text, "{line}").unwrap();
    }
    text.push_str("\nstate: something may have changed, what was done is not known\n");
    for state in states() {
        let error = ActionError::new(Action::Save, Cause::NothingPrepared, state);
        let (changed, doubt) = (word(error.changed_anything()), word(error.leaves_doubt()));
        writeln!(text, "{:?}: {changed}, {doubt}", error.state()).unwrap();
    }
    agrees("consequences.txt", &text);
}

/// The states of the host after a failure.
#[test]
fn messages_of_every_state() {
    let (seen, mut messages) = (Seen::new(), Messages::of("states.txt"));
    for state in states() {
        let what = format!("{state:?}");
        seen.note(&mut messages, &what, &ActionError::new(Action::Save, Cause::NothingPrepared, state));
    }
    messages.compare();
}
