//! A program that embeds the library ends actions early and shows their progress.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::{DomainCalls, JobCalls};
use kvm_sriov::{Action, ActionError, Cause, DomainId, Host, Progress, Stop, UnplugOutcome, actions};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_model::{Course, Guest};
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

/// No action that was told to stop may take as long as this.
const SOON: Duration = Duration::from_secs(20);

fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("sriov_ib1")
}

fn id() -> DomainId {
    vm().uuid().parse().unwrap()
}

/// A host on which [`vm`] runs.
fn a_running_vm() -> ModelHost {
    let host = ModelHost::default();
    actions::deploy(&host.host(), &host.deployment_file(&vm()), &host.deployment(&vm())).unwrap();
    host
}

fn save(model: &ModelHost, host: &Host) -> Result<(), ActionError> {
    host.save(&id(), &model.vm_dir(&vm()).join("checkpoint"))
}

/// Runs an action, and tells it to stop as soon as `is_time`.
fn stopped<T: Send>(
    model: &ModelHost,
    is_time: impl FnOnce() + Send,
    action: impl FnOnce(&Host) -> Result<T, ActionError> + Send,
) -> ActionError {
    let stop = Stop::new();
    let host = model.host().with_stop(stop.clone());
    let begin = Instant::now();
    let error = thread::scope(|scope| {
        let action = scope.spawn(|| action(&host).map(drop).unwrap_err());
        is_time();
        stop.stop();
        action.join().unwrap()
    });
    assert!(begin.elapsed() < SOON, "{error} after {:?}", begin.elapsed());
    assert!(error.is_retryable(), "{error}");
    error
}

/// The VM has both VFs, and nothing of it is open.
fn is_whole(host: &ModelHost) {
    let live = host.domain("one-42").unwrap();
    assert!(live.has_alias("ua-sriov-0") && live.has_alias("ua-sriov-1"));
    assert_eq!(host.claims().len(), 2);
    assert!(host.vm_files().keys().all(|file| !file.display().to_string().contains("checkpoint")));
}

#[test]
fn a_stop_during_an_unplug_leaves_the_vm_whole() {
    for guest in [Guest::Silent, Guest::Refuses("ua-sriov-1".into())] {
        let host = a_running_vm();
        host.model().set_guest("one-42", guest.clone());
        let asked = || {
            let is_open = || host.host().explain(&id()).unwrap().wanted.operation.is_some();
            until("the save begins", is_open);
            thread::sleep(Duration::from_millis(300));
        };
        let error = stopped(&host, asked, |to_stop| save(&host, to_stop));
        let Cause::Stopped { kept } = error.cause() else { panic!("{error}") };
        assert!(!kept.is_empty() && kept.iter().all(|(.., outcome)| *outcome == UnplugOutcome::Pending), "{error}");
        assert!(error.to_string().starts_with("save: the caller stopped it before the guest released VF "), "{error}");
        is_whole(&host);
        // A guest that releases a VF late gets it back.
        host.model().set_guest("one-42", Guest::default());
        save(&host, &host.host()).unwrap();
        assert!(host.domain("one-42").is_none() && host.claims().is_empty());
    }
}

#[test]
fn a_stop_during_the_copy_of_a_save_leaves_the_vm_whole() {
    let host = a_running_vm();
    host.model().set_course(Course::Hangs);
    let domain = host.model().find(&id()).unwrap().unwrap();
    let saves = || until("it saves", || host.model().job(&domain).unwrap().is_some());
    let error = stopped(&host, saves, |to_stop| save(&host, to_stop));
    assert_eq!(error.to_string(), "save: the caller stopped it; nothing was saved, the domain runs on");
    assert!(!error.changed_anything() && !error.leaves_doubt());
    is_whole(&host);
    host.check();
}

#[test]
fn a_stop_ends_the_wait_for_the_lock_of_a_vm() {
    let host = a_running_vm();
    let lock = host.host().claims().unwrap().lock_vm(&"one-42".parse().unwrap(), Action::Migrate, Duration::ZERO);
    let waits = || thread::sleep(Duration::from_millis(300));
    let error = stopped(&host, waits, |to_stop| save(&host, to_stop));
    assert_eq!(error.to_string(), "save: the caller stopped it; nothing was changed");
    drop(lock);
    is_whole(&host);
    host.check();
}

#[test]
fn nothing_begins_after_a_stop() {
    let host = a_running_vm();
    let stop = Stop::new();
    stop.stop();
    let stopped = host.host().with_stop(stop.clone());
    for error in [
        save(&host, &stopped).unwrap_err(),
        stopped.unplug(&id(), vm().mac(0).parse().unwrap()).unwrap_err(),
        stopped.plug(&id(), &"ib0".parse().unwrap(), "02:00:c0:a8:01:63".parse().unwrap()).unwrap_err(),
        actions::shutdown(&stopped, &id(), true).unwrap_err(),
    ] {
        assert!(matches!(error.cause(), Cause::Stopped { kept } if kept.is_empty()), "{error}");
    }
    is_whole(&host);
    host.check();
}

#[test]
fn the_steps_of_a_save_are_reported() {
    let model = a_running_vm();
    let vfs: Vec<_> = model.domain("one-42").unwrap().vfs().collect();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let observer = Arc::clone(&steps);
    let host = model.host().with_progress(move |step| observer.lock().unwrap().push(step));
    model.model().set_course(Course::Hangs);
    thread::scope(|scope| {
        let saving = scope.spawn(|| save(&model, &host).unwrap());
        let copies = |step: &Progress| matches!(step, Progress::Saving { .. });
        until("the copy is reported", || steps.lock().unwrap().iter().any(copies));
        model.model().release_copies();
        saving.join().unwrap();
    });
    let mut seen = steps.lock().unwrap().clone();
    seen.dedup_by(|a, b| matches!((a, b), (Progress::Saving { .. }, Progress::Saving { .. })));
    // A guest gives its VFs back in an order of its own.
    if let Some(releases) = seen.get_mut(1..3) {
        releases.sort_by_key(|step| match step {
            Progress::Released { vf } => vfs.iter().position(|other| other == vf),
            _ => None,
        });
    }
    let released = |vf| Progress::Released { vf };
    let expected = [
        Progress::Unplugging { vfs: vfs.clone() },
        released(vfs[0]),
        released(vfs[1]),
        Progress::Saving { done: 50, all: 100 },
    ];
    assert_eq!(seen, expected);
}
