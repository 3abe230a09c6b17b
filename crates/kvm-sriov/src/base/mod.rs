//! Names, addresses and functions that do not depend on the rest of the crate.

mod action;
mod base64;
pub(crate) mod file;
mod mac;
mod mode;
mod mutex;
mod names;
mod order;
mod owner;
mod pci;
mod printable;
pub(crate) mod program;
pub(crate) mod signals;
pub(crate) mod span;

use std::time::Duration;

pub use action::Action;
pub(crate) use base64::base64;
pub use mac::{DummyMacPrefix, MacAddress, Position};
pub use mode::NicMode;
pub(crate) use mutex::lock;
pub use names::{DomainId, DomainName, DomainUuid, HostName, RootName, SnapshotName};
pub(crate) use order::ascending;
pub use owner::{NicKey, Owner, WantedVf};
pub use pci::{ParseError, PciAddress};
pub use printable::printable;
pub(crate) use printable::{escaped, is_hidden};

/// How long to wait between two reads of a state whose change no event announces.
pub(crate) const POLL: Duration = Duration::from_millis(100);
