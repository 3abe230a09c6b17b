//! `migrate_local`: runs on the front-end, and has the source host move a running VM.

use super::Route;
use crate::agent::{Agent, AgentAnswer, AgentRequest, MoveOrder, Reach, unclear_state};
use crate::base::{Action, DomainId};
use crate::error::{ActionError, AgentError, Cause, HostState};

/// Has the agent on the source host move a running VM, as [`migrate`](super::migrate) does there. The move does not
/// depend on the front-end: it goes on when this process or its connection ends.
///
/// * `data` - OpenNebula's description of the VM and of its move
/// * `reach` - the way to the source, which forwards the keys for the source's own way to the destination
///
/// # Errors
/// As [`migrate`](super::migrate). Or the source can't be reached, and nothing was changed. Or the connection to the
/// source was lost, and only the two hosts show where the VM is.
///
/// # Source
/// OpenNebula's stock `migrate_local`.
pub fn migrate_local(id: &DomainId, route: &Route, data: Option<String>, reach: &dyn Reach) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(Action::MigrateLocal, cause);
    let Some(from) = route.from.clone() else {
        let problem = "expected the host that the VM is on, found none".into();
        return Err(untouched(Cause::Argument { name: "source", problem }));
    };
    let order = MoveOrder { id: id.clone(), from: Some(from.clone()), to: route.to.clone(), data };
    let mut agent = Agent::start(reach, &from).map_err(|error| untouched(error.into()))?;
    match agent.ask(&AgentRequest::Migrate(Box::new(order))) {
        Ok(AgentAnswer::Done) => Ok(()),
        Ok(AgentAnswer::Failed { cause: text, state }) => {
            Err(ActionError::new(Action::MigrateLocal, Cause::Elsewhere { host: from, text }, HostState::Left(state)))
        }
        Err(error @ AgentError::Refused { .. }) => Err(untouched(error.into())),
        Ok(other) => Err(lost(agent.unexpected(&other), id)),
        Err(error) => Err(lost(error, id)),
    }
}

fn lost(error: AgentError, id: &DomainId) -> ActionError {
    ActionError::new(Action::MigrateLocal, error, HostState::InDoubt(unclear_state(id)))
}
