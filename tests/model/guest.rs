//! Commands in a guest, the resource usage of a VM, and a checkpoint in Ceph, on a model host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kvm_sriov::Action;
use kvm_sriov::actions::{self, Ceph};
use kvm_sriov::config::OneVersion;
use kvm_sriov::libvirt::RunState;
use kvm_sriov::opennebula::{self, Message};
use kvm_sriov::{ActionError, DomainName};
use kvm_sriov_model::Guest;
use kvm_sriov_model::every::Scenario;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::vm::Vm;

fn vm() -> DomainName {
    DomainName::of_vm(42)
}

fn a_running_vm() -> ModelHost {
    let host = ModelHost::default();
    let vm = Vm::new(42).disk().nic("br0").nic("sriov_ib0");
    actions::deploy(&host.host(), &host.deployment_file(&vm), &host.deployment(&vm)).unwrap();
    host
}

fn exec(host: &ModelHost) -> Result<(), ActionError> {
    actions::exec(&host.host(), &vm(), "sh -c 'ls -l /tmp'", Some(""))
}

fn cancel(host: &ModelHost) -> Result<(), ActionError> {
    actions::exec_cancel(&host.host(), &vm())
}

/// The process id that is recorded for OpenNebula's monitoring.
fn noted(host: &ModelHost) -> Option<u64> {
    fs::read_to_string(host.run_dir().join("one-42")).ok()?.parse().ok()
}

fn runs_as_noted(host: &ModelHost) {
    let commands = host.model().commands("one-42");
    let number = noted(host).unwrap();
    assert_eq!(commands[&number], ["sh", "-c", "ls -l /tmp"]);
}

fn runs_nothing(host: &ModelHost) {
    assert_eq!(noted(host), None);
    assert_eq!(host.model().commands("one-42").len(), 0);
}

#[test]
fn a_command_is_started_with_every_fault() {
    Scenario {
        given: a_running_vm,
        action: exec,
        done: runs_as_noted,
        repairs: &[|host| {
            exec(host).unwrap();
            runs_as_noted(host);
        }],
    }
    .with_every_fault();
}

#[test]
fn a_command_is_cancelled_with_every_fault() {
    Scenario {
        given: || {
            let host = a_running_vm();
            exec(&host).unwrap();
            host
        },
        action: cancel,
        done: runs_nothing,
        repairs: &[|host| {
            cancel(host).unwrap();
            runs_nothing(host);
        }],
    }
    .with_every_fault();
}

#[test]
fn a_command_that_can_not_be_noted_does_not_run() {
    let host = a_running_vm();
    // A directory with the name of the record can't be replaced by a file.
    fs::create_dir_all(host.run_dir().join("one-42/x")).unwrap();
    let error = exec(&host).unwrap_err().to_string();
    assert!(error.starts_with("exec: cannot write ") && error.ends_with("nothing was changed"), "{error}");
    assert_eq!(host.model().commands("one-42").len(), 0);
    fs::remove_dir_all(host.run_dir()).unwrap();
    let error = exec(&host).unwrap_err().to_string();
    assert!(error.starts_with("exec: cannot open ") && error.ends_with("nothing was changed"), "{error}");
}

#[test]
fn without_an_agent_nothing_runs() {
    let host = a_running_vm();
    host.model().set_guest("one-42", Guest::Silent);
    let error = exec(&host).unwrap_err().to_string();
    assert!(error.contains("guest agent is not connected") && error.ends_with("nothing was changed"), "{error}");
    runs_nothing(&host);
    fs::write(host.run_dir().join("one-42"), "7\n").unwrap();
    let error = cancel(&host).unwrap_err().to_string();
    assert!(error.ends_with("process 7 may still run in the guest, and can be cancelled again"), "{error}");
    assert!(host.run_dir().join("one-42").exists());
}

#[test]
fn what_does_not_run_is_cancelled() {
    let host = a_running_vm();
    cancel(&host).unwrap();
    // The command has ended by itself. Later, the VM has ended, too.
    fs::write(host.run_dir().join("one-42"), "4711").unwrap();
    cancel(&host).unwrap();
    runs_nothing(&host);
    fs::write(host.run_dir().join("one-42"), "4711").unwrap();
    host.model().end_domain("one-42");
    cancel(&host).unwrap();
    assert_eq!(noted(&host), None);
    let error = exec(&host).unwrap_err().to_string();
    assert_eq!(error, "exec: there is no domain one-42 on this host; nothing was changed");
    let error = actions::exec(&host.host(), &vm(), "sh -c 'x", None).unwrap_err().to_string();
    assert_eq!(error, "exec: command: expected a closing ', found the end; nothing was changed");
}

/// A caller with this version of OpenNebula.
fn caller(version: &str) -> OneVersion {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("VERSION"), version).unwrap();
    fs::create_dir_all(dir.path().join("vmm/kvm-sriov")).unwrap();
    OneVersion::detect(&dir.path().join("vmm/kvm-sriov"))
}

#[test]
fn poll_says_what_a_vm_uses() {
    let host = a_running_vm();
    let poll = |version: &str| opennebula::poll(&host.host(), &"one-42".parse().unwrap(), &caller(version)).unwrap();
    assert_eq!(
        poll("5.10.0"),
        "STATE=a CPU=0.00 MEMORY=65536 NETRX=2000 NETTX=200 DISKRDBYTES=4096 DISKWRBYTES=512 DISKRDIOPS=8 DISKWRIOPS=1"
    );
    host.model().pause("one-42");
    for (version, state) in [("4.4.1", "d"), ("4.10.0", "a"), ("5.6.0", "a"), ("5.10.0", "e")] {
        let said = poll(version);
        assert!(said.starts_with(&format!("STATE={state} ")), "{version}: {said}");
    }
    host.model().stop_cpus("one-42", RunState::PausedForMigration);
    assert!(poll("5.10.0").starts_with("STATE=a "));
    host.model().end_domain("one-42");
    assert_eq!(poll("5.10.0"), "STATE=-");
}

/// A program in place of rbd. The pool is a directory.
const RBD: &str = include_str!("../fixtures/rbd");

struct Pool {
    dir: tempfile::TempDir,
}

impl Pool {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("rbd");
        fs::write(&program, RBD).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn ceph(&self) -> Ceph {
        let message = Message::new(
            Action::SaveCeph,
            "<VMM_DRIVER_ACTION_DATA><VM/><DATASTORE><TEMPLATE><CEPH_USER>me</CEPH_USER>\
            <POOL_NAME>fast</POOL_NAME></TEMPLATE></DATASTORE></VMM_DRIVER_ACTION_DATA>"
                .into(),
        );
        let driver = self.dir.path().join("vmm/kvm-sriov");
        let conf = self.dir.path().join("etc/datastore/ceph");
        fs::create_dir_all(&driver).unwrap();
        fs::create_dir_all(&conf).unwrap();
        fs::write(conf.join("ceph.conf"), "POOL_NAME=one\nRBD_FORMAT=2\n").unwrap();
        Ceph { program: self.dir.path().join("rbd"), ..message.ceph(&driver).unwrap() }
    }

    fn fail(&self, verb: &str) {
        fs::write(self.dir.path().join(format!("fail-{verb}")), "").unwrap();
    }

    fn works(&self, verb: &str) {
        fs::remove_file(self.dir.path().join(format!("fail-{verb}"))).unwrap();
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("fast_one-sys-42-checkpoint")
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

const CHECKPOINT: &str = "LibvirtQemudSave and all of it";

fn checkpoint(pool: &Pool) -> PathBuf {
    let file = pool.dir.path().join("checkpoint");
    fs::write(&file, CHECKPOINT).unwrap();
    file
}

fn is_there(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text == CHECKPOINT)
}

#[test]
fn a_checkpoint_goes_into_ceph_and_comes_back() {
    let pool = Pool::new();
    let file = checkpoint(&pool);
    // The image of an earlier save is replaced.
    fs::write(pool.image(), "old").unwrap();
    actions::save_ceph(&pool.ceph(), &file, 42).unwrap();
    assert!(!file.exists() && is_there(&pool.image()));
    let image = "fast/one-sys-42-checkpoint";
    let expected = [
        format!("--id me info {image}"),
        format!("--id me rm --no-progress {image}"),
        format!("--id me import --no-progress --image-format 2 {} {image}", file.display()),
    ];
    assert_eq!(pool.calls(), expected);
    actions::restore_ceph(&pool.ceph(), &file, 42).unwrap();
    assert!(is_there(&file) && !pool.image().exists());
}

#[test]
fn a_checkpoint_is_never_lost_to_ceph() {
    let pool = Pool::new();
    let file = checkpoint(&pool);
    pool.fail("import");
    let error = actions::save_ceph(&pool.ceph(), &file, 42).unwrap_err().to_string();
    assert!(error.contains("could not import the checkpoint into fast/one-sys-42-checkpoint: rbd says"), "{error}");
    assert!(error.ends_with(&format!("the checkpoint stays {}", file.display())), "{error}");
    assert!(is_there(&file));
    pool.works("import");
    actions::save_ceph(&pool.ceph(), &file, 42).unwrap();

    pool.fail("export");
    let error = actions::restore_ceph(&pool.ceph(), &file, 42).unwrap_err().to_string();
    assert!(error.ends_with("the checkpoint stays in fast/one-sys-42-checkpoint"), "{error}");
    assert!(!file.exists() && is_there(&pool.image()));
    pool.works("export");
    // A truncated image is refused.
    fs::write(pool.image(), "LibvirtQemudPart").unwrap();
    let error = actions::restore_ceph(&pool.ceph(), &file, 42).unwrap_err().to_string();
    assert!(error.contains("is not a complete save image"), "{error}");
    assert!(!file.exists() && !pool.dir.path().join(".checkpoint.ceph").exists());
    fs::write(pool.image(), CHECKPOINT).unwrap();
    pool.fail("rm");
    actions::restore_ceph(&pool.ceph(), &file, 42).unwrap();
    assert!(is_there(&file), "an image that can't be removed does no harm");
    let nowhere = Ceph { program: "/nonexistent/rbd".into(), ..pool.ceph() };
    let error = actions::save_ceph(&nowhere, &file, 42).unwrap_err().to_string();
    assert!(error.contains("cannot run /nonexistent/rbd"), "{error}");
    assert!(is_there(&file));
}
