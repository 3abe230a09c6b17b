//! Tests against libvirt's test driver. The driver's domains live in this process.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, atomic::AtomicBool};
use std::time::{Duration, Instant};
use std::{fs, thread};

use virt::connect::Connect;
use virt::domain::Domain;

use super::connection::{Connection, Patience};
use super::long_call::GiveUp;
use super::receivers::{self, count};
use super::subscription::Subscription;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A domain of the test driver, and a second connection that acts as other users of libvirt.
struct TestDomain {
    libvirt: Libvirt,
    domain: DomainRef,
    other: Domain,
}

impl TestDomain {
    fn new(name: &str) -> Self {
        Self::at("test:///default", name)
    }

    fn at(uri: &str, name: &str) -> Self {
        let libvirt = Libvirt::open(uri, TIMEOUT).unwrap();
        let domain = libvirt.create(&xml(name), TIMEOUT).unwrap();
        let other = Connect::open(Some(uri)).unwrap().lookup_domain_by_name(name).unwrap();
        Self { libvirt, domain, other }
    }

    fn watched(self) -> (Self, Events) {
        let events = self.libvirt.watch(&self.domain).unwrap();
        (self, events)
    }
}

fn xml(name: &str) -> String {
    format!("<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os></domain>")
}

#[test]
fn events_come_in_order_and_only_those_of_the_domain() {
    let test = TestDomain::new("one-1001");
    let stranger = TestDomain::new("one-1002");
    let events = test.libvirt.watch(&test.domain).unwrap();
    assert_eq!(events.next(Duration::ZERO), None);
    stranger.other.suspend().unwrap();
    test.other.suspend().unwrap();
    assert_eq!(events.next(TIMEOUT), Some(Event::Suspended));
    assert_eq!(test.libvirt.state(&test.domain).unwrap(), Some(RunState::PausedByUser));
    test.libvirt.resume(&test.domain).unwrap();
    assert_eq!(events.next(TIMEOUT), Some(Event::Resumed));
    assert_eq!(test.libvirt.state(&test.domain).unwrap(), Some(RunState::Running));
    test.libvirt.destroy(&test.domain).unwrap();
    assert_eq!(events.next(TIMEOUT), Some(Event::Ended));
    assert_eq!(events.next(Duration::from_millis(50)), None);
    assert_eq!(test.libvirt.state(&test.domain).unwrap(), None);
    assert_eq!(test.libvirt.job(&test.domain).unwrap(), None);
    assert_eq!(test.libvirt.completed_job(&test.domain).unwrap(), None);
    assert_eq!(test.libvirt.watch(&test.domain).err().map(|e| e.kind()), Some(LibvirtErrorKind::NoDomain));
}

#[test]
fn nothing_comes_after_the_end_of_a_subscription() {
    let test = TestDomain::new("one-1003");
    // libvirt's event queue hangs for ever when an event arrives while the last callback is being removed, because
    // virObjectEventStateQueueRemote reads the queue's timer without the lock. So this test keeps one callback.
    let _stays = TestDomain::new("one-1010").watched();
    let stop = Arc::new(AtomicBool::new(false));
    let (seen, other) = (Arc::clone(&stop), test.other.clone());
    let noise = thread::spawn(move || {
        while !seen.load(Ordering::Acquire) {
            other.suspend().unwrap();
            other.resume().unwrap();
        }
    });
    let connection = test.libvirt.connection().unwrap();
    for round in 0..500 {
        let (sender, receiver) = mpsc::channel();
        let subscription =
            Subscription::new(Arc::clone(&connection), test.domain.uuid.as_str(), sender, Patience::of(TIMEOUT))
                .unwrap();
        if round % 2 == 0 {
            assert!(receiver.recv_timeout(TIMEOUT).is_ok());
        }
        drop(subscription);
        // Events from before can still be read. Then the channel is closed, because no sender is left.
        while receiver.try_recv().is_ok() {}
        assert_eq!(receiver.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }
    stop.store(true, Ordering::Release);
    noise.join().unwrap();
}

#[test]
fn all_watchers_of_a_connection_that_breaks_are_told_and_the_next_call_opens_a_new_one() {
    let test = TestDomain::new("one-1004");
    let first = test.libvirt.watch(&test.domain).unwrap();
    let second = test.libvirt.watch(&test.domain).unwrap();
    let gone = test.libvirt.watch(&test.domain).unwrap();
    drop(gone);
    let broken = test.libvirt.connection().unwrap();
    receivers::closed(broken.closing.number());
    for events in [&first, &second] {
        assert_eq!(events.next(TIMEOUT), Some(Event::Disconnected));
        // The end is reported again and again.
        assert_eq!(events.next(TIMEOUT), Some(Event::Disconnected));
    }
    // A failure on the broken connection is a disconnection, unless libvirtd answered with an error of its own.
    assert_eq!(broken.judge(LibvirtError::other("odd")).kind(), LibvirtErrorKind::Disconnected);
    let absent = LibvirtError::new(LibvirtErrorKind::NoDomain, 42, "gone");
    assert_eq!(broken.judge(absent.clone()), absent);
    assert!(test.libvirt.live_xml(&test.domain).unwrap().is_some());
    let new = test.libvirt.connection().unwrap();
    assert!(!Arc::ptr_eq(&broken, &new));
    let third = test.libvirt.watch(&test.domain).unwrap();
    test.other.suspend().unwrap();
    assert_eq!(third.next(TIMEOUT), Some(Event::Suspended));
}

/// Two round trips less for a program that makes only short calls.
#[test]
fn only_who_waits_without_a_deadline_asks_libvirtd_to_report_the_end_of_the_connection() {
    fn until_asked(connection: &Connection) -> Result<(), LibvirtError> {
        while !connection.asked_for_end.is_completed() {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
    let test = TestDomain::new("one-1013");
    let connection = test.libvirt.connection().unwrap();
    assert!(test.libvirt.live_xml(&test.domain).unwrap().is_some());
    test.libvirt.long_call("virShort", GiveUp::Limit(TIMEOUT), |_| Ok(())).unwrap();
    assert!(!connection.asked_for_end.is_completed());
    let events = test.libvirt.watch(&test.domain).unwrap();
    assert!(connection.asked_for_end.is_completed());
    drop(events);
    let calls: [fn(&TestDomain); 2] = [
        |test| drop(test.libvirt.watch_for(&test.domain.uuid).unwrap()),
        |test| test.libvirt.long_call("virLong", GiveUp::Limit(TIMEOUT), until_asked).unwrap(),
    ];
    for (call, name) in calls.iter().zip(["one-1014", "one-1015"]) {
        let test = TestDomain::new(name);
        call(&test);
        assert!(test.libvirt.connection().unwrap().asked_for_end.is_completed());
    }
}

#[test]
fn a_call_without_a_deadline_ends_when_its_connection_breaks() {
    let test = TestDomain::new("one-1005");
    let number = test.libvirt.connection().unwrap().closing.number();
    let begin = Instant::now();
    let error = test
        .libvirt
        .long_call("virSlow", GiveUp::Limit(TIMEOUT), move |_| {
            receivers::closed(number);
            thread::sleep(Duration::from_secs(600));
            Ok(())
        })
        .unwrap_err();
    assert_eq!(error.kind(), LibvirtErrorKind::Disconnected);
    assert!(error.to_string().contains("virSlow"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(300));
    let error =
        test.libvirt.long_call("virOdd", GiveUp::Limit(TIMEOUT), |_| -> Result<(), _> { panic!("odd") }).unwrap_err();
    assert_eq!(error.to_string(), "virOdd ended by a panic");
}

#[test]
fn a_domain_goes_into_a_file_and_comes_back() {
    let test = TestDomain::new("one-1006");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checkpoint");
    fs::write(&file, "").unwrap();
    let events = test.libvirt.watch(&test.domain).unwrap();
    test.libvirt.save(&test.domain, &file).unwrap();
    assert_eq!(events.next(TIMEOUT), Some(Event::Ended));
    assert_eq!(test.libvirt.live_xml(&test.domain).unwrap(), None);
    let image = test.libvirt.image_xml(&file).unwrap();
    assert!(image.contains("<name>one-1006</name>"), "{image}");
    // The test driver can't restore with another XML.
    assert!(test.libvirt.restore(&file, &image, true, TIMEOUT).is_err());
    Connect::open(Some("test:///default")).unwrap().restore_domain(file.to_str().unwrap()).unwrap();
    assert_eq!(test.libvirt.state(&test.domain).unwrap(), Some(RunState::Running));
    let error = test.libvirt.save(&test.domain, &dir.path().join("a\0b")).unwrap_err();
    assert!(error.text().contains("NUL"), "{error}");
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
    let error = test.libvirt.image_xml(Path::new::<std::ffi::OsStr>(odd)).unwrap_err();
    assert!(error.text().contains("not UTF-8"), "{error}");
}

#[test]
fn snapshots_are_listed_parents_first_and_can_be_defined_again() {
    let test = TestDomain::new("one-1007");
    let (libvirt, domain) = (&test.libvirt, &test.domain);
    assert_eq!(libvirt.snapshots(domain).unwrap(), Snapshots::default());
    for name in ["snap-2", "snap-0", "snap-1"] {
        libvirt.create_snapshot(domain, &format!("<domainsnapshot><name>{name}</name></domainsnapshot>")).unwrap();
    }
    let snapshots = libvirt.snapshots(domain).unwrap();
    assert_eq!(snapshots.names, ["snap-2", "snap-0", "snap-1"]);
    assert_eq!(snapshots.current.as_deref(), Some("snap-1"));
    let xml = libvirt.snapshot_xml(domain, "snap-0").unwrap();
    assert!(xml.contains("<parent>"), "{xml}");
    libvirt.revert_snapshot(domain, "snap-2").unwrap();
    assert_eq!(libvirt.snapshots(domain).unwrap().current.as_deref(), Some("snap-2"));
    let last = libvirt.snapshot_xml(domain, "snap-1").unwrap();
    libvirt.delete_snapshot(domain, "snap-1", false).unwrap();
    assert_eq!(libvirt.snapshots(domain).unwrap().names, ["snap-2", "snap-0"]);
    libvirt.redefine_snapshot(domain, &last, true).unwrap();
    let snapshots = libvirt.snapshots(domain).unwrap();
    assert_eq!(
        snapshots,
        Snapshots { names: vec!["snap-2".into(), "snap-0".into(), "snap-1".into()], current: Some("snap-1".into()) }
    );
    let error = libvirt.revert_snapshot(domain, "none").unwrap_err();
    assert_eq!(error.kind(), LibvirtErrorKind::NoSnapshot);
}

/// A domain that was seen is not looked up again, whatever has become of it.
#[test]
fn a_domain_that_was_seen_is_gone_when_it_is_gone_and_there_when_it_is_back() {
    let test = TestDomain::new("one-1012");
    let (libvirt, domain) = (&test.libvirt, &test.domain);
    let xml = libvirt.live_xml(domain).unwrap().unwrap();
    let knows = || libvirt.connection().unwrap().known.get(domain.uuid.as_str()).is_some();
    assert!(knows());
    for _ in 0..2 {
        test.other.destroy().unwrap();
        assert_eq!(libvirt.destroy(domain).unwrap_err().kind(), LibvirtErrorKind::NoDomain);
        assert!(!knows(), "a domain that is gone is forgotten");
        assert_eq!(libvirt.live_xml(domain).unwrap(), None);
        let again = libvirt.create(&xml, TIMEOUT).unwrap();
        assert_eq!((&again.uuid, libvirt.state(domain).unwrap()), (&domain.uuid, Some(RunState::Running)));
    }
    assert!(libvirt.domains().unwrap().iter().any(|listed| listed.uuid == domain.uuid));
    assert!(knows());
    test.other.destroy().unwrap();
    libvirt.domains().unwrap();
    assert!(!knows(), "a domain that is not listed is forgotten");
}

#[test]
fn what_the_test_driver_has_and_what_it_lacks() {
    let test = TestDomain::new("one-1008");
    let (libvirt, domain) = (&test.libvirt, &test.domain);
    let migration = Migration { destination: "test:///default".into(), ..Migration::default() };
    let no_support = 3;
    for (call, result) in [
        ("virDomainAbortJob", libvirt.abort_job(domain)),
        ("virDomainGetJobStats", libvirt.completed_job(domain).map(drop)),
        ("virDomainDetachDeviceAlias", libvirt.detach_alias(domain, "ua-sriov-0", TIMEOUT)),
        ("virDomainDetachDeviceFlags", libvirt.detach(domain, "<hostdev/>")),
        ("virDomainPMWakeup", libvirt.wake_up(domain)),
        ("virDomainMigrate3", libvirt.migrate(domain, &migration)),
        ("virDomainBlockCopy", libvirt.block_copy(domain, "vda", "<disk/>", true)),
        ("virDomainGetBlockJobInfo", libvirt.block_job(domain, "vda").map(drop)),
        ("virDomainBlockJobAbort", libvirt.finish_block_job(domain, "vda", true)),
    ] {
        let error = result.unwrap_err();
        assert!(error.code() == no_support && error.text().contains(call), "{call}: {error}");
    }
    assert_eq!(libvirt.job(domain).unwrap(), None);
    libvirt.sync_time(domain).unwrap();
    let uri = "qemu+unix:///system?socket=/nowhere";
    let nowhere = Migration { destination: uri.into(), ..Migration::default() };
    let error = libvirt.migrate(domain, &nowhere).unwrap_err();
    assert_eq!(error.kind(), LibvirtErrorKind::Unreachable);
    let text = format!("cannot connect to the destination's libvirtd at {uri}: ");
    assert!(error.to_string().starts_with(&text), "{error}");
    for nul in [libvirt.detach_alias(domain, "a\0", TIMEOUT), libvirt.restore(Path::new("/x"), "\0", true, TIMEOUT)] {
        assert!(nul.unwrap_err().text().contains("NUL"));
    }
    let hostdev = "<hostdev mode='subsystem' type='pci' managed='yes'><source>\
                   <address domain='0x0000' bus='0x07' slot='0x00' function='0x3'/></source>\
                   <alias name='ua-sriov-0'/></hostdev>";
    match libvirt.attach(domain, hostdev, TIMEOUT) {
        Ok(()) => assert!(libvirt.live_xml(domain).unwrap().unwrap().contains("ua-sriov-0")),
        // Before libvirt 10 the test driver does not support this call.
        Err(error) => assert_eq!(error.code(), no_support, "{error}"),
    }
}

/// QEMU hangs in the middle of a save, but libvirtd still answers.
#[test]
fn a_call_without_a_deadline_ends_when_nothing_moves_any_more() {
    let test = TestDomain::new("one-1011");
    let begin = Instant::now();
    for give_up in [
        GiveUp::without_progress(test.domain.uuid.to_string(), Duration::from_millis(300)),
        GiveUp::Limit(Duration::from_millis(300)),
    ] {
        let hangs = |_: &Connection| {
            thread::sleep(TIMEOUT);
            Ok(())
        };
        let error = test.libvirt.long_call("virDomainSaveFlags", give_up, hangs).unwrap_err();
        assert_eq!(error.kind(), LibvirtErrorKind::NoAnswer, "{error}");
    }
    assert!(begin.elapsed() < TIMEOUT / 2, "{:?}", begin.elapsed());
    // 8 GiB may take 400 s more.
    assert_eq!(copy_limit(Duration::from_secs(300), 8 << 20), Duration::from_secs(700));
}

/// When libvirt refuses a registration, it may still release the reference. So the reference is kept, and is released
/// at most once.
#[test]
fn a_registration_that_fails_keeps_what_libvirt_may_still_release() {
    let connect = Connect::open(Some("test:///default")).unwrap();
    let domain = connect.lookup_domain_by_name("test").unwrap();
    let sink = receivers::Sink::new();
    let register = || ffi::register(&connect, &domain, ffi::Watched::Reboot, &sink);
    let first = register().unwrap();
    assert_eq!(Arc::strong_count(&sink), 2);
    let error = register().unwrap_err();
    assert!(error.message().contains("already tracked"), "{}", error.message());
    assert_eq!(Arc::strong_count(&sink), 3);
    ffi::deregister(&connect, first).unwrap();
}

/// Watches a domain `rounds` times and counts the threads, files and memory that are left. Runs in a process that does
/// nothing else with files, threads or watches.
fn subscriptions(uri: &str, rounds: usize) {
    // libvirt's event loop opens the file that wakes it once, and keeps it.
    drop(Libvirt::open(uri, TIMEOUT).unwrap());
    let outside = settled(3);
    for _ in 0..200 {
        let libvirt = Libvirt::open(uri, TIMEOUT).unwrap();
        let domain = libvirt.find(&"test".parse().unwrap()).unwrap().unwrap();
        let other = Connect::open(Some(uri)).unwrap();
        drop((libvirt.watch(&domain).unwrap(), other, libvirt));
    }
    assert_eq!(settled(3), outside);
    let test = TestDomain::at(uri, "one-1009");
    let round = || {
        let events = test.libvirt.watch(&test.domain).unwrap();
        test.other.suspend().unwrap();
        test.other.resume().unwrap();
        // The first event may still be the last event of the previous round.
        while events.next(TIMEOUT) != Some(Event::Suspended) {}
        drop(events);
    };
    for _ in 0..100 {
        round();
    }
    let (before, memory) = (settled(4), resident_kib());
    for _ in 0..rounds {
        round();
    }
    assert_eq!(settled(4), before);
    // Leaked references would need more memory.
    assert!(resident_kib() < memory + 2048, "{} KiB, before {memory} KiB", resident_kib());
    assert_eq!(count::REGISTERED.load(Ordering::SeqCst), (rounds + 300) * 6);
    // The event loop frees what the last rounds gave up.
    let deadline = Instant::now() + TIMEOUT;
    while count::FREED.load(Ordering::SeqCst) < (rounds + 300) * 6 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(count::FREED.load(Ordering::SeqCst), (rounds + 300) * 6);
    // No callback holds the connection any more. So it closes, and the event loop ends.
    let connection = Arc::downgrade(&test.libvirt.connection().unwrap());
    let TestDomain { libvirt, other, .. } = test;
    drop(other);
    drop(libvirt);
    assert!(connection.upgrade().is_none());
    assert_eq!(settled(3), outside);
}

/// The number of threads and of open files. Waits until the worker threads that are ending have ended; one worker
/// stays.
fn settled(expected: usize) -> (usize, usize) {
    let deadline = Instant::now() + TIMEOUT;
    while entries("/proc/self/task") > expected && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    (entries("/proc/self/task"), entries("/proc/self/fd"))
}

fn entries(dir: &str) -> usize {
    fs::read_dir(dir).unwrap().count()
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ten_thousand_subscriptions_leave_nothing_behind() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--test-threads=1", "libvirt::tests::ten_thousand_subscriptions_in_one_process"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "part of ten_thousand_subscriptions_leave_nothing_behind"]
fn ten_thousand_subscriptions_in_one_process() {
    subscriptions("test:///default", 10_000);
}

/// Tests that need root, a libvirtd that may be stopped and killed, and a process for each test. The lab's scenario
/// `the_libvirt_layer_on_a_libvirtd_of_its_own` runs them all.
mod daemon {
    use super::*;

    #[test]
    #[ignore = "runs in a lab host"]
    fn two_thousand_subscriptions_leave_nothing_behind() {
        let daemon = Daemon::new();
        subscriptions(&daemon.uri(), 2_000);
    }

    /// A libvirtd with the test driver, for one test.
    struct Daemon {
        dir: tempfile::TempDir,
        child: Option<std::process::Child>,
    }

    impl Daemon {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().display();
            let text = format!("unix_sock_dir = \"{place}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n");
            fs::write(dir.path().join("conf"), text).unwrap();
            let mut daemon = Self { dir, child: None };
            daemon.start();
            daemon
        }

        fn uri(&self) -> String {
            format!("test+unix:///default?socket={}/libvirt-sock", self.dir.path().display())
        }

        fn start(&mut self) {
            let path = |name| self.dir.path().join(name);
            let mut command = std::process::Command::new("/usr/sbin/libvirtd");
            command
                .arg("-f")
                .arg(path("conf"))
                .arg("-p")
                .arg(path("pid"))
                .stderr(fs::File::create(path("log")).unwrap());
            self.child = Some(command.spawn().unwrap());
            let deadline = Instant::now() + TIMEOUT;
            while std::os::unix::net::UnixStream::connect(path("libvirt-sock")).is_err() {
                assert!(
                    Instant::now() < deadline,
                    "libvirtd does not listen: {}",
                    fs::read_to_string(path("log")).unwrap()
                );
                thread::sleep(Duration::from_millis(100));
            }
        }

        fn kill(&mut self) {
            let mut child = self.child.take().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            if self.child.is_some() {
                self.kill();
            }
        }
    }

    #[test]
    #[ignore = "runs in a lab host"]
    fn libvirtd_is_restarted() {
        let mut daemon = Daemon::new();
        let libvirt = Libvirt::open(&daemon.uri(), TIMEOUT).unwrap();
        let domain = libvirt.find(&"test".parse().unwrap()).unwrap().unwrap();
        let events = [libvirt.watch(&domain).unwrap(), libvirt.watch(&domain).unwrap()];
        thread::scope(|scope| {
            let (begun, has_begun) = mpsc::channel();
            let long = scope.spawn(|| {
                libvirt.long_call("virLong", GiveUp::Limit(TIMEOUT), move |connection| {
                    let connect = &connection.connect;
                    begun.send(()).unwrap();
                    // As a save, this returns when the connection breaks.
                    while connect.is_alive().unwrap() {
                        thread::sleep(Duration::from_millis(100));
                    }
                    Ok(connect.hostname().map(drop)?)
                })
            });
            has_begun.recv().unwrap();
            daemon.kill();
            assert_eq!(long.join().unwrap().unwrap_err().kind(), LibvirtErrorKind::Disconnected);
        });
        for events in &events {
            assert_eq!(events.next(TIMEOUT), Some(Event::Disconnected));
        }
        let error = libvirt.live_xml(&domain).unwrap_err();
        assert_eq!(error.kind(), LibvirtErrorKind::Disconnected, "{error}");
        println!("{error}");
        drop(events);
        daemon.start();
        assert!(libvirt.live_xml(&domain).unwrap().is_some());
        let events = libvirt.watch(&domain).unwrap();
        libvirt.destroy(&domain).unwrap();
        assert_eq!(events.next(TIMEOUT), Some(Event::Ended));
        drop(events);
        // The test driver's default domain is persistent.
        assert_eq!(libvirt.state(&domain).unwrap(), Some(RunState::Ending));
        daemon.kill();
        assert_eq!(libvirt.destroy(&domain).unwrap_err().kind(), LibvirtErrorKind::Disconnected);
        drop(libvirt);
        assert_eq!(count::FREED.load(Ordering::SeqCst), count::REGISTERED.load(Ordering::SeqCst));
    }

    /// The connection breaks while nobody has asked for a report of it.
    #[test]
    #[ignore = "runs in a lab host"]
    fn libvirtd_is_killed_before_the_wait() {
        let mut daemon = Daemon::new();
        let libvirt = Libvirt::open(&daemon.uri(), TIMEOUT).unwrap();
        let connection = libvirt.connection().unwrap();
        daemon.kill();
        let (sender, receiver) = mpsc::channel();
        let _ticket = connection.tell_of_end(Box::new(move || sender.send(()).unwrap()));
        assert_eq!(receiver.recv_timeout(TIMEOUT), Ok(()));
        assert!(!connection.is_alive());
    }

    #[test]
    #[ignore = "runs in a lab host"]
    fn libvirtd_hangs() {
        let daemon = Daemon::new();
        let libvirt = Libvirt::open(&daemon.uri(), Duration::from_secs(120)).unwrap();
        let domain = libvirt.find(&"test".parse().unwrap()).unwrap().unwrap();
        let events = libvirt.watch(&domain).unwrap();
        let pid = nix::unistd::Pid::from_raw(daemon.child.as_ref().unwrap().id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
        let error = libvirt.live_xml(&domain).unwrap_err();
        nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
        assert_eq!(error.kind(), LibvirtErrorKind::Disconnected);
        println!("{error}");
        assert_eq!(events.next(TIMEOUT), Some(Event::Disconnected));
        assert!(libvirt.live_xml(&domain).unwrap().is_some());
    }
}
