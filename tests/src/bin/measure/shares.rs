//! Where the time of save, restore and migrate goes, for 1, 2 and 3 VFs in the lab.

use std::process::Command;

use kvm_sriov_tests::remotes::{Remotes, target};
use kvm_sriov_tests::rig_host::{GUEST_BOOT, RigHost, Said};
use kvm_sriov_tests::vm::Vm;

/// The file with the spans of a host's programs.
pub(crate) const SPANS: &str = "/tmp/spans";

/// The targets in milliseconds: our time from the last removal event until libvirt is asked for the copy, and our time
/// in a whole migration with three VFs.
const AFTER: u64 = 100;
const MIGRATION: u64 = 1000;

/// A part of a program's time, in microseconds since its start.
pub(crate) struct Span {
    kind: String,
    begin: u64,
    end: u64,
    name: String,
}

/// The times of one action, in microseconds.
struct Shares {
    total: u64,
    guest: u64,
    call: u64,
    copy: u64,
    ssh: u64,
    ours: u64,
    /// Our time between the last removal event and the copy.
    after: u64,
    /// From the last removal event to the next call of libvirt.
    next: Option<u64>,
    /// From libvirt's answer that the VM is at its destination until its CPUs run there.
    pause: Option<u64>,
    /// From request to removal event, for each VF.
    vfs: Vec<u64>,
}

/// The spans that a host's programs have written since the last call. They are also copied to standard error.
pub(crate) fn spans(host: RigHost) -> Vec<Span> {
    let text = host.root(&format!("if [ -e {SPANS} ]; then cat {SPANS} && rm {SPANS}; fi")).ok();
    let read = |line: &str| {
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap().to_owned();
        Span { kind: next(), begin: next().parse().unwrap(), end: next().parse().unwrap(), name: next() }
    };
    for line in text.lines() {
        eprintln!("{} {line}", host.name());
    }
    text.lines().map(read).collect()
}

/// The time that spans of these kinds cover between two moments. Overlapping time counts once.
fn covered(spans: &[Span], kinds: &[&str], from: u64, to: u64) -> u64 {
    let mut times: Vec<(u64, u64)> = spans
        .iter()
        .filter(|span| kinds.contains(&span.kind.as_str()))
        .map(|span| (span.begin.clamp(from, to), span.end.clamp(from, to)))
        .collect();
    times.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (begin, end) in times {
        sum += end.saturating_sub(begin.max(until));
        until = until.max(end);
    }
    sum
}

/// The milliseconds of an action's program that are neither libvirt's answer nor the guest's nor the start of ssh.
///
/// * `spans` - the spans of its program
pub(crate) fn own(spans: &[Span]) -> f64 {
    let action = spans.iter().find(|span| span.kind == "action").unwrap();
    let others = covered(spans, &["guest", "copy", "ssh", "call"], action.begin, action.end);
    (action.end - action.begin - others) as f64 / 1000.0
}

/// How long a guest is paused for the hand-over of its migration: the source checks, tells the agent, and the agent
/// resumes the guest. The clocks of hosts differ, so this includes the agent's answer.
fn pause(here: &[Span], there: &[Span]) -> Option<u64> {
    let copied = here.iter().rfind(|span| span.name == "virDomainMigrate3")?;
    let asked = here.iter().rfind(|span| span.kind == "asked")?;
    let answered = there.iter().rfind(|span| span.kind == "request")?;
    let resumed = there.iter().rfind(|span| span.name == "virDomainResume")?;
    let way = (asked.end - asked.begin).saturating_sub(answered.end - answered.begin);
    Some(asked.begin.saturating_sub(copied.end) + way + resumed.end.saturating_sub(answered.begin))
}

/// The parts of an action's time.
///
/// * `here` - the spans of its program
/// * `there` - the spans of the agent on the destination, whose clock starts with the agent
fn shares(here: &[Span], there: &[Span]) -> Shares {
    let action = here.iter().find(|span| span.kind == "action").unwrap();
    // Time within a longer span counts for the longer span.
    let all = ["guest", "copy", "ssh", "call"];
    let sums: Vec<u64> = (1..=all.len()).map(|count| covered(here, &all[..count], action.begin, action.end)).collect();
    let [guest, copy, ssh, call] = [sums[0], sums[1] - sums[0], sums[2] - sums[1], sums[3] - sums[2]];
    // The agent's calls to libvirt while it answers. Its first connection is part of its start.
    let answers = there.iter().filter(|span| span.kind == "request");
    let call = call + answers.map(|answer| covered(there, &["call"], answer.begin, answer.end)).sum::<u64>();
    let total = action.end - action.begin;
    let ours = total - guest - copy - ssh - call;
    let devices: Vec<&Span> = here.iter().filter(|span| span.kind == "device").collect();
    let heard = devices.iter().map(|span| span.end).max();
    let copies = here.iter().filter(|span| span.kind == "copy").map(|span| span.begin).max();
    let after = heard.zip(copies).map_or(0, |(from, to)| to - from - covered(here, &all, from, to));
    let next = heard.and_then(|at| {
        let begins = here.iter().filter(|span| ["call", "copy"].contains(&span.kind.as_str())).map(|span| span.begin);
        Some(begins.filter(|begin| *begin >= at).min()? - at)
    });
    let vfs = devices.iter().map(|span| span.end - span.begin).collect();
    Shares { total, guest, call, copy, ssh, ours, after, next, pause: pause(here, there), vfs }
}

/// How many times longer one of our programs takes on the host than on this machine, to start and do nothing.
fn slowness(host: RigHost) -> f64 {
    let starts = |program: &str| {
        format!(
            "a=$(date +%s%N); for n in 1 2 3 4 5 6 7 8 9 10; do {program} --help >/dev/null; done; b=$(date +%s%N); echo $((b - a))"
        )
    };
    let here = Command::new("sh")
        .arg("-c")
        .arg(starts(target().join("release/kvm-sriov").to_str().unwrap()))
        .output()
        .unwrap();
    let nanoseconds = |text: &str| text.trim().parse::<f64>().unwrap();
    nanoseconds(&host.root(&starts("kvm-sriov")).ok()) / nanoseconds(&String::from_utf8(here.stdout).unwrap())
}

fn ms(microseconds: u64) -> String {
    format!("{}", (microseconds + 500) / 1000)
}

fn row(vfs: usize, action: &str, said: &Said, shares: &Shares) {
    assert_eq!(said.code, 0, "{}", said.err);
    let Shares { total, guest, call, copy, ssh, ours, after, next, pause, vfs: each } = shares;
    assert!(action == "restore" || each.len() == vfs, "{action}: {} removals instead of {vfs}", each.len());
    let each: Vec<String> = each.iter().map(|time| ms(*time)).collect();
    let next = next.map(|next| format!("{}.{}", next / 1000, next % 1000 / 100));
    let after = if each.is_empty() { String::new() } else { ms(*after) };
    let columns = [
        vfs.to_string(),
        action.to_owned(),
        each.join(", "),
        next.unwrap_or_default(),
        ms(*guest),
        ms(*call),
        ms(*copy),
        ms(*ssh),
        ms(*ours),
        after,
        pause.map(ms).unwrap_or_default(),
        ms(*total),
    ];
    println!("| {} |", columns.join(" | "));
}

/// Prints the table.
pub(crate) fn table() {
    let [host1, host2] = RigHost::start_both();
    for host in [host1, host2] {
        host.clean();
        host.install(&Remotes::default());
        host.set_up();
        host.root(&format!("echo 'export SRIOV_SPANS={SPANS}' >/var/lib/one/.bashrc")).ok();
    }
    println!(
        "| VFs | action | VFs leave | next | guest | calls | copy | ssh | ours | gap | pause | total |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    let mut worst = (0, 0);
    for (vfs, id) in [(1, 81), (2, 82), (3, 83)] {
        let roots = ["sriov_pf0", "sriov_pf1", "sriov_pf0"];
        let vm = roots.iter().take(vfs).fold(Vm::new(id).machine("q35").with_guest(), |vm, root| vm.nic(root));
        let shown =
            |host: RigHost| host.wait("the guest's NICs", GUEST_BOOT, |host| host.guest_nics(&vm).len() == 2 * vfs);
        host1.deploy(&vm).ok();
        shown(host1);
        host1.wait_tick(&vm);
        let mut measured = |action: &str, call: &dyn Fn() -> Said| {
            for host in [host1, host2] {
                drop(spans(host));
            }
            let said = call();
            let [here, there] = [host1, host2].map(spans);
            let shares = shares(&here, &there);
            row(vfs, action, &said, &shares);
            worst.0 = worst.0.max(shares.after);
            if action == "migrate" && vfs == 3 {
                worst.1 = worst.1.max(shares.ours);
            }
        };
        measured("save", &|| host1.save(&vm));
        measured("restore", &|| host1.restore(&vm));
        shown(host1);
        host1.wait_tick(&vm);
        measured("migrate", &|| host1.migrate(&vm, host2));
        host2.cancel(&vm).ok();
    }
    let met = |is: u64, aim: u64| if is <= aim * 1000 { "met" } else { "missed" };
    println!(
        "\nThe gap is at most {} ms (aim: {AFTER} ms, {}); ours of a migration with 3 VFs is {} ms (aim: {MIGRATION} ms, {}). A \
         start of `kvm-sriov` takes {:.0} times as long in the host as beside it.",
        ms(worst.0),
        met(worst.0, AFTER),
        ms(worst.1),
        met(worst.1, MIGRATION),
        slowness(host1),
    );
    for host in [host1, host2] {
        host.root("rm -f /var/lib/one/.bashrc").ok();
    }
}
