//! What became of the request to release a device.

use std::fmt;

/// What became of the request to release one device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnplugOutcome {
    /// The live XML no longer shows it.
    Released,
    /// The guest did not answer in time; the request can't be taken back, so it may still leave.
    Pending,
    /// It was refused, by the guest or by libvirt.
    Refused(String),
    /// The guest was not asked, because something else had the device or the domain all the time: libvirt's text.
    Busy(String),
    /// The domain ended meanwhile.
    DomainGone,
    /// libvirtd did not come back in time, so it is not known.
    DaemonGone,
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
