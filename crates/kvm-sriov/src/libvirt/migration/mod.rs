//! The options of a migration, in the words of `virsh migrate`.
//!
//! * `words` - the words, and the flag or parameter of libvirt that each one stands for

#[cfg(test)]
mod tests;
mod words;

use std::ffi::CString;
use std::time::Duration;

use virt::sys;

use super::error::LibvirtError;
use super::ffi::{Parameter, Value};
use crate::base::ParseError;
use words::{EXCLUSIVE, Found, NEED_ANOTHER, Word, word};

/// One migration of a running domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Migration {
    /// The URI of the destination's libvirtd, such as `qemu+ssh://host2/system`.
    pub destination: String,
    /// The domain's XML on the destination; `None` when it is the same as here. It differs when the destination has
    /// other paths for the datastore.
    pub xml: Option<String>,
    /// The targets of the disks that are copied, such as `vda`. Empty with shared storage.
    pub copied_disks: Vec<String>,
    /// Whether the domain stays paused on the destination. libvirt then reports it as paused by a user.
    pub paused: bool,
    /// Flags and parameters.
    pub options: MigrationOptions,
}

/// Flags and parameters of a migration, as MIGRATE_OPTIONS of kvmrc and the features of the VM ask for them.
///
/// ```
/// use kvm_sriov::libvirt::MigrationOptions;
/// let mut options: MigrationOptions = MigrationOptions::parse("--unsafe --bandwidth 100 --parallel")?;
/// options.add_features(Some("20,10"), false)?;
/// let error = MigrationOptions::parse("--unsave").unwrap_err();
/// assert_eq!(error.to_string(), "expected an option of virsh migrate, found \"--unsave\"");
/// # Ok::<(), kvm_sriov::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MigrationOptions {
    flags: u32,
    parameters: Vec<Parameter>,
    timeout: Option<Duration>,
    /// Whether `--timeout` switches to post-copy. Otherwise it suspends the guest.
    timeout_postcopy: bool,
    postcopy_after_precopy: bool,
}

/// When a migration switches to post-copy: the guest goes on at the destination, and the rest of its memory follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Postcopy {
    /// When the copy has not ended after this time; `None` for never.
    pub(super) after: Option<Duration>,
    /// When all of the memory has been copied once.
    pub(super) after_first_pass: bool,
}

impl MigrationOptions {
    /// Reads options as `virsh migrate` takes them: `--option`, `--option value` or `--option=value`, separated by
    /// blanks.
    ///
    /// `--live` and `--verbose` change nothing. `--timeout` suspends the guest when the copy has not ended after that
    /// many seconds.
    ///
    /// # Errors
    /// An option that `virsh migrate` does not have or that this driver refuses, a value that is missing or not a
    /// number, and an option that appears twice, needs another option or contradicts another one. The text names the
    /// option and says why.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (options, problems) = Self::read(text);
        problems.into_iter().next().map_or(Ok(options), Err)
    }

    /// As [`MigrationOptions::parse`], but returns all problems, and the options without those that are wrong.
    pub fn read(text: &str) -> (Self, Vec<ParseError>) {
        let mut options = Self::default();
        let mut problems = Vec::new();
        let mut seen = Vec::new();
        let mut words = text.split_ascii_whitespace().peekable();
        while let Some(found) = words.next() {
            let (name, value) = match found.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (found, None),
            };
            let unknown = || ParseError::new("an option of virsh migrate", found);
            let Some((name, word)) = name.strip_prefix("--").and_then(|name| Some((name, word(name)?))) else {
                problems.push(unknown());
                continue;
            };
            if seen.contains(&name) {
                problems.push(ParseError::new("each option once", found));
            }
            seen.push(name);
            let value =
                value.or_else(|| if word.takes_value() { words.next_if(|next| !next.starts_with("--")) } else { None });
            problems.extend(options.take(&word, Found { name, value }).err());
        }
        for (name, flag, needed) in NEED_ANOTHER {
            if seen.contains(&name) && options.flags & flag == 0 {
                problems.push(Found { name, value: None }.error(needed));
            }
        }
        for (one, other, expected) in EXCLUSIVE {
            if seen.contains(&one) && seen.contains(&other) {
                problems.push(Found { name: other, value: None }.error(expected));
            }
        }
        for name in ["timeout-suspend", "timeout-postcopy"] {
            if seen.contains(&name) && options.timeout.is_none() {
                problems.push(Found { name, value: None }.error("--timeout beside it"));
            }
        }
        options.timeout_postcopy = seen.contains(&"timeout-postcopy");
        options.postcopy_after_precopy = seen.contains(&"postcopy-after-precopy");
        (options, problems)
    }

    /// Whether the migration may switch to post-copy.
    pub fn is_postcopy(&self) -> bool {
        self.flags & sys::VIR_MIGRATE_POSTCOPY != 0
    }

    /// Refuses options that do not work for a VM with VFs. Such a VM stays paused at the destination until it is gone
    /// from its source.
    ///
    /// # Errors
    /// Post-copy: the text says why.
    ///
    /// # Source
    /// libvirt `qemuMigrationSrcBeginXML`: "post-copy migration is not supported with non-live or paused migration".
    pub fn check_hand_over(&self) -> Result<(), ParseError> {
        let why = "no post-copy for a VM with VFs: it stays paused at its destination until it is gone from its source, and \
                   libvirt has no post-copy for a VM that stays paused";
        if self.is_postcopy() { Err(ParseError::new(why, "--postcopy")) } else { Ok(()) }
    }

    /// Adds what the features of the VM ask for. They take precedence over the options.
    ///
    /// * `auto_converge` - MIGRATE_AUTO_CONVERGE, as `initial` or `initial,increment`: by how many percent the guest's
    ///   CPUs are slowed down at first, and then at each step; empty for QEMU's own values
    /// * `compressed` - MIGRATE_COMPRESSED
    ///
    /// # Errors
    /// A number that is not from 1 to 99. The options are unchanged.
    ///
    /// # Source
    /// OpenNebula's stock `migrate`; the range is that of QEMU's `cpu-throttle-initial`.
    pub fn add_features(&mut self, auto_converge: Option<&str>, compressed: bool) -> Result<(), ParseError> {
        if let Some(text) = auto_converge {
            let mut percentages = text
                .split(',')
                .filter(|_| !text.trim().is_empty())
                .map(|part| part.trim().parse().ok().filter(|n| (1..=99).contains(n)))
                .collect::<Option<Vec<i32>>>()
                .filter(|list| list.len() <= 2)
                .ok_or_else(|| ParseError::new("one or two percentages from 1 to 99, such as 20,10", text))?
                .into_iter();
            self.flags |= sys::VIR_MIGRATE_AUTO_CONVERGE;
            for name in [sys::VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL, sys::VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT] {
                self.parameters.retain(|(old, _)| *old != name);
                self.parameters.extend(percentages.next().map(|percent| (name, Value::Int(percent))));
            }
        }
        if compressed {
            self.flags |= sys::VIR_MIGRATE_COMPRESSED;
        }
        Ok(())
    }

    /// After which time the guest is suspended, so that the copy can end; `None` for never.
    pub(super) fn suspend_after(&self) -> Option<Duration> {
        self.timeout.filter(|_| !self.timeout_postcopy)
    }

    /// When the migration switches to post-copy; `None` for never.
    pub(super) fn postcopy(&self) -> Option<Postcopy> {
        let after = self.timeout.filter(|_| self.timeout_postcopy);
        let postcopy = Postcopy { after, after_first_pass: self.postcopy_after_precopy };
        (after.is_some() || postcopy.after_first_pass).then_some(postcopy)
    }

    fn take(&mut self, word: &Word, found: Found<'_>) -> Result<(), ParseError> {
        match word {
            Word::Refused(why) => return Err(found.error(why)),
            Word::Nothing => found.without_value()?,
            Word::Flag(flag) => {
                found.without_value()?;
                self.flags |= flag;
            }
            Word::Timeout => {
                let seconds = found.number("seconds, at least 1", |seconds: &u32| *seconds > 0)?;
                self.timeout = Some(Duration::from_secs(seconds.into()));
            }
            Word::Int(name) => {
                let number = found.number("a number", |number: &i32| *number >= 0)?;
                self.parameters.push((name, Value::Int(number)));
            }
            Word::Unsigned(name) => {
                let number = found.number("a number", |_: &u64| true)?;
                self.parameters.push((name, Value::Unsigned(number)));
            }
            Word::Text(name) => self.parameters.push((name, found.text(found.value()?)?)),
            Word::List(name) => {
                for part in found.value()?.split(',') {
                    self.parameters.push((name, found.text(part)?));
                }
            }
        }
        Ok(())
    }
}

impl Migration {
    /// The parameters and flags for libvirt.
    ///
    /// # Errors
    /// A text has a NUL byte in it.
    pub(super) fn parameters(&self) -> Result<(Vec<Parameter>, u32), LibvirtError> {
        let text = |text: &str| {
            CString::new(text)
                .map(Value::Text)
                .map_err(|_| LibvirtError::other("a text for libvirt has a NUL byte in it"))
        };
        let mut parameters = self.options.parameters.clone();
        let mut flags = self.options.flags | sys::VIR_MIGRATE_LIVE;
        if let Some(xml) = &self.xml {
            parameters.push((sys::VIR_MIGRATE_PARAM_DEST_XML, text(xml)?));
        }
        for disk in &self.copied_disks {
            let parameter = (sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS, text(disk)?);
            if !parameters.contains(&parameter) {
                parameters.push(parameter);
            }
        }
        if !self.copied_disks.is_empty() && flags & sys::VIR_MIGRATE_NON_SHARED_INC == 0 {
            flags |= sys::VIR_MIGRATE_NON_SHARED_DISK;
        }
        if self.paused {
            flags |= sys::VIR_MIGRATE_PAUSED;
        }
        Ok((parameters, flags))
    }
}
