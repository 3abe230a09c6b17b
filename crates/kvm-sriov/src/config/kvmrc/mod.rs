//! kvmrc: the driver's variables. The files have the form of shell scripts, but the driver never runs them.
//!
//! The driver reads a part of the shell's language: blank lines, comments, `NAME=value` with or without `export`;
//! values made of bare words, single and double quotes and backslashes. Everything else that bash would do (expansions,
//! commands, `if`) is a [`KvmrcError`], unless the line only sets variables that this driver does not use.

pub(super) mod assignments;
mod error;
mod lexer;
mod names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{OneVersion, Settings};
use assignments::Assignments;
pub use error::KvmrcError;
use names::{DISK_DEFAULT, is_used, likely};

/// The driver's variables. Reading never fails: what can't be read is recorded as a problem, and the default applies.
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

/// Reads the variables of another file of the same form. Lines that can't be read are logged and set nothing; empty
/// values are left out.
pub fn variables(path: &Path) -> BTreeMap<String, String> {
    let mut assigned = Assignments::new(is_used);
    assigned.read(path);
    for problem in &assigned.problems {
        log::warn!("{problem}; the line is ignored");
    }
    let filled = assigned.values.into_iter().filter(|(_, setting)| !setting.value.is_empty());
    filled.map(|(name, setting)| (name, setting.value)).collect()
}

impl Kvmrc {
    /// The files that a driver in `driver_dir` reads, in this order: OpenNebula's own (its place depends on the
    /// version), the driver's among OpenNebula's settings, one in `driver_dir`, and the host's.
    pub fn places(driver_dir: &Path) -> Vec<PathBuf> {
        let remotes = driver_dir.parent().and_then(Path::parent).unwrap_or(Path::new("/var/tmp/one"));
        vec![
            remotes.join(OneVersion::detect(driver_dir).stock_kvmrc()),
            remotes.join("etc/vmm/kvm-sriov/kvmrc"),
            driver_dir.join("kvmrc"),
            "/etc/kvm-sriov/kvmrc".into(),
        ]
    }

    /// Reads files in this order. A later file overrides an earlier one; a file that does not exist sets nothing.
    pub fn load(files: &[PathBuf]) -> Self {
        let mut assigned = Assignments::new(is_used);
        for path in files {
            assigned.read(path);
        }
        let defaults = Defaults { assigned: &mut assigned };
        defaults.kvmrc()
    }

    /// Returns the variables if all of them could be read. Actions that start or plug something need this.
    ///
    /// # Errors
    /// The first problem.
    pub fn strict(mut self) -> Result<Self, KvmrcError> {
        if self.problems.is_empty() { Ok(self) } else { Err(self.problems.swap_remove(0)) }
    }

    /// The lines and values that could not be read. The defaults apply instead.
    pub fn problems(&self) -> &[KvmrcError] {
        &self.problems
    }

    /// Variables that the driver does not use, but whose names resemble used ones. They are not problems: they may be
    /// meant for another program.
    pub fn misspelt(&self) -> &[KvmrcError] {
        &self.misspelt
    }

    /// Lines that could not be read, but only set variables that the driver does not use.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The values; the default for each variable that is not set or can't be read.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// As [`Kvmrc::settings`], by value.
    pub fn into_settings(self) -> Settings {
        self.settings
    }

    /// VF_MAPS_PATH: the first directory to search for VF maps.
    pub fn vf_maps_path(&self) -> Option<&Path> {
        self.vf_maps_path.as_deref()
    }
}

/// Converts the variables to settings. A value that does not fit is a problem, and its default applies.
struct Defaults<'a> {
    assigned: &'a mut Assignments,
}

impl Defaults<'_> {
    fn kvmrc(mut self) -> Kvmrc {
        // As in the stock driver: empty means 120 s, not set means 180 s.
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
            arrival_grace: default.arrival_grace,
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

    /// A switch. The stock driver takes any value but "yes" for no, without a message. Here `YES`, `true` and `1` are
    /// problems.
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

    /// Reads a value; `None` if it is not set, empty, or does not fit.
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

/// The name of a network device, if the text is one.
///
/// # Source
/// Linux `dev_valid_name`: at most 15 bytes, no blank, no `/`, no `:`, neither `.` nor `..`.
fn bridge(text: &str) -> Option<String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
    (text.len() <= 15 && !text.contains(odd) && text != "." && text != "..").then(|| text.to_owned())
}

fn absolute(text: &str) -> Option<PathBuf> {
    Path::new(text).is_absolute().then(|| text.into())
}
