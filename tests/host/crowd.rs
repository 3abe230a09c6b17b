//! Many processes at once on one host, some of which are killed: no VF has two users, and nothing is left behind.
//!
//! KVM_SRIOV_LOAD sets the number of actions of each test (default: 400). `./check long` makes 10 000.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods)]

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use kvm_sriov::claims::{Backing, ClaimError, ClaimRequest, ClaimStore};
use kvm_sriov::config::{Settings, VfMap};
use kvm_sriov::reconcile::Options;
use kvm_sriov::sysfs::Sysfs;
use kvm_sriov::xml::LiveDomain;
use kvm_sriov::{Action, Cause, Host, NicKey, Owner, PciAddress, Position, RootName, VfState, WantedVf, actions};
use kvm_sriov_tests::daemon::Daemon;
use tempfile::TempDir;

/// The VFs of the host.
const VFS: u8 = 128;

/// Longer than anything takes, however slow this machine is.
const PATIENCE: Duration = Duration::from_secs(3600);

fn number_of_actions() -> usize {
    env::var("KVM_SRIOV_LOAD").map_or(400, |number| number.parse().unwrap())
}

fn root() -> RootName {
    "ib0".parse().unwrap()
}

fn vfs() -> Vec<PciAddress> {
    (0..VFS).map(|n| PciAddress::new(0, 7, n / 8, n % 8).unwrap()).collect()
}

/// A host's files: VFs in sysfs, the state directory, and a file for each VF that a process uses.
fn a_host() -> TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for vf in vfs() {
        fs::create_dir_all(dir.path().join(format!("sys/bus/pci/devices/{vf}/physfn"))).unwrap();
    }
    fs::create_dir_all(dir.path().join("sys/class/net/dummybr/bridge")).unwrap();
    fs::create_dir(dir.path().join("used")).unwrap();
    dir
}

/// Notes that a VM uses a VF. A predecessor of this process, which was killed, may have noted it already.
fn take(dir: &Path, vf: PciAddress, vm: &str) {
    let path = dir.join("used").join(vf.to_string());
    if let Err(error) = File::create_new(&path) {
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        let other = fs::read_to_string(&path).unwrap();
        // A process that was killed before it wrote its name used nothing.
        assert!(other.is_empty() || other == vm, "{vf} of {vm} is in {other} too");
    }
    fs::write(path, vm).unwrap();
}

/// A VM is about to give a VF back.
fn give(dir: &Path, vf: PciAddress) {
    if let Err(error) = fs::remove_file(dir.join("used").join(vf.to_string())) {
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}

/// What a process is told by the environment: the host's files, the number of its VM, and libvirtd.
const HOST: &str = "KVM_SRIOV_CROWD_HOST";
const VM: &str = "KVM_SRIOV_CROWD_VM";
const URI: &str = "KVM_SRIOV_CROWD_URI";

fn told() -> (PathBuf, String) {
    (env::var(HOST).unwrap().into(), format!("one-{}", env::var(VM).unwrap()))
}

/// The process says that its VM has VFs, and then that the action is done.
const HAS: &str = "it has VFs";
const DONE: &str = "it is done";

/// The actions of all VMs.
struct Actions {
    begun: AtomicUsize,
    number: usize,
}

/// Lets a VM act in a process, until all VMs together have made their actions. Kills the process now and then: at any
/// place of an action, or when the VM has VFs.
///
/// * `command` - the process
/// * returns whether it was killed
fn let_act(mut command: Command, actions: &Actions, random: &mut Rng) -> bool {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut is_killed = false;
    while !is_killed && actions.begun.fetch_add(1, Ordering::Relaxed) < actions.number {
        input.write_all(b"act\n").unwrap();
        is_killed = random.u8(..30) == 0;
        let with_vfs = random.u8(..30) == 0;
        while !is_killed {
            let line = lines.next().expect("the process failed").unwrap();
            is_killed = with_vfs && line.ends_with(HAS);
            if line.ends_with(DONE) {
                break;
            }
        }
    }
    if is_killed {
        child.kill().unwrap();
    }
    drop(input);
    let status = child.wait().unwrap();
    assert!(is_killed || status.success());
    is_killed
}

/// Lets this many VMs act at once, each in one process after the other.
///
/// * `process` - the test that is the process
fn crowd(dir: &Path, vms: usize, uri: &str, process: &str) {
    let actions = &Actions { begun: AtomicUsize::new(0), number: number_of_actions() };
    let command = |vm: usize| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "--nocapture", process]);
        command.envs([(HOST, dir.to_str().unwrap()), (VM, &vm.to_string()), (URI, uri)]);
        command
    };
    thread::scope(|scope| {
        for vm in 0..vms {
            scope.spawn(move || {
                let mut random = Rng::with_seed(u64::try_from(vm).unwrap());
                while let_act(command(vm), actions, &mut random) {}
            });
        }
    });
    let used: Vec<_> = fs::read_dir(dir.join("used")).unwrap().collect();
    assert!(used.is_empty(), "{used:?}");
}

#[test]
fn processes_that_claim_at_once_share_no_vf() {
    let dir = a_host();
    crowd(dir.path(), 64, "", "a_claiming_process");
    let store = ClaimStore::create(&dir.path().join("state")).unwrap();
    assert_eq!(store.entries().unwrap(), []);
}

#[test]
#[ignore = "part of processes_that_claim_at_once_share_no_vf"]
fn a_claiming_process() {
    let (dir, vm) = told();
    let owner = |vm: &str| Owner { vm: vm.parse().unwrap(), uuid: None };
    let nic = |n: usize| NicKey { position: Position::new(n).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
    let (maps, sysfs) = ([VfMap::new(root(), vfs()).unwrap()], Sysfs::at(dir.clone()));
    // Claims of a process that was killed stay its VM's, as if a domain wanted their VFs.
    let all = (0..64).flat_map(|vm| (0..3).map(move |n| (owner(&format!("one-{vm}")), nic(n))));
    let backing = Backing { wanting: all.collect(), ..Backing::default() };
    let (store, owner) = (ClaimStore::create(&dir.join("state")).unwrap(), owner(&vm));
    let release = || {
        let claims = store.claims_of(&owner).unwrap();
        claims.iter().for_each(|claim| give(&dir, claim.vf));
        store.release(&claims).unwrap();
    };
    release();
    let mut random = Rng::with_seed(u64::from(std::process::id()));
    for line in io::stdin().lines() {
        line.unwrap();
        let lock = store.lock_vm(&owner.vm, Action::Deploy, PATIENCE).unwrap();
        let wanted: Vec<_> = (0..random.usize(1..=3)).map(|n| WantedVf { root: root(), nic: nic(n) }).collect();
        let request =
            ClaimRequest { owner: &owner, lock: &lock, vfs: &wanted, maps: &maps, sysfs: &sysfs, refused: &[] };
        store.recover(&store.entries().unwrap(), &backing, &maps).unwrap();
        match store.claim_all(&request, &backing) {
            Ok(claims) => {
                assert_eq!(claims.len(), wanted.len());
                claims.iter().for_each(|claim| take(&dir, claim.vf, &vm));
                println!("{HAS}");
                store.commit(&claims, &maps).unwrap();
                release();
            }
            Err(error) => {
                assert!(matches!(error, ClaimError::Exhausted { .. }), "{error}");
                assert_eq!(store.claims_of(&owner).unwrap(), [], "all or none");
            }
        }
        println!("{DONE}");
    }
}

/// The host that a process opens for the real libvirtd.
fn open(dir: &Path, uri: &str) -> Host {
    let mut settings = Settings::default();
    (settings.libvirt_uri, settings.state_dir) = (uri.into(), dir.join("state"));
    (settings.lock_timeout, settings.call_timeout, settings.shutdown_timeout) = (PATIENCE, PATIENCE, PATIENCE);
    (settings.dummy_bridge, settings.dummy_mac_prefix) = (Some("dummybr".into()), Some("aa".parse().unwrap()));
    let host = Host::builder().settings(settings).map(VfMap::new(root(), vfs()).unwrap());
    host.sysfs(Sysfs::at(dir.into())).journal(false).open().unwrap()
}

#[test]
fn vms_that_start_and_end_at_once_on_one_libvirtd_share_no_vf() {
    let (dir, daemon) = (a_host(), Daemon::start());
    crowd(dir.path(), 20, &daemon.uri(), "a_starting_process");
    let host = open(dir.path(), &daemon.uri());
    assert_eq!(host.hypervisor().domains().unwrap().len(), 1, "only the one of the test driver");
    // An action that saw a VF in a domain, and comes to claim it when the domain has ended, leaves a stale claim.
    host.reconcile(&Options::default()).unwrap();
    let vfs = host.vfs().unwrap();
    assert_eq!(vfs.len(), usize::from(VFS));
    let used: Vec<_> = vfs.iter().filter(|vf| vf.state != VfState::Free).collect();
    assert!(used.is_empty(), "{used:?}");
}

#[test]
#[ignore = "part of vms_that_start_and_end_at_once_on_one_libvirtd_share_no_vf"]
fn a_starting_process() {
    let (dir, vm) = told();
    let host = open(&dir, &env::var(URI).unwrap());
    let id = vm.parse().unwrap();
    let end = || {
        // Its domain's VFs are free when this has begun.
        if let Some(domain) = host.hypervisor().find(&id).unwrap() {
            let live = host.hypervisor().live_xml(&domain).unwrap();
            live.iter()
                .flat_map(|xml| LiveDomain::parse(xml).unwrap().hostdevs)
                .for_each(|device| give(&dir, device.vf));
        }
        actions::cancel(&host, &id, Some(&vm.parse().unwrap())).unwrap();
    };
    end();
    let mut random = Rng::with_seed(u64::from(std::process::id()));
    for line in io::stdin().lines() {
        line.unwrap();
        let nics: String = (0..random.u8(1..=7))
            .map(|n| format!("<interface type='bridge'><source bridge='sriov_ib0'/><mac address='02:00:0a:00:00:0{n}'/></interface>"))
            .collect();
        let xml = format!(
            "<domain type='test'><name>{vm}</name><memory>65536</memory><os><type>hvm</type></os><devices>{nics}</devices></domain>"
        );
        match actions::deploy(&host, &dir.join("deployment.0"), &xml) {
            Ok(domain) => {
                let live = LiveDomain::parse(&host.hypervisor().live_xml(&domain).unwrap().unwrap()).unwrap();
                assert_eq!(live.hostdevs.len(), nics.matches("<mac").count());
                live.hostdevs.iter().for_each(|device| take(&dir, device.vf, &vm));
                println!("{HAS}");
                end();
            }
            Err(error) => {
                let is_spent = matches!(error.cause(), Cause::Claims(ClaimError::Exhausted { .. }));
                assert!(is_spent, "{error}");
            }
        }
        println!("{DONE}");
    }
}
