//! The agent: the driver's process on the other host of a migration, started through ssh.
//!
//! docs/reference/agent.md describes the protocol. A message is one line: a word and `name=value` pairs. No value is
//! ever a part of a command line.
//!
//! * `message` - one line: its word and its values
//! * `request`, `answer` - what a host asks an agent, and what the agent answers
//! * `presence` - where a VM is, seen from one host
//! * `lines` - the lines of a stream whose other end may send anything
//! * `conversation` - lines in both directions, and heartbeats
//! * `ssh` - how other hosts are reached
//! * `client` - the host that asks: starts the agent and talks to it
//! * `serve` - the agent itself
//! * `order` - the agent runs a whole migration for the front-end

mod answer;
mod client;
mod conversation;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod lines;
mod message;
mod order;
mod presence;
mod request;
mod serve;
mod ssh;
#[cfg(test)]
mod tests;

pub(crate) use answer::AgentAnswer;
pub use client::{Agent, ask_state};
pub use presence::Presence;
pub(crate) use request::{AgentRequest, IncomingVm, MoveOrder, unclear_state};
pub use serve::serve;
pub use ssh::{Link, Reach, Ssh};

/// The version of the protocol. Two hosts talk to each other only with the same version.
const VERSION: u32 = 2;

/// The first word of the agent's first line. Lines before it are the host's greeting.
const MAGIC: &str = "kvm-sriov-agent";

/// The name of the agent's program. It is in the directory of the actions.
const PROGRAM: &str = "sriov_agent";

/// The level and the text of a line that one of the driver's programs logged; `None` for any other line.
fn logged<'l>(line: &'l str, program: &str) -> Option<(log::Level, &'l str)> {
    let (severity, text) = line.split_once(": ")?;
    let level = match severity {
        "ERROR" => log::Level::Error,
        "WARN" => log::Level::Warn,
        "INFO" => log::Level::Info,
        "DEBUG" => log::Level::Debug,
        _ => return None,
    };
    Some((level, text.strip_prefix(program).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text)))
}
