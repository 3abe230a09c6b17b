//! What an operation left unfinished is seen and repaired.

use crate::base::DomainId;
use crate::error::Cause;
use crate::host::Host;
use crate::reconcile::{self, Explanation, Options, Report};

impl Host {
    /// Repairs the host: what every domain wants, has and claims is made equal. See [`reconcile`](crate::reconcile).
    ///
    /// # Errors
    /// libvirtd does not answer, or the state directory can't be used; nothing was changed. What fails for one domain
    /// is in the report and stops no other.
    pub fn reconcile(&self, options: &Options) -> Result<Report, Cause> {
        reconcile::reconcile(self, options)
    }

    /// All that is known of one domain, and what [`Host::reconcile`] would do to it. Changes nothing.
    ///
    /// # Errors
    /// There is no such domain and no claim of one, or it can't be read.
    pub fn explain(&self, domain: &DomainId) -> Result<Explanation, Cause> {
        reconcile::explain(self, domain)
    }
}
