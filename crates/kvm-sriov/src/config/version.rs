//! The version of OpenNebula that runs the driver.
//!
//! Only this module distinguishes versions. docs/reference/versions.md lists every change that matters, from 4.0 on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::base::{Action, printable};

/// The version of OpenNebula, from `VERSION` and `scripts_common.sh` among the remotes that contain the driver.
///
/// # Source
/// OpenNebula's drivers of 4.0 to 7.4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneVersion {
    /// Major and minor number; `None` before 4.4, and for a driver outside any remotes.
    version: Option<(u32, u32)>,
    error_block: bool,
}

impl OneVersion {
    /// Reads the version of the remotes that contain `driver_dir`: the last line of `VERSION`, and `scripts_common.sh`,
    /// two directories up. Without these files the newest version is assumed.
    pub fn detect(driver_dir: &Path) -> Self {
        let remotes = driver_dir.join("../..");
        let text = fs::read_to_string(remotes.join("VERSION")).unwrap_or_default();
        let version = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).and_then(|line| {
            let mut numbers = line.split('.').map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        });
        let error_block = match fs::read_to_string(remotes.join("scripts_common.sh")) {
            Ok(common) => common.contains("ERROR MESSAGE --8<------"),
            Err(_) => version.is_some_and(|v| v < (6, 2)),
        };
        Self { version, error_block }
    }

    /// Whether `deploy` returns the UUID (6.0 and later) or the name.
    pub fn deploys_by_uuid(&self) -> bool {
        self.at_least(6, 0)
    }

    /// Whether `shutdown` of a domain that does not exist succeeds (5.12 and later).
    pub fn absent_is_shut_down(&self) -> bool {
        self.at_least(5, 12)
    }

    /// Whether this version sends the VM's XML to an action on standard input. If it does not, standard input may be
    /// the channel of the calling process: reading it would take data that belongs to the next command.
    pub fn reads_stdin(&self, action: Action) -> bool {
        match action {
            Action::Deploy => true,
            Action::Reboot | Action::Reset | Action::SnapshotRevert | Action::SnapshotDelete => self.at_least(5, 10),
            Action::SnapshotCreate => self.at_least(5, 4),
            _ => self.at_least(5, 0),
        }
    }

    /// Whether an action on the front-end receives the VM's XML, in base64 (5.0 and later).
    pub fn reads_local_stdin(&self) -> bool {
        self.at_least(5, 0)
    }

    /// Whether a network driver receives the VM on standard input (5.10 and later) or as its first argument.
    pub fn has_networks_on_stdin(&self) -> bool {
        self.at_least(5, 10)
    }

    /// The arguments of the action itself. Every version appends two more: the VM's number and the host.
    pub fn action_arguments<'a>(&self, args: &'a [String]) -> &'a [String] {
        args.get(..args.len().saturating_sub(2)).unwrap_or_default()
    }

    /// The stock driver's kvmrc, below the remotes: beside its scripts up to 5.4, in `etc` since then. A file that an
    /// upgrade left in the old place is not used.
    pub fn stock_kvmrc(&self) -> PathBuf {
        // The development versions of 5.6 have the number 5.5.
        if self.at_least(5, 5) { "etc/vmm/kvm/kvmrc".into() } else { "vmm/kvm/kvmrc".into() }
    }

    /// The state that `poll` (up to 5.10) reports for a domain whose CPUs are stopped. OpenNebula takes `d` for gone,
    /// `a` for running, `e` for failed.
    ///
    /// * `is_stuck` - whether the CPUs stay stopped until somebody acts
    ///
    /// # Source
    /// OpenNebula's `poll` of 4.8, 4.10, 5.6 and 5.8.
    pub fn paused_state(&self, is_stuck: bool) -> char {
        match (self.at_least(5, 8), is_stuck) {
            (true, true) => 'e',
            (true, false) => 'a',
            (false, _) if self.at_least(4, 10) => 'a',
            (false, _) => 'd',
        }
    }

    /// Formats an error message for this version, as one line without control characters. 7.x appends `ExitCode: n` directly to the text, so a text without a
    /// final punctuation mark gets a full stop. Up to 6.0 the text is printed between two marker lines.
    pub fn failure(&self, text: &str) -> String {
        let line = printable(text);
        let stop = if line.ends_with(['.', '!', '?', ')']) { "" } else { "." };
        if self.error_block {
            format!("ERROR MESSAGE --8<------\n{line}{stop}\nERROR MESSAGE ------>8--\n")
        } else {
            format!("{line}{stop}\n")
        }
    }

    fn at_least(&self, major: u32, minor: u32) -> bool {
        match self.version {
            Some(version) => version >= (major, minor),
            // 4.4 introduced VERSION. Without it, and with the old form of errors, this is 4.0 or 4.2.
            None => !self.error_block,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(version: &str, common: Option<&str>) -> OneVersion {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("vmm/kvm-sriov")).unwrap();
        if !version.is_empty() {
            fs::write(dir.path().join("VERSION"), format!("some line\n{version}\n\n")).unwrap();
        }
        if let Some(text) = common {
            fs::write(dir.path().join("scripts_common.sh"), text).unwrap();
        }
        OneVersion::detect(&dir.path().join("vmm/kvm-sriov"))
    }

    const BLOCK: Option<&str> = Some("echo \"ERROR MESSAGE --8<------\"\n");

    #[test]
    fn the_answers_depend_on_the_version() {
        for (version, common, uuid, absent) in [
            ("", BLOCK, false, false),
            ("4.14.2", BLOCK, false, false),
            ("5.10.1", BLOCK, false, false),
            ("5.12.0", BLOCK, false, true),
            ("6.0.0", BLOCK, true, true),
            ("6.10.0", Some(""), true, true),
            ("7.4.0", Some(""), true, true),
            ("", None, true, true),
        ] {
            let caller = caller(version, common);
            assert_eq!(caller.deploys_by_uuid(), uuid, "{version:?}");
            assert_eq!(caller.absent_is_shut_down(), absent, "{version:?}");
            assert_eq!(caller.failure("x").contains("--8<------\nx.\nERROR"), common == BLOCK, "{version:?}");
        }
    }

    #[test]
    fn the_form_of_errors_comes_from_the_scripts_or_else_from_the_version() {
        assert!(!caller("6.0.0", Some("error_message() { :; }")).error_block);
        assert!(caller("7.4.0", BLOCK).error_block);
        assert!(caller("6.0.0", None).error_block && !caller("6.2.0", None).error_block);
        assert_eq!(caller("seven", None), caller("", None));
    }

    #[test]
    fn the_place_of_the_stock_kvmrc_depends_on_the_version() {
        for (version, place) in [
            ("4.4.0", "vmm/kvm/kvmrc"),
            ("5.4.15", "vmm/kvm/kvmrc"),
            ("5.6.0", "etc/vmm/kvm/kvmrc"),
            ("", "etc/vmm/kvm/kvmrc"),
        ] {
            assert_eq!(caller(version, None).stock_kvmrc(), Path::new(place), "{version:?}");
        }
        assert_eq!(caller("", BLOCK).stock_kvmrc(), Path::new("vmm/kvm/kvmrc"));
    }

    #[test]
    fn an_error_is_one_line_with_a_full_stop() {
        let caller = caller("7.4.0", None);
        assert_eq!(caller.failure("deploy: it broke\nbadly"), "deploy: it broke badly.\n");
        assert_eq!(caller.failure("deploy: it broke (why?)"), "deploy: it broke (why?)\n");
    }
}
