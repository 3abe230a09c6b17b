//! What libvirt says when it can't.

use std::fmt;

use nix::unistd::{User, geteuid};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};

/// A call to libvirt that failed: libvirt's own code and text, what kind of failure it is, and what to do about it.
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
    /// This user may not talk to libvirtd.
    NotAllowed,
    /// The call did not return in time. Whether it takes effect is not known.
    NoAnswer,
    /// The connection broke during the call. Whether it took effect is not known; the next call connects anew.
    Disconnected,
    /// The guest was asked to release this device before, and has not answered yet.
    UnplugInProgress,
    /// The guest works on another request for this slot: to be asked again later.
    GuestBusy,
    /// The domain has no such device.
    NoDevice,
    /// A block job runs on one of the domain's disks.
    ActiveBlockJob,
    /// The job was aborted.
    Aborted,
    /// The host can't lock the guest's memory.
    NoMemory,
    /// Anything else; code and text say what.
    Other,
}

impl LibvirtError {
    /// A failure of this kind, with libvirt's code (`virErrorNumber`, 0 when it is none of libvirt's) and text.
    pub fn new(kind: LibvirtErrorKind, code: u32, text: impl Into<String>) -> Self {
        Self { kind, code, text: text.into(), advice: None }
    }

    pub(super) fn no_answer(call: &str, seconds: u64) -> Self {
        Self::new(LibvirtErrorKind::NoAnswer, 0, format!("libvirt has not answered {call} for {seconds} s"))
    }

    pub(super) fn other(text: impl Into<String>) -> Self {
        Self::new(LibvirtErrorKind::Other, 0, text)
    }

    /// The failure to open a connection to `uri`, with what to do about it.
    pub(super) fn of_open(error: &Error, uri: &str) -> Self {
        let text = format!("cannot connect to libvirtd at {uri}: {}", error.message());
        let denied = error.message().contains("Permission denied")
            || error.message().contains("authentication")
            || matches!(number(error), Some(ErrorNumber::AuthFailed | ErrorNumber::AuthUnavailable));
        let (kind, advice) = if denied {
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

    /// What kind of failure it is.
    pub fn kind(&self) -> LibvirtErrorKind {
        self.kind
    }

    /// libvirt's code (`virErrorNumber`); 0 when the failure is none of libvirt's.
    pub fn code(&self) -> u32 {
        self.code
    }

    /// libvirt's text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

pub(super) fn number(error: &Error) -> Option<ErrorNumber> {
    match error.code() {
        Enum::Known(number) => Some(number),
        Enum::Unknown(_) => None,
    }
}

impl From<Error> for LibvirtError {
    fn from(error: Error) -> Self {
        let kind = match number(&error) {
            Some(ErrorNumber::NoDomain) => LibvirtErrorKind::NoDomain,
            _ => LibvirtErrorKind::Other,
        };
        Self::new(kind, error.code().to_raw(), error.message())
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
