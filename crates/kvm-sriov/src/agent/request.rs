//! What a host asks an agent.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::message::Message;
use crate::base::ParseError;
use crate::base::{DomainId, DomainName, DomainUuid, HostName, Position};
use crate::xml::Wanted;

/// The time that every request may take besides the agent's calls of libvirt: the agent may wait for a lock or destroy
/// a domain.
const MARGIN: Duration = Duration::from_secs(120);

/// What a host asks an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentRequest {
    /// A VM is about to migrate to the agent's host: check and claim everything it needs, or claim nothing.
    Prepare(Box<IncomingVm>),
    /// Create an empty image for a disk that libvirt copies.
    Image {
        /// The path of the image.
        path: PathBuf,
        /// Its format, such as `qcow2`.
        format: String,
        /// The size that the guest sees, in bytes.
        size: u64,
    },
    /// Create a symbolic link.
    Symlink {
        /// The path of the link.
        path: PathBuf,
        /// The link's text: what it points to.
        target: PathBuf,
    },
    /// Remember a snapshot that the VM's disks hold; libvirt is told of it when the VM has come.
    Snapshot {
        /// Whether it is the VM's current snapshot.
        is_current: bool,
        /// Its XML.
        xml: String,
    },
    /// The source is about to call libvirt. From now on the VM may come, even when the source is lost.
    Go,
    /// The VM is gone from its source. Let its CPUs run, then give it its VFs, its snapshots and the time.
    Finish {
        /// The VM, for an agent that got no `Prepare`.
        uuid: DomainUuid,
        /// The id of this migration.
        id: String,
    },
    /// The VM does not come: release its claims, and remove what was made for it.
    Abort {
        /// Whether a domain of the VM that is there is destroyed. Only true when the VM's CPUs run elsewhere.
        destroy: bool,
    },
    /// Say where this VM is.
    State(DomainUuid),
    /// Migrate a VM of the agent's own host.
    Migrate(Box<MoveOrder>),
}

/// A VM that is about to migrate to the agent's host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IncomingVm {
    pub(crate) name: DomainName,
    pub(crate) uuid: DomainUuid,
    /// The id of this migration.
    pub(crate) id: String,
    /// The source; `None` when OpenNebula did not name it.
    pub(crate) from: Option<HostName>,
    /// The VFs it should have; `None` for a VM without VFs.
    pub(crate) wanted: Option<Wanted>,
    /// The positions of the NICs that have no VF on the source.
    pub(crate) lacking: Vec<Position>,
    /// The VM's directory, when storage is not shared and the agent must create it.
    pub(crate) dir: Option<PathBuf>,
}

/// A migration that the front-end asks the source's agent for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MoveOrder {
    pub(crate) id: DomainId,
    pub(crate) from: Option<HostName>,
    pub(crate) to: HostName,
    /// OpenNebula's description of the VM, if it sent one.
    pub(crate) data: Option<String>,
}

/// The state of the hosts when nobody knows how an ordered migration of this VM ended, for a person.
pub(crate) fn unclear_state(id: &DomainId) -> String {
    format!("the move may go on there; kvm-sriov explain {id} on both hosts tells where the VM is")
}

impl AgentRequest {
    /// How long the source waits for the answer. `None` for a whole migration, which takes as long as its copy and ends
    /// with its program.
    ///
    /// * `call` - how long one call of libvirt may take on the agent's host
    pub(super) fn limit(&self, call: Duration) -> Option<Duration> {
        let calls = match self {
            Self::Migrate(_) => return None,
            Self::Image { .. } | Self::Symlink { .. } | Self::Snapshot { .. } | Self::Go | Self::State(_) => 2,
            Self::Prepare(_) | Self::Abort { .. } => 4,
            // One for each VF that a VM can have, and 8 before and after.
            Self::Finish { .. } => 24,
        };
        Some(MARGIN + call * calls)
    }
}

impl Display for AgentRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = match self {
            Self::Prepare(vm) => Message::new("prepare")
                .with("vm", &vm.name)
                .with("uuid", &vm.uuid)
                .with("id", &vm.id)
                .with_some("from", vm.from.as_ref())
                .with_some("wanted", vm.wanted.as_ref().map(Wanted::to_unqualified_xml))
                .with_some("lacking", listed(&vm.lacking))
                .with_some("dir", vm.dir.as_ref().map(|dir| dir.display())),
            Self::Image { path, format, size } => {
                Message::new("image").with_path("path", path).with("format", format).with("size", size)
            }
            Self::Symlink { path, target } => {
                Message::new("symlink").with_path("path", path).with_path("target", target)
            }
            Self::Snapshot { is_current, xml } => Message::new("snapshot").with("current", is_current).with("xml", xml),
            Self::Go => Message::new("go"),
            Self::Finish { uuid, id } => Message::new("finish").with("uuid", uuid).with("id", id),
            Self::Abort { destroy } => Message::new("abort").with("destroy", destroy),
            Self::State(uuid) => Message::new("state").with("uuid", uuid),
            Self::Migrate(order) => Message::new("migrate")
                .with("vm", &order.id)
                .with_some("from", order.from.as_ref())
                .with("to", &order.to)
                .with_some("data", order.data.as_ref()),
        };
        message.fmt(f)
    }
}

impl FromStr for AgentRequest {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let message = Message::parse(line)?;
        Ok(match message.word.as_str() {
            "prepare" => Self::Prepare(Box::new(IncomingVm {
                name: message.value("vm")?,
                uuid: message.value("uuid")?,
                id: message.value("id")?,
                from: message.some("from")?,
                wanted: message.text("wanted").map(wanted).transpose()?,
                lacking: message.text("lacking").map(positions).transpose()?.unwrap_or_default(),
                dir: message.some("dir")?,
            })),
            "image" => Self::Image {
                path: message.value("path")?,
                format: message.value("format")?,
                size: message.value("size")?,
            },
            "symlink" => Self::Symlink { path: message.value("path")?, target: message.value("target")? },
            "snapshot" => Self::Snapshot { is_current: message.value("current")?, xml: message.value("xml")? },
            "go" => Self::Go,
            "finish" => Self::Finish { uuid: message.value("uuid")?, id: message.value("id")? },
            "abort" => Self::Abort { destroy: message.value("destroy")? },
            "state" => Self::State(message.value("uuid")?),
            "migrate" => Self::Migrate(Box::new(MoveOrder {
                id: message.value("vm")?,
                from: message.some("from")?,
                to: message.value("to")?,
                data: message.some("data")?,
            })),
            other => return Err(ParseError::new("a request of this version of the agent", other)),
        })
    }
}

/// Positions as they are written in a line, with `:` between them; `None` for no position.
fn listed(positions: &[Position]) -> Option<String> {
    let texts: Vec<String> = positions.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(":"))
}

fn positions(text: &str) -> Result<Vec<Position>, ParseError> {
    let position = |digits: &str| Position::new(digits.parse().map_err(|_| ParseError::new("a position", digits))?);
    text.split(':').map(position).collect()
}

/// Metadata that a newer version wrote are refused here, before the agent touches anything.
fn wanted(text: &str) -> Result<Wanted, ParseError> {
    Wanted::parse(text).map_err(|error| ParseError::new("metadata that this host can read", &error.to_string()))
}
