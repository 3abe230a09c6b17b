//! What OpenNebula tells an action besides its arguments.

use crate::host::Hook;
use crate::xml::VmData;

/// What standard input said.
#[derive(Debug, Clone)]
pub struct Input {
    /// OpenNebula's description of the VM.
    pub vm: VmData,
    /// The hook of this action for the VM's transfer driver, if there is one.
    pub hook: Option<Hook>,
    /// All of it, for what only one action looks at.
    pub text: String,
}
