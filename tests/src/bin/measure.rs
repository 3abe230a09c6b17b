//! docs/measurements.md: where the time of save, restore and migrate goes, for 1, 2 and 3 VFs, measured in the lab.
//!
//! `cargo run --release -p kvm-sriov-tests --bin measure >docs/measurements.md` starts the lab's hosts if they do not run.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use kvm_sriov_tests::lab::{LabHost, Said};
use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::vm::Vm;

/// Where a host's programs write their spans.
const SPANS: &str = "/tmp/spans";

/// A guest boots in about 20 s in the emulated host.
const GUEST_BOOT: Duration = Duration::from_secs(650);

/// A stretch of an action's time, in microseconds.
struct Span {
    kind: String,
    begin: u64,
    end: u64,
    name: String,
}

/// What one action took, in milliseconds.
#[derive(Default)]
struct Shares {
    total: u64,
    guest: u64,
    call: u64,
    copy: u64,
    ssh: u64,
    /// From the last that was heard of the guest to the next call.
    after: u64,
}

fn spans(host: LabHost) -> Vec<Span> {
    let text = host.root(&format!("cat {SPANS} && rm {SPANS}")).ok();
    let read = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().unwrap().to_owned();
        let kind = next();
        let (begin, end) = (next().parse().unwrap(), next().parse().unwrap());
        Span { kind, begin, end, name: next() }
    };
    text.lines().map(read).collect()
}

/// The time that spans of these kinds cover, each moment counted once.
fn covered(spans: &[Span], kinds: &[&str]) -> u64 {
    let mut times: Vec<(u64, u64)> =
        spans.iter().filter(|span| kinds.contains(&span.kind.as_str())).map(|span| (span.begin, span.end)).collect();
    times.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (begin, end) in times {
        sum += end.saturating_sub(begin.max(until));
        until = until.max(end);
    }
    sum
}

fn shares(host: LabHost, said: &Said) -> Shares {
    assert_eq!(said.code, 0, "{}", said.err);
    let spans = spans(host);
    // What runs beside a longer thing is that thing's time.
    let upto = |kinds: &[&str]| covered(&spans, kinds) / 1000;
    let guest = upto(&["guest"]);
    let copy = upto(&["guest", "copy"]) - guest;
    let ssh = upto(&["guest", "copy", "ssh"]) - guest - copy;
    let call = upto(&["guest", "copy", "ssh", "call"]) - guest - copy - ssh;
    let heard = spans.iter().filter(|span| span.kind == "guest").map(|span| span.end).max();
    let next =
        |at: u64| spans.iter().filter(|span| span.begin >= at && span.name != "unplug").map(|span| span.begin).min();
    let after = heard.and_then(|at| Some(next(at)? - at)).unwrap_or(0);
    Shares { total: upto(&["action"]), guest, call, copy, ssh, after: after / 1000 }
}

fn row(vfs: usize, action: &str, shares: &Shares) {
    let Shares { total, guest, call, copy, ssh, after } = shares;
    let ours = total - guest - call - copy - ssh;
    println!("| {vfs} | {action} | {total} | {guest} | {call} | {copy} | {ssh} | {ours} | {after} |");
}

fn main() {
    let [host1, host2] = LabHost::start_both();
    for host in [host1, host2] {
        host.clean();
        host.install(&Remotes::default());
        host.set_up();
        host.root(&format!("echo 'export SRIOV_SPANS={SPANS}' >/var/lib/one/.bashrc")).ok();
    }
    println!(
        "# Measurements\n\nMade by `cargo run --release -p kvm-sriov-tests --bin measure`, in the lab on two cores: everything is \
         emulated, so\nonly the shares say something of production. Milliseconds, of the program that OpenNebula calls.\n\n\
         - guest: waited for the guest to release its VFs, all of them at once\n- calls: libvirt's answers\n- copy: memory into \
         the file, out of it, or to the other host\n- ssh: the agent at the destination: its start, its claims, its plugs\n- ours: \
         everything else that the program does\n- next: from the last removal event to our next call\n\n\
         | VFs | action | total | guest | calls | copy | ssh | ours | next |\n|---|---|---|---|---|---|---|---|---|"
    );
    for (vfs, id) in [(1, 81), (2, 82), (3, 83)] {
        let roots = ["sriov_pf0", "sriov_pf1", "sriov_pf0"];
        let vm = roots.iter().take(vfs).fold(Vm::new(id).machine("q35").with_guest(), |vm, root| vm.nic(root));
        host1.deploy(&vm).ok();
        host1.wait("the guest's NICs", GUEST_BOOT, |host| host.guest_nics(&vm).len() == 2 * vfs);
        drop(spans(host1));
        row(vfs, "save", &shares(host1, &host1.save(&vm)));
        row(vfs, "restore", &shares(host1, &host1.restore(&vm)));
        host1.wait("the guest's NICs", GUEST_BOOT, |host| host.guest_nics(&vm).len() == 2 * vfs);
        row(vfs, "migrate", &shares(host1, &host1.migrate(&vm, host2)));
        host2.cancel(&vm).ok();
    }
    println!(
        "\nThe driver of 2013 slept 3 s for each VF that it unplugged and 3 s for each that it plugged: 6, 12 and 18 s in a \
         migration, whatever the\nguest did."
    );
    for host in [host1, host2] {
        host.root("rm -f /var/lib/one/.bashrc").ok();
    }
}
