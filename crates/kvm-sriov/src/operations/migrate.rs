//! Moves a running domain to another host.

use crate::actions::{self, Route};
use crate::agent::Reach;
use crate::base::{DomainId, HostName};
use crate::error::ActionError;
use crate::host::Host;

impl Host {
    /// Moves a running domain to the host `to`, whose agent claims VFs before anything happens here. The guest has its
    /// VFs again, at the same guest addresses, when this returns.
    ///
    /// * `reach` - how the agent on `to` is started, such as [`Ssh`](crate::agent::Ssh)
    ///
    /// # Errors
    /// The domain runs on here with its VFs, and nothing is claimed on `to`; or the state in the error says what is
    /// left. [`ActionError::cause`] is [`Cause::UnknownThere`](crate::Cause::UnknownThere) when nobody knows where the
    /// domain runs: [`resolve`](crate::reconcile::resolve) ends that.
    pub fn migrate(&self, domain: &DomainId, to: &HostName, reach: &dyn Reach) -> Result<(), ActionError> {
        let route = Route { from: None, to: to.clone() };
        actions::migrate(self, domain, &route, None, reach)
    }
}
