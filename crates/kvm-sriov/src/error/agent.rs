//! A failure around the agent on another host.

use crate::base::HostName;

/// A failure around an agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The agent could not be started. Nothing was touched there.
    #[error("cannot start the agent on {host}: {why}")]
    NotStarted {
        /// The host.
        host: HostName,
        /// What ssh or the system said.
        why: String,
    },
    /// The agent is of another version. Nothing was touched there.
    #[error(
        "the agent on {host} speaks version {found} of the protocol, this host version {own}: copy the drivers to \
         all hosts (onehost sync -f)"
    )]
    Version {
        /// The host.
        host: HostName,
        /// Its version.
        found: String,
        /// The version of this host.
        own: u32,
    },
    /// The agent refused. Nothing was changed there by what was asked.
    #[error("{host}: {why}")]
    Refused {
        /// The host.
        host: HostName,
        /// Why.
        why: String,
    },
    /// The connection to the agent was lost.
    #[error("the agent on {host} was lost{why}")]
    Lost {
        /// The host.
        host: HostName,
        /// What is known, after a colon; or nothing.
        why: String,
    },
    /// The agent did not answer in time. What it was asked for may be done all the same.
    #[error("the agent on {host} has not answered \"{asked}\" for {seconds} s")]
    NoAnswer {
        /// The host.
        host: HostName,
        /// What it was asked.
        asked: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The agent said something that is no answer.
    #[error("the agent on {host} said {what}")]
    Unexpected {
        /// The host.
        host: HostName,
        /// What it said.
        what: String,
    },
    /// Files could not be copied to the other host.
    #[error("cannot copy {what} to {host}: {why}")]
    Copy {
        /// The host.
        host: HostName,
        /// Which files.
        what: String,
        /// What rsync said.
        why: String,
    },
}
