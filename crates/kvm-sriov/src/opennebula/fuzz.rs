//! How OpenNebula's arguments and its input in base64 are read, for tests/fuzz.

use std::path::PathBuf;

use super::Call;
use crate::base::{Action, base64};
use crate::error::ActionError;
use crate::xml::VmNic;

/// Decodes base64 as the input of a network driver.
pub fn decoded(text: &str) -> Option<Vec<u8>> {
    base64(text)
}

/// The NIC that these arguments of `attach_nic` describe.
///
/// # Errors
/// As [`Call::nic`].
pub fn nic_of(args: &[&str]) -> Result<VmNic, ActionError> {
    Call::new(Action::AttachNic, args.iter().map(Into::into).collect(), PathBuf::new())?.nic(None)
}
