//! The documents: links have targets, samples behave as the text says, and names of files are right.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_sriov::RootName;
use kvm_sriov::config::Kvmrc;
use kvm_sriov::config::VfMap;
use kvm_sriov_tests::faults::{faults, named_tests};
use kvm_sriov_tests::remotes::programs;
use kvm_sriov_tests::remotes::target;
use kvm_sriov_tests::{hand_over, project};

/// All documents of the project.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![project().join("docs"), project().join("tests")];
    let mut read = |dir: &Path, dirs: &mut Vec<PathBuf>| {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            } else if path.is_dir() {
                dirs.push(path);
            }
        }
    };
    read(&project(), &mut Vec::new());
    while let Some(dir) = dirs.pop() {
        read(&dir, &mut dirs);
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The code blocks of a document in this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == format!("```{language}") {
            found
                .push(lines.by_ref().take_while(|line| line.trim() != "```").map(|line| format!("{line}\n")).collect());
        } else if line.trim().starts_with("```") {
            lines.by_ref().take_while(|line| line.trim() != "```").for_each(drop);
        }
    }
    found
}

/// The links of a document: the file (empty for the document itself), and the place in it.
fn links(text: &str) -> Vec<(String, Option<String>)> {
    let targets = text.match_indices("](").map(|(at, _)| text[at + 2..].split(')').next().unwrap());
    let parts = targets.filter(|target| !target.contains("://")).map(|target| match target.split_once('#') {
        Some((file, place)) => (file.to_owned(), Some(place.to_owned())),
        None => (target.to_owned(), None),
    });
    parts.collect()
}

/// The places that a link can lead to: headings as GitHub names them, and anchors.
fn places(text: &str) -> BTreeSet<String> {
    let name = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
    };
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| name(line.trim_start_matches('#')));
    let anchors = text.split("<a id=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    headings.chain(anchors).collect()
}

#[test]
fn links_lead_somewhere() {
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for (file, place) in links(&text) {
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(&file) };
            assert!(target.exists(), "{}: {file} is not there", path.display());
            if let Some(place) = place {
                let there = places(&fs::read_to_string(&target).unwrap()).contains(&place);
                assert!(there, "{}: {file} has no #{place}", path.display());
            }
        }
    }
}

#[test]
fn the_index_names_every_document() {
    let docs = project().join("docs").canonicalize().unwrap();
    let index = fs::read_to_string(docs.join("README.md")).unwrap();
    let listed: BTreeSet<String> = links(&index).into_iter().map(|(file, _)| file).collect();
    for path in documents() {
        let Ok(name) = path.canonicalize().unwrap().strip_prefix(&docs).map(|name| name.display().to_string()) else {
            continue;
        };
        assert!(name == "README.md" || listed.contains(&name), "docs/README.md does not name {name}");
        if name.starts_with("decisions/") {
            let text = fs::read_to_string(&path).unwrap();
            let title = text.lines().next().unwrap().trim_start_matches("# ");
            assert!(index.contains(&format!("- [{title}]({name})\n")), "docs/README.md: {name} is {title:?}");
        }
    }
    let readme = fs::read_to_string(project().join("README.md")).unwrap();
    assert!(links(&readme).iter().any(|(file, _)| file == "docs/README.md"));
}

#[test]
fn the_tutorial_quotes_the_demo() {
    let tutorial = fs::read_to_string(project().join("docs/tutorial/lab.md")).unwrap();
    let demo = fs::read_to_string(project().join("tests/src/bin/demo.rs")).unwrap();
    let quoted = blocks(&tutorial, "demo").concat();
    assert!(quoted.lines().count() > 5);
    for line in quoted.lines() {
        assert!(demo.contains(&format!("\"{line}\"")), "the demo does not say {line:?}");
    }
}

#[test]
fn samples_of_a_roots_settings_are_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ib0"), "0x07 0x00 0x01\n").unwrap();
    let mut samples = 0;
    for path in documents() {
        for block in blocks(&fs::read_to_string(&path).unwrap(), "root_conf") {
            fs::write(dir.path().join("ib0.conf"), block).unwrap();
            VfMap::load("ib0".parse().unwrap(), &dir.path().join("ib0")).unwrap();
            samples += 1;
        }
    }
    assert!(samples > 0, "no document has a sample of a root's settings");
}

#[test]
fn kvmrc_samples_are_read_without_a_word() {
    let mut samples = 0;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kvmrc");
    let mut read = |from: &Path, text: &str| {
        fs::write(&file, text).unwrap();
        let kvmrc = Kvmrc::load(std::slice::from_ref(&file));
        assert!(kvmrc.problems().is_empty(), "{}: {:?}", from.display(), kvmrc.problems());
        samples += 1;
    };
    for path in documents() {
        for block in blocks(&fs::read_to_string(&path).unwrap(), "kvmrc") {
            read(&path, &block);
        }
    }
    let example = project().join("kvmrc.example");
    read(&example, &fs::read_to_string(&example).unwrap());
    assert!(samples > 1, "no document has a sample of kvmrc");
}

#[test]
fn map_samples_are_maps() {
    let root: RootName = "ib0".parse().unwrap();
    let mut samples = 0;
    for path in documents() {
        for block in blocks(&fs::read_to_string(&path).unwrap(), "vf_map") {
            VfMap::parse(root.clone(), &path, block.as_bytes()).unwrap();
            samples += 1;
        }
    }
    assert!(samples > 0, "no document has a sample of a map");
    for entry in fs::read_dir(project().join("vf_maps")).unwrap() {
        let path = entry.unwrap().path();
        VfMap::load(path.file_name().unwrap().to_str().unwrap().parse().unwrap(), &path).unwrap();
    }
}

#[test]
fn shell_samples_are_shell() {
    let mut samples = 0;
    for path in documents() {
        for block in blocks(&fs::read_to_string(&path).unwrap(), "sh") {
            let status = Command::new("bash").args(["-n", "-c", &block]).status().unwrap();
            assert!(status.success(), "{}: {block}", path.display());
            samples += 1;
        }
    }
    assert!(samples > 2);
}

#[test]
fn files_that_the_documents_copy_are_there() {
    let mut copied = 0;
    let is_copy = |line: &&str| line.starts_with("cp ") || line.starts_with("cat ");
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for line in blocks(&text, "sh").concat().lines().map(str::trim).filter(is_copy) {
            let file = line.split_whitespace().nth(1).unwrap();
            // A package installs this file.
            if file.starts_with('/') {
                continue;
            }
            let path = file.strip_prefix("target/").map_or_else(|| project().join(file), |built| target().join(built));
            assert!(path.is_file(), "{}: {file} is not there", document.display());
            copied += 1;
        }
    }
    assert_eq!(copied, 4);
}

/// The blocks of this kind in the installation page.
fn installation(language: &str) -> Vec<String> {
    let found = blocks(&fs::read_to_string(project().join("docs/howto/install.md")).unwrap(), language);
    assert!(!found.is_empty(), "the installation page has no {language}");
    found
}

#[test]
fn the_kernel_gets_its_words() {
    let line = installation("sh").concat();
    let line = line.lines().find(|line| line.starts_with("sed ") && line.ends_with("/etc/default/grub")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("grub");
    fs::write(&file, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"console=ttyS0\"\n").unwrap();
    let line = line.replace("/etc/default/grub", file.to_str().unwrap());
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    let expected =
        "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"intel_iommu=on iommu=pt console=ttyS0\"\n";
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
}

/// The host of the documents' samples: one-7 has the first VF of `ib0`, one-42 the second, and two VFs are free.
struct SampleHost {
    dir: tempfile::TempDir,
}

impl SampleHost {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (driver, state) = (dir.path().join("vmm/kvm-sriov"), dir.path().join("state"));
        fs::create_dir_all(driver.join("vf_maps")).unwrap();
        fs::create_dir_all(state.join("ib0")).unwrap();
        let map: String = (1..=4).map(|function| format!("0x07 0x00 0x0{function}\n")).collect();
        fs::write(driver.join("vf_maps/ib0"), map).unwrap();
        let node = dir.path().join("node.xml");
        let kvmrc = format!("LIBVIRT_URI=test://{}\nVF_STATE_DIR={}\n", node.display(), state.display());
        fs::write(driver.join("kvmrc"), kvmrc).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let vms = [
            ("one-7", "0c3d7a52-9a1e-4f0b-8d1c-2b6f5e7a9c07", "02:00:c0:a8:01:04", 1),
            ("one-42", "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10", "02:00:c0:a8:01:05", 2),
        ];
        let mut domains = String::new();
        for (vm, uuid, mac, function) in vms {
            let dummy = mac.replacen("02:00", "aa:00", 1);
            domains += &format!(
                "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>{vm}</name>\
                 <uuid>{uuid}</uuid><memory>65536</memory><vcpu>1</vcpu><os><type>hvm</type></os>\
                 <metadata><sriov:domain xmlns:sriov='urn:kvm-sriov:domain:1' version='1.0'>\
                 <sriov:nic mac='{mac}' root='ib0' mode='hostdev' position='0' guest='0000:00:10.0' nic='1'/>\
                 </sriov:domain></metadata><devices><hostdev mode='subsystem' type='pci' managed='yes'>\
                 <source><address domain='0x0000' bus='0x07' slot='0x00' function='{function:#x}'/></source>\
                 <alias name='ua-sriov-0'/><address type='pci' domain='0x0000' bus='0x00' slot='0x10' function='0x0'/>\
                 </hostdev><interface type='bridge'><mac address='{dummy}'/><source bridge='dummy_br'/>\
                 <alias name='ua-sriov-dummy-0'/></interface></devices>\
                 <test:transient/><test:runstate>1</test:runstate></domain>"
            );
            let claim = format!(
                "kvm-sriov-claim 1\nvm={vm}\nuuid={uuid}\nposition=0\nmac={mac}\nvf=0000:07:00.{function}\nboot={boot}"
            );
            fs::write(state.join(format!("ib0/{}", function - 1)), claim).unwrap();
        }
        fs::write(node, format!("<node>{domains}</node>")).unwrap();
        hand_over(dir.path());
        Self { dir }
    }

    /// What a command of the documents prints on this host. The PCI devices of this host are the VFs of its adapter, in
    /// a mount namespace of its own.
    fn says(&self, command: &str) -> String {
        let words = command.strip_prefix("kvm-sriov ").unwrap_or_else(|| panic!("{command} is not of the program"));
        const PCI: &str = "set -e; pci=/sys/bus/pci/devices; mount -t tmpfs tmpfs $pci; mkdir $pci/0000:07:00.0\n\
            for vf in 1 2 3 4; do\nmkdir $pci/0000:07:00.$vf; ln -s ../0000:07:00.0 $pci/0000:07:00.$vf/physfn\ndone\n\
            exec \"$@\"";
        let mut apart = Command::new("unshare");
        apart.arg("--mount");
        if fs::metadata(self.dir.path()).unwrap().uid() == fs::metadata("/proc/self").unwrap().uid() {
            apart.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        apart.args(["sh", "-c", PCI, "sh"]).arg(target().join("release/kvm-sriov"));
        apart.arg("--driver").arg(self.dir.path().join("vmm/kvm-sriov")).args(words.split(' '));
        let out = apart.output().unwrap();
        assert!(out.status.success(), "{command}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }
}

#[test]
fn the_last_line_of_check_is_the_one_that_the_installation_page_waits_for() {
    let page = fs::read_to_string(project().join("docs/howto/install.md")).unwrap();
    let line = page.split("Its last line must be").nth(1).unwrap().split('`').nth(1).unwrap();
    let source = fs::read_to_string(project().join("crates/kvm-sriov-cli/src/check.rs")).unwrap();
    assert!(source.contains(&format!("\"{line}\"")), "{line}");
}

#[test]
fn samples_of_output_are_what_the_program_prints() {
    let host = SampleHost::new();
    let mut shown = BTreeSet::new();
    for path in documents() {
        for block in blocks(&fs::read_to_string(&path).unwrap(), "console") {
            for part in block.trim_start_matches("$ ").split("\n$ ") {
                let (command, output) = part.split_once('\n').unwrap();
                let said = host.says(command);
                assert_eq!(output.trim_end(), said.trim_end(), "{}: {command} prints:\n{said}", path.display());
                shown.insert(command.to_owned());
            }
        }
    }
    assert_eq!(shown, ["kvm-sriov explain one-42", "kvm-sriov list"].map(str::to_owned).into());
}

/// A section of oned.conf as OpenNebula reads it: names and values.
fn section(text: &str, name: &str) -> BTreeMap<String, String> {
    let parts: Vec<&str> = text.split(&format!("\n{name} = [")).collect();
    assert_eq!(parts.len(), 2, "one {name}");
    let pairs = parts[1].split(']').next().unwrap().split(",\n").map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().trim_matches('"').to_owned())).collect()
}

/// OpenNebula takes a missing attribute for "no", and does not report what that switches off.
#[test]
fn oned_conf_is_complete_and_every_copy_is_the_same() {
    let shipped = fs::read_to_string(project().join("dist/opennebula/oned.conf")).unwrap();
    let driver = section(&shipped, "VM_MAD");
    for (name, value) in [
        ("NAME", "kvm_sriov"),
        ("EXECUTABLE", "one_vmm_exec"),
        ("ARGUMENTS", "-t 15 -r 0 kvm-sriov -p"),
        ("DEFAULT", "vmm_exec/vmm_exec_kvm.conf"),
        ("TYPE", "kvm"),
        ("KEEP_SNAPSHOTS", "yes"),
        ("LIVE_RESIZE", "yes"),
        ("SUPPORT_SHAREABLE", "yes"),
    ] {
        assert_eq!(driver.get(name).map(String::as_str), Some(value), "{name}");
    }
    let network = section(&shipped, "VN_MAD_CONF");
    assert_eq!(network, [("NAME", "sriov"), ("BRIDGE_TYPE", "linux")].map(|(a, b)| (a.into(), b.into())).into());
    // No other document has its own version of these lines, which somebody might follow.
    let lines = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(|l| l.trim().to_owned()).collect();
    let (shipped, mut copies): (Vec<String>, _) = (lines(&shipped), 0);
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let own = blocks(&text, "oned");
        for block in &own {
            assert_eq!(lines(block), shipped, "{}", path.display());
        }
        copies += own.len();
        assert_eq!(text.matches("VM_MAD = [").count(), own.len(), "{}: lines of its own", path.display());
        assert_eq!(text.matches("VN_MAD_CONF = [").count(), own.len(), "{}: lines of its own", path.display());
    }
    assert_eq!(copies, 1, "docs/howto/install.md");
    // Where the package installs that file (tests/host/package.rs), and where it is in the sources.
    let copy = |file: &str| format!("cat {file} >>/etc/one/oned.conf");
    let from_package = copy("/usr/share/doc/kvm-sriov/oned.conf");
    assert!(fs::read_to_string(project().join("README.md")).unwrap().contains(&from_package));
    let commands = installation("sh").concat();
    assert!(commands.contains(&from_package) && commands.contains(&copy("dist/opennebula/oned.conf")));
}

#[test]
fn live_disk_snapshots_are_allowed_for_the_driver() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vmm_execrc");
    let mut shown = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().map(str::trim).filter(|line| line.starts_with("sed ") && line.ends_with("vmm_execrc"))
        {
            let other = "VNMAD_LOCAL_ACTIONS=\"elastic-post\"\n";
            fs::write(&file, format!("LIVE_DISK_SNAPSHOTS=\"kvm-qcow2 kvm-lvm_thin qemu-qcow2 lxc-ssh\"\n{other}"))
                .unwrap();
            let line = line.replace("/etc/one/vmm_exec/vmm_execrc", file.to_str().unwrap());
            assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
            let pairs = "kvm-qcow2 kvm_sriov-qcow2 kvm-lvm_thin kvm_sriov-lvm_thin qemu-qcow2 lxc-ssh";
            let expected = format!("LIVE_DISK_SNAPSHOTS=\"{pairs}\"\n{other}");
            assert_eq!(fs::read_to_string(&file).unwrap(), expected, "{}", path.display());
            shown += 1;
        }
    }
    assert_eq!(shown, 1, "docs/howto/install.md");
}

#[test]
fn every_command_has_a_page_and_a_completion() {
    let command = target().join("release/kvm-sriov");
    let run = |args: &[&str]| Command::new(&command).args(args).output().unwrap();
    let page = String::from_utf8(run(&["man"]).stdout).unwrap();
    for name in ["list", "check", "reconcile", "explain", "resolve", "completion"] {
        assert!(page.contains(name), "{name} is not in the manual page");
        assert!(run(&[name, "--help"]).status.success());
    }
    assert!(String::from_utf8(run(&["completion", "bash"]).stdout).unwrap().contains("_kvm-sriov"));
    assert_eq!(run(&["nonsense"]).status.code(), Some(2));
}

/// The cells of the table rows of a document whose first cell is in backquotes.
fn rows(document: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(project().join(document)).unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

#[test]
fn every_program_has_its_row() {
    let rows = rows("docs/reference/actions.md");
    let mut named: Vec<String> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    named.sort();
    assert_eq!(named, programs(), "docs/reference/actions.md and shims/src/programs differ");
}

/// The text of every source file of the core crate.
fn sources() -> Vec<String> {
    let (mut texts, mut dirs) = (Vec::new(), vec![project().join("crates/kvm-sriov/src")]);
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { dirs.push(path) } else { texts.push(fs::read_to_string(path).unwrap()) }
        }
    }
    texts
}

/// Fails unless each name `file: test` in this text names an existing test.
fn assert_tests(row: &str, text: &str) {
    let shown: Vec<(String, String)> = named_tests(text);
    assert!(!shown.is_empty(), "{row}: nothing shows it");
    shown.iter().for_each(|(file, test)| assert_test(row, file, test));
}

fn assert_test(row: &str, file: &str, test: &str) {
    let is_there = if file == "lab" {
        let scenarios = fs::read_to_string(project().join("tests/scenarios/list.txt")).unwrap();
        scenarios.lines().any(|line| line.split(' ').next() == Some(test))
    } else if file == "light" {
        let text = fs::read_to_string(project().join("tests/scenarios/light/main.rs")).unwrap();
        text.contains(&format!("\n    {test},\n"))
    } else if file == "unit" {
        sources().iter().any(|text| text.contains(&format!("fn {test}(")))
    } else {
        let path = tests_of_a_tier().remove(file).unwrap_or_else(|| panic!("{row}: there is no test file {file}"));
        let text = fs::read_to_string(project().join("tests").join(path)).unwrap();
        text.contains(&format!("#[test]\nfn {test}() {{"))
    };
    assert!(is_there, "{row}: there is no {file}: {test}");
}

#[test]
fn what_shows_an_action_is_a_test() {
    for row in rows("docs/reference/actions.md") {
        assert_tests(&row[0], row.last().unwrap());
    }
}

#[test]
fn every_fault_has_its_test_or_says_what_is_missing() {
    let faults = faults();
    let numbers: Vec<usize> = faults.iter().map(|fault| fault.number).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
    for fault in faults.iter().filter(|fault| fault.open.is_none()) {
        assert!(!fault.tests.is_empty(), "{}: nothing shows it", fault.number);
        fault.tests.iter().for_each(|(file, test)| assert_test(&fault.number.to_string(), file, test));
    }
    // The first 60 are those that were known before 2026. Nine wait for the modes that set something on a VF.
    let known = &faults[..60];
    let tested = known.iter().filter(|fault| fault.open.is_none()).count();
    let in_lab = known.iter().filter(|fault| fault.tests.iter().any(|(file, _)| file == "lab")).count();
    assert!(tested >= 51 && in_lab >= 25, "{tested} of 60 have tests, {in_lab} in the lab");
    let others = known.iter().filter(|fault| fault.open.as_ref().is_some_and(|why| !why.starts_with("networks (")));
    assert_eq!(others.count(), 0, "what is open of the first 60 waits for the networks");
}

#[test]
fn what_keeps_a_threat_off_is_a_test() {
    let text = fs::read_to_string(project().join("docs/explanation/threats.md")).unwrap();
    let shown = |line: &str| line.trim_end_matches('|').rsplit('|').next().unwrap().trim().to_owned();
    let rows = text.lines().filter(|line| line.starts_with("| ") && shown(line).contains(": "));
    let rows: Vec<(&str, String)> =
        rows.map(|line| (line, shown(line))).filter(|(_, it)| it.starts_with('`')).collect();
    assert!(rows.len() > 20, "{}", rows.len());
    rows.iter().for_each(|(row, shown)| assert_tests(row, shown));
}

#[test]
fn what_shows_a_change_between_versions_is_a_test() {
    let text = fs::read_to_string(project().join("docs/reference/versions.md")).unwrap();
    for row in text.lines().filter(|line| line.starts_with("| ")).skip(1) {
        assert_tests(row, row.trim_end_matches('|').rsplit('|').next().unwrap());
    }
}

/// The test files of the tiers host and model: name, and path below tests/. `check` runs each file in the directory of
/// a tier by its name.
fn tests_of_a_tier() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for tier in ["host", "model"] {
        for file in fs::read_dir(project().join("tests").join(tier)).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let twin = found.insert(name.clone(), format!("{tier}/{name}.rs"));
            assert_eq!(twin, None, "two test files have the name {name}");
        }
    }
    found
}

#[test]
fn every_test_file_is_a_target_of_cargo() {
    let manifest = fs::read_to_string(project().join("tests/Cargo.toml")).unwrap();
    let target = |(name, path): &(String, String)| format!("[[test]]\nname = \"{name}\"\npath = \"{path}\"\n");
    let missing: Vec<_> = tests_of_a_tier().into_iter().filter(|file| !manifest.contains(&target(file))).collect();
    assert!(missing.is_empty(), "tests/Cargo.toml does not have {missing:?}");
}

/// The durations in the source, by file and name, in milliseconds. Code after `mod tests` is left out: the program does
/// not wait there.
fn times() -> BTreeMap<String, u64> {
    let source = project().join("crates/kvm-sriov/src");
    let mut times = BTreeMap::new();
    let mut dirs = vec![source.clone()];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let file = path.strip_prefix(&source).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            let program = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for line in program.lines().filter(|_| file != "libvirt/tests.rs") {
                let Some((name, value)) = line.split_once(": Duration = Duration::from_") else { continue };
                let name = name.rsplit(' ').next().unwrap();
                let (unit, number) = value.trim_end_matches(");").split_once('(').unwrap();
                let number: u64 = number.replace('_', "").parse().unwrap();
                times.insert(format!("{file}: {name}"), if unit == "secs" { number * 1000 } else { number });
            }
        }
    }
    times
}

/// How long a script lets its program run, in seconds: until SIGTERM, and then until SIGKILL.
fn time_of_a_script(path: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(path).unwrap();
    let mut words = text.split(" timeout -k ").nth(1)?.split_whitespace();
    let kill = words.next()?.parse().unwrap();
    Some((words.next()?.parse().unwrap(), kill))
}

#[test]
fn every_wait_has_its_line_and_its_time() {
    let text = fs::read_to_string(project().join("docs/reference/waits.md")).unwrap();
    let (times, mut listed) = (times(), BTreeSet::new());
    assert!(times.len() > 25, "{times:?}");
    for row in text.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let place = cells.last().unwrap().trim_matches('`');
        let file = place.split(": ").next().unwrap();
        if file.starts_with("shims/") {
            let (term, kill) = time_of_a_script(&project().join(file)).unwrap_or_else(|| panic!("no timeout: {row}"));
            assert!(cells[1].contains(&format!("{term} s")) && cells[1].contains(&format!("{kill} s")), "{row}");
            listed.insert(file.to_owned());
            continue;
        }
        assert!(project().join("crates/kvm-sriov/src").join(file).is_file(), "{row}");
        if !place.contains(": ") {
            continue;
        }
        let time = *times.get(place).unwrap_or_else(|| panic!("there is no {place}: {row}"));
        let said = if time % 1000 == 0 { format!("{} s", time / 1000) } else { format!("{time} ms") };
        assert!(cells[1].contains(&said), "{place} is {said}: {row}");
        listed.insert(place.to_owned());
    }
    let mut dirs = vec![project().join("shims/remotes")];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| !path.is_symlink()) {
            if path.is_dir() {
                dirs.push(path);
            } else if time_of_a_script(&path).is_some() {
                let file = path.strip_prefix(project()).unwrap().display().to_string();
                assert!(listed.contains(&file), "docs/reference/waits.md does not have {file}");
            }
        }
    }
    let missing: Vec<&String> = times.keys().filter(|place| !listed.contains(*place)).collect();
    assert!(missing.is_empty(), "docs/reference/waits.md does not have {missing:?}");
}
