//! save and restore on one host, with guests that do not answer and processes that die.

use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov_tests::rig_host::{RigHost, SOON, Said};
use kvm_sriov_tests::vm::Vm;

use super::{GUEST_BOOT, STATE, cancel, claim_names, deploy, guest_addresses, interfaces, kvmrc, map, plugged};

/// A guest releases three VFs within 8 s, and shows a returned one within 5 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(60);

/// The limit for the return of a VF that left late.
const BACK: Duration = Duration::from_secs(60);

/// System calls that create or remove names of files. strace counts each kind by itself. The first kind creates a
/// claim, the second rewrites it (by tempfile), the third names an image.
pub(super) const NEW_CLAIM: &str = "renameat2";
pub(super) const CLAIM: &str = "renameat";
const IMAGE: &str = "rename";
pub(super) const UNLINK: &str = "unlink,unlinkat";
pub(super) const SYNC: &str = "fsync";

/// An action under strace, which kills it at call `number` of a kind of system call.
fn killed(host: RigHost, action: &str, args: &str, syscall: &str, number: u32) {
    let path = format!("/var/tmp/one/vmm/kvm-sriov/{action}");
    let said = host.oneadmin(&format!("{} {args} </dev/null", under_strace(&path, syscall, number)));
    assert!(was_killed(host), "{action} makes no call {syscall} {number}: {said:?}");
}

/// strace's output for a program.
const STRACE: &str = "/tmp/kvm-sriov.strace";

/// The words that run a program under strace, which kills it at call `number` of a kind of system call.
pub(super) fn under_strace(path: &str, syscall: &str, number: u32) -> String {
    format!("strace -f -o {STRACE} -e trace={syscall} -e inject={syscall}:signal=KILL:when={number} {path}")
}

/// Whether the last program under strace was killed.
pub(super) fn was_killed(host: RigHost) -> bool {
    host.root(&format!("grep -q 'killed by SIGKILL' {STRACE}")).code == 0
}

pub(super) fn exists(host: RigHost, path: &str) -> bool {
    host.root(&format!("test -e {path}")).code == 0
}

/// Starts a VM whose guest answers, and waits until it shows all its NICs.
pub(super) fn boot(host: RigHost, vm: &Vm, nics: usize) -> String {
    let live = deploy(host, vm);
    shows(host, vm, nics, GUEST_BOOT);
    live
}

pub(super) fn shows(host: RigHost, vm: &Vm, nics: usize, limit: Duration) {
    host.wait(&format!("the guest to show {nics} NICs"), limit, |host| host.guest_nics(vm).len() == nics);
}

/// The facts that must be the same after a VM was restored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    /// Names and guest addresses of the VFs, by name.
    vfs: Vec<(String, String)>,
    /// MACs and bridges of the other NICs, in order.
    interfaces: Vec<(String, String)>,
}

/// Waits until a VM has the same NICs as before. A guest may release a returned VF once more, and gets it again.
pub(super) fn has_again(host: RigHost, vm: &Vm, before: &Identity) -> String {
    host.wait(&format!("it to have {before:?}"), BACK, |host| identity(&host.live_xml(vm)) == *before);
    host.live_xml(vm)
}

pub(super) fn identity(live: &str) -> Identity {
    Identity { vfs: guest_addresses(live), interfaces: interfaces(live) }
}

/// Reconciles, which must end within 60 s and leave nothing to repair.
fn reconcile(host: RigHost) -> String {
    let said = host.root("timeout 60 kvm-sriov reconcile");
    assert_eq!(said.code, 0, "{said:?}");
    said.out
}

/// Suspends and resumes a VM with three VFs. Meanwhile another VM gets one of them.
fn save_and_restore(host: RigHost, vm: &Vm) {
    let before = identity(&boot(host, vm, 7));
    let macs = |host: RigHost| -> Vec<(String, String)> {
        let nics = host.guest_nics(vm);
        nics.into_iter().filter(|nic| nic.driver != "igbvf").map(|nic| (nic.mac, nic.pci)).collect()
    };
    let seen = macs(host);
    let said = host.save(vm);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert_eq!(host.live_xml(vm), "");
    assert_eq!(host.claims(), Vec::<String>::new(), "a suspended VM holds no VF");
    assert!(exists(host, &vm.checkpoint()));
    let other = Vm::new(39).nic("sriov_pf0");
    deploy(host, &other);
    let said = host.restore(vm);
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    let live = has_again(host, vm, &before);
    let first = plugged(&live).into_iter().find(|vf| vf.alias == "ua-sriov-0").unwrap();
    assert_ne!(first.host, map(host, "pf0")[0], "the other VM has that VF");
    assert!(!exists(host, &vm.checkpoint()) && !exists(host, &format!("{}.used", vm.checkpoint())));
    assert_eq!(host.claims().len(), 4);
    shows(host, vm, 7, GUEST_ANSWERS);
    assert_eq!(macs(host), seen);
    cancel(host, &other);
    cancel(host, vm);
}

fn three_vfs(id: u32) -> Vm {
    Vm::new(id).with_guest().nic("br0").nic("sriov_pf0").nic("sriov_pf1").nic("sriov_pf0")
}

pub(super) fn save_and_restore_on_pc(host: RigHost) {
    save_and_restore(host, &three_vfs(30));
}

pub(super) fn save_and_restore_on_q35(host: RigHost) {
    save_and_restore(host, &three_vfs(31).machine("q35"));
}

pub(super) fn save_and_restore_on_native_hotplug(host: RigHost) {
    save_and_restore(host, &three_vfs(45).machine("q35").native_hotplug());
}

pub(super) fn save_of_a_paused_vm_touches_nothing(host: RigHost) {
    let vm = Vm::new(32).nic("sriov_pf0");
    let before = plugged(&deploy(host, &vm));
    host.oneadmin(&format!("virsh -q -c qemu:///system suspend {}", vm.name())).ok();
    let said = host.save(&vm);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.message().contains("one-32 is paused"), "{said:?}");
    assert!(said.message().contains("nothing was changed"), "{said:?}");
    assert_eq!(plugged(&host.live_xml(&vm)), before);
    assert!(!exists(host, &vm.checkpoint()));
    assert_eq!(host.claims(), ["pf0/0"]);
    cancel(host, &vm);
}

/// The watcher's lines in the journal.
fn watcher_plugged(host: RigHost, vm: &Vm) -> bool {
    let line = format!("vm={} .* action=watcher result=plugged", vm.name());
    host.root(&format!("grep -q '{line}' /var/log/syslog")).code == 0
}

pub(super) fn firmware_releases_late(host: RigHost) {
    let vm = Vm::new(33).nic("sriov_pf0");
    kvmrc(host, "SRIOV_UNPLUG_TIMEOUT=3\n");
    let before = plugged(&deploy(host, &vm));
    let said = host.save(&vm);
    assert_eq!(said.code, 1, "{said:?}");
    let message = said.message();
    assert!(message.starts_with("save: one-33 did not release VF 0000:01:10.0 in 3 s; nothing was saved"), "{message}");
    assert_eq!(plugged(&host.live_xml(&vm)), before);
    assert!(host.live_xml(&vm).contains("pending-unplug"));
    assert!(claim_names(host, "pf0/0", &vm));
    // At a reset QEMU carries out the requests that the guest did not.
    host.oneadmin(&format!("virsh -q -c qemu:///system reset {}", vm.name())).ok();
    host.wait("the VF to be back", BACK, |host| watcher_plugged(host, &vm));
    assert_eq!(plugged(&host.live_xml(&vm)), before);
    host.wait("nothing to be pending", BACK, |host| !host.live_xml(&vm).contains("pending-unplug"));
    assert_eq!(host.claims(), ["pf0/0"]);
    kvmrc(host, "");
    is_saved_at_a_reset(host, &vm);
    assert_eq!(host.live_xml(&vm), "");
    host.oneadmin(&format!("rm {}", vm.checkpoint())).ok();
}

pub(super) fn paused_guest_releases_late_and_is_saved_afterwards(host: RigHost) {
    let vm = Vm::new(34).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = plugged(&boot(host, &vm, 4));
    let name = vm.name();
    // The request comes while no CPU runs to answer it.
    host.oneadmin(&format!("virsh -q -c qemu:///system suspend {name}")).ok();
    let asked = "virsh -q -c qemu:///system detach-device-alias";
    host.oneadmin(&format!("{asked} {name} ua-sriov-0 --live; {asked} {name} ua-sriov-1 --live")).ok();
    assert_eq!(plugged(&host.live_xml(&vm)), before, "a paused guest answered");
    host.oneadmin(&format!("virsh -q -c qemu:///system resume {name}")).ok();
    host.wait("both VFs to leave", GUEST_ANSWERS, |host| plugged(&host.live_xml(&vm)).is_empty());
    // Only reconciliation finds it.
    reconcile(host);
    assert_eq!(plugged(&host.live_xml(&vm)), before);
    shows(host, &vm, 4, GUEST_ANSWERS);
    let said = host.save(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    let said = host.restore(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    cancel(host, &vm);
}

pub(super) fn restore_without_a_free_vf_keeps_the_checkpoint(host: RigHost) {
    let vm = Vm::new(35).with_guest().nic("sriov_pf0");
    let before = identity(&boot(host, &vm, 2));
    assert_eq!(host.save(&vm).code, 0);
    let sum = |host: RigHost| host.root(&format!("sha256sum {}", vm.checkpoint())).ok();
    let image = sum(host);
    let full = (0..4).fold(Vm::new(36), |vm, _| vm.nic("sriov_pf0"));
    deploy(host, &full);
    let said = host.restore(&vm);
    assert_eq!(said.code, 1, "{said:?}");
    let message = said.message();
    assert!(message.contains("no free VF on pf0 for one-35: none of 4 is left (one-36: 4)"), "{message}");
    assert!(message.contains("the checkpoint is as it was"), "{message}");
    assert_eq!(sum(host), image);
    assert_eq!(host.live_xml(&vm), "");
    cancel(host, &full);
    let said = host.restore(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(identity(&host.live_xml(&vm)), before);
    cancel(host, &vm);
}

pub(super) fn killed_at_every_step_of_a_save(host: RigHost) {
    // Two claims get a holder (a sync and a rename each, and a sync of the directory), the image gets its name, the
    // claims are removed.
    dies_while_saving(
        host,
        &[(SYNC, 1), (CLAIM, 1), (SYNC, 3), (CLAIM, 2), (SYNC, 5), (IMAGE, 1), (UNLINK, 2), (UNLINK, 3), (UNLINK, 4)],
    );
}

fn dies_while_saving(host: RigHost, steps: &[(&str, u32)]) {
    let vm = Vm::new(37).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host, &vm, 4));
    let args = format!("{} {} host1 {} host1", vm.uuid(), vm.checkpoint(), vm.id);
    for &(syscall, number) in steps {
        killed(host, "save", &args, syscall, number);
        // libvirtd goes on with its call without the process.
        let said = reconciled(host);
        let saved = exists(host, &vm.checkpoint());
        let live = host.live_xml(&vm);
        assert!(saved == live.is_empty(), "killed at {syscall} {number}: {said:?}");
        if saved {
            assert_eq!(host.restore(&vm).code, 0);
        }
        println!("  killed at {syscall} {number}");
        has_again(host, &vm, &before);
        assert_eq!(claimed_roots(host), ["pf0", "pf1"], "killed at {syscall} {number}");
        shows(host, &vm, 4, GUEST_ANSWERS);
    }
    cancel(host, &vm);
    host.root(&format!("rm -f {STATE}/*/.new-*")).ok();
}

/// Reconciles the host. Repeats this while the command says that its minute was too short: on a busy machine the
/// emulated host needs most of it to read an image.
pub(super) fn reconciled(host: RigHost) -> Said {
    let mut said = host.root("timeout 60 kvm-sriov reconcile");
    for _ in 0..2 {
        if said.code == 0 {
            break;
        }
        println!("  reconcile is run again: {said:?}");
        said = host.root("timeout 60 kvm-sriov reconcile");
    }
    said
}

/// The roots of the claims. The unfinished file of a process that died while it wrote a claim is no claim, and is
/// removed after a minute.
fn claimed_roots(host: RigHost) -> Vec<String> {
    let claims = host.claims();
    let whole = claims.iter().filter(|claim| !claim.contains("/.new-"));
    whole.map(|claim| claim.split('/').next().unwrap().to_owned()).collect()
}

pub(super) fn killed_at_every_step_of_a_restore(host: RigHost) {
    // Two claims are created, the image is marked as used (and no CPU has run), the image is removed, the claims are
    // settled.
    dies_while_restoring(
        host,
        &[(SYNC, 2), (NEW_CLAIM, 1), (NEW_CLAIM, 2), (IMAGE, 1), (SYNC, 5), (UNLINK, 2), (CLAIM, 1), (CLAIM, 2)],
    );
}

fn dies_while_restoring(host: RigHost, steps: &[(&str, u32)]) {
    let vm = Vm::new(38).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host, &vm, 4));
    let args = format!("{} host1 {} {} host1", vm.checkpoint(), vm.uuid(), vm.id);
    for &(syscall, number) in steps {
        assert_eq!(host.save(&vm).code, 0, "before {syscall} {number}");
        killed(host, "restore", &args, syscall, number);
        let said = reconciled(host);
        let kept = exists(host, &vm.checkpoint());
        let live = host.live_xml(&vm);
        assert!(kept == live.is_empty(), "killed at {syscall} {number}: the image is there: {kept}, {said:?}\n{live}");
        if kept {
            assert_eq!(claimed_roots(host), Vec::<String>::new(), "killed at {syscall} {number}");
            assert_eq!(host.restore(&vm).code, 0);
        }
        println!("  killed at {syscall} {number}");
        has_again(host, &vm, &before);
        assert_eq!(claimed_roots(host), ["pf0", "pf1"], "killed at {syscall} {number}");
        shows(host, &vm, 4, GUEST_ANSWERS);
    }
    cancel(host, &vm);
    host.root(&format!("rm -f {STATE}/*/.new-*")).ok();
}

pub(super) fn cancel_during_a_save_that_hangs(host: RigHost) {
    let vm = Vm::new(40).nic("sriov_pf0");
    deploy(host, &vm);
    let saving = {
        let vm = vm.clone();
        thread::spawn(move || host.save(&vm))
    };
    host.wait("the save to begin", GUEST_ANSWERS, |host| host.live_xml(&vm).contains("<sriov:operation"));
    cancel(host, &vm);
    let said = saving.join().unwrap();
    assert_ne!(said.code, 0, "{said:?}");
    assert_eq!(host.oneadmin(&format!("ls -A {}", vm.dir())).ok(), "deployment.0\n", "a save left files");
}

pub(super) fn libvirtd_restarts_during_an_unplug(host: RigHost) {
    let vm = Vm::new(41).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host, &vm, 4));
    // The guest's CPUs are paused until libvirtd is back, so the answer comes afterwards.
    host.freeze(&vm);
    let saving = {
        let vm = vm.clone();
        thread::spawn(move || host.save(&vm))
    };
    thread::sleep(Duration::from_secs(2));
    host.kill_libvirtd();
    host.thaw(&vm);
    host.start_libvirtd();
    let said = saving.join().unwrap();
    if said.code == 0 {
        assert_eq!(host.restore(&vm).code, 0);
    }
    reconcile(host);
    has_again(host, &vm, &before);
    assert_eq!(host.claims(), ["pf0/0", "pf1/0"]);
    cancel(host, &vm);
}

pub(super) fn guest_reboots_during_an_unplug(host: RigHost) {
    let vm = Vm::new(42).nic("sriov_pf0").nic("sriov_pf1");
    kvmrc(host, "SRIOV_UNPLUG_TIMEOUT=20\n");
    deploy(host, &vm);
    let before = identity(&host.live_xml(&vm));
    is_saved_at_a_reset(host, &vm);
    assert_eq!(host.restore(&vm).code, 0);
    has_again(host, &vm, &before);
    cancel(host, &vm);
}

/// Saves a VM that has no guest. Its firmware answers no request, but a reset releases the VFs, and the save goes on.
fn is_saved_at_a_reset(host: RigHost, vm: &Vm) {
    let saving = {
        let vm = vm.clone();
        thread::spawn(move || host.save(&vm))
    };
    host.wait("the save to begin", GUEST_ANSWERS, |host| host.live_xml(vm).contains("<sriov:operation kind=\"save\""));
    host.oneadmin(&format!("virsh -q -c qemu:///system reset {}", vm.name())).ok();
    let said = saving.join().unwrap();
    assert_eq!(said.code, 0, "{said:?}");
}

pub(super) fn an_adopted_domain_is_saved(host: RigHost) {
    let vm = Vm::new(43).with_guest().nic("sriov_pf0");
    deploy(host, &vm);
    cancel(host, &vm);
    // The state that the driver of 2013 left: no metadata, no aliases of ours, an empty claim.
    host.oneadmin(&format!(
        "cd {} && sed -e '/<alias name=/d' -e '/sriov:domain/d' deployment.0 >/tmp/old.xml && \
         virsh -q -c qemu:///system create /tmp/old.xml && mkdir -p {STATE}/pf0 && : >{STATE}/pf0/0",
        vm.dir()
    ))
    .ok();
    shows(host, &vm, 2, GUEST_BOOT);
    let live = host.live_xml(&vm);
    assert!(!live.contains("urn:kvm-sriov") && !live.contains("ua-sriov"), "{live}");
    let said = host.save(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("one-43 is adopted: NIC 02:00:0a:00:2b:00 has VF 0000:01:10.0 of pf0"), "{said:?}");
    let said = host.restore(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(plugged(&host.live_xml(&vm)).len(), 1);
    cancel(host, &vm);
    host.root(&format!("rm -f {STATE}/pf0/0 /tmp/old.xml")).ok();
}

pub(super) fn a_foreign_device_is_refused(host: RigHost) {
    let vm = Vm::new(46).nic("sriov_pf0");
    deploy(host, &vm);
    let foreign = map(host, "pf1")[0].clone();
    let (bus, function) = foreign.split_once(":10.").unwrap();
    host.write(
        "/tmp/foreign-device.xml",
        &format!(
            "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='0x{bus}' slot='0x10' \
             function='0x{function}'/></source></hostdev>"
        ),
    );
    host.oneadmin("virsh -q -c qemu:///system attach-device one-46 /tmp/foreign-device.xml").ok();
    let before = host.live_xml(&vm);
    let said = host.save(&vm);
    assert_eq!(said.code, 1, "{said:?}");
    let refused =
        format!("save: one-46 also has host device 0000:{foreign}, which can't be saved; nothing was changed.");
    assert_eq!(said.message(), refused);
    assert_eq!(host.live_xml(&vm), before);
    cancel(host, &vm);
}

/// A guest that got a request in its firmware forgets it at its boot, or releases its VFs then. In both cases it has
/// its VFs at the end.
pub(super) fn firmware_is_asked_and_the_guest_boots(host: RigHost) {
    let vm = Vm::new(70).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    kvmrc(host, "SRIOV_UNPLUG_TIMEOUT=1\n");
    let before = identity(&deploy(host, &vm));
    let said = host.save(&vm);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.message().contains("did not release VF"), "{said:?}");
    assert_eq!(identity(&host.live_xml(&vm)), before);
    assert!(claim_names(host, "pf0/0", &vm) && claim_names(host, "pf1/0", &vm));
    shows(host, &vm, 4, GUEST_BOOT);
    host.wait("all VFs to be there", BACK, |host| identity(&host.live_xml(&vm)) == before);
    assert!(claim_names(host, "pf0/0", &vm) && claim_names(host, "pf1/0", &vm));
    kvmrc(host, "");
    let said = host.save(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    let said = host.restore(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    let live = has_again(host, &vm, &before);
    // A restore of several VFs leaves only a note for its watcher.
    let watched = r#"<sriov:operation kind="pending-unplug" positions="0 1"/>"#;
    assert!(!live.replacen(watched, "", 1).contains("<sriov:operation"), "{live}");
    shows(host, &vm, 4, GUEST_ANSWERS);
    cancel(host, &vm);
}

/// The limit for an action whose calls end after 5 s each.
const BOUND: Duration = Duration::from_secs(90);

pub(super) fn qemu_stands_still_during_an_action(host: RigHost) {
    let vm = Vm::new(71).with_guest().nic("sriov_pf0");
    let before = identity(&boot(host, &vm, 2));
    let more = vm.clone().nic("sriov_pf1");
    kvmrc(host, "SRIOV_CALL_TIMEOUT=5\nSRIOV_UNPLUG_TIMEOUT=5\nSRIOV_LOCK_TIMEOUT=5\n");
    for action in ["save", "attach_nic"] {
        host.freeze(&vm);
        let begin = Instant::now();
        let said = if action == "save" { host.save(&vm) } else { host.attach_nic(&more, 1) };
        let took = begin.elapsed();
        host.thaw(&vm);
        println!("  {action} took {:.0} s: {}", took.as_secs_f32(), said.message());
        assert_eq!(said.code, 1, "{said:?}");
        assert!(took < BOUND, "{action} took {took:?}: {said:?}");
        assert!(said.message().starts_with(&format!("{action}: ")), "{said:?}");
        // QEMU and libvirt carry out their requests as soon as QEMU continues: the VF leaves, and another one is
        // plugged.
        host.wait("what was asked for to be done", SOON, |host| {
            plugged(&host.live_xml(&vm)).len() == if action == "save" { 0 } else { 2 }
        });
        host.wait(&format!("everything to be mended after {action}"), SOON, |host| {
            host.root("timeout 60 kvm-sriov reconcile");
            identity(&host.live_xml(&vm)) == before && host.claims() == ["pf0/0"]
        });
        shows(host, &vm, 2, GUEST_ANSWERS);
    }
    kvmrc(host, "");
    let said = host.save(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    let said = host.restore(&vm);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(identity(&host.live_xml(&vm)), before);
    cancel(host, &vm);
}
