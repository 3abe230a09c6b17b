//! The words of `virsh migrate`.

use std::ffi::{CStr, CString};
use std::str::FromStr;

use virt::sys;

use crate::base::ParseError;
use crate::libvirt::ffi::Value;

/// What an option of `virsh migrate` stands for.
pub(super) enum Word {
    /// A `VIR_MIGRATE_*` flag.
    Flag(u32),
    /// A parameter with a number, an `int` for libvirt.
    Int(&'static CStr),
    /// A parameter with a number, an `unsigned long long` for libvirt.
    Unsigned(&'static CStr),
    /// A parameter with a text.
    Text(&'static CStr),
    /// A parameter with several texts, separated by commas.
    List(&'static CStr),
    /// Seconds until the guest is suspended.
    Timeout,
    /// No flag and no parameter: the driver does it anyway, or it only concerns virsh.
    Nothing,
    /// An option that this driver refuses, with the text that says why.
    Refused(&'static str),
}

impl Word {
    pub(super) fn takes_value(&self) -> bool {
        !matches!(self, Self::Flag(_) | Self::Nothing | Self::Refused(_))
    }
}

/// The option with this name; `None` when `virsh migrate` has no such option.
///
/// # Source
/// libvirt `tools/virsh-domain.c`, `opts_migrate` and `doMigrate`; types of parameters from `libvirt-domain.h`.
pub(super) fn word(name: &str) -> Option<Word> {
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

/// Options that need another option: `(option, flag of the other, text for the other)`. libvirt would refuse them too,
/// but only after the VFs have been unplugged.
///
/// # Source
/// libvirt `qemuMigrationParamsFromFlags`, `virDomainMigrate3`.
pub(super) const NEED_ANOTHER: [(&str, u32, &str); 13] = [
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
pub(super) const EXCLUSIVE: [(&str, &str, &str); 3] = [
    ("timeout-suspend", "timeout-postcopy", "either --timeout-suspend or --timeout-postcopy"),
    ("copy-storage-all", "copy-storage-inc", "either --copy-storage-all or --copy-storage-inc"),
    ("disks-port", "disks-uri", "either --disks-port or --disks-uri"),
];

/// An option as it was written, without the leading `--`.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) name: &'a str,
    pub(super) value: Option<&'a str>,
}

impl<'a> Found<'a> {
    pub(super) fn error(self, expected: &'static str) -> ParseError {
        match self.value {
            None => ParseError::new(expected, &format!("--{}", self.name)),
            Some(value) => ParseError::new(expected, &format!("--{} {value}", self.name)),
        }
    }

    pub(super) fn value(self) -> Result<&'a str, ParseError> {
        self.value.ok_or_else(|| self.error("an option with its value"))
    }

    pub(super) fn without_value(self) -> Result<(), ParseError> {
        if self.value.is_some() { Err(self.error("an option without a value")) } else { Ok(()) }
    }

    pub(super) fn number<T: FromStr>(self, expected: &'static str, fits: impl Fn(&T) -> bool) -> Result<T, ParseError> {
        self.value()?.parse().ok().filter(fits).ok_or_else(|| self.error(expected))
    }

    pub(super) fn text(self, text: &str) -> Result<Value, ParseError> {
        CString::new(text).map(Value::Text).map_err(|_| self.error("a text without NUL"))
    }
}
