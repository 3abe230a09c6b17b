//! Saves a domain into a file and restores it.

use std::path::Path;

use crate::actions;
use crate::base::DomainId;
use crate::error::ActionError;
use crate::host::Host;

impl Host {
    /// Saves a running domain into `file` and ends it. Its VFs are unplugged before and free afterwards.
    ///
    /// # Errors
    /// The domain runs on with its VFs, or the state in the error says what is left. `file` holds no image that could
    /// be restored.
    pub fn save(&self, domain: &DomainId, file: &Path) -> Result<(), ActionError> {
        actions::save(self, domain, file, None)
    }

    /// Starts the domain that [`Host::save`] put into `file`, with free VFs at the guest addresses that it had, and
    /// removes the file.
    ///
    /// # Errors
    /// Nothing runs, nothing is claimed, and the file is as it was. Once a CPU of the domain may have run, the file is
    /// never used again; the state in the error then says what is left.
    pub fn restore(&self, file: &Path) -> Result<(), ActionError> {
        actions::restore(self, file, None)
    }
}
