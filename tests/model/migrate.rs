//! Migrations between model hosts. The agent runs on a thread, without ssh.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::agent::{self, Link, Presence, Reach, ask_state};
use kvm_sriov::libvirt::{
    DeviceCalls, DiskCalls, DomainCalls, JobCalls, LibvirtErrorKind, PowerCalls, RunState, SnapshotCalls, Snapshots,
};
use kvm_sriov::opennebula;
use kvm_sriov::reconcile::{Elsewhere, Repair, resolve};
use kvm_sriov::xml::{Disk, VmData};
use kvm_sriov::{ActionError, AgentError, Cause, DomainId, DomainName, Host, HostName, actions};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::every::MOST_CALLS;
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::{Ended, ModelHost};
use kvm_sriov_model::{Course, Guest, Phase};
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

/// Starts agents on threads.
#[derive(Default)]
struct Threads {
    /// A host for each connection that may be made, by its name.
    hosts: Mutex<Vec<(String, Host)>>,
    /// How an agent reaches the host that it was started from.
    back: Option<Arc<Threads>>,
    /// Ends of the connections, to cut them.
    ends: Mutex<Vec<UnixStream>>,
    /// For each connection, whether its agent no longer hears what is sent to it.
    deaf: Mutex<Vec<Arc<AtomicBool>>>,
    /// The names of files that were copied.
    copied: Mutex<Vec<String>>,
}

impl Threads {
    fn to(host: &ModelHost) -> Self {
        Self::times(1, host)
    }

    /// Allows this number of connections to a host.
    fn times(number: usize, host: &ModelHost) -> Self {
        let hosts = (0..number).map(|_| (host.model().name(), host.host())).collect();
        Self { hosts: Mutex::new(hosts), ..Self::default() }
    }

    /// Allows two connections to `to`. Its agents may connect to `from`.
    fn between(from: &ModelHost, to: &ModelHost) -> Self {
        Self { back: Some(Arc::new(Self::times(9, from))), ..Self::times(2, to) }
    }

    /// Breaks all connections.
    fn cut(&self) {
        for end in &*self.ends.lock().unwrap() {
            end.shutdown(Shutdown::Both).unwrap();
        }
    }

    /// Lets the first connection carry nothing any more. The source notices at once, the agent does not.
    fn stall(&self) {
        self.deaf.lock().unwrap()[0].store(true, Ordering::SeqCst);
        self.ends.lock().unwrap()[1].shutdown(Shutdown::Both).unwrap();
    }

    /// Breaks the first connection alone: its agent notices now.
    fn cut_first(&self) {
        for end in self.ends.lock().unwrap().iter().take(2) {
            // One that was shut down already is as it should be.
            if let Err(error) = end.shutdown(Shutdown::Both) {
                assert_eq!(error.kind(), io::ErrorKind::NotConnected);
            }
        }
    }

    /// Breaks all connections, and allows no new ones.
    fn cut_for_good(&self) {
        self.hosts.lock().unwrap().clear();
        self.cut();
    }
}

/// The input of an agent. While it is deaf, it reads only the end of the connection.
struct Ear {
    input: UnixStream,
    is_deaf: Arc<AtomicBool>,
}

impl Read for Ear {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.input.read(buffer)?;
            if read == 0 || !self.is_deaf.load(Ordering::SeqCst) {
                return Ok(read);
            }
        }
    }
}

impl Reach for Threads {
    fn start(&self, name: &HostName) -> Result<Link, AgentError> {
        let absent = || AgentError::NotStarted { host: name.clone(), why: "no such host".into() };
        let host = {
            let mut hosts = self.hosts.lock().unwrap();
            let at = hosts.iter().position(|(host, _)| host == name.as_str()).ok_or_else(absent)?;
            hosts.remove(at).1
        };
        let back = self.back.clone().unwrap_or_else(|| Arc::new(Self::default()));
        let ((to, input), (from, output)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        self.ends.lock().unwrap().extend([to.try_clone().unwrap(), from.try_clone().unwrap()]);
        let is_deaf = Arc::new(AtomicBool::new(false));
        self.deaf.lock().unwrap().push(Arc::clone(&is_deaf));
        let input = Ear { input, is_deaf };
        thread::spawn(move || agent::serve(|| Ok(host), &*back, input, output));
        Ok(Link::new(from, to))
    }

    fn copy(&self, files: &[PathBuf], _: &HostName, _: &Path) -> Result<(), AgentError> {
        let names = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned());
        self.copied.lock().unwrap().extend(names);
        Ok(())
    }
}

/// Two NICs with VFs of one root, one with a VF of another root, and a NIC without a VF.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("br0").nic("sriov_ib1").nic("sriov_ib0")
}

/// A VM on each host that no action may touch.
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
    migrate_over(&Threads::between(from, to), from, to, vm)
}

fn migrate_over(reach: &Threads, from: &ModelHost, to: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    migrate_with(reach, from, to, vm, None)
}

fn migrate_with(
    reach: &Threads,
    from: &ModelHost,
    to: &ModelHost,
    vm: &Vm,
    data: Option<&str>,
) -> Result<(), ActionError> {
    let name = |host: &ModelHost| host.model().name().parse().unwrap();
    let route = actions::Route { from: Some(name(from)), to: name(to) };
    let data = data.map(|data| VmData::parse(data).unwrap());
    actions::migrate(&from.host(), &vm.uuid().parse().unwrap(), &route, data.as_ref(), reach)
}

/// OpenNebula's message for a move between two directories of the VM.
fn description(from: &Path, to: &Path, shared: &str) -> String {
    format!(
        "<VMM_DRIVER_ACTION_DATA><DISK_TARGET_PATH>{}</DISK_TARGET_PATH><VM><ID>42</ID><TEMPLATE/></VM><DATASTORE>\
         <BASE_PATH>{}</BASE_PATH><TEMPLATE><SHARED><![CDATA[{shared}]]></SHARED></TEMPLATE></DATASTORE>\
         </VMM_DRIVER_ACTION_DATA>",
        to.display(),
        from.parent().unwrap().display()
    )
}

/// A host on which the VM runs from a disk of 1 MiB in its directory.
fn a_vm_with_a_disk() -> (ModelHost, Vm) {
    let host = ModelHost::default();
    let vm = vm().disk();
    fs::create_dir_all(host.vm_dir(&vm)).unwrap();
    fs::write(host.vm_dir(&vm).join("disk.0"), vec![7; 1 << 20]).unwrap();
    deploy(&host, &vm);
    (host, vm)
}

/// Starts a migration whose copy hangs, then calls `event`. Returns the result of the migration.
fn while_it_copies(hosts: &[ModelHost; 2], event: impl FnOnce(&Threads)) -> Result<(), ActionError> {
    hosts[0].model().set_course(Course::Hangs);
    let reach = Threads::to(&hosts[1]);
    thread::scope(|scope| {
        let action = scope.spawn(|| migrate_over(&reach, &hosts[0], &hosts[1], &vm()));
        let copies = || {
            let domain = hosts[0].model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
            hosts[0].model().job(&domain).unwrap().is_some()
        };
        until("it copies", copies);
        event(&reach);
        action.join().unwrap()
    })
}

fn cancel(host: &ModelHost) {
    actions::cancel(&host.host(), &vm().uuid().parse().unwrap(), Some(&DomainName::of_vm(42))).unwrap();
}

/// The devices of the VM as the guest sees them: aliases, MACs and guest addresses.
fn looks(host: &ModelHost) -> Vec<String> {
    let live = host.domain("one-42").unwrap();
    let devices = live.hostdevs.iter().map(|device| format!("{:?} {:?}", device.alias, device.guest));
    let interfaces = live.interfaces.iter().map(|i| format!("{:?} {} {:?}", i.alias, i.mac, i.guest));
    let mut all: Vec<String> = devices.chain(interfaces).collect();
    all.sort();
    all
}

/// The VM's snapshots that libvirt knows.
fn snapshots(host: &ModelHost) -> Snapshots {
    let domain = host.model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
    host.model().snapshots(&domain).unwrap()
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

/// All NICs have the same MAC, one of them has no VF, and the VM has a USB device of the host, which libvirt allows to
/// migrate.
#[test]
fn nics_of_one_mac_and_a_usb_device_move() {
    let here = ModelHost::default();
    let there = here.beside("host2", 4);
    let hosts = [here, there];
    let bridges = ["sriov_ib0", "br0", "sriov_ib1", "sriov_ib0"];
    let twins = bridges.iter().fold(Vm::new(43), |vm, bridge| vm.nic_with_mac_of(0, bridge));
    deploy(&hosts[0], &twins);
    let usb =
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0xbeef'/></source></hostdev>";
    let id = twins.uuid().parse().unwrap();
    let domain = hosts[0].model().find(&id).unwrap().unwrap();
    hosts[0].model().attach(&domain, usb, CALL_LIMIT).unwrap();
    let nics = |host: &ModelHost| -> Vec<String> {
        let live = host.domain("one-43").unwrap();
        assert!(host.model().live_xml(&domain).unwrap().unwrap().contains("0xbeef"));
        let wanted = live.wanted.clone().unwrap().unwrap().nics;
        let guest = |nic| live.device_of(nic).unwrap().guest.unwrap();
        wanted.iter().map(|nic| format!("{} {} {} {}", nic.position, nic.root, nic.mac, guest(nic))).collect()
    };
    let before = nics(&hosts[0]);
    assert_eq!(before.len(), 3);
    for (from, to) in [(0, 1), (1, 0)] {
        migrate(&hosts[from], &hosts[to], &twins).unwrap();
        assert_eq!(nics(&hosts[to]), before);
        hosts.check();
    }
}

/// One call for each unplug and each plug, one read of the live XML for all of them, and one connection besides
/// libvirt's own.
#[test]
fn calls_of_a_move_grow_by_one_for_each_vf() {
    for vfs in 1..=3 {
        let vm = (0..vfs).fold(Vm::new(42), |vm, _| vm.nic("sriov_ib0"));
        let here = ModelHost::default();
        let hosts = [here.beside("host2", 4), here];
        let [there, here] = &hosts;
        deploy(here, &vm);
        hosts.iter().for_each(|host| host.faults().disarm());
        let reach = Threads::to(there);
        migrate_over(&reach, here, there, &vm).unwrap();
        let each = |call| std::iter::repeat_n(call, vfs);
        let out = ["find", "live_xml", "job", "state", "set_metadata", "snapshots", "watch"];
        // The state tells whether the VM must run at the destination. The last `find` sees that it is gone from the
        // source.
        let rest = ["live_xml", "state", "migrate", "find"];
        let expected: Vec<_> = out.into_iter().chain(each("detach_alias")).chain(rest).collect();
        assert_eq!(here.faults().calls(), expected);
        let prepare = ["watch_for", "find", "find", "domains"];
        // The CPUs run before the first VF is plugged.
        let receive = ["find", "job", "state", "live_xml", "resume"];
        let rest = ["live_xml", "set_metadata"];
        let expected: Vec<_> = prepare.into_iter().chain(receive).chain(each("attach")).chain(rest).collect();
        assert_eq!(there.faults().calls(), expected);
        assert_eq!(reach.ends.lock().unwrap().len(), 2, "the two ends of one connection");
        hosts.check();
    }
}

#[test]
fn a_destination_with_too_few_vfs_is_refused_before_the_source_is_touched() {
    let hosts = hosts();
    deploy(&hosts[1], &Vm::new(9).nic("sriov_ib0").nic("sriov_ib0").nic("sriov_ib0"));
    let before = hosts.portrait();
    hosts[0].faults().disarm();
    let error = migrate(&hosts[0], &hosts[1], &vm()).unwrap_err().to_string();
    assert_eq!(error, "migrate: host2: too few free VFs on ib0: 1, 2 needed (one-9: 3); nothing was changed");
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
    // A domain that is there has never run: the agent knows that.
    for runs_there in [true, false] {
        let hosts = hosts();
        let before = hosts.portrait();
        hosts[0].model().set_course(Course::InDoubt { runs_there });
        migrate(&hosts[0], &hosts[1], &vm()).unwrap_err();
        assert_eq!(hosts.portrait(), before);
        hosts.check();
    }
}

/// A VM that is not there may have run there before. Then its disks are newer than its memory here.
#[test]
fn a_vm_that_ran_and_ended_there_is_not_resumed_here() {
    let plain = Vm::new(43).nic("br0");
    for vm in [vm(), plain] {
        let hosts = hosts();
        let name = vm.name().to_string();
        if hosts[0].domain(&name).is_none() {
            deploy(&hosts[0], &vm);
        }
        hosts[0].model().set_course(Course::InDoubt { runs_there: true });
        let (there, who) = (hosts[1].model().clone(), name.clone());
        hosts[0].model().on_lost_answer(move || {
            let domain = there.find(&who.parse().unwrap()).unwrap().unwrap();
            // A VM with VFs is paused there. An administrator resumes it.
            if !there.state(&domain).unwrap().unwrap().runs() {
                there.resume(&domain).unwrap();
            }
            there.end_domain(&who);
        });
        let error = migrate(&hosts[0], &hosts[1], &vm).unwrap_err().to_string();
        assert!(error.contains("on host2 is not known; nothing was resumed or destroyed"), "{error}");
        let domain = hosts[0].model().find(&name.parse().unwrap()).unwrap().unwrap();
        assert_eq!(hosts[0].model().state(&domain).unwrap(), Some(RunState::PausedForMigration));
        settle(&hosts);
        hosts.check_safe();
    }
}

/// The number of the last call with this name in a move without faults.
fn number_of(name: &str) -> usize {
    let hosts = hosts();
    hosts[0].faults().disarm();
    migrate(&hosts[0], &hosts[1], &vm()).unwrap();
    hosts[0].faults().calls().iter().rposition(|call| *call == name).unwrap() + 1
}

#[test]
fn a_vm_that_its_user_paused_stays_paused() {
    for course in [Course::Works, Course::AnswerLost { phase: Phase::Confirm, arrives: true }] {
        let hosts = hosts();
        hosts[0].model().set_course(course);
        let reach = Arc::new(Threads::between(&hosts[0], &hosts[1]));
        if course != Course::Works {
            // The agent continues without the source.
            let reach = Arc::clone(&reach);
            hosts[0].model().on_lost_answer(move || reach.cut_for_good());
        }
        hosts[0].faults().disarm();
        let model = hosts[0].model().clone();
        hosts[0].faults().before(number_of("state"), move || model.pause("one-42"));
        migrate_over(&reach, &hosts[0], &hosts[1], &vm()).unwrap();
        settle(&hosts);
        runs_there(&hosts);
        let domain = hosts[1].model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
        assert_eq!(hosts[1].model().state(&domain).unwrap(), Some(RunState::PausedByUser), "{course:?}");
        hosts.check();
    }
}

/// The connection to the agent breaks between its last answer and libvirt's call. The agent keeps its reservation as
/// long as libvirt may bring the VM.
#[test]
fn a_reservation_stays_while_the_move_can_still_succeed() {
    let hosts = hosts();
    let reach = Arc::new(Threads::between(&hosts[0], &hosts[1]));
    let before = looks(&hosts[0]);
    thread::scope(|scope| {
        let (cut, other) = (Arc::clone(&reach), &hosts[1]);
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            receiver.recv().unwrap();
            cut.cut();
            thread::sleep(Duration::from_millis(300));
            let vm = Vm::new(9).nic("sriov_ib0").nic("sriov_ib0").nic("sriov_ib0");
            let error = actions::deploy(&other.host(), &other.deployment_file(&vm), &other.deployment(&vm));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("no free VF on ib0") && error.contains("one-42: 2"), "{error}");
            done.send(()).unwrap();
        });
        hosts[0].faults().disarm();
        hosts[0].faults().before(number_of("migrate"), move || {
            sender.send(()).unwrap();
            is_done.recv().unwrap();
        });
        migrate_over(&reach, &hosts[0], &hosts[1], &vm()).unwrap();
    });
    drop(reach);
    settle(&hosts);
    runs_there(&hosts);
    hosts.check();
    assert_eq!(looks(&hosts[1]), before);
}

/// The source repeats `finish` over a new connection. The first agent has not noticed that the source lost it, and
/// holds the VM's lock.
#[test]
fn a_repeated_finish_resumes_at_once_and_waits_for_the_lock_to_plug() {
    let hosts = hosts();
    let before = looks(&hosts[0]);
    let reach = Arc::new(Threads::between(&hosts[0], &hosts[1]));
    hosts[0].faults().disarm();
    let stalled = Arc::clone(&reach);
    hosts[0].faults().before(number_of("migrate"), move || stalled.stall());
    thread::scope(|scope| {
        let first_agent = scope.spawn(|| {
            let runs = || {
                let domain = hosts[1].model().find(&"one-42".parse().unwrap()).unwrap();
                domain.is_some_and(|domain| hosts[1].model().state(&domain).unwrap() == Some(RunState::Running))
            };
            until("it runs there", runs);
            // Time in which the second agent must neither give up nor take the lock.
            thread::sleep(Duration::from_millis(500));
            let vfs = hosts[1].domain("one-42").unwrap().hostdevs.len();
            reach.cut_first();
            vfs
        });
        migrate_over(&reach, &hosts[0], &hosts[1], &vm()).unwrap();
        assert_eq!(looks(&hosts[1]), before, "what the VM has when its move is reported as done");
        assert_eq!(first_agent.join().unwrap(), 0, "VFs while the first agent held the lock");
    });
    drop(reach);
    settle(&hosts);
    runs_there(&hosts);
    hosts.check();
}

/// What becomes of the connection to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Stays,
    /// It breaks together with the answer. A new one can be made.
    Breaks,
    /// It breaks together with the answer. No new one can be made.
    IsCut,
}

/// The answer of one of libvirt's five phases is lost. The VM never runs in two places, or with an old memory. In the
/// end the VM runs in one place with all its VFs, or it is paused and reported as in doubt.
fn an_answer_is_lost(phase: Phase, arrives: bool, link: Way, dies: bool, can_ask: bool) {
    let what = format!("{phase:?} arrives {arrives}, link {link:?}, source dies {dies}, source can be asked {can_ask}");
    let hosts = hosts();
    let looked = looks(&hosts[0]);
    hosts[0].model().set_course(Course::AnswerLost { phase, arrives });
    let mut reach = Threads::between(&hosts[0], &hosts[1]);
    if !can_ask {
        reach.back = None;
    }
    let reach = Arc::new(reach);
    if link != Way::Stays {
        let reach = Arc::clone(&reach);
        hosts[0].model().on_lost_answer(move || if link == Way::Breaks { reach.cut() } else { reach.cut_for_good() });
    }
    if dies {
        hosts[0].faults().arm_first("migrate", Fault::DiesAfter);
    }
    let ended = hosts[0].run(|| migrate_over(&reach, &hosts[0], &hosts[1], &vm()));
    hosts[0].faults().disarm();
    // A process that died no longer holds its end of the connection.
    drop(reach);
    settle(&hosts);
    hosts.iter().for_each(|host| assert_eq!(host.model().violations(), [""; 0], "{what}"));
    // Reconciliation on either host, in any order, keeps to the same rules.
    let doubts = [1, 0, 1].map(|place| {
        let host: &ModelHost = &hosts[place];
        let report = host.reconcile().unwrap();
        report.vms.iter().any(|vm| vm.left.iter().any(|repair| matches!(repair, Repair::InDoubt(_))))
    });
    let states: Vec<_> = hosts
        .iter()
        .filter_map(|host| Some((host, host.model().find(&"one-42".parse().unwrap()).unwrap()?)))
        .map(|(host, domain)| (host.model().name(), host.model().state(&domain).unwrap().unwrap()))
        .collect();
    let runs = states.iter().filter(|(_, state)| state.runs()).count();
    let is_in_doubt = doubts.contains(&true);
    assert!(runs == 1 || (runs == 0 && is_in_doubt), "{what}: {states:?}, {ended:?}");
    // The VM is in doubt only if one host can't ask the other: the source's process or the connection to the agent is
    // gone.
    let may_doubt = dies || (link != Way::Stays && !(phase == Phase::Finish && arrives && can_ask));
    assert!(!is_in_doubt || may_doubt, "{what}: {states:?}, {ended:?}");
    if is_in_doubt {
        assert!(!matches!(ended, Ended::With(Err(ref error)) if !error.changed_anything()), "{what}: {ended:?}");
        reconciled(&hosts);
    }
    hosts.check();
    let at = hosts.iter().find(|host| host.domain("one-42").is_some()).unwrap();
    assert_eq!(looks(at), looked, "{what}");
    // What OpenNebula was told is true.
    match ended {
        Ended::With(Ok(())) if !is_in_doubt => runs_there(&hosts),
        Ended::With(Err(error)) if !is_in_doubt => assert!(hosts[0].domain("one-42").is_some(), "{what}: {error}"),
        _ => {}
    }
}

#[test]
fn an_answer_of_each_phase_is_lost() {
    let mut all = Vec::new();
    for phase in Phase::ALL {
        for arrives in [false, true] {
            for link in [Way::Stays, Way::Breaks, Way::IsCut] {
                for dies in [false, true] {
                    all.extend([true, false].map(|can_ask| (phase, arrives, link, dies, can_ask)));
                }
            }
        }
    }
    let all = Mutex::new(all);
    let next = || all.lock().unwrap().pop();
    let wrong: Vec<String> = thread::scope(|scope| {
        let work = || {
            let tried = std::iter::from_fn(next).filter_map(|(phase, arrives, link, dies, can_ask)| {
                let tried = AssertUnwindSafe(|| an_answer_is_lost(phase, arrives, link, dies, can_ask));
                catch_unwind(tried).is_err().then(|| format!("{phase:?} {arrives} {link:?} {dies} {can_ask}"))
            });
            tried.collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "went wrong, see above:\n{}", wrong.join("\n"));
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

/// Makes the claims of a dead agent name a process that has never existed: the model's process is still alive.
fn bury(host: &ModelHost) {
    let alive = format!("\nholder={} ", std::process::id());
    for (name, text) in host.claims().iter().filter(|(_, text)| text.contains(&alive)) {
        fs::write(host.state_dir().join(name), text.replace(&alive, &format!("{alive}1"))).unwrap();
    }
}

/// Waits until no action and no agent works on the VM (an agent continues for a moment after its source was lost), and
/// until the guest has answered the requests of a process that died.
fn settle(hosts: &[ModelHost; 2]) {
    let is_held = |host: &ModelHost| {
        let store = host.host().existing_claims().unwrap();
        store.is_some_and(|store| store.vm_holder(&"one-42".parse().unwrap()).unwrap().is_some())
    };
    let begin = Instant::now();
    while hosts.iter().any(is_held) && begin.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(10));
    }
    hosts.iter().for_each(|host| host.model().wait_for_guests());
}

/// What an administrator does after an action that left something: reconciles each host, and asks the other host where
/// a VM in doubt lives.
fn reconciled(hosts: &[ModelHost; 2]) {
    settle(hosts);
    for (host, other) in [(&hosts[1], &hosts[0]), (&hosts[0], &hosts[1])] {
        let report = host.reconcile().unwrap();
        let in_doubt = |repair: &Repair| matches!(repair, Repair::InDoubt(_));
        for vm in report.vms.iter().filter(|vm| vm.left.iter().any(in_doubt)) {
            let uuid = vm.owner.uuid.clone().unwrap();
            let elsewhere = match ask_state(&Threads::to(other), &other.model().name().parse().unwrap(), &uuid).unwrap()
            {
                Presence::Running => Elsewhere::Runs,
                Presence::Absent => Elsewhere::NeverRan,
                // The VM is paused on both hosts: the domain that arrived is destroyed first.
                Presence::Paused | Presence::Incoming => Elsewhere::Runs,
                other => panic!("in doubt: {other}"),
            };
            resolve(&host.host(), &DomainId::Uuid(uuid), elsewhere).unwrap();
        }
    }
    hosts.check();
    let places = hosts.iter().filter(|host| host.domain("one-42").is_some()).count();
    assert_eq!(places, 1, "where is it?");
}

/// Each call of one host fails in turn, and its process dies at each call in turn. An error that says that nothing was
/// changed is true. Nothing is shared or lost. Reconciliation repairs what is left.
fn with_every_fault(place: usize, course: Course) {
    let kinds = [LibvirtErrorKind::Other, LibvirtErrorKind::NoAnswer, LibvirtErrorKind::Disconnected];
    let fails = kinds.into_iter().flat_map(|kind| [Fault::Fails(kind), Fault::FailsAfter(kind)]);
    let all = |fault| {
        let mut wrong = Vec::new();
        for n in 1..=MOST_CALLS {
            let mut what = String::new();
            match catch_unwind(AssertUnwindSafe(|| with_fault(place, course, n, fault, &mut what))) {
                Ok(true) => {}
                Ok(false) => return wrong,
                Err(_) => wrong.push(what),
            }
        }
        wrong.push(format!("{fault:?}: no end after {MOST_CALLS} calls"));
        wrong
    };
    let all = &all;
    let wrong: Vec<String> = thread::scope(|scope| {
        let each = fails.chain([Fault::Dies, Fault::DiesAfter]).map(|fault| scope.spawn(move || all(fault)));
        let each: Vec<_> = each.collect();
        each.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "went wrong, see above:\n{}", wrong.join("\n"));
}

/// Runs a move with this fault. Returns whether the move makes that many calls.
fn with_fault(place: usize, course: Course, n: usize, fault: Fault, what: &mut String) -> bool {
    let hosts = hosts();
    for number in [0, 1] {
        actions::snapshot_create(&hosts[0].host(), &vm().uuid().parse().unwrap(), number, None).unwrap();
    }
    hosts[0].model().set_course(course);
    let (before, looked) = (hosts.portrait(), looks(&hosts[0]));
    hosts[place].faults().arm(n, fault);
    let ended = hosts[0].run(|| migrate(&hosts[0], &hosts[1], &vm()));
    let (calls, hit) = (hosts[place].faults().calls(), hosts[place].faults().fired());
    let fired = hit || matches!(ended, Ended::Killed);
    hosts[place].faults().disarm();
    *what = format!("{fault:?} at call {n} of host {}: {calls:?}: {ended:?}", place + 1);
    if place == 1 && fault.kills() {
        bury(&hosts[1]);
    }
    match ended {
        // Nobody knows whether the guest got the request.
        Ended::With(Err(error)) if matches!(error.cause(), Cause::NotReleased { .. }) => hosts.check_safe(),
        Ended::With(Ok(())) => {
            reconciled(&hosts);
            runs_there(&hosts);
        }
        Ended::With(Err(error)) if !error.changed_anything() => {
            settle(&hosts);
            assert_eq!(looks(&hosts[0]), looked, "{what}");
            // If plugging a VF back was refused, the VM has another VF now.
            let was_refused = calls.get(n - 1) == Some(&"attach");
            assert!(was_refused || hosts.portrait() == before, "{what}");
            hosts.check();
        }
        _ => reconciled(&hosts),
    }
    // If libvirt itself refused a snapshot, the log says so.
    if fault.kills() || calls.get(n - 1) != Some(&"redefine_snapshot") {
        let known = hosts.iter().filter(|host| host.domain("one-42").is_some()).flat_map(|host| snapshots(host).names);
        assert_eq!(known.collect::<BTreeSet<_>>(), ["snap-0", "snap-1"].map(String::from).into(), "{what}");
    }
    fired
}

#[test]
fn a_vm_that_can_not_move_is_refused_before_the_destination_is_asked() {
    let refused = |change: &dyn Fn(&[ModelHost; 2]), said: &str| {
        let hosts = hosts();
        change(&hosts);
        let before = hosts.portrait();
        hosts[1].faults().disarm();
        let error = migrate(&hosts[0], &hosts[1], &vm()).unwrap_err().to_string();
        assert_eq!(error, format!("migrate: {said}; nothing was changed"));
        assert_eq!(hosts[1].faults().calls(), [""; 0]);
        assert_eq!(hosts.portrait(), before);
    };
    let gpu = "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x07' \
               slot='0x00' function='0x4'/></source></hostdev>";
    let plug = |hosts: &[ModelHost; 2]| {
        let domain = hosts[0].model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
        hosts[0].model().attach(&domain, gpu, CALL_LIMIT).unwrap();
    };
    refused(&plug, "one-42 also has host device 0000:07:00.4, which can't be migrated");
    let ours = "<interface type='hostdev' managed='yes'><source><address type='pci' domain='0x0000' bus='0x08' \
                slot='0x00' function='0x4'/></source></interface>";
    let plug = |hosts: &[ModelHost; 2]| {
        let domain = hosts[0].model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
        hosts[0].model().attach(&domain, ours, CALL_LIMIT).unwrap();
    };
    refused(&plug, "one-42 also has host device 0000:08:00.4, which can't be migrated");
    let paused = "one-42 is paused, so its guest can't release a device; resume it first";
    refused(&|hosts| hosts[0].model().pause("one-42"), paused);
    let asleep = "one-42 is suspended by itself, so its guest can't release a device; resume it first";
    refused(&|hosts| hosts[0].model().suspend_guest("one-42"), asleep);
    let unknown = "MIGRATE_OPTIONS: expected an option of virsh migrate, found \"--unsave\"";
    refused(&|hosts| hosts[0].set_kvmrc("MIGRATE_OPTIONS='--live --unsave'\n"), unknown);
}

/// Two VMs want the last VF of a destination. One gets it. The other stays as it was, and its error says why.
#[test]
fn the_last_vf_of_a_destination_goes_to_one_of_two() {
    let here = ModelHost::default();
    let hosts = [here.beside("host2", 1), here];
    let [there, here] = &hosts;
    let two = [41, 43].map(|id| Vm::new(id).nic("sriov_ib0"));
    two.iter().for_each(|vm| deploy(here, vm));
    let ended = thread::scope(|scope| {
        let moves = two.each_ref().map(|vm| scope.spawn(move || migrate(here, there, vm)));
        moves.map(|thread| thread.join().unwrap())
    });
    let stays = two.iter().zip(&ended).find_map(|(vm, ended)| Some((vm, ended.as_ref().err()?.to_string())));
    let (vm, said) = stays.unwrap();
    assert!(
        said.contains("host2: too few free VFs on ib0: 0, 1 needed") && said.ends_with("nothing was changed"),
        "{said}"
    );
    assert!(here.domain(&vm.name()).is_some() && there.domain(&vm.name()).is_none(), "{said}");
    assert_eq!(ended.iter().filter(|ended| ended.is_ok()).count(), 1, "{ended:?}");
    settle(&hosts);
    hosts.check();
}

#[test]
fn a_move_is_cancelled_while_its_guest_is_asked() {
    let hosts = hosts();
    hosts[0].model().set_guest("one-42", Guest::Silent);
    thread::scope(|scope| {
        let moving = scope.spawn(|| migrate(&hosts[0], &hosts[1], &vm()));
        until("it asks the guest", || hosts[0].faults().count("detach_alias") == 3);
        actions::cancel(&hosts[0].host(), &vm().uuid().parse().unwrap(), Some(&DomainName::of_vm(42))).unwrap();
        let said = moving.join().unwrap().unwrap_err().to_string();
        assert!(said.starts_with("migrate: ") && said.contains("has ended"), "{said}");
    });
    assert!(hosts.iter().all(|host| host.domain("one-42").is_none()));
    settle(&hosts);
    hosts.check();
}

#[test]
fn the_dummies_go_to_the_bridge_of_the_destination() {
    let hosts = hosts();
    hosts[1].set_kvmrc("DUMMY_BRIDGE=br0\n");
    let before = looks(&hosts[0]);
    migrate(&hosts[0], &hosts[1], &vm()).unwrap();
    let live = hosts[1].domain("one-42").unwrap();
    assert!(live.interfaces.iter().all(|interface| interface.bridge.as_deref() == Some("br0")), "{live:?}");
    assert_eq!(looks(&hosts[1]), before);
    hosts.check();

    hosts[0].set_kvmrc("DUMMY_BRIDGE=none\n");
    let error = migrate(&hosts[1], &hosts[0], &vm()).unwrap_err().to_string();
    assert!(error.starts_with("migrate: host1: DUMMY_BRIDGE none is not a bridge of this host"), "{error}");
    assert!(error.ends_with("; nothing was changed"), "{error}");
}

#[test]
fn snapshots_are_known_wherever_the_vm_is() {
    let hosts = hosts();
    for number in [0, 1] {
        actions::snapshot_create(&hosts[0].host(), &vm().uuid().parse().unwrap(), number, None).unwrap();
    }
    let before = snapshots(&hosts[0]);
    assert_eq!((before.names.len(), before.current.as_deref()), (2, Some("snap-1")));
    hosts[0].model().set_course(Course::Fails);
    migrate(&hosts[0], &hosts[1], &vm()).unwrap_err();
    assert_eq!(snapshots(&hosts[0]), before);
    migrate(&hosts[0], &hosts[1], &vm()).unwrap();
    assert_eq!(snapshots(&hosts[1]), before);
    hosts.check();
}

#[test]
fn a_datastore_changes_under_a_running_vm_and_its_vfs_stay() {
    let (host, vm) = a_vm_with_a_disk();
    let (from, to) = (host.vm_dir(&vm), host.vm_dir(&vm).join("../../104/42"));
    fs::write(from.join("vm.xml"), "<VM/>").unwrap();
    let vfs: Vec<_> = host.domain("one-42").unwrap().vfs().collect();
    let data = description(&from, &to, "YES");
    let reach = Threads::to(&host);
    host.faults().disarm();
    migrate_with(&reach, &host, &host, &vm, Some(&data)).unwrap();
    assert_eq!(host.faults().count("detach_alias") + host.faults().count("migrate"), 0);
    assert!(!host.faults().calls().contains(&"define"));
    let live = host.domain("one-42").unwrap();
    assert_eq!(live.vfs().collect::<Vec<_>>(), vfs);
    assert_eq!(live.vm_dir.as_deref(), Some(&*to));
    let domain = host.model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
    let disks = Disk::all(&host.model().live_xml(&domain).unwrap().unwrap()).unwrap();
    assert_eq!(disks[0].file.as_deref(), Some(&*to.join("disk.0")));
    assert_eq!((to.join("disk.0").metadata().unwrap().len(), to.join("vm.xml").exists()), (1 << 20, true));
    host.check();

    let error = migrate_with(&reach, &host, &host, &vm, Some(&description(&to, &to, "YES"))).unwrap_err().to_string();
    assert_eq!(error, "migrate: one-42 can't be moved to where it is; nothing was changed");
}

#[test]
fn a_datastore_move_that_fails_leaves_nothing_behind() {
    let calls = ["block_copy", "block_job", "finish_block_job"];
    for (call, kind) in calls.into_iter().zip([LibvirtErrorKind::Other; 3]) {
        let (host, vm) = a_vm_with_a_disk();
        let (from, to) = (host.vm_dir(&vm), host.state_dir().join("../datastores/104/42"));
        let before = host.portrait();
        let data = description(&from, &to, "YES");
        let reach = Threads::to(&host);
        let mut n = 1;
        loop {
            host.faults().arm(n, Fault::Fails(kind));
            let ended = migrate_with(&reach, &host, &host, &vm, Some(&data));
            if host.faults().calls().get(n - 1) == Some(&call) {
                let error = ended.unwrap_err().to_string();
                assert!(error.ends_with("; nothing was moved, the domain runs on"), "{error}");
                break;
            }
            n += 1;
        }
        host.faults().disarm();
        assert_eq!(host.portrait(), before, "{call}");
        assert!(!to.exists());
        host.check();
    }
}

/// The answer is lost, but the domain uses the new files: they must stay.
#[test]
fn a_datastore_move_whose_answer_is_lost_is_believed() {
    for kind in [LibvirtErrorKind::Disconnected, LibvirtErrorKind::NoAnswer, LibvirtErrorKind::Other] {
        for call in ["block_copy", "block_job", "finish_block_job"] {
            let (host, vm) = a_vm_with_a_disk();
            let (from, to) = (host.vm_dir(&vm), host.state_dir().join("../datastores/104/42"));
            let data = description(&from, &to, "YES");
            host.faults().arm_first(call, Fault::FailsAfter(kind));
            let ended = migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data));
            assert!(host.faults().fired(), "{call}");
            host.faults().disarm();
            let live = host.domain("one-42").unwrap();
            let file = live.disks[0].file.clone().unwrap();
            assert!(file.exists(), "{call} {kind:?}: the domain runs from a file that is gone: {ended:?}");
            assert_eq!(ended.is_ok(), file.starts_with(&to), "{call} {kind:?}: {ended:?}");
            assert_eq!(ended.is_ok(), to.exists(), "{call} {kind:?}");
            let domain = host.model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
            assert_eq!(host.model().block_job(&domain, &live.disks[0].target).unwrap(), None, "{call} {kind:?}");
            host.check();
        }
    }
}

/// A killed move leaves a running copy. The next move ends it first.
#[test]
fn a_datastore_move_that_was_killed_is_done_again() {
    for call in ["block_copy", "block_job", "finish_block_job"] {
        for fault in [Fault::Dies, Fault::DiesAfter] {
            let (host, vm) = a_vm_with_a_disk();
            let (from, to) = (host.vm_dir(&vm), host.state_dir().join("../datastores/104/42"));
            let data = description(&from, &to, "YES");
            host.faults().arm_first(call, fault);
            let ended = host.run(|| migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data)));
            assert!(matches!(ended, Ended::Killed), "{call} {fault:?}: {ended:?}");
            host.faults().disarm();
            host.end_process();
            let is_there = |host: &ModelHost| {
                host.domain("one-42").unwrap().disks[0].file.as_ref().is_some_and(|file| file.starts_with(&to))
            };
            if !is_there(&host) {
                migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data)).unwrap();
            }
            assert!(is_there(&host), "{call} {fault:?}");
            host.check();
        }
    }
}

/// A host on which the VM runs with these devices. `@` means its directory. It has a link to a logical volume,
/// `disk.2`, and other files.
fn a_vm_with(devices: &str) -> (ModelHost, Vm, PathBuf) {
    let host = ModelHost::default();
    let vm = vm().disk();
    let dir = host.vm_dir(&vm);
    fs::create_dir_all(dir.join("sub")).unwrap();
    let elsewhere = host.state_dir().join("../images");
    fs::create_dir_all(&elsewhere).unwrap();
    for name in ["disk.0", "disk.1", "sub/cd.iso", "base", "kernel"] {
        fs::write(dir.join(name), vec![7; 1 << 10]).unwrap();
    }
    fs::write(elsewhere.join("image"), vec![8; 1 << 10]).unwrap();
    host.volume("vg-one-0/lv-one-42-2", 2, &[2; 4096]);
    host.volume("vg-one-0/lv-one-42-3", 3, &[3; 4096]);
    host.volume("mapper/raw", 9, &[9; 4096]);
    for (name, target) in [
        ("disk.2", Path::new("/dev/vg-one-0/lv-one-42-2")),
        ("disk.3", Path::new("/dev/vg-one-0/lv-one-42-3")),
        ("disk.4", &elsewhere.join("image")),
        ("disk.5", Path::new("/dev/mapper/raw")),
        ("disk.6", Path::new("/dev/vg-one-0/gone")),
    ] {
        std::os::unix::fs::symlink(target, dir.join(name)).unwrap();
    }
    // As OpenNebula writes this link.
    let dir = PathBuf::from(dir.display().to_string().replacen("/datastores/", "//datastores/", 1));
    let devices = devices.replace('@', &dir.display().to_string());
    let text = host.deployment(&vm).replacen("\t</devices>", &format!("{devices}\t</devices>"), 1);
    actions::deploy(&host.host(), &host.deployment_file(&vm), &text).unwrap();
    host.faults().disarm();
    (host, vm, dir)
}

fn disk_of(kind: &str, device: &str, source: &str, target: &str, rest: &str) -> String {
    format!(
        "<disk type='{kind}' device='{device}'><driver name='qemu' type='raw'/><source {source}/><target dev='{target}'/>{rest}</disk>"
    )
}

/// Type and source of each disk, by target.
fn disks(host: &ModelHost) -> BTreeMap<String, (String, Option<PathBuf>)> {
    let live = host.domain("one-42").unwrap();
    live.disks.into_iter().map(|disk| (disk.target, (disk.kind, disk.path))).collect()
}

#[test]
fn a_logical_volume_goes_to_the_new_datastore() {
    let volume = disk_of("block", "disk", "dev='@/disk.2'", "vdb", "");
    let cd = disk_of("block", "cdrom", "dev='@/disk.3'", "sda", "<readonly/>");
    let iso = disk_of("file", "cdrom", "file='@/sub/cd.iso'", "sdb", "<readonly/>");
    let empty = "<disk type='file' device='cdrom'><target dev='sdc'/><readonly/></disk>";
    let (host, vm, from) = a_vm_with(&[volume.as_str(), &cd, &iso, empty].concat());
    let to = from.join("../../104/42");
    // OpenNebula's transfer driver has created the volumes and copied the links unchanged.
    host.volume("vg-one-104/lv-one-42-2", 12, &[0; 4096]);
    let new_cd = host.volume("vg-one-104/lv-one-42-3", 13, &[0; 4096]);
    fs::create_dir_all(&to).unwrap();
    std::os::unix::fs::symlink("/dev/vg-one-0/lv-one-42-2", to.join("disk.2")).unwrap();
    let data = description(&from, &to, "YES");
    migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data)).unwrap();
    let moved = disks(&host);
    for (target, kind, name) in [
        ("vda", "file", "disk.0"),
        ("vdb", "block", "disk.2"),
        ("sda", "block", "disk.3"),
        ("sdb", "file", "sub/cd.iso"),
    ] {
        assert_eq!(moved[target], (kind.to_owned(), Some(to.join(name))), "{target}");
    }
    assert_eq!(moved["sdc"].1, None);
    assert_eq!(fs::read_link(to.join("disk.2")).unwrap(), Path::new("/dev/vg-one-104/lv-one-42-2"));
    assert_eq!(fs::read(new_cd).unwrap(), [3; 4096]);
    assert!(to.join("sub/cd.iso").exists());
    host.check();
}

/// Each disk in the VM's directory is copied, or the move is refused before anything is changed.
#[test]
fn no_disk_in_the_directory_is_skipped() {
    let file = |source: &str, rest: &str| disk_of("file", "disk", &format!("file='{source}'"), "vdb", rest);
    let block = |source: &str| disk_of("block", "disk", &format!("dev='{source}'"), "vdb", "");
    let cd = |source: &str, rest: &str| disk_of("file", "cdrom", &format!("file='{source}'"), "sda", rest);
    let backing = "<backingStore type='file'><format type='raw'/><source file='@/base'/></backingStore>";
    let refused = [
        (block("@/disk.2"), "its disk vdb is the logical volume /dev/vg-one-0/lv-one-42-2, and there is no /dev/vg-one-104"),
        // The path after an earlier move, or after this driver's deploy has resolved a link.
        (block("/dev/vg-one-0/lv-one-42-2"), "is the logical volume /dev/vg-one-0/lv-one-42-2"),
        (file("/dev/vg-one-0/lv-one-42-2", ""), "is the logical volume /dev/vg-one-0/lv-one-42-2"),
        (block("@/disk.6"), "it leads to no block device of this host"),
        (block("@/disk.2").replace("'raw'", "'qcow2'"), "only raw disks are copied to another device"),
        (disk_of("block", "lun", "dev='@/disk.2'", "sdd", ""), "is a lun on /dev/vg-one-0/lv-one-42-2"),
        (disk_of("dir", "disk", "dir='@/sub'", "vdb", "<readonly/>"), "of the kind dir"),
        (disk_of("block", "disk", "dev='@/disk.2'", "vdb", "<readonly/>"), "vdb is read-only, which libvirt does not copy"),
        (cd("@/disk.1", "<readonly/><encryption format='luks'/>"), "sda is read-only, which libvirt does not copy"),
        (disk_of("dir", "floppy", "dir='@/sub'", "fda", "<readonly/>"), "of the kind dir"),
        (disk_of("vhostuser", "disk", "type='unix' path='@/base'", "vdb", ""), "of the kind vhostuser"),
        (disk_of("volume", "disk", "pool='default' volume='x'", "vdb", ""), "is a volume of a storage pool"),
        (
            "<disk type='network' device='disk'><source protocol='nbd'><host transport='unix' socket='@/base'/></source>\
             <target dev='vdb'/></disk>"
                .to_owned(),
            "its disk vdb needs ",
        ),
        (file("@/disk.1", "<readonly/>"), "is read-only, which libvirt does not copy"),
        (file("@/disk.1", "<encryption format='luks'/>"), "is encrypted"),
        (file("@/gone", ""), "cannot find"),
        (cd("@/disk.1", &format!("<readonly/>{backing}")), "its disk sda needs "),
        (file("/nonexistent/image", backing), "its disk vdb needs "),
        ("<filesystem type='mount'><source dir='@/sub'/><target dir='x'/></filesystem>".to_owned(), "its filesystem ("),
        ("<tpm model='tpm-crb'><backend type='emulator'><source type='dir' path='@/sub'/></backend></tpm>".to_owned(), "its tpm ("),
        ("<memory model='nvdimm'><source><path>@/base</path></source></memory>".to_owned(), "its memory ("),
    ];
    for (devices, why) in refused {
        let (host, vm, from) = a_vm_with(&devices);
        let (before, to) = (host.portrait(), from.join("../../104/42"));
        for slashes in [from.display().to_string(), from.display().to_string().replace("//", "/")] {
            let data = description(Path::new(&slashes), &to, "YES");
            let ended = migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data));
            let error = ended.expect_err(&devices).to_string();
            assert!(error.contains(why) && error.ends_with("; nothing was changed"), "{devices}: {error}");
        }
        assert!(!to.exists(), "{devices}");
        assert_eq!(host.portrait(), before, "{devices}");
        for call in ["block_copy", "change_medium", "set_metadata"] {
            assert_eq!(host.faults().count(call), 0, "{devices}");
        }
    }
}

#[test]
fn disks_outside_the_directory_stay_where_they_are() {
    let file = |source: &str| disk_of("file", "disk", &format!("file='{source}'"), "vdb", "");
    for (devices, target, stays) in [
        (file("@/disk.4"), "vdb", "/images/image"),
        (disk_of("block", "disk", "dev='@/disk.5'", "vdb", ""), "vdb", "/disk.5"),
        (disk_of("block", "disk", "dev='/dev/mapper/raw'", "vdb", ""), "vdb", "/dev/mapper/raw"),
        (file("/nonexistent/image"), "vdb", "/nonexistent/image"),
        (disk_of("network", "disk", "protocol='rbd' name='one/one-7'", "vdb", ""), "vda", "/104/42/disk.0"),
        (
            "<filesystem type='mount'><source dir='@/disk.4'/><target dir='x'/></filesystem>".to_owned(),
            "vda",
            "/disk.0",
        ),
        ("<serial type='file'><source path='@/log'/></serial>".to_owned(), "vda", "/104/42/disk.0"),
    ] {
        let (host, vm, from) = a_vm_with(&devices);
        let to = from.join("../../104/42");
        let data = description(&from, &to, "YES");
        migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data)).unwrap();
        let path = disks(&host)[target].1.clone().unwrap();
        assert!(path.display().to_string().ends_with(stays), "{devices}: {}", path.display());
        assert!(to.join("disk.4").is_symlink(), "{devices}");
        host.check();
    }
}

#[test]
fn a_volume_that_is_too_small_or_the_same_is_no_destination() {
    let (host, vm, from) = a_vm_with(&disk_of("block", "disk", "dev='@/disk.2'", "vdb", ""));
    let to = from.join("../../104/42");
    let data = description(&from, &to, "YES");
    let refused = |why: &str| {
        let error = migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data)).unwrap_err().to_string();
        assert!(error.contains(why) && error.ends_with("; nothing was changed"), "{error}");
    };
    let node = host.volume("vg-one-104/lv-one-42-2", 12, &[0; 512]);
    refused("has 512 bytes instead of 4096");
    fs::remove_file(&node).unwrap();
    std::os::unix::fs::symlink("dm-2", &node).unwrap();
    refused("is the same one");
    // A read-only file is copied to another host as it is.
    let (here, vm, dir) = a_vm_with(&disk_of("file", "disk", "file='@/disk.1'", "vdb", "<readonly/>"));
    let there = here.beside("host2", 4);
    let reach = Threads::to(&there);
    migrate_with(&reach, &here, &there, &vm, Some(&description(&dir, &dir, "NO"))).unwrap();
    assert!(reach.copied.lock().unwrap().contains(&"disk.1".to_owned()));
    there.check();
    // A VM with a logical volume can move only if both hosts see the volume.
    let there = host.beside("host2", 4);
    let data = description(&from, &from, "NO");
    let error = migrate_with(&Threads::to(&there), &host, &there, &vm, Some(&data)).unwrap_err().to_string();
    let said = "one-42 can't be moved live to storage that is not shared: its disk vdb is the logical volume /dev/vg-one-0/lv-one-42-2";
    assert!(error.contains(said), "{error}");
}

/// CDs are switched before disks, and switched back when something fails.
#[test]
fn cds_are_switched_back_when_a_datastore_move_fails() {
    for (call, fault) in [
        ("change_medium", Fault::Fails(LibvirtErrorKind::Other)),
        ("finish_block_job", Fault::Fails(LibvirtErrorKind::Other)),
    ] {
        let (host, vm, from) = a_vm_with(&disk_of("file", "cdrom", "file='@/disk.1'", "sda", "<readonly/>"));
        let (before, to) = (disks(&host), from.join("../../104/42"));
        let data = description(&from, &to, "YES");
        host.faults().arm_first(call, fault);
        let error = migrate_with(&Threads::to(&host), &host, &host, &vm, Some(&data)).unwrap_err().to_string();
        assert!(host.faults().fired() && error.ends_with("; nothing was moved, the domain runs on"), "{error}");
        host.faults().disarm();
        assert_eq!((disks(&host), to.exists()), (before, false), "{call}");
        host.check();
    }
}

#[test]
fn disks_of_storage_that_is_not_shared_are_copied() {
    let (here, vm) = a_vm_with_a_disk();
    let there = here.beside("host2", 4);
    let dir = here.vm_dir(&vm);
    fs::write(dir.join("vm.xml"), "<VM/>").unwrap();
    let data = description(&dir, &dir, "NO");
    let reach = Threads::to(&there);
    migrate_with(&reach, &here, &there, &vm, Some(&data)).unwrap();
    assert_eq!(*reach.copied.lock().unwrap(), ["vm.xml"]);
    let hosts = [here, there];
    runs_there(&hosts);
    hosts.check();

    let elsewhere = description(&dir, &dir.join("../../104/42"), "NO");
    let error = migrate_with(&Threads::to(&hosts[0]), &hosts[1], &hosts[0], &vm, Some(&elsewhere)).unwrap_err();
    let said = "migrate: one-42 can't be moved live to another host and another datastore at once; nothing was changed";
    assert_eq!(error.to_string(), said);
}

#[test]
fn migrate_with_every_fault_at_the_source() {
    with_every_fault(0, Course::Works);
}

#[test]
fn migrate_with_every_fault_at_the_destination() {
    with_every_fault(1, Course::Works);
}

#[test]
fn migrate_that_fails_with_every_fault_at_the_source() {
    with_every_fault(0, Course::Fails);
}

#[test]
fn migrate_that_fails_with_every_fault_at_the_destination() {
    with_every_fault(1, Course::Fails);
}

#[test]
fn migrate_in_doubt_with_every_fault_at_the_source() {
    with_every_fault(0, Course::InDoubt { runs_there: true });
    with_every_fault(0, Course::InDoubt { runs_there: false });
}

#[test]
fn migrate_in_doubt_with_every_fault_at_the_destination() {
    with_every_fault(1, Course::InDoubt { runs_there: true });
    with_every_fault(1, Course::InDoubt { runs_there: false });
}

#[test]
fn a_source_that_dies_during_the_copy_is_settled_by_what_is_true() {
    for course in [Course::Works, Course::Fails] {
        let calls = {
            let hosts = hosts();
            hosts[0].faults().disarm();
            migrate(&hosts[0], &hosts[1], &vm()).unwrap();
            hosts[0].faults().calls()
        };
        let n = calls.iter().position(|call| *call == "migrate").unwrap() + 1;
        for is_done in [false, true] {
            assert!(with_fault(0, course, n, Fault::DiesDuring { call: "migrate", is_done }, &mut String::new()));
        }
    }
}

#[test]
fn a_destination_that_is_lost_ends_the_move() {
    for has_power in [true, false] {
        let hosts = hosts();
        let before = looks(&hosts[0]);
        let ended = while_it_copies(&hosts, |reach| {
            if !has_power {
                hosts[1].model().power_off();
                hosts[1].faults().arm(1, Fault::Dies);
            }
            reach.cut();
        });
        assert_eq!(
            ended.unwrap_err().to_string(),
            "migrate: the agent on host2 was lost; nothing was moved, the domain runs on; host2 frees the claims that it \
             holds for the VM, now or at its next reconciliation"
        );
        settle(&hosts);
        assert_eq!(looks(&hosts[0]), before);
        if !has_power {
            hosts[1].faults().disarm();
            hosts[1].model().start_daemon();
            bury(&hosts[1]);
            hosts[1].reconcile().unwrap();
        }
        assert!(hosts[1].domain("one-42").is_none());
        hosts.check();
    }
}

#[test]
fn a_libvirtd_that_restarts_ends_the_move() {
    for place in [0, 1] {
        let hosts = hosts();
        let before = hosts.portrait();
        let ended = while_it_copies(&hosts, |_| {
            hosts[place].model().restart_daemon();
            hosts[0].model().release_copies();
        });
        match ended {
            Ok(()) => runs_there(&hosts),
            Err(error) => assert_eq!(hosts.portrait(), before, "{error}"),
        }
        hosts.check();
    }
}

#[test]
fn a_job_that_is_aborted_by_hand_ends_the_move() {
    let hosts = hosts();
    let before = hosts.portrait();
    let ended = while_it_copies(&hosts, |_| {
        let domain = hosts[0].model().find(&"one-42".parse().unwrap()).unwrap().unwrap();
        hosts[0].model().abort_job(&domain).unwrap();
    });
    let error = ended.unwrap_err().to_string();
    assert!(error.ends_with("; nothing was moved, the domain runs on"), "{error}");
    assert_eq!(hosts.portrait(), before);
    hosts.check();
}

#[test]
fn a_vm_that_is_cancelled_while_it_moves_is_gone_on_both_hosts() {
    let hosts = hosts();
    let ended = while_it_copies(&hosts, |_| cancel(&hosts[0]));
    ended.unwrap_err();
    settle(&hosts);
    assert!(hosts[0].domain("one-42").is_none() && hosts[1].domain("one-42").is_none());
    hosts.check();
}

#[test]
fn cancel_at_the_destination_leaves_the_vm_where_it_runs() {
    let hosts = hosts();
    let before = hosts.portrait();
    let ended = while_it_copies(&hosts, |_| cancel(&hosts[1]));
    let error = ended.unwrap_err().to_string();
    assert!(error.ends_with("; nothing was moved, the domain runs on"), "{error}");
    settle(&hosts);
    assert_eq!(hosts.portrait(), before);
    hosts.check();
}

#[test]
fn the_only_free_vf_of_the_destination_comes_late() {
    let here = ModelHost::with_vfs(1);
    let hosts = [here.beside("host3", 1), here];
    let vm = Vm::new(50).nic("sriov_ib0");
    deploy(&hosts[0], &vm);
    hosts[1].add_vfio_rule();
    hosts[1].model().delay_udev(hosts[1].vfs("ib0")[0], 2);
    migrate(&hosts[0], &hosts[1], &vm).unwrap();
    assert_eq!(hosts[1].domain("one-50").unwrap().vfs().count(), 1);
    hosts.check();
}

#[test]
fn two_vms_swap_their_hosts_at_once() {
    let here = ModelHost::with_vfs(2);
    let hosts = [here.beside("host3", 2), here];
    let (a, b) = (Vm::new(50).nic("sriov_ib0"), Vm::new(51).nic("sriov_ib0"));
    deploy(&hosts[0], &a);
    deploy(&hosts[1], &b);
    thread::scope(|scope| {
        let there = scope.spawn(|| migrate(&hosts[0], &hosts[1], &a));
        migrate(&hosts[1], &hosts[0], &b).unwrap();
        there.join().unwrap().unwrap();
    });
    assert!(hosts[1].domain("one-50").is_some() && hosts[0].domain("one-51").is_some());
    hosts.check();
}

#[test]
fn a_call_that_pins_the_guests_memory_has_a_longer_limit() {
    let here = ModelHost::default();
    let there = here.beside("host2", 4);
    let vm = Vm::new(42).memory(512 * 1024).nic("sriov_ib0");
    let id: DomainId = vm.uuid().parse().unwrap();
    // SRIOV_CALL_TIMEOUT is 2 s in this test.
    let is_enough = |host: &ModelHost, what: &str| {
        let limits = host.faults().limits();
        assert!(!limits.is_empty(), "{what}");
        assert!(limits.iter().all(|limit| *limit == Duration::from_secs(2 + 2 * 512)), "{what}: {limits:?}");
        host.faults().disarm();
    };
    deploy(&here, &vm);
    is_enough(&here, "deploy");
    let nic = kvm_sriov::opennebula::NicArgs {
        mac: vm.mac(1).parse().unwrap(),
        bridge: Some("sriov_ib1".into()),
        model: None,
        vn_mad: None,
        target: None,
    };
    actions::attach_nic(&here.host(), &id, &nic.described(None), None).unwrap();
    is_enough(&here, "attach_nic");
    let checkpoint = here.vm_dir(&vm).join("checkpoint");
    actions::save(&here.host(), &id, &checkpoint, None).unwrap();
    actions::restore(&here.host(), &checkpoint, opennebula::vm_of_checkpoint(&checkpoint).as_ref()).unwrap();
    is_enough(&here, "restore");
    let name = actions::snapshot_create(&here.host(), &id, 0, None).unwrap();
    is_enough(&here, "snapshot_create");
    actions::snapshot_revert(&here.host(), &id, &name, None).unwrap();
    is_enough(&here, "snapshot_revert");
    let domain = here.model().find(&id).unwrap().unwrap();
    here.model().detach_alias(&domain, "ua-sriov-0", CALL_LIMIT).unwrap();
    until("the VF left", || !here.domain("one-42").unwrap().has_alias("ua-sriov-0"));
    here.reconcile().unwrap();
    is_enough(&here, "reconcile");
    migrate(&here, &there, &vm).unwrap();
    is_enough(&there, "migrate");
}
