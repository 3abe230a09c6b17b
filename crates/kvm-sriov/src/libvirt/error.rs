//! What libvirt says when it can't.

use std::{fmt, io};

use nix::unistd::{User, geteuid};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};

/// A call to libvirt that failed: libvirt's code and text, the kind of failure, and advice for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtError {
    kind: LibvirtErrorKind,
    code: u32,
    text: String,
    advice: Option<String>,
}

/// The kinds of failure that an action treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LibvirtErrorKind {
    /// There is no such domain.
    NoDomain,
    /// libvirtd can't be reached.
    Unreachable,
    /// This user has no permission to connect to libvirtd.
    NotAllowed,
    /// The call did not return in time. It may still take effect.
    NoAnswer,
    /// The call was not made, because no time was left.
    NoTime,
    /// The call was not made, because the host could not start a thread for it.
    NoThread,
    /// The connection to libvirtd broke, or libvirtd is not back yet. The call may have taken effect. The next call
    /// opens a new connection.
    Disconnected,
    /// The guest was already asked to release this device, and may still do so.
    UnplugInProgress,
    /// The guest is busy with the slot of this device. The request can be repeated later.
    GuestBusy,
    /// The domain has no such device.
    NoDevice,
    /// The domain has no such snapshot.
    NoSnapshot,
    /// A copy of a disk runs. It must end first.
    ActiveBlockJob,
    /// Another call or job holds the domain and did not release it within libvirt's own 30 s.
    DomainBusy,
    /// No job runs that could be aborted.
    NoJob,
    /// The job was aborted, by this driver or by a person.
    Aborted,
    /// The host can't lock the guest's memory.
    NoMemory,
    /// Anything else; code and text say what.
    Other,
}

impl LibvirtError {
    /// A failure of this kind. `code` is libvirt's `virErrorNumber`, or 0 when libvirt did not report the failure.
    pub fn new(kind: LibvirtErrorKind, code: u32, text: impl Into<String>) -> Self {
        Self { kind, code, text: text.into(), advice: None }
    }

    /// A failure that libvirt reported. The kind follows from its code (`virErrorNumber`) and its text.
    pub fn of_libvirt(code: u32, text: impl Into<String>) -> Self {
        let text = text.into();
        Self::new(kind(known(Enum::from_raw(code)), &text), code, text)
    }

    /// Whether libvirtd may be back in a moment, so that the call may be repeated at once.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.kind, LibvirtErrorKind::Disconnected | LibvirtErrorKind::Unreachable)
    }

    pub(super) fn no_answer(call: &str, seconds: u64) -> Self {
        Self::new(LibvirtErrorKind::NoAnswer, 0, format!("libvirt has not answered {call} for {seconds} s"))
    }

    pub(super) fn no_time(call: &str) -> Self {
        Self::new(LibvirtErrorKind::NoTime, 0, format!("no time was left for {call}, which was not called"))
    }

    pub(crate) fn no_thread(call: &str, why: &io::Error) -> Self {
        let text = format!("the host gives no thread for {call}, which was not called: {why}");
        Self::new(LibvirtErrorKind::NoThread, 0, text)
    }

    pub(super) fn other(text: impl Into<String>) -> Self {
        Self::new(LibvirtErrorKind::Other, 0, text)
    }

    pub(super) fn disconnected(text: impl Into<String>) -> Self {
        Self::new(LibvirtErrorKind::Disconnected, 0, text)
    }

    /// The failure to open a connection to `uri`, with what to do about it.
    pub(super) fn open(error: &Error, uri: &str) -> Self {
        let text = format!("cannot connect to libvirtd at {uri}: {}", error.message());
        let (kind, advice) = if denied(error) {
            let user = User::from_uid(geteuid()).ok().flatten().map_or_else(|| geteuid().to_string(), |user| user.name);
            let advice =
                format!("put user {user} into the group libvirt (usermod -aG libvirt {user}) and log in again");
            (LibvirtErrorKind::NotAllowed, advice)
        } else {
            (
                LibvirtErrorKind::Unreachable,
                "is libvirtd running (systemctl status libvirtd), and is LIBVIRT_URI right?".into(),
            )
        };
        Self { kind, code: error.code().to_raw(), text, advice: Some(advice) }
    }

    /// The failure to open a new connection after the last one broke.
    pub(super) fn reopen(error: &Error, uri: &str) -> Self {
        let text = format!(
            "the connection to libvirtd at {uri} broke, and it can't be reached again yet: {}",
            error.message()
        );
        Self::new(LibvirtErrorKind::Disconnected, error.code().to_raw(), text)
    }

    /// The failure to open a connection to the libvirtd of a migration's destination.
    pub(super) fn open_destination(error: &Error, uri: &str) -> Self {
        let text = format!("cannot connect to the destination's libvirtd at {uri}: {}", error.message());
        let kind = if denied(error) { LibvirtErrorKind::NotAllowed } else { LibvirtErrorKind::Unreachable };
        Self::new(kind, error.code().to_raw(), text)
    }

    /// The failure of a migration whose connection to the destination broke.
    pub(super) fn lost_destination(error: &Error, uri: &str) -> Self {
        let text = format!("the connection to the destination's libvirtd at {uri} broke: {}", error.message());
        Self::new(LibvirtErrorKind::Unreachable, error.code().to_raw(), text)
    }

    /// The same failure, when the connection turns out to be broken. Only the kind `Other` changes: any other kind is
    /// an answer of libvirtd.
    pub(super) fn by_disconnection(mut self) -> Self {
        if self.kind == LibvirtErrorKind::Other {
            self.kind = LibvirtErrorKind::Disconnected;
            self.text = format!("the connection to libvirtd broke: {}", self.text);
        }
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> LibvirtErrorKind {
        self.kind
    }

    /// libvirt's code (`virErrorNumber`); 0 when libvirt did not report the failure.
    pub fn code(&self) -> u32 {
        self.code
    }

    /// libvirt's text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

pub(super) fn number(error: &Error) -> Option<ErrorNumber> {
    known(error.code())
}

fn known(code: Enum<ErrorNumber, u32>) -> Option<ErrorNumber> {
    match code {
        Enum::Known(number) => Some(number),
        Enum::Unknown(_) => None,
    }
}

fn denied(error: &Error) -> bool {
    error.message().contains("Permission denied")
        || error.message().contains("authentication")
        || matches!(number(error), Some(ErrorNumber::AuthFailed | ErrorNumber::AuthUnavailable))
}

/// The kind of failure with this code and text.
fn kind(number: Option<ErrorNumber>, text: &str) -> LibvirtErrorKind {
    match number {
        Some(ErrorNumber::NoDomain) => LibvirtErrorKind::NoDomain,
        Some(ErrorNumber::DeviceMissing) => LibvirtErrorKind::NoDevice,
        Some(ErrorNumber::NoDomainSnapshot) => LibvirtErrorKind::NoSnapshot,
        Some(ErrorNumber::BlockCopyActive) => LibvirtErrorKind::ActiveBlockJob,
        Some(ErrorNumber::OperationAborted) => LibvirtErrorKind::Aborted,
        // qemuDomainHotplugDelVcpu: "vcpu unplug request timed out. Unplug result must be manually inspected in the
        // domain".
        Some(ErrorNumber::OperationTimeout) if text.contains("unplug request timed out") => {
            LibvirtErrorKind::UnplugInProgress
        }
        // virDomainObjBeginJobInternal: "cannot acquire state change lock".
        Some(ErrorNumber::OperationTimeout) => LibvirtErrorKind::DomainBusy,
        _ => TEXTS.iter().find(|(part, _)| text.contains(part)).map_or(LibvirtErrorKind::Other, |(_, kind)| *kind),
    }
}

/// Parts of the texts of failures that have no code of their own. QEMU does not translate its texts. libvirt translates
/// into the language of its daemon, which runs without one unless somebody sets it.
const TEXTS: [(&str, LibvirtErrorKind); 9] = [
    // QEMU qmp_device_del: "Device ua-sriov-0 is already in the process of unplug".
    ("already in the process of unplug", LibvirtErrorKind::UnplugInProgress),
    // QEMU pcie_cap_slot_unplug_request_cb, shpc_device_unplug_request_cb: "Hot-unplug failed: guest is busy (power
    // indicator blinking)".
    ("guest is busy", LibvirtErrorKind::GuestBusy),
    // libvirt virDomainDefFindDevice, an internal error: "no device found with alias ua-sriov-0".
    ("no device found with alias", LibvirtErrorKind::NoDevice),
    // libvirt qemuDomainAbortJobFlags: "no job is active on the domain".
    ("no job is active", LibvirtErrorKind::NoJob),
    // libvirt qemuMigrationSrcIsAllowed, qemuSnapshotRevert: "domain has active block job".
    ("active block job", LibvirtErrorKind::ActiveBlockJob),
    // QEMU bdrv_op_is_blocked: "Node 'libvirt-1-format' is busy: block device is in use by block job: mirror".
    ("is in use by block job", LibvirtErrorKind::ActiveBlockJob),
    // QEMU vfio_container_dma_map: "vfio_dma_map(...) = -12 (Cannot allocate memory)".
    ("Cannot allocate memory", LibvirtErrorKind::NoMemory),
    // libvirt virProcessSetMaxMemLock: "cannot limit locked memory of process 4711 to 2147483648".
    ("cannot limit locked memory", LibvirtErrorKind::NoMemory),
    // libvirt virDomainObjBeginJobInternal: "cannot acquire state change lock ... due to max_queued limit".
    ("cannot acquire state change lock", LibvirtErrorKind::DomainBusy),
];

impl From<Error> for LibvirtError {
    fn from(error: Error) -> Self {
        Self::of_libvirt(error.code().to_raw(), error.message())
    }
}

impl fmt::Display for LibvirtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.advice {
            None => f.write_str(&self.text),
            Some(advice) => write!(f, "{} ({advice})", self.text),
        }
    }
}

impl std::error::Error for LibvirtError {}

/// `None` when libvirt fails with the code `absent`.
pub(super) fn found<T>(result: Result<T, Error>, absent: ErrorNumber) -> Result<Option<T>, LibvirtError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if number(&error) == Some(absent) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_come_from_codes_and_from_qemus_texts() {
        use LibvirtErrorKind::*;
        for (number, text, expected) in [
            (ErrorNumber::NoDomain, "Domain not found: no domain with matching uuid", NoDomain),
            (ErrorNumber::DeviceMissing, "device not found: host pci device 0000:07:00.3 not found", NoDevice),
            (ErrorNumber::InternalError, "internal error: no device found with alias ua-sriov-0", NoDevice),
            (ErrorNumber::OperationInvalid, "Requested operation is not valid: no job is active on the domain", NoJob),
            (ErrorNumber::NoDomainSnapshot, "Domain snapshot not found: ...", NoSnapshot),
            (
                ErrorNumber::BlockCopyActive,
                "block copy still active: disk vda already in active block job",
                ActiveBlockJob,
            ),
            (
                ErrorNumber::OperationInvalid,
                "Requested operation is not valid: domain has active block job",
                ActiveBlockJob,
            ),
            (
                ErrorNumber::InternalError,
                "internal error: unable to execute QEMU command 'block_resize': Node 'libvirt-1-format' is busy: block device \
                 is in use by block job: mirror",
                ActiveBlockJob,
            ),
            (ErrorNumber::OperationAborted, "operation aborted: migration out job: canceled by client", Aborted),
            (
                ErrorNumber::OperationTimeout,
                "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainSave)",
                DomainBusy,
            ),
            (
                ErrorNumber::OperationTimeout,
                "Timed out during operation: vcpu unplug request timed out. Unplug result must be manually inspected in the \
                 domain",
                UnplugInProgress,
            ),
            (
                ErrorNumber::InternalError,
                "internal error: unable to execute QEMU command 'device_del': Device ua-sriov-0 is already in the process \
                 of unplug",
                UnplugInProgress,
            ),
            (
                ErrorNumber::InternalError,
                "internal error: unable to execute QEMU command 'device_del': Hot-unplug failed: guest is busy (power \
                 indicator blinking)",
                GuestBusy,
            ),
            (
                ErrorNumber::InternalError,
                "internal error: unable to execute QEMU command 'device_add': vfio 0000:07:00.3: failed to setup container \
                 for group 11: memory listener initialization failed: Region pc.ram: vfio_dma_map(0x1, 0x0, 0x10000, 0x2) = \
                 -12 (Cannot allocate memory)",
                NoMemory,
            ),
            (ErrorNumber::OperationInvalid, "Requested operation is not valid: domain is not running", Other),
        ] {
            assert_eq!(kind(Some(number), text), expected, "{text}");
        }
        assert_eq!(kind(None, "odd"), Other);
    }
}
