//! What an action reports when it fails: what failed, on what, why, and the state in which it leaves the host.
//!
//! * `action` - [`ActionError`] and [`HostState`]
//! * `cause` - [`Cause`]: every reason for which an action fails
//! * `message` - the text of each cause
//! * `consequence` - what a program can conclude from a failure
//!
//! Higher modules find the reasons [`AgentError`], [`Doubt`], [`Obstacle`] and [`UnplugOutcome`]. They are defined here
//! so that a [`Cause`] can name them.

mod action;
mod agent;
mod cause;
mod consequence;
mod doubt;
mod message;
mod outcome;
mod refusal;

pub use action::{ActionError, HostState};
pub use agent::AgentError;
pub use cause::Cause;
pub use doubt::{Doubt, Obstacle};
pub use outcome::UnplugOutcome;
pub(crate) use refusal::RefusedVf;
