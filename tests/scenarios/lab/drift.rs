//! Effects that accumulate: processes that are killed at any time, and actions that are repeated many times.

use std::env;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use kvm_sriov_tests::rig_host::{RigHost, Running, SOON, Said};
use kvm_sriov_tests::vm::Vm;

use super::moves::{is_only_at, second_host, settles};
use super::suspend::{Identity, boot, exists, has_again, identity, shows};
use super::whole::is_whole;
use super::{STATE, cancel, interfaces, is_at_rest, plugged};

/// A guest shows returned VFs within 8 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(60);

const KILLS: u32 = 20;

/// How many times a NIC is attached and detached, a VM is saved and restored, and a VM moves; and the variables that
/// set other numbers.
const ROUNDS: u32 = 1000;
const ROUNDS_VARIABLE: &str = "KVM_SRIOV_LAB_ROUNDS";
const SAVES: u32 = 100;
const SAVES_VARIABLE: &str = "KVM_SRIOV_LAB_SAVES";
const MOVES: u32 = 20;
const MOVES_VARIABLE: &str = "KVM_SRIOV_LAB_MOVES";

/// By how many KiB the memory of libvirtd may grow in the second half of the rounds: 16 KiB a round of 1000.
const MAY_GROW: usize = 8_000;

/// How many of the actions must be killed before they end by themselves.
const KILLED: u32 = 10;

/// The longest time before an action is killed, in ms. A migration takes about 15 s, a save 8 s, a NIC 4 s.
pub(super) const LONGEST: u64 = 15_000;
pub(super) const LONGEST_OF_A_NIC: u64 = 4_000;

/// The variable with the seed, to repeat an earlier run.
const SEED: &str = "KVM_SRIOV_LAB_SEED";

/// A number from the environment, or the usual one.
pub(super) fn number(variable: &str, usual: u32) -> u32 {
    env::var(variable).map_or(usual, |text| text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// Random numbers from the seed of the environment or from a new one, which is printed.
pub(super) fn seeded() -> Rng {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    let seed: u64 = env::var(SEED).map_or_else(|_| now(), |seed| seed.parse().unwrap());
    println!("  {SEED}={seed}");
    Rng::with_seed(seed)
}

/// How many NICs with VFs the VM wants. `None` while it does not have exactly these VFs, or an operation is open.
fn settled_nics(vm: &Vm, live: &str) -> Option<usize> {
    let wanted = live.matches("<sriov:nic ").count();
    let is_settled = plugged(live).len() == wanted && interfaces(live).len() == wanted;
    (is_settled && is_at_rest(live) && live.contains(&vm.uuid())).then_some(wanted)
}

pub(super) fn killed_at_any_time(host1: RigHost) {
    let host2 = second_host();
    let mut random = seeded();
    let one = Vm::new(76).with_guest().nic("sriov_pf0");
    let two = one.clone().nic("sriov_pf1");
    // The values with one NIC, and the first values with two NICs.
    let mut known = [Some(identity(&boot(host1, &one, 2))), None];
    let boot_id = host1.wait_tick(&one).boot;
    let (mut vm, mut at, mut is_saved, mut killed) = (one.clone(), host1, false, 0);
    for round in 1..=KILLS {
        let other = if at.name() == host1.name() { host2 } else { host1 };
        let has_two = vm.nics() == 2;
        let (what, mut action): (&str, Running) = match (is_saved, random.u64(..3), has_two) {
            (true, ..) => ("restore", at.begin_restore(&vm)),
            (false, 0, _) => ("save", at.begin_save(&vm)),
            (false, 1, _) => ("migrate", at.begin_migration(&vm, other)),
            (false, _, true) => ("detach_nic", at.begin_detach(&vm, 1)),
            (false, _, false) => ("attach_nic", at.begin_attach(&two, 1)),
        };
        let after = random.u64(..if what.ends_with("_nic") { LONGEST_OF_A_NIC } else { LONGEST });
        thread::sleep(Duration::from_millis(after));
        let was_killed = action.signal("KILL");
        killed += u32::from(was_killed);
        let said = action.finish();
        let step =
            format!("round {round}: {what} on {}, killed after {after} ms: {was_killed}, {}", at.name(), said.code);
        println!("  {step}");
        // An unfinished save is completed, or its image is restored. A restore is undone or completed.
        let hosts = [host1, host2];
        let mut found = None;
        host1.wait(&format!("it to be in one place, and whole: {step}"), SOON, |_| {
            let states = hosts.map(|host| host.state(&vm));
            assert!(states != ["running", "running"], "its CPUs run twice: {step}");
            for host in hosts {
                host.root("timeout 60 kvm-sriov reconcile");
            }
            let lives: Vec<_> = hosts.map(|host| (host, host.live_xml(&vm))).into();
            found = match &lives.iter().filter(|(_, live)| !live.is_empty()).collect::<Vec<_>>()[..] {
                [] if exists(host1, &vm.checkpoint()) => Some(None),
                [(host, live)] if host.state(&vm) == "running" => {
                    settled_nics(&vm, live).map(|nics| Some((*host, nics, identity(live))))
                }
                _ => None,
            };
            found.is_some()
        });
        let Some((place, nics, now)) = found.unwrap() else {
            assert!(["save", "restore"].contains(&what), "{step}");
            is_saved = true;
            for host in hosts {
                host.wait(&format!("nothing to be claimed: {step}"), SOON, |host| host.claims().is_empty());
            }
            continue;
        };
        assert!(!exists(host1, &vm.checkpoint()), "a checkpoint is left beside a VM that runs: {step}");
        let before = known[nics - 1].get_or_insert(now);
        vm = if nics == 1 { one.clone() } else { two.clone() };
        is_saved = false;
        at = settles(hosts, &vm, before, &step);
        assert_eq!(at.name(), place.name(), "{step}");
        assert_eq!(at.wait_tick(&vm).boot, boot_id, "its memory is not what it was: {step}");
        shows(at, &vm, 2 * nics, GUEST_ANSWERS);
    }
    assert!(killed >= KILLED, "only {killed} of {KILLS} were killed");
    if is_saved {
        let said = at.restore(&vm);
        assert_eq!(said.code, 0, "{said:?}");
    }
    cancel(at, &vm);
}

/// What must be the same after every round.
#[derive(Debug, Clone, PartialEq)]
struct Same {
    /// The NICs of the VM.
    nics: Identity,
    /// Each VF's line of its adapter, with its VLAN, and its driver on the host. Its MAC is left out: nobody sets it, and
    /// the VF's driver chooses another one whenever it takes the VF.
    vfs: String,
    /// Our files: the claims are among them.
    files: String,
}

impl Same {
    /// Asks the host, by one command.
    fn on(host: RigHost, vm: &Vm) -> Self {
        let said = host.root(&format!(
            "virsh -q dumpxml {}; echo PART; (ip link show pf0; ip link show pf1) | sed -n 's/^ *\\(vf [0-9]*\\) *link.ether [^ ]*/\\1/p'; \
             for vf in /sys/bus/pci/devices/*/physfn; do vf=${{vf%/*}}; echo ${{vf##*/}} $(readlink $vf/driver); done; echo PART; \
             find {STATE} -name .locks -prune -o -print | sort",
            vm.name()
        ));
        let said = said.ok();
        let [live, vfs, files] = said.split("PART\n").collect::<Vec<_>>().try_into().unwrap();
        Self { nics: identity(live.trim()), vfs: vfs.into(), files: files.into() }
    }
}

/// What must not grow: the open files of libvirtd and of the VM's QEMU, and the memory of libvirtd in KiB.
#[derive(Debug, Clone, Copy)]
struct Held {
    open: [usize; 2],
    memory: usize,
}

impl Held {
    fn on(host: RigHost, vm: &Vm) -> Self {
        let number = |command: &str| host.root(command).ok().trim().parse().unwrap();
        let open = |pid: &str| number(&format!("ls /proc/{pid}/fd | wc -l"));
        Self {
            open: [open("$(cat /run/libvirtd.pid)"), open(&format!("$(pgrep -f '[g]uest={},')", vm.name()))],
            memory: number("awk '/^VmRSS/ {print $2}' /proc/$(cat /run/libvirtd.pid)/status"),
        }
    }
}

/// Runs rounds, each of which ends where it began. The first half fills caches; after it nothing may grow.
fn rounds(host: RigHost, vm: &Vm, what: &str, count: u32, mut round: impl FnMut(u32)) {
    let begin = Instant::now();
    // The first round creates files and directories, which are kept.
    let mut same = None;
    let mut held = Vec::new();
    for number in 1..=count {
        round(number);
        let now = Same::on(host, vm);
        assert_eq!(now, *same.get_or_insert_with(|| now.clone()), "after round {number} of {what}");
        if number % count.div_ceil(10) == 0 && number < count {
            held.push(Held::on(host, vm));
        }
    }
    let seconds = begin.elapsed().as_secs_f32() / count as f32;
    // The watcher of the last round ends by itself after ten minutes. There must not be one of an earlier round.
    let ours = host.root("pgrep -fa '^[^ ]*vmm/kvm-sriov/'").out;
    assert!(ours.lines().count() <= 1, "our processes: {ours}");
    held.push(Held::on(host, vm));
    println!("  {count} rounds of {what}, {seconds:.1} s each; at each tenth of them:");
    println!("  open files of libvirtd and QEMU: {:?}", held.iter().map(|held| held.open).collect::<Vec<_>>());
    println!("  KiB of libvirtd: {:?}", held.iter().map(|held| held.memory).collect::<Vec<_>>());
    let (before, after) = (held[(held.len() - 1) / 2], held[held.len() - 1]);
    for (before, after) in before.open.iter().zip(after.open) {
        // libvirtd may be opening or closing a connection.
        assert!(after <= before + 4, "files that are open");
    }
    assert!(after.memory <= before.memory + MAY_GROW, "the memory of libvirtd");
}

fn succeeds(said: &Said, what: &str) {
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{what}: {said:?}");
}

pub(super) fn rounds_of_attach_and_detach(host: RigHost) {
    let one = Vm::new(77).with_guest().nic("sriov_pf0");
    let two = one.clone().nic("sriov_pf1");
    boot(host, &one, 2);
    let mut seen = None;
    rounds(host, &one, "attach and detach", number(ROUNDS_VARIABLE, ROUNDS), |round| {
        succeeds(&host.attach_nic(&two, 1), &format!("round {round}"));
        let facts = is_whole(host, &format!("round {round}"));
        let now = identity(facts.live(&two).unwrap());
        assert_eq!(now, *seen.get_or_insert_with(|| now.clone()), "round {round}");
        succeeds(&host.detach_nic(&two, 1), &format!("round {round}"));
    });
    shows(host, &one, 2, GUEST_ANSWERS);
    cancel(host, &one);
}

pub(super) fn rounds_of_save_and_restore(host: RigHost) {
    let vm = Vm::new(78).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host, &vm, 4));
    rounds(host, &vm, "save and restore", number(SAVES_VARIABLE, SAVES), |round| {
        succeeds(&host.save(&vm), &format!("round {round}"));
        assert_eq!(host.claims(), Vec::<String>::new(), "round {round}");
        succeeds(&host.restore(&vm), &format!("round {round}"));
        has_again(host, &vm, &before);
        shows(host, &vm, 4, GUEST_ANSWERS);
    });
    cancel(host, &vm);
}

/// A round moves a VM there and back.
pub(super) fn rounds_of_migration(host1: RigHost) {
    let host2 = second_host();
    let vm = Vm::new(79).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let before = identity(&boot(host1, &vm, 4));
    let boot_id = host1.wait_tick(&vm).boot;
    rounds(host1, &vm, "a move there and back", number(MOVES_VARIABLE, MOVES) / 2, |round| {
        for (from, to) in [(host1, host2), (host2, host1)] {
            succeeds(&from.migrate(&vm, to), &format!("round {round}, from {}", from.name()));
            has_again(to, &vm, &before);
            is_only_at(&vm, to, from, 2);
            shows(to, &vm, 4, GUEST_ANSWERS);
            assert_eq!(to.wait_tick(&vm).boot, boot_id, "round {round}");
        }
    });
    cancel(host1, &vm);
}
