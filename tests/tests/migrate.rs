//! Migrations between model hosts, with the agent on a thread in place of ssh.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::agent::{self, AgentError, Link, Presence, Reach, ask_state};
use kvm_sriov::libvirt::LibvirtErrorKind;
use kvm_sriov::reconcile::{Elsewhere, Options, Repair, reconcile, resolve};
use kvm_sriov::{ActionError, Cause, DeployId, Host, HostName, HostState, actions};
use kvm_sriov_tests::model::check::Stage;
use kvm_sriov_tests::model::faults::Fault;
use kvm_sriov_tests::model::host::{Ended, ModelHost};
use kvm_sriov_tests::model::{Course, Guest};
use kvm_sriov_tests::vm::Vm;

/// Agents on threads, each on a host that was opened before.
struct Threads(std::sync::Mutex<BTreeMap<String, Host>>);

impl Threads {
    fn to(host: &ModelHost) -> Self {
        Self(std::sync::Mutex::new(BTreeMap::from([(host.model().name(), host.host())])))
    }
}

/// Nobody migrates further.
struct Nowhere;

impl Reach for Nowhere {
    fn start(&self, host: &HostName) -> Result<Link, AgentError> {
        Err(AgentError::NotStarted { host: host.clone(), why: "no such host".into() })
    }

    fn copy(&self, _: &[PathBuf], _: &HostName, _: &Path) -> Result<(), AgentError> {
        Ok(())
    }
}

impl Reach for Threads {
    fn start(&self, name: &HostName) -> Result<Link, AgentError> {
        let Some(host) = self.0.lock().unwrap().remove(name.as_str()) else { return Nowhere.start(name) };
        let ((to, input), (from, output)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        thread::spawn(move || agent::serve(|| Ok(host), input, output, &Nowhere));
        Ok(Link::new(from, to))
    }

    fn copy(&self, _: &[PathBuf], _: &HostName, _: &Path) -> Result<(), AgentError> {
        Ok(())
    }
}

/// Two VFs of one root, one of the other, and a NIC that is none.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("br0").nic("sriov_ib1").nic("sriov_ib0")
}

/// VMs that are nobody's business, on either host.
fn neighbours() -> [Vm; 2] {
    [Vm::new(7).nic("sriov_ib0"), Vm::new(8).nic("sriov_ib1")]
}

fn deploy(host: &ModelHost, vm: &Vm) {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).unwrap();
}

fn hosts() -> [ModelHost; 2] {
    let here = ModelHost::default();
    let there = here.beside("host2", 4);
    let hosts = [here, there];
    for (host, neighbour) in hosts.iter().zip(neighbours()) {
        deploy(host, &neighbour);
    }
    deploy(&hosts[0], &vm());
    hosts
}

fn migrate(from: &ModelHost, to: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    let name = |host: &ModelHost| host.model().name().parse().unwrap();
    let route = actions::Route { from: Some(name(from)), to: name(to) };
    actions::migrate(&from.host(), &vm.uuid().parse().unwrap(), &route, None, &Threads::to(to))
}

/// An agent on the source that finds the one on the destination, as with a forwarded key.
struct Relay<'a>(&'a ModelHost, &'a ModelHost);

impl Reach for Relay<'_> {
    fn start(&self, name: &HostName) -> Result<Link, AgentError> {
        assert_eq!(name.as_str(), self.0.model().name());
        let ((to, input), (from, output)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let (host, further) = (self.0.host(), Threads::to(self.1));
        thread::spawn(move || agent::serve(|| Ok(host), input, output, &further));
        Ok(Link::new(from, to))
    }

    fn copy(&self, _: &[PathBuf], _: &HostName, _: &Path) -> Result<(), AgentError> {
        Ok(())
    }
}

/// Positions, dummies and guest addresses, as the guest sees them.
fn looks(host: &ModelHost) -> Vec<String> {
    let live = host.domain("one-42").unwrap();
    let devices = live.hostdevs.iter().map(|device| format!("{:?} {:?}", device.alias, device.guest));
    let interfaces = live.interfaces.iter().map(|i| format!("{:?} {} {:?}", i.alias, i.mac, i.guest));
    let mut all: Vec<String> = devices.chain(interfaces).collect();
    all.sort();
    all
}

fn runs_there(hosts: &[ModelHost; 2]) {
    assert!(hosts[0].domain("one-42").is_none());
    assert_eq!(hosts[1].domain("one-42").unwrap().vfs().count(), 3);
}

#[test]
fn there_and_back_the_guest_sees_the_same_devices() {
    let hosts = hosts();
    let before = looks(&hosts[0]);
    migrate(&hosts[0], &hosts[1], &vm()).unwrap();
    runs_there(&hosts);
    hosts.check();
    assert_eq!(looks(&hosts[1]), before);
    migrate(&hosts[1], &hosts[0], &vm()).unwrap();
    hosts.check();
    assert_eq!(looks(&hosts[0]), before);
}

#[test]
fn the_front_end_has_a_vm_moved() {
    let hosts = hosts();
    let order = || {
        let route = actions::Route { from: "host1".parse().ok(), to: "host2".parse().unwrap() };
        actions::migrate_local(&vm().uuid().parse().unwrap(), &route, None, &Relay(&hosts[0], &hosts[1]))
    };
    order().unwrap();
    runs_there(&hosts);
    hosts.check();
    let error = order().unwrap_err().to_string();
    let id = vm().uuid();
    assert_eq!(error, format!("migrate_local: host1: there is no domain {id} on this host; nothing was changed"),);
}

#[test]
fn a_destination_with_too_few_vfs_is_refused_before_the_source_is_touched() {
    let hosts = hosts();
    deploy(&hosts[1], &Vm::new(9).nic("sriov_ib0").nic("sriov_ib0").nic("sriov_ib0"));
    let before = hosts.portrait();
    hosts[0].faults().disarm();
    let error = migrate(&hosts[0], &hosts[1], &vm()).unwrap_err().to_string();
    assert_eq!(error, "migrate: host2: 1 free VF on ib0, 2 needed (one-9: 3); nothing was changed");
    assert_eq!(hosts[0].faults().count("detach_alias") + hosts[0].faults().count("set_metadata"), 0);
    assert_eq!(hosts.portrait(), before);
    hosts.check();
}

#[test]
fn a_copy_that_fails_leaves_everything_as_it_was() {
    for course in [Course::Fails, Course::RefusedThere, Course::FailsAtTheEnd] {
        let hosts = hosts();
        let before = hosts.portrait();
        hosts[0].model().set_course(course);
        let error = migrate(&hosts[0], &hosts[1], &vm()).unwrap_err().to_string();
        assert!(error.ends_with("; nothing was moved, the domain runs on"), "{error}");
        assert_eq!(hosts.portrait(), before, "{course:?}");
        hosts.check();
    }
}

#[test]
fn a_move_in_doubt_is_decided_by_what_the_destination_says() {
    let hosts_there = hosts();
    hosts_there[0].model().set_course(Course::InDoubt { runs_there: true });
    migrate(&hosts_there[0], &hosts_there[1], &vm()).unwrap();
    runs_there(&hosts_there);
    hosts_there.check();

    let hosts_here = hosts();
    let before = hosts_here.portrait();
    hosts_here[0].model().set_course(Course::InDoubt { runs_there: false });
    migrate(&hosts_here[0], &hosts_here[1], &vm()).unwrap_err();
    assert_eq!(hosts_here.portrait(), before);
    hosts_here.check();
}

#[test]
fn a_guest_that_does_not_answer_stays() {
    let hosts = hosts();
    hosts[0].model().set_guest("one-42", Guest::Silent);
    let error = migrate(&hosts[0], &hosts[1], &vm()).unwrap_err().to_string();
    assert!(error.contains("did not release VF"), "{error}");
    hosts.check_safe();
    assert_eq!(hosts[0].domain("one-42").unwrap().vfs().count(), 3);
    assert_eq!(hosts[1].claims().len(), 1);
}

#[test]
fn a_vm_without_vfs_touches_no_state() {
    let here = ModelHost::default();
    let there = here.beside("host2", 4);
    let plain = Vm::new(43).nic("br0");
    deploy(&here, &plain);
    migrate(&here, &there, &plain).unwrap();
    assert!(here.domain("one-43").is_none() && there.domain("one-43").is_some());
    assert!(!here.state_dir().exists() && !there.state_dir().exists());
}

/// The claims of an agent that died name one that died long ago.
fn bury(host: &ModelHost) {
    let alive = format!("\nholder={} ", std::process::id());
    for (name, text) in host.claims().iter().filter(|(_, text)| text.contains(&alive)) {
        fs::write(host.state_dir().join(name), text.replace(&alive, &format!("{alive}1"))).unwrap();
    }
}

/// What is done after an action that left something: each host is put right, and where it is not known where the VM lives,
/// the other one is asked.
fn reconciled(hosts: &[ModelHost; 2]) {
    // The agent goes on for a moment when its source is lost.
    let is_held = |host: &ModelHost| {
        let store = host.host().existing_claims().unwrap();
        store.is_some_and(|store| store.vm_holder(&"one-42".parse().unwrap()).unwrap().is_some())
    };
    let begin = Instant::now();
    while hosts.iter().any(is_held) && begin.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(10));
    }
    for host in hosts {
        let report = reconcile(&host.host(), &Options::default()).unwrap();
        let in_doubt = |repair: &Repair| matches!(repair, Repair::InDoubt(_));
        for vm in report.vms.iter().filter(|vm| vm.left.iter().any(in_doubt)) {
            let uuid = vm.owner.uuid.clone().unwrap();
            let elsewhere = match ask_state(&Threads::to(&hosts[1]), &"host2".parse().unwrap(), &uuid).unwrap() {
                Presence::Running => Elsewhere::Runs,
                Presence::Absent => Elsewhere::Never,
                other => panic!("in doubt: {other}"),
            };
            resolve(&host.host(), &DeployId::Uuid(uuid), elsewhere).unwrap();
        }
    }
    hosts.check();
    let places = hosts.iter().filter(|host| host.domain("one-42").is_some()).count();
    assert_eq!(places, 1, "where is it?");
}

/// Every call of one host fails in turn, and its process dies at every call. An error that says that nothing was changed is
/// true; nothing is ever shared or lost; and what is left is put right by reconciliation.
fn with_every_fault(place: usize) {
    let kinds = [LibvirtErrorKind::Other, LibvirtErrorKind::NoAnswer, LibvirtErrorKind::Disconnected];
    let fails = kinds.into_iter().flat_map(|kind| [Fault::Fails(kind), Fault::FailsAfter(kind)]);
    let mut wrong = Vec::new();
    for fault in fails.chain([
        Fault::Dies,
        Fault::DiesAfter,
        Fault::DiesDuring { is_done: false },
        Fault::DiesDuring { is_done: true },
    ]) {
        for n in 1.. {
            let mut what = String::new();
            match catch_unwind(AssertUnwindSafe(|| with_fault(place, n, fault, &mut what))) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => wrong.push(what),
            }
        }
    }
    assert!(wrong.is_empty(), "went wrong, see above:\n{}", wrong.join("\n"));
}

/// Whether there are that many calls.
fn with_fault(place: usize, n: usize, fault: Fault, what: &mut String) -> bool {
    let hosts = hosts();
    let before = hosts.portrait();
    hosts[place].faults().arm(n, fault);
    let ended = hosts[0].run(|| migrate(&hosts[0], &hosts[1], &vm()));
    let (calls, fired) = (hosts[place].faults().calls(), hosts[place].faults().fired());
    hosts[place].faults().disarm();
    *what = format!("{fault:?} at call {n} of host {}: {calls:?}: {ended:?}", place + 1);
    if place == 1 && fault.kills() {
        bury(&hosts[1]);
    }
    match ended {
        // Whether the guest heard its request is not known.
        Ended::With(Err(error)) if matches!(error.cause(), Cause::NotReleased { .. }) => hosts.check_safe(),
        Ended::With(Ok(())) => {
            reconciled(&hosts);
            runs_there(&hosts);
        }
        Ended::With(Err(error)) if !matches!(error.state(), HostState::Left(_)) => {
            assert_eq!(hosts.portrait(), before, "{what}");
            hosts.check();
        }
        _ => reconciled(&hosts),
    }
    fired
}

#[test]
fn migrate_with_every_fault_at_the_source() {
    with_every_fault(0);
}

#[test]
fn migrate_with_every_fault_at_the_destination() {
    with_every_fault(1);
}
