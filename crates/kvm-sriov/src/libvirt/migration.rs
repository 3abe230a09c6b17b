//! How a domain is moved: virsh's words for it, and what becomes of them.

use std::ffi::{CStr, CString};
use std::str::FromStr;
use std::time::Duration;

use virt::sys;

use super::error::LibvirtError;
use super::ffi::{Parameter, Value};
use crate::base::ParseError;

/// One move of a running domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Migration {
    /// The libvirtd there, such as `qemu+ssh://host2/system`.
    pub destination: String,
    /// The domain's XML there, when it differs from here (paths of another datastore).
    pub xml: Option<String>,
    /// Disks that are copied, by target, such as `vda`; none with shared storage.
    pub copied_disks: Vec<String>,
    /// Whether the domain stays paused there. libvirt then says of it what it says of one that its user paused.
    pub paused: bool,
    /// Further flags and parameters.
    pub options: MigrationOptions,
}

/// Flags and parameters of a move, as MIGRATE_OPTIONS of kvmrc and the VM's features ask for them.
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
    /// What `--timeout` begins: otherwise the guest is suspended.
    timeout_postcopy: bool,
    postcopy_after_precopy: bool,
}

/// When a move goes over to post-copy: the guest goes on at the destination, and the rest of its memory follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Postcopy {
    /// When the copy has not ended after this time.
    pub(super) after: Option<Duration>,
    /// When all of the memory was copied once.
    pub(super) after_first_pass: bool,
}

/// What a word of `virsh migrate` stands for.
enum Word {
    /// A `VIR_MIGRATE_*` flag.
    Flag(u32),
    /// A number, an `int` for libvirt.
    Int(&'static CStr),
    /// A number, an `unsigned long long` for libvirt.
    Unsigned(&'static CStr),
    /// A text.
    Text(&'static CStr),
    /// Texts, separated by commas.
    List(&'static CStr),
    /// Seconds until the guest is suspended.
    Timeout,
    /// What the driver does anyway, or what only concerns virsh.
    Nothing,
    /// What can't be with this driver.
    Refused(&'static str),
}

impl Word {
    fn takes_value(&self) -> bool {
        !matches!(self, Self::Flag(_) | Self::Nothing | Self::Refused(_))
    }
}

/// The words of `virsh migrate`, apart from the domain and the destination.
///
/// # Source
/// libvirt `tools/virsh-domain.c`, `opts_migrate` and `doMigrate`; types of parameters from `libvirt-domain.h`.
fn word(name: &str) -> Option<Word> {
    use Word::{Flag, Int, List, Nothing, Refused, Text, Timeout, Unsigned};
    Some(match name {
        "live" | "verbose" | "timeout-suspend" | "timeout-postcopy" | "postcopy-after-precopy" => Nothing,
        "postcopy" => Flag(sys::VIR_MIGRATE_POSTCOPY),
        "persistent" => Flag(sys::VIR_MIGRATE_PERSIST_DEST),
        "undefinesource" => Flag(sys::VIR_MIGRATE_UNDEFINE_SOURCE),
        "copy-storage-all" => Flag(sys::VIR_MIGRATE_NON_SHARED_DISK),
        "copy-storage-inc" => Flag(sys::VIR_MIGRATE_NON_SHARED_INC),
        "copy-storage-synchronous-writes" => Flag(sys::VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES),
        "change-protection" => Flag(sys::VIR_MIGRATE_CHANGE_PROTECTION),
        "unsafe" => Flag(sys::VIR_MIGRATE_UNSAFE),
        "compressed" => Flag(sys::VIR_MIGRATE_COMPRESSED),
        "auto-converge" => Flag(sys::VIR_MIGRATE_AUTO_CONVERGE),
        "rdma-pin-all" => Flag(sys::VIR_MIGRATE_RDMA_PIN_ALL),
        "abort-on-error" => Flag(sys::VIR_MIGRATE_ABORT_ON_ERROR),
        "tls" => Flag(sys::VIR_MIGRATE_TLS),
        "parallel" => Flag(sys::VIR_MIGRATE_PARALLEL),
        "zerocopy" => Flag(sys::VIR_MIGRATE_ZEROCOPY),
        "migrateuri" => Text(sys::VIR_MIGRATE_PARAM_URI),
        "graphicsuri" => Text(sys::VIR_MIGRATE_PARAM_GRAPHICS_URI),
        "listen-address" => Text(sys::VIR_MIGRATE_PARAM_LISTEN_ADDRESS),
        "tls-destination" => Text(sys::VIR_MIGRATE_PARAM_TLS_DESTINATION),
        "disks-uri" => Text(sys::VIR_MIGRATE_PARAM_DISKS_URI),
        "disks-port" => Int(sys::VIR_MIGRATE_PARAM_DISKS_PORT),
        "migrate-disks" => List(sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS),
        "migrate-disks-detect-zeroes" => List(sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS_DETECT_ZEROES),
        "migrate-disks-target-zero" => List(sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS_TARGET_ZERO),
        "bandwidth" => Unsigned(sys::VIR_MIGRATE_PARAM_BANDWIDTH),
        "postcopy-bandwidth" => Unsigned(sys::VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY),
        "available-switchover-bandwidth" => Unsigned(sys::VIR_MIGRATE_PARAM_BANDWIDTH_AVAIL_SWITCHOVER),
        "auto-converge-initial" => Int(sys::VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL),
        "auto-converge-increment" => Int(sys::VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT),
        "parallel-connections" => Int(sys::VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS),
        "comp-methods" => List(sys::VIR_MIGRATE_PARAM_COMPRESSION),
        "comp-mt-level" => Int(sys::VIR_MIGRATE_PARAM_COMPRESSION_MT_LEVEL),
        "comp-mt-threads" => Int(sys::VIR_MIGRATE_PARAM_COMPRESSION_MT_THREADS),
        "comp-mt-dthreads" => Int(sys::VIR_MIGRATE_PARAM_COMPRESSION_MT_DTHREADS),
        "comp-xbzrle-cache" => Unsigned(sys::VIR_MIGRATE_PARAM_COMPRESSION_XBZRLE_CACHE),
        "comp-zlib-level" => Int(sys::VIR_MIGRATE_PARAM_COMPRESSION_ZLIB_LEVEL),
        "comp-zstd-level" => Int(sys::VIR_MIGRATE_PARAM_COMPRESSION_ZSTD_LEVEL),
        "timeout" => Timeout,
        "p2p" | "direct" | "tunnelled" => {
            Refused("no option that has libvirtd connect to the destination, which the driver itself does")
        }
        "offline" => Refused("no option for domains that do not run"),
        "suspend" => Refused("no option that leaves the VM paused, because OpenNebula expects it to run"),
        "postcopy-resume" => Refused("no option that only goes on with a move that failed"),
        "dname" => Refused("no other name for the domain, because OpenNebula knows it by its name"),
        "xml" | "persistent-xml" => Refused("no XML of one domain, because the driver gives each VM its own"),
        "domain" | "desturi" => Refused("no domain and no destination, which OpenNebula names"),
        _ => return None,
    })
}

/// Options that say nothing without another one: `(option, flag of the other, the other)`. libvirt would refuse them
/// when the VFs are unplugged already.
///
/// # Source
/// libvirt `qemuMigrationParamsFromFlags`, `virDomainMigrate3`.
const NEED_ANOTHER: [(&str, u32, &str); 13] = [
    ("postcopy-after-precopy", sys::VIR_MIGRATE_POSTCOPY, "--postcopy beside it"),
    ("timeout-postcopy", sys::VIR_MIGRATE_POSTCOPY, "--postcopy beside it"),
    ("auto-converge-initial", sys::VIR_MIGRATE_AUTO_CONVERGE, "--auto-converge beside it"),
    ("auto-converge-increment", sys::VIR_MIGRATE_AUTO_CONVERGE, "--auto-converge beside it"),
    ("parallel-connections", sys::VIR_MIGRATE_PARALLEL, "--parallel beside it"),
    ("zerocopy", sys::VIR_MIGRATE_PARALLEL, "--parallel beside it"),
    ("comp-methods", sys::VIR_MIGRATE_COMPRESSED, "--compressed beside it"),
    ("comp-mt-level", sys::VIR_MIGRATE_COMPRESSED, "--compressed beside it"),
    ("comp-mt-threads", sys::VIR_MIGRATE_COMPRESSED, "--compressed beside it"),
    ("comp-mt-dthreads", sys::VIR_MIGRATE_COMPRESSED, "--compressed beside it"),
    ("comp-xbzrle-cache", sys::VIR_MIGRATE_COMPRESSED, "--compressed beside it"),
    ("comp-zlib-level", sys::VIR_MIGRATE_COMPRESSED, "--compressed beside it"),
    ("comp-zstd-level", sys::VIR_MIGRATE_COMPRESSED, "--compressed beside it"),
];

/// Options that exclude each other.
const EXCLUSIVE: [(&str, &str, &str); 3] = [
    ("timeout-suspend", "timeout-postcopy", "either --timeout-suspend or --timeout-postcopy"),
    ("copy-storage-all", "copy-storage-inc", "either --copy-storage-all or --copy-storage-inc"),
    ("disks-port", "disks-uri", "either --disks-port or --disks-uri"),
];

/// An option as it was found.
#[derive(Clone, Copy)]
struct Found<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

impl<'a> Found<'a> {
    fn error(self, expected: &'static str) -> ParseError {
        match self.value {
            None => ParseError::new(expected, &format!("--{}", self.name)),
            Some(value) => ParseError::new(expected, &format!("--{} {value}", self.name)),
        }
    }

    fn value(self) -> Result<&'a str, ParseError> {
        self.value.ok_or_else(|| self.error("an option with its value"))
    }

    fn without_value(self) -> Result<(), ParseError> {
        if self.value.is_some() { Err(self.error("an option without a value")) } else { Ok(()) }
    }

    fn number<T: FromStr>(self, expected: &'static str, fits: impl Fn(&T) -> bool) -> Result<T, ParseError> {
        self.value()?.parse().ok().filter(fits).ok_or_else(|| self.error(expected))
    }

    fn text(self, text: &str) -> Result<Value, ParseError> {
        CString::new(text).map(Value::Text).map_err(|_| self.error("a text without NUL"))
    }
}

impl MigrationOptions {
    /// Reads options as `virsh migrate` takes them: `--option`, `--option value` or `--option=value`, separated by
    /// blanks.
    ///
    /// `--live` and `--verbose` say nothing new. `--timeout` suspends the guest when the copy has not ended after that
    /// many seconds.
    ///
    /// # Errors
    /// A word that `virsh migrate` does not have, a value that is missing or no number, an option that appears twice,
    /// lacks another one or contradicts it, and an option that can't be with this driver. The text names the word and
    /// says why.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (options, problems) = Self::read(text);
        problems.into_iter().next().map_or(Ok(options), Err)
    }

    /// As [`MigrationOptions::parse`], with everything that is wrong, not only the first.
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

    /// Whether the guest may go on at the destination before all of its memory is there.
    pub fn is_postcopy(&self) -> bool {
        self.flags & sys::VIR_MIGRATE_POSTCOPY != 0
    }

    /// Refuses what can't be for a VM with VFs, whose CPUs stand at the destination until it is gone from its source.
    ///
    /// # Errors
    /// Post-copy: the text says why.
    ///
    /// # Source
    /// libvirt `qemuMigrationSrcBeginXML`: "post-copy migration is not supported with non-live or paused migration".
    pub fn check_hand_over(&self) -> Result<(), ParseError> {
        let why = "no post-copy for a VM with VFs, which stands at its destination until it is gone from its source: libvirt \
                   has no post-copy for a VM that is to stand";
        if self.is_postcopy() { Err(ParseError::new(why, "--postcopy")) } else { Ok(()) }
    }

    /// Adds what the VM's own features ask for; they win over the options.
    ///
    /// * `auto_converge` - MIGRATE_AUTO_CONVERGE: by how much the guest's CPUs are slowed down at first and then at
    ///   each step, in percent, as `initial` or `initial,increment`; empty for QEMU's own values
    /// * `compressed` - MIGRATE_COMPRESSED
    ///
    /// # Errors
    /// A number that is not from 1 to 99; nothing was added.
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

    /// When the guest is suspended so that the copy can end.
    pub(super) fn suspend_after(&self) -> Option<Duration> {
        self.timeout.filter(|_| !self.timeout_postcopy)
    }

    /// When the move goes over to post-copy by itself; `None` for never.
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
    /// Parameters and flags for libvirt.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parameters(text: &str) -> (Vec<(&'static str, Value)>, u32) {
        let options = MigrationOptions::parse(text).unwrap();
        let named = options.parameters.iter().map(|(name, value)| (name.to_str().unwrap(), value.clone()));
        (named.collect(), options.flags)
    }

    fn text(text: &str) -> Value {
        Value::Text(CString::new(text).unwrap())
    }

    #[test]
    fn virshs_words_become_flags_and_parameters() {
        for (words, expected) in [
            ("--live --verbose", vec![]),
            ("  --unsafe\t--auto-converge --auto-converge-initial 20", vec![("auto_converge.initial", Value::Int(20))]),
            ("--bandwidth=100", vec![("bandwidth", Value::Unsigned(100))]),
            ("--bandwidth 18446744073709551615", vec![("bandwidth", Value::Unsigned(u64::MAX))]),
            ("--migrateuri tcp://10.0.0.2", vec![("migrate_uri", text("tcp://10.0.0.2"))]),
            ("--graphicsuri=spice://h:1?tlsPort=2", vec![("graphics_uri", text("spice://h:1?tlsPort=2"))]),
            ("--migrate-disks vda,vdb", vec![("migrate_disks", text("vda")), ("migrate_disks", text("vdb"))]),
            (
                "--compressed --comp-methods mt,xbzrle --comp-mt-level 9 --comp-xbzrle-cache 4096",
                vec![
                    ("compression", text("mt")),
                    ("compression", text("xbzrle")),
                    ("compression.mt.level", Value::Int(9)),
                    ("compression.xbzrle.cache", Value::Unsigned(4096)),
                ],
            ),
            ("--parallel --parallel-connections 4", vec![("parallel.connections", Value::Int(4))]),
            ("--tls --tls-destination h2", vec![("tls.destination", text("h2"))]),
            (
                "--listen-address :: --disks-port 49152",
                vec![("listen_address", text("::")), ("disks_port", Value::Int(49152))],
            ),
        ] {
            assert_eq!(parameters(words).0, expected, "{words}");
        }
        let flags = |words| parameters(words).1;
        assert_eq!(flags(""), 0);
        assert_eq!(flags("--unsafe --persistent --undefinesource"), 512 | 8 | 16);
        assert_eq!(flags("--copy-storage-all --copy-storage-synchronous-writes"), 64 | 262_144);
        assert_eq!(flags("--tls --parallel --zerocopy --change-protection"), 65_536 | 131_072 | 1_048_576 | 256);
        assert_eq!(flags("--abort-on-error --rdma-pin-all --compressed --auto-converge"), 4096 | 16_384 | 2048 | 8192);
        let options = MigrationOptions::parse("--timeout 60 --timeout-suspend").unwrap();
        assert_eq!(options.suspend_after(), Some(Duration::from_secs(60)));
    }

    #[test]
    fn what_cannot_be_is_an_error_that_names_the_word() {
        for (words, error) in [
            ("--unsave", "expected an option of virsh migrate, found \"--unsave\""),
            ("--unsafe one-42", "expected an option of virsh migrate, found \"one-42\""),
            ("unsafe", "expected an option of virsh migrate, found \"unsafe\""),
            ("-- --unsafe", "expected an option of virsh migrate, found \"--\""),
            ("--bandwidth", "expected an option with its value, found \"--bandwidth\""),
            ("--bandwidth --unsafe", "expected an option with its value, found \"--bandwidth\""),
            ("--bandwidth fast", "expected a number, found \"--bandwidth fast\""),
            ("--disks-port=-1", "expected a number, found \"--disks-port -1\""),
            ("--timeout 0", "expected seconds, at least 1, found \"--timeout 0\""),
            ("--unsafe=yes", "expected an option without a value, found \"--unsafe yes\""),
            ("--unsafe --unsafe", "expected each option once, found \"--unsafe\""),
            ("--auto-converge-initial 5", "expected --auto-converge beside it, found \"--auto-converge-initial\""),
            ("--zerocopy", "expected --parallel beside it, found \"--zerocopy\""),
            ("--timeout-suspend", "expected --timeout beside it, found \"--timeout-suspend\""),
            ("--copy-storage-all --copy-storage-inc", "expected either --copy-storage-all or --copy-storage-inc"),
            ("--p2p", "expected no option that has libvirtd connect to the destination"),
            ("--p2p --tunnelled", "found \"--p2p\""),
            ("--postcopy --postcopy-resume", "expected no option that only goes on with a move that failed"),
            ("--postcopy-after-precopy", "expected --postcopy beside it, found \"--postcopy-after-precopy\""),
            ("--postcopy --timeout-postcopy", "expected --timeout beside it, found \"--timeout-postcopy\""),
            ("--timeout 5 --timeout-postcopy", "expected --postcopy beside it, found \"--timeout-postcopy\""),
            (
                "--postcopy --timeout 5 --timeout-postcopy --timeout-suspend",
                "expected either --timeout-suspend or --timeout-postcopy",
            ),
            ("--postcopy-bandwidth fast", "expected a number, found \"--postcopy-bandwidth fast\""),
            ("--dname x", "expected no other name for the domain"),
            ("--xml /tmp/x", "expected no XML of one domain"),
            ("--offline --persistent", "expected no option for domains that do not run"),
            ("--suspend", "expected no option that leaves the VM paused"),
        ] {
            let found = MigrationOptions::parse(words).unwrap_err().to_string();
            assert!(found.contains(error), "{words}: {found}");
        }
    }

    #[test]
    fn post_copy_is_virshs_and_not_for_a_vm_with_vfs() {
        let read = |text: &str| MigrationOptions::parse(text).unwrap();
        let options = read("--postcopy --postcopy-after-precopy --postcopy-bandwidth 100");
        assert_eq!((options.flags, options.suspend_after()), (32_768, None));
        assert_eq!(options.parameters, [(c"bandwidth.postcopy", Value::Unsigned(100))]);
        assert_eq!(options.postcopy(), Some(Postcopy { after: None, after_first_pass: true }));
        let error = options.check_hand_over().unwrap_err().to_string();
        assert!(error.contains("no post-copy for a VM with VFs") && error.ends_with("found \"--postcopy\""), "{error}");
        let options = read("--postcopy --timeout 9 --timeout-postcopy");
        let after = Some(Duration::from_secs(9));
        assert_eq!(options.postcopy(), Some(Postcopy { after, after_first_pass: false }));
        assert_eq!((options.suspend_after(), read("--postcopy").postcopy()), (None, None));
        let options = read("--unsafe --timeout 9");
        assert_eq!((options.suspend_after(), options.check_hand_over()), (after, Ok(())));
    }

    #[test]
    fn every_word_that_is_refused_is_told() {
        let (_, problems) = MigrationOptions::read("--unsave --p2p --unsafe --suspend --bandwidth fast x");
        let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 5, "{found:?}");
        for (problem, word) in found.iter().zip(["--unsave", "--p2p", "--suspend", "--bandwidth fast", "x"]) {
            assert!(problem.ends_with(&format!("found \"{word}\"")), "{problem}");
        }
    }

    #[test]
    fn features_of_the_vm_win() {
        let mut options = MigrationOptions::parse("--auto-converge --auto-converge-increment=5").unwrap();
        options.add_features(Some("30"), true).unwrap();
        assert_eq!(options.parameters, [(c"auto_converge.initial", Value::Int(30))]);
        assert_eq!(options.flags, 8192 | 2048);
        options.add_features(Some("20,10"), false).unwrap();
        assert_eq!(
            options.parameters,
            [(c"auto_converge.initial", Value::Int(20)), (c"auto_converge.increment", Value::Int(10))]
        );
        options.add_features(Some(""), false).unwrap();
        assert!(options.parameters.is_empty());
        for odd in ["0", "100", "20,", "20,10,5", "fast", ",10"] {
            let before = options.clone();
            assert!(options.add_features(Some(odd), true).is_err(), "{odd}");
            assert_eq!(options, before);
        }
    }

    #[test]
    fn a_move_is_live_and_copies_the_disks_it_names() {
        let options = MigrationOptions::parse("--migrate-disks vda").unwrap();
        let migration = Migration { copied_disks: vec!["vda".into(), "vdb".into()], options, ..Migration::default() };
        let (parameters, flags) = migration.parameters().unwrap();
        assert_eq!(parameters, [(c"migrate_disks", text("vda")), (c"migrate_disks", text("vdb"))]);
        assert_eq!(flags, sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_NON_SHARED_DISK);
        let options = MigrationOptions::parse("--copy-storage-inc").unwrap();
        let migration = Migration { copied_disks: vec!["vda".into()], paused: true, options, ..Migration::default() };
        assert_eq!(
            migration.parameters().unwrap().1,
            sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_NON_SHARED_INC | sys::VIR_MIGRATE_PAUSED
        );
        let migration = Migration { xml: Some("a\0b".into()), ..Migration::default() };
        assert!(migration.parameters().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", percent in "[0-9, \\-a]{0,8}") {
            if let Ok(mut options) = MigrationOptions::parse(&text) {
                drop(options.add_features(Some(&percent), true));
            }
        }

        #[test]
        fn no_mix_of_words_makes_it_panic(
            words in prop::collection::vec(
                prop_oneof![
                    "--(bandwidth|timeout|migrate-disks|comp-methods|disks-port|unsafe|p2p|parallel)(=[a-z0-9,\0]{0,4})?",
                    "[0-9a-z,=-]{0,6}",
                ],
                0..8,
            ),
        ) {
            let text = words.join(" ");
            if let Err(error) = MigrationOptions::parse(&text) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
