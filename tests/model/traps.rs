//! What a host must not trust, on model hosts: files that stand in the place of the driver's own, metadata that somebody
//! else wrote, and a guest that lies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_sriov::libvirt::DomainCalls;
use kvm_sriov::opennebula::NicArgs;
use kvm_sriov::reconcile::{Options, Report, reconcile};
use kvm_sriov::{ActionError, DomainName, MacAddress, PciAddress, actions};
use kvm_sriov_model::Guest;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

/// A VM with two VFs of the same root.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("sriov_ib0")
}

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

fn cancel(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::cancel(&host.host(), &vm.uuid().parse().unwrap(), Some(&DomainName::of_vm(vm.id)))
}

fn vfs(host: &ModelHost, vm: &Vm) -> Vec<PciAddress> {
    host.domain(&vm.name()).map(|domain| domain.vfs().collect()).unwrap_or_default()
}

fn reconciled(host: &ModelHost) -> Report {
    reconcile(&host.host(), &Options::default()).unwrap()
}

/// Makes a directory of the state as the driver makes it.
fn own_dir(path: &Path) {
    fs::create_dir_all(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
}

fn named_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A file of somebody else's, outside of the state directory.
struct Bait {
    path: PathBuf,
    text: String,
}

impl Bait {
    fn new(host: &ModelHost, text: &str) -> Self {
        let path = host.run_dir().join("bait");
        fs::write(&path, text).unwrap();
        Self { path, text: text.into() }
    }

    #[track_caller]
    fn is_untouched(&self, what: &str) {
        assert_eq!(fs::read_to_string(&self.path).unwrap(), self.text, "{what}");
    }
}

/// What may stand in the place of a file: a name, and how it is made there.
type Trap = (&'static str, fn(&Path, &Bait));

const TRAPS: [Trap; 8] = [
    ("a link", |place, bait| symlink(&bait.path, place).unwrap()),
    ("a link to nothing", |place, _| symlink("/nonexistent", place).unwrap()),
    ("a link to itself", |place, _| symlink(place.file_name().unwrap(), place).unwrap()),
    ("a hard link", |place, bait| fs::hard_link(&bait.path, place).unwrap()),
    ("a named pipe", |place, _| named_pipe(place)),
    ("a socket", |place, _| drop(UnixListener::bind(place).unwrap())),
    ("a directory", |place, _| fs::create_dir(place).unwrap()),
    ("an endless file", |place, _| fs::File::create(place).unwrap().set_len(1 << 40).unwrap()),
];

#[test]
fn what_stands_in_the_place_of_a_claim_keeps_its_vf_and_stops_nothing() {
    for (what, set) in TRAPS {
        let host = ModelHost::default();
        let bait = Bait::new(&host, "hello\n");
        own_dir(&host.state_dir());
        own_dir(&host.state_dir().join("ib0"));
        let place = host.state_dir().join("ib0/0");
        set(&place, &bait);
        // The VF may be in use: nobody knows whose claim this was.
        deploy(&host, &vm()).unwrap();
        assert_eq!(vfs(&host, &vm()), host.vfs("ib0")[1..3], "{what}");
        let problems: Vec<String> = reconciled(&host).problems.iter().map(ToString::to_string).collect();
        assert!(problems.len() == 1 && problems[0].contains("ib0/0"), "{what}: {problems:?}");
        let checkpoint = host.vm_dir(&vm()).join("checkpoint");
        actions::save(&host.host(), &vm().uuid().parse().unwrap(), &checkpoint, None).unwrap();
        actions::restore(&host.host(), &checkpoint, Some(&DomainName::of_vm(42))).unwrap();
        assert_eq!(vfs(&host, &vm()).len(), 2, "{what}");
        cancel(&host, &vm()).unwrap();
        assert!(fs::symlink_metadata(&place).is_ok(), "{what}: it is still there");
        bait.is_untouched(what);
    }
}

/// A stale claim is removed. Another name of the file, somewhere else, is not.
#[test]
fn a_claim_with_another_name_loses_only_this_name() {
    let host = ModelHost::default();
    let stale = format!("kvm-sriov-claim 1\nvm=one-7\nvf={}\nboot=x\n", host.vfs("ib0")[0]);
    let bait = Bait::new(&host, &stale);
    own_dir(&host.state_dir());
    own_dir(&host.state_dir().join("ib0"));
    fs::hard_link(&bait.path, host.state_dir().join("ib0/0")).unwrap();
    reconciled(&host);
    assert!(host.claims().is_empty(), "{:?}", host.claims());
    bait.is_untouched("a claim");
}

#[test]
fn what_stands_in_the_place_of_a_lock_is_not_written() {
    for (what, set) in TRAPS.iter().filter(|(what, _)| *what != "an endless file") {
        for place in [".locks/claims", ".locks/vm-one-42"] {
            let host = ModelHost::default();
            let bait = Bait::new(&host, "hello\n");
            own_dir(&host.state_dir());
            own_dir(&host.state_dir().join(".locks"));
            set(&host.state_dir().join(place), &bait);
            let error = deploy(&host, &vm()).unwrap_err().to_string();
            assert!(error.contains(place) && error.ends_with("nothing was started"), "{what}: {error}");
            let claims = host.state_dir().join("ib0");
            let claims = fs::read_dir(claims).map_or(0, Iterator::count);
            assert!(host.domain("one-42").is_none() && claims == 0, "{what}, {place}");
            bait.is_untouched(what);
            // A VM without VFs needs no lock, and no state directory stops the end of a VM.
            deploy(&host, &Vm::new(43).nic("br0")).unwrap();
            cancel(&host, &Vm::new(43)).unwrap();
            fs::rename(host.state_dir(), host.state_dir().with_extension("aside")).unwrap();
            deploy(&host, &vm()).unwrap();
            let lock = host.state_dir().join(place);
            fs::remove_file(&lock).unwrap();
            set(&lock, &bait);
            cancel(&host, &vm()).unwrap();
            assert!(host.domain("one-42").is_none(), "{what}, {place}");
            bait.is_untouched(what);
        }
    }
}

#[test]
fn a_state_directory_that_is_not_the_drivers_own_is_refused() {
    let elsewhere = |host: &ModelHost| host.run_dir().join("elsewhere");
    type Set = fn(&ModelHost, &Path, &Path);
    let traps: [(&str, &str, Set); 5] = [
        ("state is a link", "state", |_, place, other| symlink(other, place).unwrap()),
        ("ib0 is a link", "state/ib0", |_, place, other| symlink(other, place).unwrap()),
        (".locks is a link", "state/.locks", |_, place, other| symlink(other, place).unwrap()),
        ("state is not a directory", "state", |_, place, _| fs::write(place, "hello").unwrap()),
        ("state is not a directory", "state", |_, place, _| named_pipe(place)),
    ];
    for (said, place, set) in traps {
        let host = ModelHost::default();
        let other = elsewhere(&host);
        fs::create_dir(&other).unwrap();
        let place = host.state_dir().parent().unwrap().join(place);
        if place != host.state_dir() {
            own_dir(&host.state_dir());
        }
        set(&host, &place, &other);
        let error = deploy(&host, &vm()).unwrap_err().to_string();
        assert!(error.contains(said) && error.ends_with("nothing was started"), "{error}");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 0, "{said}: something was written there");
        deploy(&host, &Vm::new(43).nic("br0")).unwrap();
        cancel(&host, &Vm::new(43)).unwrap();
    }
    // Of another user. Only root can make such a directory.
    for place in ["", "ib0", ".locks"] {
        let host = ModelHost::default();
        let dir = host.state_dir().join(place);
        own_dir(&host.state_dir());
        own_dir(&dir);
        if lchown(&dir, Some(4711), None).is_err() {
            return;
        }
        let error = deploy(&host, &vm()).unwrap_err().to_string();
        assert!(error.contains("belongs to user 4711") && error.ends_with("nothing was started"), "{error}");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(host.domain("one-42").is_none());
    }
}

/// Directories of roots that nobody can name, and files that are no claims, are no claims.
#[test]
fn names_that_the_driver_never_writes_are_left_alone() {
    let host = ModelHost::default();
    own_dir(&host.state_dir());
    own_dir(&host.state_dir().join("ib0"));
    let odd = [
        &b"ib0/00"[..],
        b"ib0/-1",
        b"ib0/+1",
        b"ib0/99999999999999999999999",
        b"ib0/0.txt",
        b"ib0/\xff\xfe",
        b"ib0/\x1b[2J",
    ];
    let places: Vec<PathBuf> =
        odd.iter().map(|name| host.state_dir().join(std::ffi::OsStr::from_bytes(name))).collect();
    for place in &places {
        fs::write(place, "hello").unwrap();
    }
    for dir in [&b"\xff"[..], b"a b", b"..x", b"ib0~", b"ib0.conf", b"\x1b]0;x\x07"] {
        own_dir(&host.state_dir().join(std::ffi::OsStr::from_bytes(dir)));
    }
    deploy(&host, &vm()).unwrap();
    assert_eq!(vfs(&host, &vm()), host.vfs("ib0")[..2]);
    assert_eq!(reconciled(&host).problems.len(), 0);
    cancel(&host, &vm()).unwrap();
    assert!(places.iter().all(|place| place.exists()));
}

/// What a domain's metadata say is somebody else's word until it has been read as ours.
#[test]
fn metadata_that_are_not_ours_stop_no_other_vm() {
    const NS: &str = "urn:kvm-sriov:domain:1";
    // libvirt adds the namespace.
    let inside = |text: &str| format!("<domain version='1.0'>{text}</domain>");
    let nic = |rest: &str| format!("<nic position='0' mac='02:00:0a:00:2a:01' root='ib0' {rest}/>");
    for (what, ours) in [
        ("a newer version", "<domain version='2.0'/>".into()),
        ("no version", "<domain/>".into()),
        ("another element", "<other version='1.0'/>".into()),
        ("two at one position", inside(&nic("").repeat(2))),
        ("a position of 99", inside(&nic("").replace("'0'", "'99'"))),
        ("a root that is a path", inside(&nic("").replace("ib0", "../../etc"))),
        ("a MAC that is none", inside(&nic("").replace("02:00", "$(id)"))),
        ("a guest address that is none", inside(&nic("guest='x'"))),
        ("a mode that is none", inside(&nic("mode='x'"))),
        ("a thousand NICs", inside(&nic("").repeat(1000))),
        ("an operation that is none", inside("<operation kind='x'/>")),
        ("a host that is an option", inside("<operation kind='migrate' to='-oProxyCommand=x' id='7'/>")),
        ("elements in elements", inside(&format!("{}{}", "<x>".repeat(200), "</x>".repeat(200)))),
    ] {
        let host = ModelHost::default();
        deploy(&host, &vm()).unwrap();
        let domain = host.model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
        host.model().set_metadata(&domain, Some(&ours), "sriov", NS).unwrap();
        let before = vfs(&host, &vm());
        let report = reconciled(&host);
        // No VF leaves a running VM for what somebody wrote there, and none is given to two.
        deploy(&host, &Vm::new(7).nic("sriov_ib0")).unwrap();
        let other = vfs(&host, &Vm::new(7));
        assert_eq!(other.len(), 1, "{what}");
        assert!(!vfs(&host, &vm()).contains(&other[0]), "{what}");
        if !report.problems.is_empty() {
            assert_eq!(vfs(&host, &vm()), before, "{what}: {:?}", report.problems);
        }
        cancel(&host, &vm()).unwrap();
        cancel(&host, &Vm::new(7)).unwrap();
        reconciled(&host);
        assert!(host.claims().is_empty(), "{what}: {:?}", host.claims());
    }
}

/// The agent in a guest may answer anything, and libvirt quotes it in its error.
#[test]
fn a_guest_that_lies_says_it_to_nobody_but_a_person() {
    let host = ModelHost::default();
    deploy(&host, &vm()).unwrap();
    let name = DomainName::of_vm(42);
    let record = host.run_dir().join("one-42");
    let odd = "\u{1b}[2J\u{9b}31m\r\nExitCode: 0 EOF_ERR\n";
    let long = "x".repeat(2 << 20);
    let answers = [
        String::new(),
        "nonsense".into(),
        odd.into(),
        format!("{{\"return\": {:?}}}", long),
        format!("{{\"{long}\": 1}}"),
        "[".repeat(100_000),
        "{\"return\": {}}".into(),
        "{\"return\": {\"pid\": -1}}".into(),
        "{\"return\": {\"pid\": 1e300}}".into(),
        "{\"return\": {\"pid\": \"1; touch canary\"}}".into(),
        "{\"return\": {\"pid\": 99999999999999999999999999}}".into(),
        "{\"return\": {\"pid\": [1]}}".into(),
        "{\"return\": {\"exited\": \"yes\"}}".into(),
        format!("{{\"return\": {{\"text\": {}}}}}", serde_json::Value::from(odd)),
    ];
    let refusals = answers.iter().cloned().map(Guest::AgentRefuses);
    for guest in answers.iter().cloned().map(Guest::AgentSays).chain(refusals) {
        host.model().set_guest("one-42", guest.clone());
        let says: String = format!("{guest:?}").chars().take(80).collect();
        let is_harmless = |error: &ActionError| {
            let text = error.to_string();
            assert!(!text.chars().any(char::is_control), "{says}: {text:?}");
            let shown = kvm_sriov::printable(&text);
            assert!(shown.chars().count() < 5000 && shown.starts_with("exec"), "{says}");
        };
        is_harmless(&actions::exec(&host.host(), &name, "ls", None).unwrap_err());
        assert!(!record.exists(), "{says}: nothing was started, as far as the host knows");
        fs::write(&record, "7").unwrap();
        // A guest may say that its own command is none of its own; that concerns nobody else.
        if let Err(error) = actions::exec_cancel(&host.host(), &name) {
            is_harmless(&error);
        }
        if record.exists() {
            fs::remove_file(&record).unwrap();
        }
    }
    // The number that a guest gives its command comes back to this guest alone, whatever it is.
    host.model().set_guest("one-42", Guest::AgentSays(format!("{{\"return\": {{\"pid\": {}}}}}", u64::MAX)));
    actions::exec(&host.host(), &name, "ls", None).unwrap();
    assert_eq!(fs::read_to_string(&record).unwrap(), u64::MAX.to_string());
    assert_eq!(vfs(&host, &vm()).len(), 2);
}

/// A MAC that somebody made up can't be taken for another NIC's, for a dummy's, or for one of another VM.
#[test]
fn a_crafted_mac_stands_for_no_other_nic() {
    let host = ModelHost::default();
    deploy(&host, &vm()).unwrap();
    let attach = |vm: &Vm, mac: &str, bridge: &str| {
        let args =
            NicArgs { mac: mac.parse().unwrap(), bridge: Some(bridge.into()), model: None, vn_mad: None, target: None };
        actions::attach_nic(&host.host(), &vm.uuid().parse().unwrap(), &args.described(None), None)
    };
    let dummy = vm().dummy_mac(0, 0);
    // In the VM itself, the guest would take it for the dummy.
    for bridge in ["br0", "sriov_ib0"] {
        let error = attach(&vm(), &dummy, bridge).unwrap_err().to_string();
        assert!(error.contains("DUMMY_MAC_PREFIX") && error.contains(&dummy), "{error}");
    }
    // Another VM that has no VF may have the MAC of a dummy of this one. Each keeps what it has.
    let other = Vm::new(43).nic("br0");
    deploy(&host, &other).unwrap();
    attach(&other, &dummy, "br0").unwrap();
    attach(&other, &vm().mac(0), "br0").unwrap();
    let interfaces =
        |name: &str| host.domain(name).unwrap().interfaces.iter().map(|it| it.mac).collect::<Vec<MacAddress>>();
    let (ours, theirs) = (interfaces("one-42"), interfaces("one-43"));
    let detach = |vm: &Vm, mac: &str| {
        let id = vm.uuid().parse().unwrap();
        actions::detach_nic(&host.host(), &id, mac.parse().unwrap(), None)
    };
    detach(&vm(), &vm().mac(0)).unwrap();
    assert_eq!(interfaces("one-43"), theirs);
    assert_eq!(interfaces("one-42").len(), ours.len() - 1);
    detach(&other, &dummy).unwrap();
    assert_eq!(interfaces("one-42").len(), ours.len() - 1);
}
