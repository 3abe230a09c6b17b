//! Actions on a model host. Each call to libvirt fails in turn, and the process dies at each call in turn.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread;

use kvm_sriov::libvirt::{DeviceCalls, DomainCalls, JobCalls, LibvirtErrorKind};
use kvm_sriov::opennebula;
use kvm_sriov::reconcile::Consistency;
use kvm_sriov::{Action, ActionError, Cause, DomainId, DomainName, HostState, actions};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::every::Scenario;
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::{Ended, ModelHost};
use kvm_sriov_model::{Course, Guest};
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

/// Two NICs with VFs of one root, one with a VF of another root, and a NIC without a VF.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("br0").nic("sriov_ib1").nic("sriov_ib0")
}

/// A second VM, which no action may touch.
fn neighbour() -> Vm {
    Vm::new(7).nic("sriov_ib0")
}

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

fn cancel(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::cancel(&host.host(), &vm.uuid().parse().unwrap(), Some(&DomainName::of_vm(vm.id)))
}

fn shutdown(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::shutdown(&host.host(), &vm.uuid().parse().unwrap(), true)
}

/// A host on which the neighbour runs.
fn a_host() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &neighbour()).unwrap();
    host
}

/// A host on which the VM and its neighbour run.
fn a_running_vm() -> ModelHost {
    let host = a_host();
    deploy(&host, &vm()).unwrap();
    host
}

fn runs(host: &ModelHost) {
    let live = host.domain("one-42").unwrap();
    assert_eq!(live.vfs().count(), 3);
    neighbour_runs(host);
}

fn is_gone(host: &ModelHost) {
    assert!(host.domain("one-42").is_none());
    neighbour_runs(host);
    assert_eq!(host.claims().len(), 1, "{:?}", host.claims());
}

fn neighbour_runs(host: &ModelHost) {
    assert_eq!(host.domain("one-7").unwrap().vfs().collect::<Vec<_>>(), host.vfs("ib0")[..1]);
}

/// Deploys the VM again. It may run already.
fn deployed_again(host: &ModelHost) {
    match deploy(host, &vm()) {
        Ok(()) => {}
        Err(error) => assert!(matches!(error.cause(), Cause::Exists { .. }), "{error}"),
    }
    runs(host);
}

/// Cancels the VM.
fn cancelled(host: &ModelHost) {
    cancel(host, &vm()).unwrap();
    is_gone(host);
}

/// Cancels the VM, and deploys another VM that needs its VFs.
fn cancelled_and_filled(host: &ModelHost) {
    cancel(host, &vm()).unwrap();
    let rest = Vm::new(43).nic("sriov_ib0").nic("sriov_ib0").nic("sriov_ib0").nic("sriov_ib1");
    deploy(host, &rest).unwrap();
}

#[test]
fn deploy_with_every_fault() {
    let scenario = Scenario {
        given: a_host,
        action: |host| deploy(host, &vm()),
        done: runs,
        repairs: &[deployed_again, cancelled, cancelled_and_filled],
    };
    let calls = scenario.without_faults();
    assert_eq!(calls, ["find", "domains", "live_xml", "create", "live_xml"]);
    scenario.with_every_fault();
}

#[test]
fn deploy_past_a_refused_vf_with_every_fault() {
    let scenario = Scenario {
        given: || {
            let host = a_host();
            let free = host.vfs("ib0")[1];
            host.model().refuse(free, &format!("vfio {free}: group 11 is not viable"));
            host
        },
        action: |host| deploy(host, &vm()),
        done: runs,
        repairs: &[deployed_again, cancelled],
    };
    assert_eq!(scenario.without_faults().iter().filter(|call| **call == "create").count(), 2);
    scenario.with_every_fault();
}

#[test]
fn deploy_waits_for_udev() {
    let host = ModelHost::default();
    let (vm, free) = (Vm::new(42).nic("sriov_ib0"), host.vfs("ib0")[0]);
    host.add_vfio_rule();
    host.model().delay_udev(free, 3);
    deploy(&host, &vm).unwrap();
    assert!(host.domain("one-42").unwrap().vfs().any(|vf| vf == free));
    host.check();
}

#[test]
fn deploy_of_a_vm_without_vfs_with_every_fault() {
    fn plain() -> Vm {
        Vm::new(42).nic("br0")
    }
    fn runs(host: &ModelHost) {
        assert_eq!(host.domain("one-42").unwrap().interfaces.len(), 1);
        assert!(!host.state_dir().exists(), "the state directory was made");
    }
    let scenario = Scenario {
        given: ModelHost::default,
        action: |host| deploy(host, &plain()),
        done: runs,
        repairs: &[|host| {
            cancel(host, &plain()).unwrap();
            assert!(host.domain("one-42").is_none());
        }],
    };
    assert_eq!(scenario.without_faults(), ["create"]);
    scenario.with_every_fault();
}

#[test]
fn deploy_onto_a_full_map_starts_nothing() {
    let host = ModelHost::with_vfs(1);
    deploy(&host, &neighbour()).unwrap();
    let before = host.portrait();
    let error = deploy(&host, &vm()).unwrap_err().to_string();
    assert_eq!(error, "deploy: no free VF on ib0 for one-42: none of 1 is left (one-7: 1); nothing was started");
    assert_eq!(host.portrait(), before);
    host.check();
}

#[test]
fn cancel_with_every_fault() {
    let scenario = Scenario {
        given: a_running_vm,
        action: |host| cancel(host, &vm()),
        done: is_gone,
        repairs: &[cancelled, cancelled_and_filled],
    };
    scenario.with_every_fault();
}

#[test]
fn shutdown_with_every_fault() {
    let scenario = Scenario {
        given: a_running_vm,
        action: |host| shutdown(host, &vm()),
        done: is_gone,
        repairs: &[|host| {
            shutdown(host, &vm()).unwrap();
            cancelled(host);
        }],
    };
    scenario.with_every_fault();
}

fn checkpoint(host: &ModelHost) -> PathBuf {
    host.vm_dir(&vm()).join("checkpoint")
}

fn save(host: &ModelHost) -> Result<(), ActionError> {
    actions::save(&host.host(), &vm().uuid().parse().unwrap(), &checkpoint(host), None)
}

fn restore(host: &ModelHost) -> Result<(), ActionError> {
    let file = checkpoint(host);
    actions::restore(&host.host(), &file, opennebula::vm_of_checkpoint(&file).as_ref())
}

/// A host on which the VM has run and is saved.
fn a_saved_vm() -> ModelHost {
    let host = a_running_vm();
    save(&host).unwrap();
    host
}

/// Reconciles the host, and checks that no repair failed or is left.
fn reconcile(host: &ModelHost) {
    let report = host.reconcile().unwrap();
    assert_eq!(report.consistency(false), Consistency::Consistent, "{report:?}");
}

/// The VM is only in its checkpoint, which is complete and has its newest memory.
fn is_saved(host: &ModelHost) {
    is_gone(host);
    assert_eq!(host.model().is_newest(&checkpoint(host)), Ok(true));
    assert_eq!(host.vm_files().len(), 1, "{:?}", host.vm_files().keys());
}

/// The VM runs, and no image of it is left.
fn runs_alone(host: &ModelHost) {
    runs(host);
    assert_eq!(host.vm_files().len(), 0, "{:?}", host.vm_files().keys());
}

/// The VM either runs or is in its checkpoint.
fn runs_or_is_saved(host: &ModelHost) {
    if host.domain("one-42").is_some() { runs_alone(host) } else { is_saved(host) }
}

fn reconciled(host: &ModelHost) {
    reconcile(host);
    runs_or_is_saved(host);
}

#[test]
fn save_with_every_fault() {
    let scenario = Scenario {
        given: a_running_vm,
        action: save,
        done: is_saved,
        repairs: &[reconciled, |host| {
            reconcile(host);
            if host.domain("one-42").is_some() {
                save(host).unwrap();
            }
            is_saved(host);
            restore(host).unwrap();
            runs_alone(host);
        }],
    };
    scenario.with_every_fault();
}

#[test]
fn restore_with_every_fault() {
    let scenario = Scenario {
        given: a_saved_vm,
        action: restore,
        done: runs_alone,
        repairs: &[reconciled, |host| {
            reconcile(host);
            if host.domain("one-42").is_none() {
                restore(host).unwrap();
            }
            runs_alone(host);
        }],
    };
    scenario.with_every_fault();
}

/// A process has died in the middle of an action of the VM.
fn killed_after(host: ModelHost, call: &'static str, action: fn(&ModelHost) -> Result<(), ActionError>) -> ModelHost {
    host.faults().arm_first(call, Fault::DiesAfter);
    assert!(matches!(host.run(|| action(&host)), Ended::Killed), "{call} was not called");
    host
}

/// Reconciliation, as an action.
fn mend(host: &ModelHost) -> Result<(), ActionError> {
    let report = host.reconcile();
    let report =
        report.map_err(|cause| ActionError::new(Action::Reconcile, cause, HostState::Left("as it was".into())))?;
    match report.consistency(false) {
        Consistency::Consistent => Ok(()),
        verdict => {
            let cause = Cause::Absent { id: format!("{verdict:?} {report:?}") };
            Err(ActionError::new(Action::Reconcile, cause, HostState::Left("some of it".into())))
        }
    }
}

#[test]
fn reconcile_of_a_killed_save_with_every_fault() {
    let given = || killed_after(a_running_vm(), "save", save);
    Scenario { given, action: mend, done: runs_alone, repairs: &[reconciled] }.with_every_fault();
}

#[test]
fn reconcile_of_a_killed_restore_with_every_fault() {
    let given = || killed_after(a_saved_vm(), "resume", restore);
    Scenario { given, action: mend, done: runs_alone, repairs: &[reconciled] }.with_every_fault();
}

#[test]
fn a_vm_that_ends_in_the_middle_of_a_save_leaves_nothing() {
    let scenario = Scenario { given: a_running_vm, action: save, done: is_saved, repairs: &[] };
    scenario.with_every_end_of("one-42", |host| {
        reconcile(host);
        // The VM may have ended just after its save was complete.
        if checkpoint(host).exists() { is_saved(host) } else { is_gone(host) }
    });
}

#[test]
fn a_vm_that_ends_in_the_middle_of_a_start_leaves_nothing() {
    let start = Scenario { given: a_host, action: |host| deploy(host, &vm()), done: runs, repairs: &[] };
    start.with_every_end_of("one-42", |host| {
        reconcile(host);
        // While there was no domain, nothing could end.
        if host.domain("one-42").is_some() { runs(host) } else { is_gone(host) }
    });
}

#[test]
fn a_save_that_hangs_is_cancelled() {
    let host = a_running_vm();
    host.model().set_course(Course::Hangs);
    thread::scope(|scope| {
        let saving = scope.spawn(|| save(&host).unwrap_err().to_string());
        let domain = host.model().find(&vm().uuid().parse().unwrap()).unwrap().unwrap();
        until("it saves", || host.model().job(&domain).unwrap().is_some());
        cancel(&host, &vm()).unwrap();
        let error = saving.join().unwrap();
        assert!(error.starts_with("save: ") && error.contains("domain is gone"), "{error}");
    });
    is_gone(&host);
    assert!(host.vm_files().is_empty());
    host.check();
}

#[test]
fn cancel_does_not_wait_for_a_save_that_can_not_be_aborted() {
    let host = a_running_vm();
    host.model().set_course(Course::StandsStill);
    let error = save(&host).unwrap_err().to_string();
    assert!(error.contains("a job of libvirt runs on one-42 (its save)"), "{error}");
    assert!(error.contains("nothing was saved, and one-42 may lack VFs"), "{error}");
    let domain = host.model().find(&vm().uuid().parse().unwrap()).unwrap().unwrap();
    assert!(host.model().job(&domain).unwrap().is_some(), "it goes on");
    host.check_safe();
    cancel(&host, &vm()).unwrap();
    is_gone(&host);
    reconcile(&host);
    assert!(host.vm_files().is_empty(), "{:?}", host.vm_files());
    host.check();
}

/// A foreign host device can't be saved to a file. The save is refused before a VF is unplugged.
#[test]
fn a_foreign_device_is_refused_before_a_vf_is_unplugged() {
    let address = "<address type='pci' domain='0x0000' bus='0x08' slot='0x00' function='0x4'/>";
    let source = format!("<source>{address}</source>");
    for foreign in [
        format!("<hostdev mode='subsystem' type='pci' managed='yes'>{source}</hostdev>"),
        format!("<interface type='hostdev' managed='yes'>{source}</interface>"),
    ] {
        let host = a_running_vm();
        let id: DomainId = vm().uuid().parse().unwrap();
        host.model().attach(&host.model().find(&id).unwrap().unwrap(), &foreign, CALL_LIMIT).unwrap();
        let before = host.portrait();
        host.faults().disarm();
        let saved = save(&host).unwrap_err().to_string();
        assert_eq!(saved, "save: one-42 also has host device 0000:08:00.4, which can't be saved; nothing was changed");
        let taken = actions::snapshot_create(&host.host(), &id, 0, None).unwrap_err().to_string();
        assert!(taken.contains("which can't be in a snapshot; nothing was changed"), "{taken}");
        assert_eq!(host.faults().count("detach_alias"), 0);
        assert_eq!(host.portrait(), before);
    }
}

/// Two restores of one VM at the same time: one succeeds, and the domain that it started stays.
#[test]
fn a_second_restore_takes_nothing_from_the_first() {
    for _ in 0..20 {
        let host = a_saved_vm();
        let ended = thread::scope(|scope| {
            let restoring = [(); 2].map(|()| scope.spawn(|| restore(&host)));
            restoring.map(|thread| thread.join().unwrap())
        });
        assert!(ended.iter().any(Result::is_ok), "{ended:?}");
        host.end_process();
        runs(&host);
        host.check();
    }
}

#[test]
fn a_vm_that_suspended_itself_is_woken_and_needs_no_checkpoint() {
    let host = a_running_vm();
    host.model().suspend_guest("one-42");
    host.faults().disarm();
    actions::restore(&host.host(), &checkpoint(&host), Some(&DomainName::of_vm(42))).unwrap();
    assert_eq!(host.faults().calls(), ["find", "state", "wake_up"]);
    runs(&host);
    host.check();
}

/// libvirt reports a failure although the call had its effect. This is noticed also for a VM without VFs.
#[test]
fn a_vm_without_vfs_is_saved_and_restored_although_the_answer_was_lost() {
    let plain = || Vm::new(42).nic("br0");
    for kind in [LibvirtErrorKind::Disconnected, LibvirtErrorKind::NoAnswer, LibvirtErrorKind::Other] {
        let host = a_host();
        deploy(&host, &plain()).unwrap();
        let lost = |call: &'static str, action: &dyn Fn() -> Result<(), ActionError>| {
            host.faults().arm_first(call, Fault::FailsAfter(kind));
            action().unwrap();
            assert!(host.faults().fired(), "{call}");
            host.faults().disarm();
        };
        lost("save", &|| save(&host));
        assert!(checkpoint(&host).exists() && host.domain("one-42").is_none());
        lost("restore", &|| restore(&host));
        assert!(host.domain("one-42").is_some());
        assert!(host.vm_files().is_empty(), "the checkpoint could be used again: {:?}", host.vm_files());
        neighbour_runs(&host);
    }
}

/// The XML of a busy domain can't be read. Its VFs stay claimed.
#[test]
fn a_busy_domain_keeps_its_claims() {
    for kind in [
        LibvirtErrorKind::DomainBusy,
        LibvirtErrorKind::NoTime,
        LibvirtErrorKind::NoThread,
        LibvirtErrorKind::Unreachable,
    ] {
        let host = a_running_vm();
        let claims = host.claims();
        host.model().set_course(Course::Fails);
        host.faults().arm_first("attach", Fault::Fails(kind));
        let error = save(&host).unwrap_err().to_string();
        assert!(host.faults().fired() && error.contains("one-42 may lack VFs"), "{kind:?}: {error}");
        host.faults().disarm();
        assert_eq!(host.claims().len(), claims.len(), "{kind:?}");
        host.end_process();
        reconcile(&host);
        runs(&host);
        host.check();
    }
}

/// A guest that was asked twice for a VF releases it again right after it was plugged back. It is plugged back again.
#[test]
fn a_vf_that_leaves_while_others_are_plugged_back_is_plugged_again() {
    let host = a_running_vm();
    let before = host.domain("one-42").unwrap();
    let model = host.model().clone();
    host.faults().disarm();
    // The read of the live XML after the third VF is plugged.
    host.faults().before(13, move || {
        let domain = model.find(&vm().uuid().parse().unwrap()).unwrap().unwrap();
        model.detach_alias(&domain, "ua-sriov-0", CALL_LIMIT).unwrap();
        until("it leaves", || !model.live_xml(&domain).unwrap().unwrap().contains("'ua-sriov-0'"));
    });
    actions::snapshot_create(&host.host(), &vm().uuid().parse().unwrap(), 0, None).unwrap();
    assert_eq!(host.faults().count("attach"), 4);
    let after = host.domain("one-42").unwrap();
    assert_eq!(after.vfs().collect::<BTreeSet<_>>(), before.vfs().collect::<BTreeSet<_>>());
    host.check();
}

/// Runs the VM's watcher until it ends, while `happens` changes something.
fn while_watched(host: &ModelHost, happens: impl FnOnce()) {
    thread::scope(|scope| {
        let watching = scope.spawn(|| kvm_sriov::reconcile::watch(&host.host(), &vm().uuid().parse().unwrap()));
        // The watcher must be watching before anything happens.
        until("it watches", || host.model().open_watches() > 0);
        happens();
        watching.join().unwrap().unwrap();
    });
}

/// A guest does not answer a save's requests. After `wakes` it carries them out late, and the VFs are plugged back.
fn late_removal(guest: Guest, wakes: fn(&ModelHost)) {
    let host = a_running_vm();
    host.set_kvmrc("SRIOV_UNPLUG_GRACE=20\n");
    let before = host.portrait();
    host.model().set_guest("one-42", guest);
    let error = save(&host).unwrap_err();
    assert!(error.to_string().contains("did not release VF"), "{error}");
    host.end_process();
    host.check();
    while_watched(&host, || wakes(&host));
    host.end_process();
    runs(&host);
    host.check();
    assert_eq!(host.portrait(), before);
    host.model().set_guest("one-42", Guest::default());
    save(&host).unwrap();
    is_saved(&host);
}

#[test]
fn a_vf_that_leaves_at_a_reset_is_plugged_back_and_a_later_save_works() {
    late_removal(Guest::Silent, |host| host.model().reboot_guest("one-42"));
}

#[test]
fn a_vf_that_leaves_after_the_boot_is_plugged_back_and_a_later_save_works() {
    late_removal(Guest::InFirmware, |host| {
        host.model().finish_boot("one-42");
        // The booted guest has not seen the requests. The next request for any device makes it carry out all of them.
        let domain = host.model().find(&vm().uuid().parse().unwrap()).unwrap().unwrap();
        host.model().detach_alias(&domain, "ua-sriov-1", CALL_LIMIT).unwrap();
    });
}

/// Something that is done to a VM.
type Does<'a> = &'a dyn Fn(&ModelHost);

/// Linux may hold queued eject requests when it is saved or paused, and apply them to the VFs that it got back.
#[test]
fn a_vf_that_leaves_right_after_it_was_plugged_back_is_plugged_again() {
    let id = || vm().uuid().parse().unwrap();
    let name = || "snap-0".parse().unwrap();
    let take = |host: &ModelHost| drop(actions::snapshot_create(&host.host(), &id(), 0, None).unwrap());
    let drop_it = |host: &ModelHost| actions::snapshot_delete(&host.host(), &id(), &name()).unwrap();
    let plug_back: [(&str, Does<'_>); 3] = [
        ("restore", &|host| save(host).and_then(|()| restore(host)).unwrap()),
        ("snapshot_create", &|host| {
            take(host);
            drop_it(host);
        }),
        ("snapshot_revert", &|host| {
            take(host);
            actions::snapshot_revert(&host.host(), &id(), &name(), None).unwrap();
            drop_it(host);
        }),
    ];
    for (what, action) in plug_back {
        let host = a_running_vm();
        host.set_kvmrc("SRIOV_UNPLUG_GRACE=3\n");
        let before = host.portrait();
        action(&host);
        while_watched(&host, || {
            let domain = host.model().find(&id()).unwrap().unwrap();
            for alias in ["ua-sriov-0", "ua-sriov-1"] {
                host.model().detach_alias(&domain, alias, CALL_LIMIT).unwrap();
            }
        });
        runs(&host);
        host.check();
        assert_eq!(host.portrait(), before, "{what}");
    }
}

#[test]
fn shutdown_of_a_deaf_guest_leaves_it_running() {
    let host = a_running_vm();
    host.model().set_guest("one-42", Guest::Silent);
    let before = host.portrait();
    let error = shutdown(&host, &vm()).unwrap_err().to_string();
    assert!(error.starts_with("shutdown: timed out shutting down"), "{error}");
    assert!(error.ends_with("the domain may still end; its VFs are freed by the next action that finds it gone"));
    assert_eq!(host.portrait(), before);
    host.check();
}
