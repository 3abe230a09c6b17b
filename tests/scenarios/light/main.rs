//! The driver on real libvirtds, QEMUs and guests, with everything that needs no VF: two light hosts
//! (tests/rigs/light/README.md).
//!
//! `cargo test -p kvm-sriov-tests --test light -- [NAME...]` runs all scenarios or the named ones. Both hosts take
//! scenarios from the list side by side, and a VM may migrate to the other host, so a scenario handles only its own
//! VMs. Every wait is for a condition, with a limit of at least five times the measured time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::process::ExitCode;
use std::time::Duration;

use kvm_sriov_tests::caller::{Answer, Version};
use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::rig_host::RigHost;
use kvm_sriov_tests::runner::{passes, side_by_side, verdict, wanted};
use kvm_sriov_tests::vm::Vm;
use kvm_sriov_tests::{runner, scenarios};

mod disks;
mod distribution;
mod guest;
mod life;
mod moves;
mod recorded;

use disks::*;
use distribution::*;
use guest::*;
use life::*;
use moves::*;
use recorded::*;

/// A guest boots within 9 s on a machine with a load of ten times its processors.
const BOOT: Duration = Duration::from_secs(60);

/// A guest checks its devices once a second.
const SOON: Duration = Duration::from_secs(30);

/// The hosts of a scenario: it runs on `host`, and its VM may migrate to `other`.
#[derive(Clone, Copy)]
struct Site {
    host: RigHost,
    other: RigHost,
}

impl Site {
    /// The hosts after a migration.
    fn turned(self) -> Self {
        Self { host: self.other, other: self.host }
    }

    /// Runs an action as this version of OpenNebula does.
    #[track_caller]
    fn call(self, version: Version, vm: &Vm, action: &str, args: &[&str], stdin: &str) -> Answer {
        self.host.called_by(version, &remotes(version), vm, action, args, stdin)
    }

    /// Runs an action of the newest version, which must succeed. Returns its standard output.
    #[track_caller]
    fn run(self, vm: &Vm, action: &str, args: &[&str], stdin: &str) -> String {
        self.call(Version::V7, vm, action, args, stdin).ok()
    }

    /// Runs an action of the newest version, which must fail with this text in its message.
    #[track_caller]
    fn fails(self, vm: &Vm, action: &str, args: &[&str], stdin: &str, text: &str) {
        let answer = self.call(Version::V7, vm, action, args, stdin);
        assert!(answer.code != 0 && answer.stdout.is_empty() && answer.message.contains(text), "{text:?}: {answer:?}");
    }

    /// Starts a VM from its changed deployment file, and waits until its guest runs.
    #[track_caller]
    fn boot(self, vm: &Vm, change: impl Fn(String) -> String) {
        let (file, host) = (vm.deployment_file(), self.host.name());
        let said = self.run(vm, "deploy", &[&file, &host], &change(vm.deployment()));
        assert_eq!(said, format!("{}\n", vm.uuid()));
        self.boots(vm, 1);
    }

    /// Waits until the guest has booted this many times and its agent answers.
    #[track_caller]
    fn boots(self, vm: &Vm, times: usize) {
        let ping = r#"virsh -q -c qemu:///system qemu-agent-command NAME '{"execute":"guest-ping"}'"#;
        let ping = ping.replace("NAME", &vm.name());
        self.host.wait(&format!("the guest of {} to boot", vm.name()), BOOT, |host| {
            let console = host.console(vm);
            console.boots() == times && !console.sees().is_empty() && host.oneadmin(&ping).code == 0
        });
    }

    /// Waits until the guest shows this value: a number of CPUs or MiB, a disk or the content of a drive. `None` waits
    /// until the device is gone.
    #[track_caller]
    fn sees(self, vm: &Vm, what: &str, value: Option<&str>) {
        let mut seen = None;
        self.host.wait(&format!("the guest of {} to have {what}={value:?}", vm.name()), SOON, |host| {
            seen = host.console(vm).sees().remove(what);
            seen.as_deref() == value
        });
    }

    /// Cancels a VM, which must be gone afterwards.
    #[track_caller]
    fn cancel(self, vm: &Vm) {
        assert_eq!(self.run(vm, "cancel", &[&vm.uuid(), &self.host.name()], ""), "");
        self.is_gone(vm);
    }

    #[track_caller]
    fn is_gone(self, vm: &Vm) {
        assert_eq!(self.host.live_xml(vm), "", "on {}", self.host.name());
    }
}

/// The directory of a version's remotes on a host.
fn remotes(version: Version) -> String {
    if version == Version::V7 { "/var/tmp/one".into() } else { format!("/var/tmp/one-{version}") }
}

/// A VM with the guest.
fn guest(id: u32) -> Vm {
    Vm::new(id).emulated().with_guest().memory(160)
}

/// The standard input of an action for a VM on a host, with this addition to its template.
fn data(host: RigHost, vm: &Vm, template: &str) -> String {
    let text = vm.action_data(&host.name()).xml();
    assert!(text.contains("<VCPU><![CDATA[1]]></VCPU>"), "{text}");
    text.replacen("<VCPU><![CDATA[1]]></VCPU>", template, 1)
}

type Scenario = runner::Scenario<Site>;

const SCENARIOS: &[Scenario] = scenarios![
    a_distribution_gives_its_vfs_their_addresses,
    a_life_called_by_7,
    a_life_called_by_6_10,
    a_life_called_by_5_12,
    a_life_called_by_4_0,
    calls_recorded_from_opennebula,
    disks_of_every_type,
    a_cd_is_swapped,
    cpus_and_memory_are_resized,
    commands_run_in_the_guest,
    snapshots_bring_back_what_was,
    storage_that_is_not_shared_moves_along,
    the_front_end_moves_a_vm,
    another_datastore_of_the_host,
    a_checkpoint_goes_through_ceph,
];

fn main() -> ExitCode {
    let wanted = wanted(&SCENARIOS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let chosen: Vec<&Scenario> =
        SCENARIOS.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(*name)).collect();
    println!("\nrunning {} scenarios", chosen.len());
    let hosts @ [one, two] = RigHost::start_light();
    set_up(hosts);
    let mut failed = side_by_side(&hosts, &chosen, |host, (name, scenario)| {
        let other = if host == one { two } else { one };
        passes(name, &[host], || scenario(Site { host, other }))
    });
    // No VM has a VF, so no program creates the driver's directory. Every VM must be gone.
    for host in hosts {
        let left =
            host.root("virsh -q list --all --name | grep .; ls -d /tmp/vf_interfaces; pgrep -a qemu-kvm-one; true").out;
        if !left.is_empty() {
            println!("{} has left:\n{left}", host.name());
            failed += 1;
        }
    }
    RigHost::stop_light();
    verdict(chosen.len(), failed)
}

/// Installs the remotes of every version on both hosts, with OpenNebula's own kvmrc at the path of that version.
fn set_up(hosts: [RigHost; 2]) {
    for version in LIVES {
        let remotes_of = Remotes::of(version);
        let at = remotes(version);
        let kvmrc = if version < Version(5, 6) { "vmm/kvm" } else { "etc/vmm/kvm" };
        for host in hosts {
            host.install_at(&remotes_of, &at);
            // libvirt 9.0 treats only network file systems such as NFS as shared.
            let text = "DEFAULT_ATTACH_CACHE=directsync\nMIGRATE_OPTIONS=\"--unsafe\"\n";
            host.write(&format!("{at}/{kvmrc}/kvmrc"), text);
            host.write(&format!("{at}/etc/vmm/kvm-sriov/kvmrc"), "SHUTDOWN_TIMEOUT=60\n");
        }
    }
    for host in hosts {
        // OpenNebula creates it for its monitoring and `exec`.
        host.root("install -d -o oneadmin -g oneadmin /run/one").ok();
    }
}
