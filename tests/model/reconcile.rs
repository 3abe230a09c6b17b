//! The tables of docs/reference/reconcile.md are complete, the program follows them, and every row holds on a model
//! host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kvm_sriov::claims::{Backing, ClaimRepair};
use kvm_sriov::libvirt::{
    DeviceCalls, DomainCalls, DomainRef, JobCalls, JobKind, LibvirtErrorKind, Migration, PowerCalls, RunState,
};
use kvm_sriov::reconcile::{
    Busy, CheckpointState, Consistency, Elsewhere, Facts, NicClaim, NicFacts, Obstacle, OpenOperation, Options, Repair,
    Report, SaveImage, VmReport, decide, reconcile, resolve,
};
use kvm_sriov::xml::{OperationKind, Wanted, alias_of, dummy_alias_of};
use kvm_sriov::{Action, DomainName, Owner, PciAddress, Position, actions};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::faults::Fault;
use kvm_sriov_model::host::{Ended, ModelHost};
use kvm_sriov_model::{Course, Guest, Phase};
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::project;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

/// A table of docs/reference/reconcile.md.
struct Table {
    /// The columns that select a row, and all values of each column.
    columns: Vec<(&'static str, Vec<&'static str>)>,
    rows: Vec<Row>,
}

struct Row {
    cells: Vec<String>,
    done: Vec<String>,
}

impl Table {
    /// Reads the table under the heading `### Table <number>`. Its last two columns are what is done, and why.
    fn read(number: usize, columns: Vec<(&'static str, Vec<&'static str>)>) -> Self {
        let text = fs::read_to_string(project().join("docs/reference/reconcile.md")).unwrap();
        let section = text.split(&format!("\n### Table {number}:")).nth(1).unwrap().split("\n#").next().unwrap();
        let cells = |line: &str| -> Vec<String> {
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = section.lines().filter(|line| line.starts_with('|')).map(cells);
        let mut expected: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        expected.extend(["what is done", "why"]);
        assert_eq!(lines.next().unwrap(), expected);
        assert!(lines.next().unwrap().iter().all(|cell| cell == "---"));
        let rows = lines.map(|mut cells| {
            let why = cells.pop().unwrap();
            assert!(why.len() > 10, "a row does not say why: {cells:?}");
            let done = cells.pop().unwrap().split(", ").map(str::to_owned).collect();
            assert_eq!(cells.len(), columns.len(), "{cells:?}");
            Row { cells, done }
        });
        Self { rows: rows.collect(), columns }
    }

    fn fits(cell: &str, value: &str, values: &[&str]) -> bool {
        let known = |name: &str| assert!(values.contains(&name), "{name:?} is none of {values:?}");
        if cell == "any" {
            return true;
        }
        let is_one_of = |cell: &str| cell.split(" / ").inspect(|name| known(name)).any(|name| name == value);
        cell.strip_prefix("but ").map_or_else(|| is_one_of(cell), |others| !is_one_of(others))
    }

    /// All combinations of values.
    fn combinations(&self) -> Vec<Vec<&'static str>> {
        let mut all: Vec<Vec<&'static str>> = vec![Vec::new()];
        for (_, values) in &self.columns {
            all = all.iter().flat_map(|one| values.iter().map(|value| [&one[..], &[value]].concat())).collect();
        }
        all
    }

    /// The number of the only row for this combination.
    fn row(&self, combination: &[&str]) -> usize {
        let fits = |row: &Row| {
            let cells = row.cells.iter().zip(combination).zip(&self.columns);
            cells.fold(true, |fits, ((cell, value), (_, values))| Self::fits(cell, value, values) && fits)
        };
        let found: Vec<usize> = (0..self.rows.len()).filter(|number| fits(&self.rows[*number])).collect();
        match found[..] {
            [one] => one,
            [] => panic!("no row for {combination:?}"),
            _ => panic!("{} rows for {combination:?}: {:?}", found.len(), found.iter().map(|n| &self.rows[*n].cells)),
        }
    }

    fn done(&self, combination: &[&str]) -> &[String] {
        &self.rows[self.row(combination)].done
    }

    /// Checks that every combination has exactly one row, and that every row has a combination.
    fn check(&self) {
        let used: BTreeSet<usize> = self.combinations().iter().map(|combination| self.row(combination)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            assert!(used.contains(&number), "nothing is ever in this row: {:?}", row.cells);
        }
    }
}

fn elsewhere_column() -> (&'static str, Vec<&'static str>) {
    ("elsewhere", vec!["unknown", "runs", "never ran"])
}

fn vms() -> Table {
    Table::read(
        1,
        vec![
            ("works on it", vec!["nobody", "an action", "libvirt saves", "libvirt works"]),
            ("domain", vec!["running", "paused by user", "paused for migration", "paused", "suspended", "ending"]),
            (
                "operation",
                vec![
                    "none",
                    "save, none there",
                    "save, some there",
                    "pending, all there",
                    "pending, some left",
                    "pending, all left",
                    "restore, untouched",
                    "restore, unfinished",
                    "restore, used",
                    "restore, gone",
                    "migrate, none there",
                    "migrate, some there",
                    "migrate, was paused",
                    "newer",
                ],
            ),
            elsewhere_column(),
        ],
    )
}

fn images() -> Table {
    Table::read(4, vec![("image", vec!["none", "named"])])
}

fn nics() -> Table {
    Table::read(
        2,
        vec![
            ("wanted", vec!["yes", "no"]),
            ("device", vec!["yes", "no"]),
            ("claim", vec!["its own", "none", "for another VF", "another VM's"]),
            ("CPUs", vec!["run", "stopped"]),
        ],
    )
}

fn dummies() -> Table {
    Table::read(3, vec![("wanted", vec!["yes", "no"]), ("dummy", vec!["yes", "no"]), ("CPUs", vec!["run", "stopped"])])
}

fn gone() -> Table {
    let images = vec!["none", "missing", "incomplete", "complete", "before boot", "outlived", "unreadable"];
    Table::read(5, vec![("works on it", vec!["nobody", "an action"]), ("image", images), elsewhere_column()])
}

#[test]
fn every_combination_is_in_exactly_one_row() {
    for table in [vms(), nics(), dummies(), images(), gone()] {
        table.check();
    }
}

fn position(number: usize) -> Position {
    Position::new(number).unwrap()
}

fn vf() -> PciAddress {
    "0000:07:00.1".parse().unwrap()
}

fn elsewhere(word: &str) -> Elsewhere {
    match word {
        "unknown" => Elsewhere::Unknown,
        "runs" => Elsewhere::Runs,
        "never ran" => Elsewhere::NeverRan,
        other => panic!("{other}"),
    }
}

/// The facts of a combination of tables 2 and 3: a NIC at position 0, or a VF that is claimed for no NIC.
fn nic(wanted: bool, device: bool, claim: &str, dummy: bool) -> (Vec<NicFacts>, Vec<PciAddress>) {
    let claim = match claim {
        "its own" => NicClaim::Own,
        "none" => NicClaim::None,
        "for another VF" => NicClaim::OtherVf,
        "another VM's" => NicClaim::OtherVm,
        other => panic!("{other}"),
    };
    let nic = NicFacts { position: position(0), wanted, device, claim, dummy };
    let is_spare = !wanted && !device && claim == NicClaim::Own;
    (if wanted || device || dummy { vec![nic] } else { Vec::new() }, if is_spare { vec![vf()] } else { Vec::new() })
}

/// The order in which a NIC's repairs are done.
const ORDER: [&str; 7] = ["unplug", "unplug dummy", "leave", "release", "claim", "plug", "plug dummy"];

fn words(repairs: &[Repair]) -> Vec<&'static str> {
    repairs.iter().map(Repair::word).collect()
}

#[test]
fn the_rules_are_those_of_the_document() {
    let (vms, nics, dummies, images) = (vms(), nics(), dummies(), images());
    let mut walked = 0;
    for of_nic in nics.combinations() {
        for dummy in ["yes", "no"] {
            let [wanted, device, claim, cpus] = of_nic[..] else { panic!() };
            let mut expected: Vec<&str> = nics.done(&of_nic).iter().map(String::as_str).collect();
            expected.extend(dummies.done(&[wanted, dummy, cpus]).iter().map(String::as_str));
            let expected: Vec<&str> = ORDER.into_iter().filter(|word| expected.contains(word)).collect();
            let (found, spare) = nic(wanted == "yes", device == "yes", claim, dummy == "yes");
            // A NIC can't have its VF in a VM that has none of its VFs.
            let fits = |vm: &Vec<&str>| {
                (vm[1] == "running") == (cpus == "run")
                    && !(vm[2].ends_with(", none there") && wanted == "yes" && device == "yes")
            };
            for of_vm in vms.combinations().into_iter().filter(fits) {
                for image in ["none", "named"] {
                    let facts = facts(&of_vm, image, found.clone(), spare.clone());
                    let all = vms.done(&of_vm).iter().flat_map(|word| match word.as_str() {
                        "NICs" => with_plugs(&expected, of_vm[2]),
                        "image" if images.done(&[image]) == ["nothing"] => Vec::new(),
                        "image" => images.done(&[image]).iter().map(String::as_str).collect(),
                        word => vec![word],
                    });
                    let all: Vec<&str> = all.collect();
                    assert_eq!(words(&decide(&facts)), all, "{of_vm:?} {of_nic:?} dummy {dummy} image {image}");
                    walked += 1;
                }
            }
        }
    }
    assert!(walked > 20_000, "{walked}");
}

/// The repairs of the NIC at position 0, and the plugs of the pending positions that [`facts`] adds.
fn with_plugs<'a>(expected: &[&'a str], operation: &str) -> Vec<&'a str> {
    let left = match operation {
        "pending, some left" => 1,
        "pending, all left" => 2,
        _ => 0,
    };
    let before: Vec<&str> = expected.iter().copied().filter(|word| *word != "plug dummy").collect();
    let after = expected.iter().copied().filter(|word| *word == "plug dummy");
    before.into_iter().chain(std::iter::repeat_n("plug", left)).chain(after).collect()
}

/// The facts of a combination of table 1.
fn facts(combination: &[&str], image: &str, mut nics: Vec<NicFacts>, spare: Vec<PciAddress>) -> Facts {
    let [works, domain, operation, there] = combination[..] else { panic!() };
    let pending = || vec![position(4), position(5)];
    let there_is = |position, device| NicFacts { position, wanted: true, device, claim: NicClaim::Own, dummy: true };
    let devices = match operation {
        "pending, all there" => Some([true, true]),
        "pending, some left" => Some([false, true]),
        "pending, all left" => Some([false, false]),
        "save, some there" | "migrate, some there" => Some([true, true]),
        _ => None,
    };
    nics.extend(devices.into_iter().flatten().zip(pending()).map(|(device, position)| there_is(position, device)));
    Facts {
        busy: match works {
            "nobody" => Busy::Nobody,
            "an action" => Busy::Locked,
            "libvirt saves" => Busy::Job(JobKind::Save),
            "libvirt works" => Busy::Job(JobKind::MigrationOut),
            other => panic!("{other}"),
        },
        domain: Some(state(domain)),
        operation: match operation {
            "none" => OpenOperation::None,
            "save, none there" | "save, some there" => OpenOperation::Save,
            "restore, untouched" => OpenOperation::Restore(CheckpointState::Untouched),
            "restore, unfinished" => OpenOperation::Restore(CheckpointState::Unfinished),
            "restore, used" => OpenOperation::Restore(CheckpointState::Used),
            "restore, gone" => OpenOperation::Restore(CheckpointState::Missing),
            "migrate, none there" | "migrate, some there" => OpenOperation::Migrate { was_paused: false },
            "migrate, was paused" => OpenOperation::Migrate { was_paused: true },
            "newer" => OpenOperation::Newer,
            _ => OpenOperation::PendingUnplug(pending()),
        },
        nics,
        spare,
        image: if image == "named" { SaveImage::Incomplete } else { SaveImage::None },
        elsewhere: elsewhere(there),
    }
}

fn state(word: &str) -> RunState {
    match word {
        "running" => RunState::Running,
        "paused by user" => RunState::PausedByUser,
        "paused for migration" => RunState::PausedForMigration,
        "paused" => RunState::PausedOtherwise,
        "suspended" => RunState::PmSuspended,
        "ending" => RunState::Ending,
        other => panic!("{other}"),
    }
}

#[test]
fn the_rules_for_a_vm_without_a_domain_are_those_of_the_document() {
    let table = gone();
    for combination in table.combinations() {
        let [works, image, there] = combination[..] else { panic!() };
        let facts = Facts {
            busy: if works == "nobody" { Busy::Nobody } else { Busy::Locked },
            domain: None,
            operation: OpenOperation::None,
            nics: Vec::new(),
            spare: vec![vf()],
            image: match image {
                "none" => SaveImage::None,
                "missing" => SaveImage::Missing,
                "incomplete" => SaveImage::Incomplete,
                "complete" => SaveImage::Complete,
                "before boot" => SaveImage::BeforeBoot,
                "outlived" => SaveImage::Outlived,
                "unreadable" => SaveImage::Unreadable,
                other => panic!("{other}"),
            },
            elsewhere: elsewhere(there),
        };
        assert_eq!(words(&decide(&facts)), table.done(&combination), "{combination:?}");
    }
}

/// The VM on the model host.
fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("sriov_ib1")
}

fn deployed() -> ModelHost {
    let host = ModelHost::default();
    // Long enough for a guest that answers, even on a slow machine.
    host.set_kvmrc("SRIOV_UNPLUG_TIMEOUT=60\n");
    actions::deploy(&host.host(), &host.deployment_file(&vm()), &host.deployment(&vm())).unwrap();
    host
}

fn domain(host: &ModelHost) -> DomainRef {
    host.model().find(&"one-42".parse().unwrap()).unwrap().unwrap()
}

fn owner() -> Owner {
    Owner { vm: "one-42".parse().unwrap(), uuid: Some(vm().uuid().parse().unwrap()) }
}

/// The guest releases a device.
fn leaves(host: &ModelHost, alias: &str) {
    host.model().detach_alias(&domain(host), alias, CALL_LIMIT).unwrap();
    until("the guest releases it", || !host.domain("one-42").unwrap().has_alias(alias));
}

fn change_wanted(host: &ModelHost, change: impl FnOnce(&mut Wanted)) {
    let mut wanted = wanted(host);
    change(&mut wanted);
    let text = wanted.to_unqualified_xml();
    host.model().set_metadata(&domain(host), Some(&text), Wanted::PREFIX, Wanted::NAMESPACE).unwrap();
}

fn wanted(host: &ModelHost) -> Wanted {
    host.domain("one-42").unwrap().wanted.unwrap().unwrap()
}

/// Changes the text of every claim. A claim whose text becomes empty is removed.
fn change_claims(host: &ModelHost, change: impl Fn(&str) -> String) {
    for (name, text) in host.claims() {
        let path = host.state_dir().join(name);
        match change(&text) {
            text if text.is_empty() => fs::remove_file(path).unwrap(),
            text => fs::write(path, text).unwrap(),
        }
    }
}

fn checkpoint(host: &ModelHost) -> PathBuf {
    host.vm_dir(&vm()).join("checkpoint")
}

fn unfinished(host: &ModelHost) -> PathBuf {
    host.vm_dir(&vm()).join(".checkpoint.kvm-sriov")
}

fn used(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.used", path.file_name().unwrap().to_str().unwrap()))
}

/// Makes the claims name the file of a save.
fn note_image(host: &ModelHost, path: &Path) {
    change_claims(host, |text| format!("{text}image={}\n", path.display()));
}

/// Brings a host into the state of this combination of table 1.
fn lead_to(host: &ModelHost, domain_word: &str, operation: &str, image: &str) {
    let pending = || OperationKind::PendingUnplug { positions: vec![position(0), position(1)] };
    let migrate = |was_paused| OperationKind::Migrate {
        to: "host2".into(),
        id: "7".into(),
        from: Some("host1".into()),
        was_paused,
    };
    let restore = |path: &Path| OperationKind::Restore { checkpoint: path.to_owned() };
    let from = if operation == "restore, unfinished" { unfinished(host) } else { checkpoint(host) };
    let (kind, left): (_, &[usize]) = match operation {
        "none" => (None, &[1]),
        "newer" => (Some(OperationKind::Other("frobnicate".into())), &[1]),
        "save, none there" => (Some(OperationKind::Save), &[0, 1]),
        "save, some there" => (Some(OperationKind::Save), &[0]),
        "migrate, none there" => (Some(migrate(false)), &[0, 1]),
        "migrate, some there" => (Some(migrate(false)), &[0]),
        "migrate, was paused" => (Some(migrate(true)), &[0, 1]),
        "pending, all there" => (Some(pending()), &[]),
        "pending, some left" => (Some(pending()), &[0]),
        "pending, all left" => (Some(pending()), &[0, 1]),
        _ => (Some(restore(&from)), &[0, 1]),
    };
    for number in left {
        leaves(host, &alias_of(position(*number)));
    }
    change_wanted(host, |wanted| wanted.operation = kind.map(Into::into));
    if image == "named" {
        fs::write(unfinished(host), "LibvirtQemudPart").unwrap();
        note_image(host, &unfinished(host));
    }
    let model = host.model();
    if operation.starts_with("restore") {
        model.save(&domain(host), &from).unwrap();
        let xml = model.image_xml(&from).unwrap();
        model.restore(&from, &xml, true, CALL_LIMIT).unwrap();
        match operation {
            "restore, used" => fs::rename(&from, used(&from)).unwrap(),
            "restore, gone" => fs::remove_file(&from).unwrap(),
            _ => {}
        }
        if domain_word == "running" || domain_word == "suspended" {
            model.resume(&domain(host)).unwrap();
        }
    }
    match domain_word {
        "running" => {}
        word => model.stop_cpus("one-42", state(word)),
    }
}

/// Repeats `look` while another process holds the VM's lock. A process that a parallel test has just started holds a
/// copy of every open file for a moment, including locks.
fn patiently<T>(look: impl Fn() -> T, left: impl Fn(&T) -> Vec<Repair>) -> T {
    for _ in 0..100 {
        let seen = look();
        if !left(&seen).contains(&Repair::Leave(Obstacle::Locked)) {
            return seen;
        }
    }
    panic!("the lock is held for ever");
}

/// Reconciles the host. Repeats that while another process holds a lock.
fn reconciled(host: &ModelHost) -> Report {
    host.reconcile().unwrap()
}

/// Repairs the VM: by reconciliation, or by `resolve` with what is known of the other host.
fn put_right(host: &ModelHost, there: &str) -> VmReport {
    match elsewhere(there) {
        Elsewhere::Unknown => {
            let mut report = reconciled(host);
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            let found = report.vms.iter().position(|vm| vm.owner.vm.as_str() == "one-42").unwrap();
            report.vms.remove(found)
        }
        known => {
            let id = "one-42".parse().unwrap();
            patiently(|| resolve(&host.host(), &id, known).unwrap(), |report| report.left.clone())
        }
    }
}

/// Checks that a second reconciliation has nothing to do.
fn is_settled(host: &ModelHost) {
    let before = host.portrait();
    let report = reconciled(host);
    assert!(report.claims.is_empty() && report.problems.is_empty(), "{report:?}");
    for vm in report.vms {
        assert!(vm.done.is_empty() && vm.failures.is_empty(), "{vm:?}");
        assert!(vm.left.iter().all(Repair::is_note), "{vm:?}");
    }
    assert_eq!(host.portrait(), before);
}

/// Runs `step` for all combinations, in three threads. A failure names its combination.
fn walk(combinations: Vec<Vec<&'static str>>, step: impl Fn(&[&'static str]) + Sync) {
    let waiting = std::sync::Mutex::new(combinations.into_iter());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(combination) = waiting.lock().unwrap().next() else { break };
                    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| step(&combination)));
                    assert!(tried.is_ok(), "went wrong, see above: {combination:?}");
                }
            });
        }
    });
}

#[test]
fn every_row_of_an_idle_vm_holds() {
    let table = vms();
    let matters = |combination: &Vec<&str>| {
        let column = &table.rows[table.row(combination)].cells[3];
        combination[0] == "nobody" && (combination[3] == "unknown" || column != "any")
    };
    let combinations = table.combinations().into_iter().filter(matters);
    let with_images = combinations.flat_map(|one| ["none", "named"].map(|image| [&one[..], &[image]].concat()));
    walk(with_images.collect(), |combination| {
        let [_, domain_word, operation, there, image] = combination[..] else { panic!() };
        let host = deployed();
        lead_to(&host, domain_word, operation, image);
        let (before, missing) = (host.portrait(), missing(&host));
        let done = table.done(&combination[..4]);
        let report = put_right(&host, there);
        assert!(report.failures.is_empty(), "{report:?}");
        let said: Vec<&str> = done.iter().map(String::as_str).collect();
        if said == ["leave"] || said == ["in doubt"] {
            assert_eq!((words(&report.done), words(&report.left)), (Vec::new(), said.clone()));
            assert_eq!(host.portrait(), before);
        } else {
            let expected = said.iter().flat_map(|word| match *word {
                "NICs" => vec!["plug"; missing],
                // The image that the domain was restored from is its checkpoint, not the image of table 4.
                "image" if image == "none" || operation == "restore, unfinished" => Vec::new(),
                "image" => vec!["remove image"],
                word => vec![word],
            });
            assert_eq!(words(&report.done), expected.collect::<Vec<_>>());
            assert!(report.left.is_empty(), "{report:?}");
            came_true(&host, &said, domain_word, operation);
        }
        host.check_safe();
        is_settled(&host);
    });
}

/// How many NICs lack their VF.
fn missing(host: &ModelHost) -> usize {
    host.domain("one-42").unwrap().missing().count()
}

fn came_true(host: &ModelHost, said: &[&str], domain_word: &str, operation: &str) {
    if said.contains(&"destroy") {
        assert!(host.domain("one-42").is_none());
        assert!(host.claims().is_empty(), "{:?}", host.claims());
        if operation == "restore, untouched" {
            assert!(host.model().is_newest(&checkpoint(host)).unwrap(), "the checkpoint can't be restored");
        }
        return;
    }
    let expected = if said.contains(&"resume") { RunState::Running } else { state(domain_word) };
    assert_eq!(host.model().state(&domain(host)).unwrap(), Some(expected));
    for path in [checkpoint(host), unfinished(host)] {
        assert!(!path.exists() && !used(&path).exists(), "{} is still there", path.display());
    }
    match said.contains(&"close") || operation == "none" {
        true => host.check(),
        false => {
            assert_eq!(missing(host), 0);
            let positions =
                if operation.ends_with("all there") { vec![position(0), position(1)] } else { vec![position(1)] };
            let kind = wanted(host).operation.unwrap().kind;
            assert_eq!(kind, OperationKind::PendingUnplug { positions });
        }
    }
}

#[test]
fn a_vm_that_an_action_works_on_is_left_alone() {
    let table = vms();
    let host = deployed();
    lead_to(&host, "running", "none", "none");
    let store = host.host().claims().unwrap();
    let lock = store.lock_vm(&owner().vm, Action::Save, Duration::ZERO).unwrap();
    let before = host.portrait();
    assert_eq!(table.done(&["an action", "running", "none", "unknown"]), ["leave"]);
    let report = reconcile(&host.host(), &Options::default()).unwrap();
    assert_eq!(words(&report.vms[0].left), ["leave"]);
    assert_eq!(host.portrait(), before);
    drop(lock);
    assert_eq!(words(&put_right(&host, "unknown").done), ["plug"]);
    host.check();
}

/// A copy that hangs, of a domain whose VFs are unplugged.
fn hanging(
    host: &ModelHost,
    operation: &str,
    copy: impl FnOnce(&DomainRef) -> bool + Send + 'static,
) -> thread::JoinHandle<bool> {
    lead_to(host, "running", operation, "none");
    if operation == "none" {
        leaves(host, &alias_of(position(0)));
    }
    host.model().set_course(Course::Hangs);
    let there = domain(host);
    let thread = thread::spawn({
        let there = there.clone();
        move || copy(&there)
    });
    until("it copies", || host.model().job(&there).unwrap().is_some());
    thread
}

#[test]
fn our_abandoned_save_is_aborted_and_no_other() {
    let table = vms();
    for operation in ["none", "save, none there"] {
        let host = deployed();
        let (model, path) = (host.model().clone(), unfinished(&host));
        let saving = hanging(&host, operation, move |domain| model.save(domain, &path).is_ok());
        let before = host.portrait();
        let said = table.done(&["libvirt saves", "paused", operation, "unknown"]);
        let report = put_right(&host, "unknown");
        if operation == "none" {
            assert_eq!(words(&report.left), said);
            assert_eq!(host.portrait(), before);
            host.model().release_copies();
            assert!(saving.join().unwrap());
        } else {
            assert_eq!(words(&report.done), [said[0].as_str(), "plug", "plug", "close"]);
            assert_eq!(host.model().state(&domain(&host)).unwrap(), Some(RunState::Running));
            assert!(!saving.join().unwrap());
            host.check();
        }
    }
}

#[test]
fn a_move_under_way_is_left_alone_at_both_ends() {
    let table = vms();
    let host = deployed();
    let other = host.beside("host2", 4);
    let model = host.model().clone();
    let moving = hanging(&host, "migrate, none there", move |domain| {
        let migration = Migration { destination: "qemu+ssh://host2/system".into(), ..Migration::default() };
        model.migrate(domain, &migration).is_ok()
    });
    for (side, word) in [(&host, "running"), (&other, "paused for migration")] {
        let before = side.portrait();
        let said = table.done(&["libvirt works", word, "migrate, none there", "unknown"]);
        assert_eq!(words(&put_right(side, "unknown").left), said);
        assert_eq!(side.portrait(), before);
    }
    host.model().release_copies();
    assert!(moving.join().unwrap());
    // The VM has arrived, and no agent is there to receive it.
    assert_eq!(words(&put_right(&other, "unknown").done), ["plug", "plug", "close"]);
    reconciled(&host);
    [host, other].check();
}

/// Makes the claims what this word of table 2 says.
fn change_claim(host: &ModelHost, claim: &str) {
    let nic_0 = format!("mac={}", vm().mac(0));
    let vfs = host.vfs("ib0");
    let of_nic_0 = |change: &dyn Fn(&str) -> String| {
        change_claims(host, |text| if text.contains(&nic_0) { change(text) } else { text.to_owned() });
    };
    match claim {
        "its own" => {}
        "none" => of_nic_0(&|_| String::new()),
        "for another VF" => {
            of_nic_0(&|text| text.replace(&vfs[0].to_string(), &vfs[2].to_string()));
            fs::rename(host.state_dir().join("ib0/0"), host.state_dir().join("ib0/2")).unwrap();
        }
        "another VM's" => of_nic_0(&|text| text.replace("vm=one-42", "vm=one-77").replace("00042", "00077")),
        other => panic!("{other}"),
    }
}

#[test]
fn every_row_of_a_nic_holds() {
    let (nics, dummies) = (nics(), dummies());
    let combinations =
        nics.combinations().into_iter().flat_map(|nic| ["yes", "no"].map(|dummy| [&nic[..], &[dummy]].concat()));
    walk(combinations.collect(), |combination| {
        let [wanted, device, claim, cpus, dummy] = combination[..] else { panic!() };
        let host = deployed();
        if device == "no" {
            leaves(&host, &alias_of(position(0)));
        }
        if dummy == "no" {
            leaves(&host, &dummy_alias_of(position(0)));
        }
        if wanted == "no" {
            change_wanted(&host, |wanted| wanted.nics.retain(|nic| nic.position != position(0)));
        }
        change_claim(&host, claim);
        if cpus == "stopped" {
            host.model().pause("one-42");
        }
        let mut expected: Vec<&str> = nics.done(&combination[..4]).iter().map(String::as_str).collect();
        expected.extend(dummies.done(&[wanted, dummy, cpus]).iter().map(String::as_str));
        let report = put_right(&host, "unknown");
        assert!(report.failures.is_empty(), "{report:?}");
        // The claims of all roots are repaired first. Whether a repair of a claim is left for the VM depends on the
        // claims before, so these repairs are not compared.
        let of_claims = |word: &&&str| ["claim", "release"].contains(*word);
        let said = words(&report.done);
        let said: Vec<&str> = said.iter().filter(|word| !of_claims(word)).copied().collect();
        let done = ORDER.iter().filter(|word| expected.contains(word) && **word != "leave" && !of_claims(word));
        assert_eq!(said, done.copied().collect::<Vec<_>>());
        if expected.contains(&"leave") {
            assert_eq!(words(&report.left), ["leave"]);
            host.check_safe();
        } else {
            assert!(report.left.is_empty(), "{report:?}");
            host.check();
        }
        is_settled(&host);
    });
}

/// Saves the VM to a file. The process of the save is dead.
fn lead_to_image(host: &ModelHost) -> PathBuf {
    for number in 0..2 {
        leaves(host, &alias_of(position(number)));
    }
    change_wanted(host, |wanted| wanted.operation = Some(OperationKind::Save.into()));
    let path = unfinished(host);
    host.model().save(&domain(host), &path).unwrap();
    path
}

#[test]
fn every_row_of_a_vm_without_a_domain_holds() {
    let table = gone();
    walk(table.combinations(), |combination| {
        let [works, image, there] = combination[..] else { panic!() };
        let host = deployed();
        let path = lead_to_image(&host);
        if image != "none" {
            note_image(&host, &path);
        }
        match image {
            "missing" => fs::rename(&path, checkpoint(&host)).unwrap(),
            "incomplete" => fs::write(&path, "LibvirtQemudPart").unwrap(),
            "before boot" => change_claims(&host, |text| {
                let lines = text.lines().map(|line| if line.starts_with("boot=") { "boot=another" } else { line });
                lines.map(|line| format!("{line}\n")).collect()
            }),
            "outlived" => {
                let xml =
                    "<domain type='qemu'><name>one-42</name><memory>65536</memory><os><type>hvm</type></os></domain>";
                host.model().create(xml, CALL_LIMIT).unwrap();
            }
            "unreadable" => {
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
            }
            _ => {}
        }
        let store = host.host().claims().unwrap();
        let held = (works == "an action").then(|| {
            let noted = (image != "none").then_some(path.as_path());
            let lock = store.lock_vm(&owner().vm, Action::Restore, Duration::ZERO).unwrap();
            store.hold(&lock, &owner(), noted).unwrap();
            lock
        });
        let before = host.portrait();
        let said = table.done(combination);
        let id = vm().uuid().parse().unwrap();
        let report = match elsewhere(there) {
            Elsewhere::Unknown if works == "nobody" => reconciled(&host).vms,
            Elsewhere::Unknown => reconcile(&host.host(), &Options::default()).unwrap().vms,
            known if works == "nobody" => {
                let report =
                    patiently(|| resolve(&host.host(), &id, known).unwrap(), |report: &VmReport| report.left.clone());
                vec![report]
            }
            known => resolve(&host.host(), &id, known).into_iter().collect(),
        };
        let done: Vec<&str> = report.iter().flat_map(|vm| words(&vm.done)).collect();
        assert!(report.iter().all(|vm| vm.failures.is_empty()), "{report:?}");
        match said.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["leave"] | ["in doubt"] => assert_eq!(host.portrait(), before),
            ["restore image"] => {
                assert_eq!(
                    done,
                    ["restore image", "plug", "plug", "spend checkpoint", "resume", "remove used", "close"]
                );
                assert_eq!(host.model().state(&domain(&host)).unwrap(), Some(RunState::Running));
                assert!(!path.exists() && !used(&path).exists());
                host.check();
            }
            ref said => {
                assert!(host.claims().is_empty(), "{:?}", host.claims());
                assert_eq!(path.exists(), image == "none", "{said:?}");
                assert_eq!(checkpoint(&host).exists(), image == "missing");
                host.check();
            }
        }
        drop(held);
    });
}

/// A state that needs a repair: its name, the function that brings a host into it, and whether the VM runs after the
/// repair.
type Broken = (&'static str, fn(&ModelHost), bool);

const BROKEN: [Broken; 6] = [
    ("save", |host| lead_to(host, "running", "save, none there", "named"), true),
    ("image", |host| note_image(host, &lead_to_image(host)), true),
    ("restored", |host| lead_to(host, "paused for migration", "restore, used", "none"), true),
    ("to be restored", |host| lead_to(host, "paused for migration", "restore, untouched", "none"), false),
    ("pending", |host| lead_to(host, "running", "pending, all left", "none"), true),
    (
        "an attach cut off",
        |host| {
            change_wanted(host, |wanted| wanted.nics.retain(|nic| nic.position != position(0)));
            leaves(host, &dummy_alias_of(position(1)));
        },
        true,
    ),
];

const FAULTS: [Fault; 4] = [
    Fault::Fails(LibvirtErrorKind::Other),
    Fault::FailsAfter(LibvirtErrorKind::NoAnswer),
    Fault::Dies,
    Fault::DiesAfter,
];

/// Each call to libvirt fails in turn, and the process dies at each call in turn. A second reconciliation completes the
/// repair, and nothing is lost.
#[test]
fn an_interrupted_repair_is_completed_by_the_next() {
    let names = BROKEN.iter().map(|(name, ..)| *name);
    let each = names.flat_map(|name| ["0", "1", "2", "3"].map(|fault| vec![name, fault]));
    walk(each.collect(), |combination| {
        let (_, broken, runs) = BROKEN.iter().find(|(name, ..)| *name == combination[0]).unwrap();
        let fault = FAULTS[combination[1].parse::<usize>().unwrap()];
        for n in 1.. {
            let host = deployed();
            broken(&host);
            host.faults().arm(n, fault);
            let ended = host.run(|| host.reconcile());
            let fired = host.faults().fired() || matches!(ended, Ended::Killed);
            let calls = host.faults().calls();
            host.faults().disarm();
            host.check_safe();
            let again = reconciled(&host);
            if let Ended::With(Ok(report)) = &ended {
                let was_left = !again.claims.is_empty() || again.vms.iter().any(|vm| !vm.done.is_empty());
                assert!(
                    !was_left || report.consistency(false) != Consistency::Consistent,
                    "call {n} of {calls:?}: {report:?}"
                );
            }
            assert_eq!(host.domain("one-42").is_some(), *runs, "{fault:?} at call {n} of {calls:?}");
            if *runs {
                assert_eq!(host.model().state(&domain(&host)).unwrap(), Some(RunState::Running));
            } else {
                assert!(host.model().is_newest(&checkpoint(&host)).unwrap());
            }
            host.check();
            is_settled(&host);
            if !fired {
                assert!(n > 3);
                break;
            }
        }
    });
}

/// A migration is cut off and libvirt does not know whether the VM runs at the destination. The source waits for a
/// person; the destination acts on what it finds.
#[test]
fn a_move_in_doubt_ends_in_one_place() {
    for runs_there in [true, false] {
        let host = deployed();
        let other = host.beside("host2", 4);
        lead_to(&host, "running", "migrate, none there", "none");
        host.model().set_course(Course::InDoubt { runs_there });
        let migration = Migration { destination: "qemu+ssh://host2/system".into(), ..Migration::default() };
        host.model().migrate(&domain(&host), &migration).unwrap_err();
        let before = host.portrait();
        assert_eq!(words(&put_right(&host, "unknown").left), ["in doubt"]);
        assert_eq!(host.portrait(), before);
        let there = reconciled(&other);
        assert_eq!(there.vms.len(), usize::from(runs_there));
        let id = vm().uuid().parse().unwrap();
        if runs_there {
            assert_eq!(words(&there.vms[0].done), ["plug", "plug", "close"]);
            let report = resolve(&host.host(), &id, Elsewhere::Runs).unwrap();
            assert_eq!(words(&report.done), ["destroy", "release all"]);
        } else {
            let report = resolve(&host.host(), &id, Elsewhere::NeverRan).unwrap();
            assert_eq!(words(&report.done), ["resume", "plug", "plug", "close"]);
        }
        assert_eq!(other.domain("one-42").is_some(), runs_there);
        [host, other].check();
    }
}

/// The VM has arrived and is paused, and neither the action nor the agent of the move is alive.
#[test]
fn an_arrived_vm_is_resumed_or_destroyed_by_what_is_known_of_its_source() {
    for (elsewhere, done) in
        [(Elsewhere::NeverRan, &["resume", "plug", "plug", "close"][..]), (Elsewhere::Runs, &["destroy"])]
    {
        let host = deployed();
        let other = host.beside("host2", 4);
        lead_to(&host, "running", "migrate, none there", "none");
        let destination = "qemu+ssh://host2/system".into();
        let migration = Migration { destination, paused: true, ..Migration::default() };
        let source = domain(&host);
        if elsewhere == Elsewhere::Runs {
            // The answer is lost, and the source runs on.
            host.model().set_course(Course::AnswerLost { phase: Phase::Finish, arrives: true });
            host.model().migrate(&source, &migration).unwrap_err();
        } else {
            host.model().migrate(&source, &migration).unwrap();
        }
        for at in [&other, &other] {
            let report = reconciled(at);
            assert_eq!(words(&report.vms[0].left), ["in doubt"]);
        }
        let report = resolve(&other.host(), &vm().uuid().parse().unwrap(), elsewhere).unwrap();
        assert!(words(&report.done).starts_with(done), "{report:?}");
        reconciled(&host);
        let places = [&host, &other].map(|at| at.domain("one-42").is_some());
        assert_eq!(places, [elsewhere == Elsewhere::Runs, elsewhere == Elsewhere::NeverRan]);
        [host, other].check();
    }
}

/// A save is killed just before or just after it asks the guest to release a VF. The host is reconciled before the
/// guest answers, or after.
#[test]
fn a_vf_that_leaves_after_a_killed_save_is_plugged_back() {
    let calls = {
        let host = deployed();
        host.faults().disarm();
        actions::save(&host.host(), &vm().uuid().parse().unwrap(), &checkpoint(&host), None).unwrap();
        host.faults().calls()
    };
    let asks = calls.iter().position(|call| *call == "detach_alias").unwrap() + 1;
    for (n, leaves_late) in [(asks, false), (asks + 1, true), (asks + 2, true)] {
        let host = deployed();
        let before = looks(&host);
        // The watcher's time is short. No guest of this test needs longer.
        host.set_kvmrc("SRIOV_UNPLUG_TIMEOUT=60\nSRIOV_UNPLUG_GRACE=1\n");
        host.model().set_guest("one-42", Guest::Silent);
        host.faults().arm(n, Fault::Dies);
        let save = || actions::save(&host.host(), &vm().uuid().parse().unwrap(), &checkpoint(&host), None);
        assert!(matches!(host.run(save), Ended::Killed));
        let report = put_right(&host, "unknown");
        assert_eq!(words(&report.done), ["remove image", "note pending"]);
        let pending = OperationKind::PendingUnplug { positions: vec![position(0), position(1)] };
        assert_eq!(wanted(&host).operation.unwrap().kind, pending);
        thread::scope(|scope| {
            let watching = scope.spawn(|| kvm_sriov::reconcile::watch(&host.host(), &vm().uuid().parse().unwrap()));
            until("it watches", || host.model().open_watches() > 0);
            host.model().reboot_guest("one-42");
            watching.join().unwrap().unwrap();
        });
        assert_eq!(wanted(&host).operation, None, "killed at call {n}");
        assert_eq!(looks(&host), before);
        assert_eq!(host.faults().count("attach") > 0, leaves_late);
        host.check();
        is_settled(&host);
    }
}

/// The aliases and guest addresses of the VFs, sorted.
fn looks(host: &ModelHost) -> Vec<String> {
    let live = host.domain("one-42").unwrap();
    let devices = live.hostdevs.iter().map(|device| format!("{:?} {:?}", device.alias, device.guest));
    let mut devices: Vec<String> = devices.collect();
    devices.sort();
    devices
}

/// A silent guest delays no other VM. Its VF is released when it answers.
#[test]
fn reconciliation_ends_in_time_and_no_vm_waits_for_the_guest_of_another() {
    let host = deployed();
    host.set_kvmrc("SRIOV_UNPLUG_TIMEOUT=600\n");
    let second = Vm::new(43).nic("sriov_ib0");
    actions::deploy(&host.host(), &host.deployment_file(&second), &host.deployment(&second)).unwrap();
    leaves(&host, &alias_of(position(1)));
    change_wanted(&host, |wanted| wanted.nics.retain(|nic| nic.position != position(0)));
    host.model().set_guest("one-42", Guest::Silent);
    host.model().end_domain("one-43");
    let begin = Instant::now();
    let options = Options { timeout: Duration::from_secs(2), ..Options::default() };
    let report = reconcile(&host.host(), &options).unwrap();
    let of_42 = report.vms.iter().find(|vm| vm.owner == owner()).unwrap();
    assert_eq!((words(&of_42.done), of_42.failures.len()), (vec!["plug"], 2));
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert_eq!(report.consistency(false), Consistency::Unfinished);
    assert_eq!(host.claims().values().filter(|text| text.contains("one-43")).count(), 0);
    host.model().finish_boot("one-42");
    put_right(&host, "unknown");
    host.check();
}

/// A dry run reports what would be done, takes no lock and writes no file.
#[test]
fn a_dry_run_changes_nothing() {
    for (name, broken, _) in BROKEN {
        let host = deployed();
        broken(&host);
        let lock = host.state_dir().join(".locks/vm-one-42");
        let written = || fs::metadata(&lock).and_then(|metadata| metadata.modified()).unwrap();
        let before = (host.portrait(), written());
        let options = Options { dry_run: true, ..Options::default() };
        let planned = reconcile(&host.host(), &options).unwrap();
        assert_eq!((host.portrait(), written()), before, "{name}");
        assert_eq!(planned.consistency(true), Consistency::Unfinished, "{name}");
        let done = reconciled(&host);
        assert_eq!(planned.claims, done.claims, "{name}");
        let planned: Vec<&str> = planned.vms.iter().flat_map(|vm| words(&vm.left)).collect();
        let done: Vec<&str> = done.vms.iter().flat_map(|vm| words(&vm.done)).collect();
        assert!(done.starts_with(&planned), "{name}: {planned:?}, {done:?}");
    }
}

#[test]
fn locks_of_vms_that_are_gone_do_not_pile_up() {
    let host = ModelHost::default();
    let locks = || -> Vec<String> {
        let names = fs::read_dir(host.state_dir().join(".locks")).unwrap();
        let mut names: Vec<String> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let vms = [40, 41, 42].map(|number| Vm::new(number).nic("sriov_ib0"));
    for vm in &vms {
        actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).unwrap();
    }
    for vm in &vms[..2] {
        actions::cancel(&host.host(), &vm.uuid().parse().unwrap(), Some(&DomainName::of_vm(vm.id))).unwrap();
    }
    host.reconcile().unwrap();
    assert_eq!(locks(), ["claims", "vm-one-42"]);
}

/// A reconciliation reads a domain with a VF that nobody claims, and the domain ends before the claim is made.
#[test]
fn no_claim_is_made_for_a_domain_that_has_ended() {
    let host = deployed();
    fs::remove_dir_all(host.state_dir().join("ib0")).unwrap();
    host.faults().disarm();
    let model = host.model().clone();
    // The domains are listed and one is read. Then they are listed again.
    host.faults().before(3, move || model.end_domain("one-42"));
    let report = host.reconcile().unwrap();
    let repairs: Vec<&str> = report.claims.iter().map(ClaimRepair::word).collect();
    assert_eq!((repairs, host.claims().len()), (vec!["adopted", "freed", "freed"], 0));
    assert_eq!(host.faults().calls()[..3], ["domains", "live_xml", "domains"]);
}

/// A claim of a VM that is about to be restored is taken for stale by a reconciliation that asked libvirt before the
/// VM was there. The restore uses this claim.
#[test]
fn an_outdated_look_frees_no_claim_that_an_action_uses() {
    let host = deployed();
    host.start_domain("other").unwrap();
    let nic = host.domain("one-42").unwrap().wanted.unwrap().unwrap().nics[0].key();
    let checkpoint = host.datastore().join("checkpoint");
    let cycle = || {
        actions::save(&host.host(), &vm().uuid().parse().unwrap(), &checkpoint, None).unwrap();
        host.faults().disarm();
    };
    cycle();
    actions::restore(&host.host(), &checkpoint, None).unwrap();
    let calls = host.faults().calls();
    let number_of = |name: &str| calls.iter().position(|call| *call == name).unwrap() + 1;
    cycle();
    // Another VM has the first VF until the restore has claimed its own ones.
    let vf = host.host().plug(&"other".parse().unwrap(), &"ib0".parse().unwrap(), "02:00:00:00:00:99".parse().unwrap());
    let vf = vf.unwrap().vf;
    host.faults().disarm();
    let (store, maps) =
        (host.host().claims().unwrap(), vec![host.host().maps().load(&"ib0".parse().unwrap()).unwrap()]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (model, claims, map, look) = (host.model().clone(), store.clone(), maps.clone(), seen.clone());
    host.faults().before(number_of("restore"), move || {
        model.end_domain("other");
        claims.recover(&claims.entries().unwrap(), &Backing::default(), &map).unwrap();
        let outdated = Backing { devices: [(vf, owner())].into(), nics: [(vf, nic)].into(), ..Backing::default() };
        let made = claims.recover(&[], &outdated, &map).unwrap();
        assert_eq!(made.iter().map(|repair| (repair.word(), repair.claim().vf)).collect::<Vec<_>>(), [("adopted", vf)]);
        *look.lock().unwrap() = claims.entries().unwrap();
    });
    host.faults().before(number_of("attach"), move || {
        store.recover(&seen.lock().unwrap(), &Backing::default(), &maps).unwrap();
    });
    actions::restore(&host.host(), &checkpoint, None).unwrap();
    assert!(host.domain("one-42").unwrap().vfs().any(|used| used == vf), "the restore used the claim");
    host.check_safe();
    host.reconcile().unwrap();
    host.check();
}
