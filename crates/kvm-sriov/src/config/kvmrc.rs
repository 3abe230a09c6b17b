//! kvmrc: the driver's variables, read from files in the form of a shell script, never run.
//!
//! The part of the shell that is read: blank lines, comments, `NAME=value` with or without `export`, values of bare
//! words, single and double quotes, and backslashes. What else bash would do (expansions, commands, `if`) can't be read:
//! a [`KvmrcError`], unless the line only sets variables that this driver does not use.

mod lexer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{OneVersion, Settings};
use lexer::{LogicalLine, Unreadable};

/// The longest kvmrc that is read, in bytes.
const LIMIT: u64 = 256 * 1024;

/// The driver's variables. Reading never fails: what can't be read is a problem, and the default holds.
///
/// ```
/// use std::time::Duration;
/// let kvmrc = kvm_sriov::config::Kvmrc::load(&[]);
/// let settings = kvmrc.settings();
/// assert_eq!(settings.libvirt_uri, "qemu:///system");
/// assert_eq!(settings.shutdown_timeout, Duration::from_secs(180));
/// assert_eq!(settings.dummy_bridge, None);
/// ```
#[derive(Debug)]
pub struct Kvmrc {
    settings: Settings,
    vf_maps_path: Option<PathBuf>,
    problems: Vec<KvmrcError>,
    misspelt: Vec<KvmrcError>,
    warnings: Vec<String>,
}

/// The variables that are used here; others may hold anything.
const USED: [&str; 21] = [
    "LIBVIRT_URI",
    "SHUTDOWN_TIMEOUT",
    "FORCE_DESTROY",
    "CANCEL_NO_ACPI",
    "CLEANUP_MEMORY_ON_START",
    "CLEANUP_MEMORY_ON_STOP",
    "OVMF_NVRAM",
    "DUMMY_BRIDGE",
    "DUMMY_MAC_PREFIX",
    "VF_MAPS_PATH",
    "VF_STATE_DIR",
    "SRIOV_LOCK_TIMEOUT",
    "SRIOV_CALL_TIMEOUT",
    "SRIOV_UNPLUG_TIMEOUT",
    "SRIOV_UNPLUG_GRACE",
    "MIGRATE_OPTIONS",
    "QEMU_PROTOCOL",
    "SYNC_TIME",
    "VIRSH_RETRIES",
    "DEFAULT_ATTACH_NIC_MODEL",
    "DEFAULT_ATTACH_NIC_FILTER",
];

/// What the names of the defaults for a disk begin with; the rest is OpenNebula's name of the attribute.
const DISK_DEFAULT: &str = "DEFAULT_ATTACH_";

/// Variables of OpenNebula's own drivers that are not used here, and resemble some that are.
///
/// # Source
/// OpenNebula's `vmm/kvm/kvmrc`, and the environment that its `migrate` reads.
const STOCK: [&str; 4] = ["VIRSH_TRIES", "VIRSH_TIMEOUT", "LIBVIRT_MD_URI", "LIBVIRT_MD_KEY"];

/// A name with at most so many slips (a letter too many, missing, wrong, or two exchanged) is taken for a misspelt one.
const SLIPS: usize = 2;

fn is_used(name: &str) -> bool {
    USED.contains(&name) || name.starts_with(DISK_DEFAULT)
}

/// Every variable that is used here, by its full name.
fn used_names() -> impl Iterator<Item = String> {
    let limits = ["TOTAL", "READ", "WRITE"].into_iter().flat_map(|direction| {
        let units = ["BYTES", "IOPS"].into_iter();
        units.flat_map(move |unit| ["", "_MAX", "_MAX_LENGTH"].map(|end| format!("{direction}_{unit}_SEC{end}")))
    });
    let others = ["CACHE", "DISCARD", "IO", "VIRTIO_BLK_QUEUES", "VIRTIO_BLK_IOTHREAD", "SIZE_IOPS_SEC"];
    let of_disks = others.map(str::to_owned).into_iter().chain(limits).map(|name| format!("{DISK_DEFAULT}{name}"));
    USED.map(str::to_owned).into_iter().chain(of_disks)
}

/// The variable that is likely meant by a name that nobody uses.
fn likely(name: &str) -> Option<String> {
    if STOCK.contains(&name) {
        return None;
    }
    let written = name.to_ascii_uppercase();
    let slips = |meant: &String| strsim::osa_distance(&written, meant);
    // A name that is used has none, and is not what somebody else meant.
    used_names().min_by_key(slips).filter(|meant| meant != name && slips(meant) <= SLIPS)
}

/// A kvmrc that can't be read as it is meant. Nothing was touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmrcError {
    /// A line is more than assignments.
    #[error("{}, line {line}: expected {expected}, found \"{found}\"", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What can be read there.
        expected: &'static str,
        /// What is there, control characters escaped.
        found: String,
    },
    /// A value does not fit its variable.
    #[error("{}, line {line}: {variable}: expected {expected}, found \"{found}\"", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The variable.
        variable: &'static str,
        /// What fits.
        expected: &'static str,
        /// What is there, control characters escaped.
        found: String,
    },
    /// A variable that nobody uses, with the name of one that is used but for a letter or two. The line sets nothing.
    #[error("{}, line {line}: {name} sets nothing; is {likely} meant?", path.display())]
    Misspelt {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is there.
        name: String,
        /// What is likely meant.
        likely: String,
    },
    /// The file is there and can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What another file of the same form sets; what can't be read in it is logged, and sets nothing.
pub fn variables(path: &Path) -> BTreeMap<String, String> {
    let mut assigned = Assignments::default();
    assigned.read(path);
    for problem in &assigned.problems {
        log::warn!("{problem}; it is left out");
    }
    let filled = assigned.values.into_iter().filter(|(_, setting)| !setting.value.is_empty());
    filled.map(|(name, setting)| (name, setting.value)).collect()
}

/// A value and where it was set.
struct Setting {
    value: String,
    path: PathBuf,
    line: usize,
}

/// What the files set, later ones over earlier ones.
#[derive(Default)]
struct Assignments {
    values: BTreeMap<String, Setting>,
    problems: Vec<KvmrcError>,
    warnings: Vec<String>,
}

impl Kvmrc {
    /// The files that a driver in `driver_dir` reads, in this order: OpenNebula's own (where its version has it),
    /// the driver's, one beside the driver, the host's.
    pub fn places(driver_dir: &Path) -> Vec<PathBuf> {
        let remotes = driver_dir.parent().and_then(Path::parent).unwrap_or(Path::new("/var/tmp/one"));
        vec![
            remotes.join(OneVersion::detect(driver_dir).stock_kvmrc()),
            remotes.join("etc/vmm/kvm-sriov/kvmrc"),
            driver_dir.join("kvmrc"),
            "/etc/kvm-sriov/kvmrc".into(),
        ]
    }

    /// Reads files in this order; a variable set in a later one wins, a file that is not there sets nothing.
    pub fn load(files: &[PathBuf]) -> Self {
        let mut assigned = Assignments::default();
        for path in files {
            assigned.read(path);
        }
        let defaults = Defaults { assigned: &mut assigned };
        defaults.kvmrc()
    }

    /// The variables, if all could be read: what an action that starts or plugs something goes on with.
    ///
    /// # Errors
    /// The first thing that could not be read.
    pub fn strict(mut self) -> Result<Self, KvmrcError> {
        if self.problems.is_empty() { Ok(self) } else { Err(self.problems.swap_remove(0)) }
    }

    /// Everything that could not be read; the defaults hold instead.
    pub fn problems(&self) -> &[KvmrcError] {
        &self.problems
    }

    /// Variables that nobody uses, with names close to those that are used. They stop nothing: they may be meant for another program.
    pub fn misspelt(&self) -> &[KvmrcError] {
        &self.misspelt
    }

    /// Lines that could not be read and only set variables that are not used here.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The values, with the default of each variable that is not set or can't be read.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// As [`Kvmrc::settings`], by value.
    pub fn into_settings(self) -> Settings {
        self.settings
    }

    /// VF_MAPS_PATH: the directory where VF maps are looked for first.
    pub fn vf_maps_path(&self) -> Option<&Path> {
        self.vf_maps_path.as_deref()
    }
}

impl Assignments {
    fn read(&mut self, path: &Path) {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes)).and_then(|length| {
            if length as u64 > LIMIT {
                Err(io::Error::other(format!("it is longer than {LIMIT} bytes")))
            } else {
                Ok(())
            }
        });
        match read {
            Ok(()) => self.parse(path, &String::from_utf8_lossy(&bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => self.problems.push(KvmrcError::Unreadable { path: path.into(), source }),
        }
    }

    fn parse(&mut self, path: &Path, text: &str) {
        for LogicalLine { number: line, content } in lexer::lines(text) {
            match content {
                Ok(assignments) => {
                    for (name, value) in assignments {
                        self.values.insert(name, Setting { value, path: path.into(), line });
                    }
                }
                Err(Unreadable { expected, found, only_sets }) => {
                    let error = KvmrcError::Line { path: path.into(), line, expected, found };
                    if only_sets.is_some_and(|name| !is_used(&name)) {
                        self.warnings.push(error.to_string());
                    } else {
                        self.problems.push(error);
                    }
                }
            }
        }
    }
}

/// Takes the settings apart: a value that does not fit is a problem, and its default holds.
struct Defaults<'a> {
    assigned: &'a mut Assignments,
}

impl Defaults<'_> {
    fn kvmrc(mut self) -> Kvmrc {
        // Stock: an empty SHUTDOWN_TIMEOUT means 120, one that is not set 180.
        let shutdown_timeout = if self.text("SHUTDOWN_TIMEOUT").is_some_and(|text| text.is_empty()) {
            Duration::from_secs(120)
        } else {
            self.seconds("SHUTDOWN_TIMEOUT", Settings::default().shutdown_timeout)
        };
        let default = Settings::default();
        let settings = Settings {
            libvirt_uri: self.filled("LIBVIRT_URI").unwrap_or(default.libvirt_uri),
            shutdown_timeout,
            force_destroy: self.yes("FORCE_DESTROY"),
            cancel_no_acpi: self.yes("CANCEL_NO_ACPI"),
            cleanup_memory_on_start: self.yes("CLEANUP_MEMORY_ON_START"),
            cleanup_memory_on_stop: self.yes("CLEANUP_MEMORY_ON_STOP"),
            ovmf_nvram: self.filled("OVMF_NVRAM").map_or(default.ovmf_nvram, PathBuf::from),
            dummy_bridge: self.checked(
                "DUMMY_BRIDGE",
                "the name of a bridge, at most 15 bytes without blanks and /",
                bridge,
            ),
            dummy_mac_prefix: self.checked(
                "DUMMY_MAC_PREFIX",
                "two hexadecimal digits that are no multicast address (an even number, such as aa)",
                |text| text.parse().ok(),
            ),
            state_dir: self.checked("VF_STATE_DIR", "an absolute path", absolute).unwrap_or(default.state_dir),
            lock_timeout: self.seconds("SRIOV_LOCK_TIMEOUT", default.lock_timeout),
            call_timeout: self.seconds("SRIOV_CALL_TIMEOUT", default.call_timeout),
            unplug_timeout: self.seconds("SRIOV_UNPLUG_TIMEOUT", default.unplug_timeout),
            unplug_grace: self.seconds("SRIOV_UNPLUG_GRACE", default.unplug_grace),
            migrate_options: self.filled("MIGRATE_OPTIONS").unwrap_or(default.migrate_options),
            qemu_protocol: self.filled("QEMU_PROTOCOL").unwrap_or(default.qemu_protocol),
            sync_time: self.yes("SYNC_TIME"),
            retries: self
                .checked("VIRSH_RETRIES", "a number from 1 to 100", |text| {
                    text.parse().ok().filter(|n| (1..=100).contains(n))
                })
                .unwrap_or(default.retries),
            nic_model: self.filled("DEFAULT_ATTACH_NIC_MODEL").unwrap_or(default.nic_model),
            nic_filter: self.filled("DEFAULT_ATTACH_NIC_FILTER"),
            disk_defaults: self.disk_defaults(),
        };
        Kvmrc {
            settings,
            vf_maps_path: self.checked("VF_MAPS_PATH", "an absolute path", absolute),
            misspelt: self.misspelt(),
            problems: std::mem::take(&mut self.assigned.problems),
            warnings: std::mem::take(&mut self.assigned.warnings),
        }
    }

    fn disk_defaults(&self) -> BTreeMap<String, String> {
        let named = self.assigned.values.iter().filter(|(_, setting)| !setting.value.is_empty());
        named.filter_map(|(name, set)| Some((name.strip_prefix(DISK_DEFAULT)?.to_owned(), set.value.clone()))).collect()
    }

    fn text(&self, variable: &str) -> Option<String> {
        self.assigned.values.get(variable).map(|setting| setting.value.clone())
    }

    fn filled(&self, variable: &str) -> Option<String> {
        self.text(variable).filter(|text| !text.is_empty())
    }

    fn misspelt(&self) -> Vec<KvmrcError> {
        let misspelt = self.assigned.values.iter().filter_map(|(name, set)| {
            let (path, line) = (set.path.clone(), set.line);
            Some(KvmrcError::Misspelt { path, line, name: name.clone(), likely: likely(name)? })
        });
        misspelt.collect()
    }

    /// The stock driver takes anything but "yes" for no, and so takes `YES`, `true` and `1` for no without a word.
    fn yes(&mut self, variable: &'static str) -> bool {
        let yes = |text: &str| match text {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        };
        self.checked(variable, "yes or no", yes).unwrap_or(false)
    }

    fn seconds(&mut self, variable: &'static str, default: Duration) -> Duration {
        let number = |text: &str| text.parse().ok().filter(|n| (1..=86_400).contains(n));
        self.checked(variable, "seconds, from 1 to 86400", number).map_or(default, Duration::from_secs)
    }

    /// The value as its type; `None` when it is not set, empty, or does not fit.
    fn checked<T>(
        &mut self,
        variable: &'static str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let setting = self.assigned.values.get(variable).filter(|setting| !setting.value.is_empty())?;
        let parsed = parse(&setting.value);
        if parsed.is_none() {
            let found = setting.value.escape_debug().to_string();
            let (path, line) = (setting.path.clone(), setting.line);
            self.assigned.problems.push(KvmrcError::Value { path, line, variable, expected, found });
        }
        parsed
    }
}

/// # Source
/// Linux `dev_valid_name`: at most 15 bytes, no blank, no `/`, no `:`, neither `.` nor `..`.
fn bridge(text: &str) -> Option<String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    (text.len() <= 15 && !text.contains(odd) && text != "." && text != "..").then(|| text.to_owned())
}

fn absolute(text: &str) -> Option<PathBuf> {
    Path::new(text).is_absolute().then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Kvmrc {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = texts
            .iter()
            .enumerate()
            .map(|(number, text)| {
                let path = dir.path().join(format!("kvmrc.{number}"));
                std::fs::write(&path, text).unwrap();
                path
            })
            .collect();
        Kvmrc::load(&files)
    }

    #[test]
    fn later_files_win() {
        let kvmrc = read(&["export FORCE_DESTROY=yes\nDUMMY_BRIDGE=a\n", "DUMMY_BRIDGE=\"b\" # mine\n"]);
        assert!(kvmrc.settings().force_destroy);
        assert_eq!(kvmrc.settings().dummy_bridge.as_deref(), Some("b"));
        assert!(kvmrc.problems().is_empty(), "{:?}", kvmrc.problems());
    }

    #[test]
    fn values_that_do_not_fit_are_problems_and_defaults_hold() {
        for (text, message) in [
            ("SHUTDOWN_TIMEOUT=abc", "SHUTDOWN_TIMEOUT: expected seconds, from 1 to 86400, found \"abc\""),
            ("SRIOV_LOCK_TIMEOUT=0", "line 1: SRIOV_LOCK_TIMEOUT: "),
            ("DUMMY_MAC_PREFIX=ab\\\n", "line 1: "),
            ("\nDUMMY_MAC_PREFIX=ab", "line 2: DUMMY_MAC_PREFIX: expected two hexadecimal digits"),
            ("VF_STATE_DIR=relative", "VF_STATE_DIR: expected an absolute path"),
            ("DUMMY_BRIDGE='a b'", "DUMMY_BRIDGE: expected the name of a bridge"),
        ] {
            let kvmrc = read(&[text]);
            let error = kvmrc.strict().unwrap_err().to_string();
            assert!(error.contains(message), "{message:?} is not in {error:?}");
        }
        let kvmrc = read(&["SHUTDOWN_TIMEOUT=abc\nVF_STATE_DIR=x\n"]);
        assert_eq!(kvmrc.problems().len(), 2);
        assert_eq!(kvmrc.settings().shutdown_timeout, Duration::from_secs(180));
        assert_eq!(kvmrc.settings().state_dir, Path::new("/tmp/vf_interfaces"));
        assert_eq!(read(&["SHUTDOWN_TIMEOUT="]).settings().shutdown_timeout, Duration::from_secs(120));
    }

    #[test]
    fn a_line_that_only_sets_what_is_not_used_is_a_warning() {
        let kvmrc = read(&["VIRTIOFSD_BINARY_PATH=$(cat /x)\nDUMMY_BRIDGE=a\n"]);
        assert!(kvmrc.problems().is_empty(), "{:?}", kvmrc.problems());
        assert_eq!(kvmrc.warnings().len(), 1);
        assert_eq!(kvmrc.settings().dummy_bridge.as_deref(), Some("a"));
        assert_eq!(read(&["DUMMY_BRIDGE=$X\n"]).problems().len(), 1);
        assert_eq!(read(&["source /etc/other\n"]).problems().len(), 1);
        assert_eq!(read(&["DEFAULT_ATTACH_IO=$X\n"]).problems().len(), 1);
    }

    #[test]
    fn yes_and_no_are_all_that_a_switch_can_be() {
        for name in
            ["FORCE_DESTROY", "CANCEL_NO_ACPI", "CLEANUP_MEMORY_ON_START", "CLEANUP_MEMORY_ON_STOP", "SYNC_TIME"]
        {
            for value in ["yes", "no", "", "\"yes\""] {
                assert!(read(&[&format!("{name}={value}\n")]).problems().is_empty(), "{name}={value}");
            }
            for value in ["YES", "true", "1", "ye", "'yes '"] {
                let error = read(&[&format!("# switches\nexport {name}={value}\n")]).strict().unwrap_err().to_string();
                assert!(error.contains(&format!("kvmrc.0, line 2: {name}: expected yes or no, found \"")), "{error}");
            }
        }
        assert!(!read(&["FORCE_DESTROY=true\n"]).settings().force_destroy, "the default holds");
    }

    #[test]
    fn a_misspelt_name_is_named_with_the_likely_one() {
        for (written, meant) in [
            ("DUMY_BRIDGE", "DUMMY_BRIDGE"),
            ("DUMMY_BRIGDE", "DUMMY_BRIDGE"),
            ("dummy_mac_prefix", "DUMMY_MAC_PREFIX"),
            ("VF_MAP_PATH", "VF_MAPS_PATH"),
            ("VFSTATE_DIR", "VF_STATE_DIR"),
            ("SRIOV_UNPLUG_TIMEOUTS", "SRIOV_UNPLUG_TIMEOUT"),
            ("DEFAULT_ATTACH_CAHCE", "DEFAULT_ATTACH_CACHE"),
            ("DEFAULT_ATACH_READ_IOPS_SEC_MAX", "DEFAULT_ATTACH_READ_IOPS_SEC_MAX"),
        ] {
            let kvmrc = read(&["LANG=C\n", &format!("\n{written}=a\n")]);
            let [error] = kvmrc.misspelt() else { panic!("{written}: {:?}", kvmrc.misspelt()) };
            let said = format!("kvmrc.1, line 2: {written} sets nothing; is {meant} meant?");
            assert!(error.to_string().ends_with(&said), "{error}");
            assert!(kvmrc.problems().is_empty(), "it may be meant for another program");
        }
        // OpenNebula's own, and those of the driver of 2013.
        for other in [
            "LANG",
            "LIBVIRT_MD_URI",
            "LIBVIRT_MD_KEY",
            "VIRSH_TIMEOUT",
            "VIRSH_TRIES",
            "VIRTIOFSD_BINARY_PATH",
            "HPC_MODE",
            "DRIVER_MODE",
            "CPU_PASSTHROUGH_THRESHOLD",
            "SM_HOST",
            "DATASTORE_PATH",
        ] {
            assert!(read(&[&format!("{other}=a\n")]).misspelt().is_empty(), "{other}");
        }
        for name in used_names() {
            assert!(read(&[&format!("{name}=\n")]).misspelt().is_empty(), "{name}");
        }
    }

    #[test]
    fn what_holds_for_a_disk_is_named_as_opennebula_names_it() {
        let kvmrc = read(&["DEFAULT_ATTACH_CACHE=none\nDEFAULT_ATTACH_IO=\nDEFAULT_ATTACH_READ_IOPS_SEC=\"100\"\n"]);
        let values = ["CACHE", "IO", "READ_IOPS_SEC", "DISCARD"].map(|name| kvmrc.settings().disk_default(name));
        assert_eq!(values, [Some("none"), None, Some("100"), None]);
    }

    #[test]
    fn a_file_that_is_not_there_sets_nothing_and_one_that_cannot_be_read_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Kvmrc::load(&[dir.path().join("none"), "/dev/null/none".into()]).problems().is_empty());
        let kvmrc = Kvmrc::load(&[dir.path().into()]);
        assert!(matches!(kvmrc.problems(), [KvmrcError::Unreadable { .. }]), "{:?}", kvmrc.problems());
    }

    #[test]
    fn the_example_is_read_without_a_word() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kvmrc.example");
        let kvmrc = Kvmrc::load(&[example]);
        assert!(kvmrc.problems().is_empty() && kvmrc.warnings().is_empty(), "{kvmrc:?}");
    }

    #[test]
    fn the_hosts_own_file_comes_last() {
        let places = Kvmrc::places(Path::new("/var/tmp/one/vmm/kvm-sriov"));
        let places: Vec<_> = places.iter().map(|p| p.to_str().unwrap()).collect();
        assert_eq!(
            places,
            [
                "/var/tmp/one/etc/vmm/kvm/kvmrc",
                "/var/tmp/one/etc/vmm/kvm-sriov/kvmrc",
                "/var/tmp/one/vmm/kvm-sriov/kvmrc",
                "/etc/kvm-sriov/kvmrc"
            ]
        );
    }
}
