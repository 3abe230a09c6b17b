//! The unplug engine with every kind of guest.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::UnplugOutcome;
use kvm_sriov::libvirt::{DeviceCalls, DomainRef, Event, LibvirtErrorKind, PowerCalls};
use kvm_sriov::{actions, vm};
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_model::{Guest, Hotplug};
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

const NAME: &str = "one-42";

/// A running VM with this guest and three VFs.
fn a_vm(guest: Guest) -> (ModelHost, DomainRef, Vec<String>) {
    let host = ModelHost::default();
    let vm = Vm::new(42).nic("sriov_ib0").nic("sriov_ib0").nic("sriov_ib0");
    host.model().set_guest(NAME, guest);
    let domain = actions::deploy(&host.host(), &host.deployment_file(&vm), &host.deployment(&vm)).unwrap();
    host.faults().disarm();
    (host, domain, (0..3).map(|n| format!("ua-sriov-{n}")).collect())
}

/// Unplugs all VFs. Returns the outcomes and how long it took.
fn unplug(host: &ModelHost, domain: &DomainRef, aliases: &[String], seconds: u64) -> (Vec<UnplugOutcome>, Duration) {
    let begin = Instant::now();
    let outcomes = vm::unplug(host.faults(), domain, aliases, Duration::from_secs(seconds)).unwrap();
    assert_eq!(host.model().open_watches(), 0, "a watch was left open");
    let shown: Vec<_> = host.domain(NAME).into_iter().flat_map(|live| live.hostdevs).collect();
    for (alias, outcome) in aliases.iter().zip(&outcomes) {
        let is_shown = shown.iter().any(|device| device.alias.as_ref() == Some(alias));
        assert_eq!(
            is_shown,
            !matches!(outcome, UnplugOutcome::Released | UnplugOutcome::DomainGone),
            "{alias}: {outcome}"
        );
    }
    (outcomes, begin.elapsed())
}

const RELEASED: [UnplugOutcome; 3] = [UnplugOutcome::Released, UnplugOutcome::Released, UnplugOutcome::Released];
const PENDING: [UnplugOutcome; 3] = [UnplugOutcome::Pending, UnplugOutcome::Pending, UnplugOutcome::Pending];
const GONE: [UnplugOutcome; 3] = [UnplugOutcome::DomainGone, UnplugOutcome::DomainGone, UnplugOutcome::DomainGone];

#[test]
fn all_leave_in_the_time_of_the_slowest_with_one_call_each() {
    let (host, domain, aliases) = a_vm(Guest::Answers(Duration::from_millis(200)));
    let (outcomes, took) = unplug(&host, &domain, &aliases, 5);
    assert_eq!(outcomes, RELEASED);
    assert!(took < Duration::from_millis(550), "{took:?}");
    assert_eq!(host.faults().calls(), ["watch", "detach_alias", "detach_alias", "detach_alias", "live_xml"]);
}

#[test]
fn an_event_before_the_answer_is_not_missed() {
    let (host, domain, aliases) = a_vm(Guest::EventBeforeReturn);
    let (outcomes, took) = unplug(&host, &domain, &aliases, 5);
    assert_eq!(outcomes, RELEASED);
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn silence_is_pending_and_nothing_is_asked_too_soon() {
    for guest in [Guest::Silent, Guest::InFirmware] {
        let (host, domain, aliases) = a_vm(guest);
        let (outcomes, took) = unplug(&host, &domain, &aliases, 1);
        assert_eq!(outcomes, PENDING);
        assert!(took >= Duration::from_secs(1), "{took:?}");
        assert_eq!(host.faults().count("detach_alias"), 3);
    }
}

#[test]
fn a_guest_that_forgot_while_it_booted_is_asked_again() {
    let (host, domain, aliases) = a_vm(Guest::InFirmware);
    let model = host.model().clone();
    // The fifth call is the first repeated request.
    host.faults().before(5, move || model.finish_boot(NAME));
    let (outcomes, took) = unplug(&host, &domain, &aliases, 15);
    assert_eq!(outcomes, RELEASED);
    assert!(took >= Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_busy_slot_is_asked_again_but_not_at_once() {
    let (host, domain, aliases) = a_vm(Guest::Busy(2));
    let (outcomes, took) = unplug(&host, &domain, &aliases, 10);
    assert_eq!(outcomes, RELEASED);
    assert!(took >= Duration::from_secs(5), "{took:?}");
    assert_eq!(host.faults().count("detach_alias"), 5);
}

#[test]
fn a_slot_that_stays_busy_was_never_asked() {
    let (host, domain, aliases) = a_vm(Guest::Busy(1000));
    let (outcomes, _) = unplug(&host, &domain, &aliases, 1);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, UnplugOutcome::Busy(_))), "{outcomes:?}");
}

/// In each call, libvirt waits up to 30 s for a domain that another job has. A libvirtd that hangs waits for ever.
#[test]
fn a_domain_that_is_busy_is_not_waited_for_once_for_each_device() {
    for (busy, is_known) in [(Duration::from_millis(700), true), (Duration::from_secs(60), false)] {
        let (host, domain, aliases) = a_vm(Guest::Silent);
        host.faults().set_busy(busy);
        let (outcomes, took) = unplug(&host, &domain, &aliases, 1);
        assert!(took < Duration::from_millis(1600), "{took:?}");
        assert_eq!(host.faults().count("detach_alias"), 1);
        let is_busy = |outcome: &UnplugOutcome| matches!(outcome, UnplugOutcome::Busy(_));
        assert_eq!(is_busy(&outcomes[0]), is_known, "{outcomes:?}");
        assert!(outcomes[1..].iter().all(is_busy), "{outcomes:?}");
    }
}

#[test]
fn a_refusal_that_is_not_repeated_hides_no_request() {
    let (host, domain, aliases) = a_vm(Guest::Silent);
    host.faults().arm(2, Fault::Fails(LibvirtErrorKind::Other));
    assert_eq!(unplug(&host, &domain, &aliases, 7).0, PENDING);
    assert_eq!(host.faults().count("detach_alias"), 4);
}

#[test]
fn a_request_whose_answer_was_lost_is_not_taken_back() {
    let (host, domain, aliases) = a_vm(Guest::Answers(Duration::from_millis(1500)));
    host.model().set_hotplug(NAME, Hotplug::NativeCancels);
    host.faults().arm(3, Fault::FailsAfter(LibvirtErrorKind::Disconnected));
    assert_eq!(unplug(&host, &domain, &aliases, 15).0, RELEASED);
    assert_eq!(host.faults().count("detach_alias"), 3);
}

/// A guest that does not answer, and a request whose end is not known: it is open, and it was not refused.
#[test]
fn a_request_that_may_have_reached_the_guest_is_pending() {
    for kind in [LibvirtErrorKind::UnplugInProgress, LibvirtErrorKind::NoAnswer] {
        let (host, domain, aliases) = a_vm(Guest::Silent);
        host.faults().arm(2, Fault::Fails(kind));
        let (outcomes, _) = unplug(&host, &domain, &aliases[..1], 1);
        assert_eq!(outcomes, [UnplugOutcome::Pending], "{kind:?}");
        assert_eq!(host.faults().count("detach_alias"), 1);
    }
}

#[test]
fn a_guest_that_says_no_is_believed_at_once() {
    let (host, domain, aliases) = a_vm(Guest::RemovalFailed);
    let (outcomes, took) = unplug(&host, &domain, &aliases, 5);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, UnplugOutcome::Refused(_))), "{outcomes:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_device_that_stays_is_told_from_those_that_leave() {
    let (host, domain, aliases) = a_vm(Guest::Refuses("ua-sriov-1".into()));
    let (outcomes, _) = unplug(&host, &domain, &aliases, 1);
    assert_eq!(outcomes, [UnplugOutcome::Released, UnplugOutcome::Pending, UnplugOutcome::Released]);
}

#[test]
fn a_pending_request_is_waited_for() {
    for hotplug in [Hotplug::Acpi, Hotplug::AcpiOnce, Hotplug::Native] {
        let (host, domain, aliases) = a_vm(Guest::Answers(Duration::from_millis(300)));
        host.model().set_hotplug(NAME, hotplug);
        for alias in &aliases {
            host.model().detach_alias(&domain, alias, CALL_LIMIT).unwrap();
        }
        let (outcomes, took) = unplug(&host, &domain, &aliases, 5);
        assert_eq!(outcomes, RELEASED, "{hotplug:?}");
        assert!(took < Duration::from_secs(1), "{hotplug:?}: {took:?}");
    }
}

#[test]
fn a_second_press_never_takes_the_first_one_back() {
    let (host, domain, aliases) = a_vm(Guest::Answers(Duration::from_millis(1500)));
    host.model().set_hotplug(NAME, Hotplug::NativeCancels);
    let (outcomes, _) = unplug(&host, &domain, &aliases, 5);
    assert_eq!(outcomes, RELEASED);
}

#[test]
fn a_paused_guest_is_waited_for_until_it_is_resumed() {
    let (host, domain, aliases) = a_vm(Guest::default());
    host.model().pause(NAME);
    let (model, same) = (host.model().clone(), domain.clone());
    let resumer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        model.resume(&same).unwrap();
    });
    let (outcomes, _) = unplug(&host, &domain, &aliases, 5);
    resumer.join().unwrap();
    assert_eq!(outcomes, RELEASED);
}

#[test]
fn the_live_xml_counts_and_not_the_event() {
    let (host, domain, aliases) = a_vm(Guest::EventBeforeReturn);
    host.faults().arm(3, Fault::FailsAfter(LibvirtErrorKind::Other));
    assert_eq!(unplug(&host, &domain, &aliases, 2).0, RELEASED);

    let (host, domain, aliases) = a_vm(Guest::Silent);
    let model = host.model().clone();
    host.faults().before(4, move || model.emit(NAME, &Event::DeviceRemoved("ua-sriov-1".into())));
    assert_eq!(unplug(&host, &domain, &aliases, 1).0, PENDING);
}

#[test]
fn a_domain_that_ends_is_gone_wherever_it_ends() {
    for n in 1..=4 {
        let (host, domain, aliases) = a_vm(Guest::Silent);
        let model = host.model().clone();
        host.faults().before(n, move || model.end_domain(NAME));
        let (outcomes, took) = unplug(&host, &domain, &aliases, 5);
        assert_eq!(outcomes, GONE, "before call {n}");
        assert!(took < Duration::from_secs(1), "before call {n}: {took:?}");
    }
}

#[test]
fn a_libvirtd_that_restarts_is_waited_for() {
    for n in 1..=5 {
        let (host, domain, aliases) = a_vm(Guest::default());
        let model = host.model().clone();
        host.faults().before(n, move || model.restart_daemon());
        let (outcomes, took) = unplug(&host, &domain, &aliases, 15);
        assert_eq!(outcomes, RELEASED, "before call {n}");
        // The request whose answer was lost may have reached the guest, so it is repeated only after a pause.
        let most = if (2..=4).contains(&n) { 8 } else { 2 };
        assert!(took < Duration::from_secs(most), "before call {n}: {took:?}");
    }
}

#[test]
fn a_libvirtd_that_stays_away_is_said_to_be() {
    let (host, domain, aliases) = a_vm(Guest::Silent);
    let model = host.model().clone();
    host.faults().before(3, move || model.stop_daemon());
    let outcomes = vm::unplug(host.faults(), &domain, &aliases, Duration::from_secs(1)).unwrap();
    assert_eq!(outcomes, [UnplugOutcome::DaemonGone, UnplugOutcome::DaemonGone, UnplugOutcome::DaemonGone]);
}

#[test]
fn any_call_may_fail() {
    let kinds = [LibvirtErrorKind::Other, LibvirtErrorKind::NoAnswer, LibvirtErrorKind::Disconnected];
    thread::scope(|scope| {
        for fault in kinds.into_iter().flat_map(|kind| [Fault::Fails(kind), Fault::FailsAfter(kind)]) {
            scope.spawn(move || any_call_may_have(fault));
        }
    });
}

/// Whatever call fails, the outcomes agree with the live XML.
fn any_call_may_have(fault: Fault) {
    for n in 1.. {
        let (host, domain, aliases) = a_vm(Guest::default());
        host.faults().arm(n, fault);
        let (outcomes, _) = unplug(&host, &domain, &aliases, 1);
        if !host.faults().fired() {
            assert_eq!(outcomes, RELEASED);
            break;
        }
    }
}
