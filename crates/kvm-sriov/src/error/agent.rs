//! A failure around the agent on another host.

use crate::base::HostName;

/// A failure around the agent on another host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The agent could not be started. It changed nothing on its host.
    #[error("cannot start the agent on {host}: {why}")]
    NotStarted {
        /// The host.
        host: HostName,
        /// What ssh or the system said.
        why: String,
    },
    /// The agent speaks another version of the protocol. It changed nothing on its host.
    #[error(
        "the agent on {host} speaks version {found} of the protocol, this host version {own}: copy the drivers to \
         all hosts (onehost sync -f)"
    )]
    Version {
        /// The host.
        host: HostName,
        /// The version of the agent.
        found: String,
        /// The version of this host.
        own: u32,
    },
    /// The agent refused the request. The request changed nothing on the agent's host.
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
        /// What is known, after a colon; or empty.
        why: String,
    },
    /// The agent did not answer in time. It may still do what it was asked.
    #[error("the agent on {host} has not answered \"{asked}\" for {seconds} s")]
    NoAnswer {
        /// The host.
        host: HostName,
        /// The request.
        asked: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// The agent sent something that is not an answer to the request.
    #[error("the agent on {host} said {what}")]
    Unexpected {
        /// The host.
        host: HostName,
        /// What it sent.
        what: String,
    },
    /// Files could not be copied to the other host.
    #[error("cannot copy {what} to {host}: {why}")]
    Copy {
        /// The host.
        host: HostName,
        /// The files.
        what: String,
        /// What rsync said.
        why: String,
    },
}
