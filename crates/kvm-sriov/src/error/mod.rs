//! What an action reports when it fails: what, on what, why, and in what state the host is left.
//!
//! The reasons that higher rooms find ([`AgentError`], [`Doubt`], [`Obstacle`], [`UnplugOutcome`]) are defined here, so that a
//! [`Cause`] can name them.

mod action;
mod agent;
mod cause;
mod doubt;
mod outcome;
mod refusal;

pub use action::{ActionError, HostState};
pub use agent::AgentError;
pub use cause::Cause;
pub use doubt::{Doubt, Obstacle};
pub use outcome::UnplugOutcome;
pub(crate) use refusal::RefusedVf;
