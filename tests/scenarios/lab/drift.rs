//! Effects that accumulate: processes that are killed at any time, and NICs that are attached and detached a hundred
//! times.

use std::env;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvm_sriov_tests::rig_host::{RigHost, Running, SOON};
use kvm_sriov_tests::vm::Vm;

use super::moves::{second_host, settles};
use super::suspend::{boot, exists, identity, shows};
use super::{STATE, cancel, interfaces, is_at_rest, plugged};

/// A guest shows returned VFs within 8 s.
const GUEST_ANSWERS: Duration = Duration::from_secs(60);

const KILLS: u32 = 20;
const ROUNDS: u32 = 100;

/// How many of the actions must be killed before they end by themselves.
const KILLED: u32 = 10;

/// The longest time before an action is killed, in ms. A migration takes about 15 s, a save 8 s, a NIC 4 s.
const LONGEST: u64 = 15_000;
const LONGEST_OF_A_NIC: u64 = 4_000;

/// The variable with the seed, to repeat an earlier run.
const SEED: &str = "KVM_SRIOV_LAB_SEED";

/// Pseudo-random numbers, the same for the same seed.
///
/// # Source
/// G. Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003), 14.
struct Random(u64);

impl Random {
    /// Starts from the seed of the environment or from a new one, and prints it.
    fn seeded() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
        let seed: u64 = env::var(SEED).map_or_else(|_| now(), |seed| seed.parse().unwrap());
        println!("  {SEED}={seed}");
        // Zero would give only zeros.
        Self(seed.max(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// How many NICs with VFs the VM wants. `None` while it does not have exactly these VFs, or an operation is open.
fn settled_nics(vm: &Vm, live: &str) -> Option<usize> {
    let wanted = live.matches("<sriov:nic ").count();
    let is_settled = plugged(live).len() == wanted && interfaces(live).len() == wanted;
    (is_settled && is_at_rest(live) && live.contains(&vm.uuid())).then_some(wanted)
}

pub(super) fn killed_at_any_time(host1: RigHost) {
    let host2 = second_host();
    let mut random = Random::seeded();
    let one = Vm::new(76).with_guest().nic("sriov_pf0");
    let two = one.clone().nic("sriov_pf1");
    // The values with one NIC, and the first values with two NICs.
    let mut known = [Some(identity(&boot(host1, &one, 2))), None];
    let boot_id = host1.wait_tick(&one).boot;
    let (mut vm, mut at, mut is_saved, mut killed) = (one.clone(), host1, false, 0);
    for round in 1..=KILLS {
        let other = if at.name() == host1.name() { host2 } else { host1 };
        let has_two = vm.nics() == 2;
        let (what, mut action): (&str, Running) = match (is_saved, random.below(3), has_two) {
            (true, ..) => ("restore", at.begin_restore(&vm)),
            (false, 0, _) => ("save", at.begin_save(&vm)),
            (false, 1, _) => ("migrate", at.begin_migration(&vm, other)),
            (false, _, true) => ("detach_nic", at.begin_detach(&vm, 1)),
            (false, _, false) => ("attach_nic", at.begin_attach(&two, 1)),
        };
        let after = random.below(if what.ends_with("_nic") { LONGEST_OF_A_NIC } else { LONGEST });
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

/// The numbers that must not grow: our files and processes, and the open files of libvirtd and of the VM's QEMU.
#[derive(Debug)]
struct Held {
    files: String,
    processes: String,
    open: [usize; 2],
}

impl Held {
    fn on(host: RigHost, vm: &Vm) -> Self {
        let open = |pid: &str| host.root(&format!("ls /proc/{pid}/fd | wc -l")).ok().trim().parse().unwrap();
        Self {
            files: host.root(&format!("find {STATE} | sort")).ok(),
            processes: host.root("pgrep -fl '^[^ ]*(vmm/kvm-sriov/|kvm-sriov )' || true").ok(),
            open: [open("$(cat /run/libvirtd.pid)"), open(&format!("$(pgrep -f '[g]uest={},')", vm.name()))],
        }
    }
}

pub(super) fn a_hundred_rounds_of_attach_and_detach(host: RigHost) {
    let one = Vm::new(77).with_guest().nic("sriov_pf0");
    let two = one.clone().nic("sriov_pf1");
    boot(host, &one, 2);
    let mut seen = None;
    let mut begin = None;
    for round in 1..=ROUNDS {
        let said = host.attach_nic(&two, 1);
        assert_eq!((said.code, said.out.as_str()), (0, ""), "round {round}: {said:?}");
        let live = host.live_xml(&two);
        let now = (plugged(&live), interfaces(&live), host.claims());
        assert_eq!(now.2, ["pf0/0", "pf1/0"], "round {round}");
        assert_eq!(*seen.get_or_insert(now), (plugged(&live), interfaces(&live), host.claims()), "round {round}");
        let said = host.detach_nic(&two, 1);
        assert_eq!((said.code, said.out.as_str()), (0, ""), "round {round}: {said:?}");
        assert_eq!(host.claims(), ["pf0/0"], "round {round}");
        // The first round creates locks and directories, which are kept.
        if round == 1 {
            begin = Some(Held::on(host, &one));
        }
    }
    let (begin, end) = (begin.unwrap(), Held::on(host, &one));
    assert_eq!((&end.files, &end.processes), (&begin.files, &begin.processes));
    for (before, after) in begin.open.iter().zip(end.open) {
        // libvirtd may be opening or closing a connection.
        assert!(after <= before + 4, "files that are open: {begin:?}, {end:?}");
    }
    shows(host, &one, 2, GUEST_ANSWERS);
    assert_eq!(plugged(&host.live_xml(&one)).len(), 1);
    cancel(host, &one);
}
