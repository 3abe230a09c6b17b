//! The two hosts of a migration.

use crate::base::HostName;

/// The source and the destination of a migration, by the names that OpenNebula has for the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The source; `None` when OpenNebula does not name it.
    pub from: Option<HostName>,
    /// The destination.
    pub to: HostName,
}
