//! Which OpenNebula calls, as far as it changes what is read and answered.
//!
//! Nothing else in the driver knows of versions. docs/reference/versions.md has every change that matters, from 4.0 on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::base::Action;

/// What calls us. Known from `VERSION` and `scripts_common.sh` of the remotes that the driver lies in.
///
/// # Source
/// OpenNebula's drivers of 4.0 to 7.4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneVersion {
    /// Major and minor number; `None` before 4.4, and where the driver lies outside of any remotes.
    version: Option<(u32, u32)>,
    error_block: bool,
}

impl OneVersion {
    /// Reads the version of OpenNebula's remotes that `driver_dir` lies in: `VERSION` (its last line) and
    /// `scripts_common.sh` two directories up. Neither there: the newest is assumed.
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

    /// Whether `deploy` answers with the UUID (6.0 and later) or with the name.
    pub fn deploys_by_uuid(&self) -> bool {
        self.at_least(6, 0)
    }

    /// Whether `shutdown` of a domain that is not there succeeds (5.12 and later).
    pub fn absent_is_shut_down(&self) -> bool {
        self.at_least(5, 12)
    }

    /// Whether this version sends the VM's XML to an action on standard input. Where it does not, standard input may be the
    /// channel of the caller itself: reading it would swallow what comes next.
    pub fn reads_stdin(&self, action: Action) -> bool {
        match action {
            Action::Deploy => true,
            Action::Reboot | Action::Reset | Action::SnapshotRevert | Action::SnapshotDelete => self.at_least(5, 10),
            Action::SnapshotCreate => self.at_least(5, 4),
            _ => self.at_least(5, 0),
        }
    }

    /// Whether an action that runs on the front-end gets the VM's XML, in base64 (5.0 and later).
    pub fn reads_local_stdin(&self) -> bool {
        self.at_least(5, 0)
    }

    /// Whether a step of a network driver gets the VM on standard input (5.10 and later) or as its first argument.
    pub fn has_networks_on_stdin(&self) -> bool {
        self.at_least(5, 10)
    }

    /// An action's own arguments: all but the last two, which every version appends: the VM's number and the host.
    pub fn own<'a>(&self, args: &'a [String]) -> &'a [String] {
        args.get(..args.len().saturating_sub(2)).unwrap_or_default()
    }

    /// Where the stock driver's kvmrc is, under the remotes: beside its scripts up to 5.4, apart from them since. A file that an upgrade
    /// left in the old place counts for nothing.
    pub fn stock_kvmrc(&self) -> PathBuf {
        // 5.5 is how the development of 5.6 was numbered.
        if self.at_least(5, 5) { "etc/vmm/kvm/kvmrc".into() } else { "vmm/kvm/kvmrc".into() }
    }

    /// What `poll` (up to 5.10) calls a domain whose CPUs stand: `d` is taken for gone, `a` for running, `e` for failed.
    ///
    /// * `is_stuck` - whether it stands for a reason that does not pass by itself
    ///
    /// # Source
    /// OpenNebula's `poll` of 4.8, 4.10, 5.6 and 5.8.
    pub fn paused(&self, is_stuck: bool) -> char {
        match (self.at_least(5, 8), is_stuck) {
            (true, true) => 'e',
            (true, false) => 'a',
            (false, _) if self.at_least(4, 10) => 'a',
            (false, _) => 'd',
        }
    }

    /// The failure as this version reads it. The text gets a full stop if it ends without one, because 7.x glues
    /// `ExitCode: n` to it; up to 6.0 it stands between two marker lines.
    pub fn failure(&self, text: &str) -> String {
        let line: String = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
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
            // VERSION came with 4.4: without it and with the old error form this is 4.0 or 4.2.
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
    fn the_answer_follows_the_version() {
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
    fn the_error_form_is_that_of_the_scripts_or_else_of_the_version() {
        assert!(!caller("6.0.0", Some("error_message() { :; }")).error_block);
        assert!(caller("7.4.0", BLOCK).error_block);
        assert!(caller("6.0.0", None).error_block && !caller("6.2.0", None).error_block);
        assert_eq!(caller("seven", None), caller("", None));
    }

    #[test]
    fn the_stock_kvmrc_is_where_the_version_has_it() {
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
    fn a_failure_is_one_line_with_a_stop() {
        let caller = caller("7.4.0", None);
        assert_eq!(caller.failure("deploy: it broke\nbadly"), "deploy: it broke badly.\n");
        assert_eq!(caller.failure("deploy: it broke (why?)"), "deploy: it broke (why?)\n");
    }
}
