//! Migrations between model hosts, with the agent on a thread in place of ssh.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use kvm_sriov::agent::{self, AgentError, Link, Reach};
use kvm_sriov::{ActionError, Host, HostName, actions};
use kvm_sriov_tests::model::check::Stage;
use kvm_sriov_tests::model::every::Scenario;
use kvm_sriov_tests::model::host::ModelHost;
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

#[test]
fn migrate_with_every_fault_at_the_source() {
    let scenario =
        Scenario { given: hosts, action: |hosts| migrate(&hosts[0], &hosts[1], &vm()), done: runs_there, repairs: &[] };
    println!("{:?}", scenario.without_faults());
}
