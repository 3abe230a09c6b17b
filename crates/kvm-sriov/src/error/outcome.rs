//! What became of the request to release a device.

use std::fmt;

/// What became of the request to release one device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnplugOutcome {
    /// The live XML no longer shows the device.
    Released,
    /// The guest did not answer in time. The request can't be withdrawn, so the guest may release the device later.
    Pending,
    /// The guest or libvirt refused.
    Refused(String),
    /// The guest was not asked, because something else held the device or the domain all the time. The text is
    /// libvirt's.
    Busy(String),
    /// The domain ended.
    DomainGone,
    /// libvirtd went away and did not come back in time. Whether the guest released the device is not known.
    DaemonGone,
}

impl UnplugOutcome {
    /// Whether the guest may still release the device.
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Pending | Self::DaemonGone)
    }
}

impl fmt::Display for UnplugOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released => f.write_str("released"),
            Self::Pending => f.write_str("not released in time"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Busy(why) => write!(f, "busy: {why}"),
            Self::DomainGone => f.write_str("the domain ended meanwhile"),
            Self::DaemonGone => f.write_str("libvirtd went away and did not come back in time"),
        }
    }
}
