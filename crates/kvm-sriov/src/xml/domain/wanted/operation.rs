//! The operation in progress on a domain.

use std::fmt::{self, Display};
use std::path::PathBuf;

use roxmltree::Node;

use super::element::{Element, KeptContent};
use super::nic::position;
use crate::base::{ParseError, Position};
use crate::xml::XmlError;
use crate::xml::read::{attribute, required};

/// An operation on a domain that is in progress or was interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The kind of operation.
    pub kind: OperationKind,
    /// Content of a later version.
    pub kept: KeptContent,
}

/// The kind of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperationKind {
    /// A save: the VFs are unplugged or being unplugged, and the domain is saved into a file. The claims name the file.
    Save,
    /// A restore: the domain was started from a file and is paused; not all its VFs are plugged.
    Restore {
        /// The file. As long as it has this name, no CPU of the domain has run.
        checkpoint: PathBuf,
    },
    /// A migration.
    Migrate {
        /// OpenNebula's name of the destination.
        to: String,
        /// Identifies this migration on both hosts.
        id: String,
        /// OpenNebula's name of the source, if known.
        from: Option<String>,
        /// Whether the CPUs were stopped when the migration began. Then only the VM's user resumes the VM.
        was_paused: bool,
    },
    /// The guest did not release VFs in time. If it releases them later, they are plugged back.
    PendingUnplug {
        /// The positions of the NICs of these VFs.
        positions: Vec<Position>,
    },
    /// An operation of a later version, which this version can't finish.
    Other(String),
}

impl Operation {
    pub(super) fn read(node: Node<'_, '_>) -> Result<Self, XmlError> {
        let text = |value: &str| Ok(value.to_owned());
        let kind = match required(node, "kind", text)?.as_str() {
            "save" => OperationKind::Save,
            "restore" => OperationKind::Restore { checkpoint: required(node, "checkpoint", text)?.into() },
            "migrate" => OperationKind::Migrate {
                to: required(node, "to", text)?,
                id: required(node, "id", text)?,
                from: attribute(node, "from", text)?,
                was_paused: attribute(node, "stands", yes)?.is_some(),
            },
            "pending-unplug" => {
                let positions = required(node, "positions", |list| list.split(' ').map(position).collect())?;
                OperationKind::PendingUnplug { positions }
            }
            other => OperationKind::Other(other.to_owned()),
        };
        let known: &[&str] = match kind {
            OperationKind::Migrate { .. } => &["kind", "to", "id", "from", "stands"],
            OperationKind::Restore { .. } => &["kind", "checkpoint"],
            OperationKind::PendingUnplug { .. } => &["kind", "positions"],
            OperationKind::Save | OperationKind::Other(_) => &["kind"],
        };
        Ok(Self { kind, kept: KeptContent::read(node, known, &[]) })
    }

    pub(super) fn element(&self) -> Element {
        let mut attributes = vec![("kind", Some(self.kind.to_string()))];
        match &self.kind {
            OperationKind::Migrate { to, id, from, was_paused } => {
                attributes.extend([("to", Some(to.clone())), ("id", Some(id.clone())), ("from", from.clone())]);
                attributes.push(("stands", was_paused.then(|| "yes".to_owned())));
            }
            // The path is UTF-8: it came from an argument or from this attribute.
            OperationKind::Restore { checkpoint } => {
                attributes.push(("checkpoint", Some(checkpoint.to_string_lossy().into_owned())));
            }
            OperationKind::PendingUnplug { positions } => {
                let positions: Vec<String> = positions.iter().map(ToString::to_string).collect();
                attributes.push(("positions", Some(positions.join(" "))));
            }
            OperationKind::Save | OperationKind::Other(_) => {}
        }
        Element::new("operation", attributes).with_kept(&self.kept)
    }
}

impl From<OperationKind> for Operation {
    fn from(kind: OperationKind) -> Self {
        Self { kind, kept: KeptContent::default() }
    }
}

/// The name in the metadata.
impl Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Save => "save",
            Self::Restore { .. } => "restore",
            Self::Migrate { .. } => "migrate",
            Self::PendingUnplug { .. } => "pending-unplug",
            Self::Other(name) => name,
        })
    }
}

/// The only value of an attribute that is present only if it is true.
fn yes(text: &str) -> Result<(), ParseError> {
    if text == "yes" { Ok(()) } else { Err(ParseError::new("yes", text)) }
}
