//! From where to where a VM moves.

use crate::base::HostName;

/// From where to where a VM goes, as OpenNebula names the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// This host; `None` when OpenNebula did not say.
    pub from: Option<HostName>,
    /// The destination.
    pub to: HostName,
}
