//! The operation that is under way on a domain.

use std::fmt::{self, Display};
use std::path::PathBuf;

use roxmltree::Node;

use super::element::{Element, KeptContent};
use super::nic::position;
use crate::base::{ParseError, Position};
use crate::xml::XmlError;
use crate::xml::read::{attribute, required};

/// An operation on a domain that has not been finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Which one.
    pub kind: OperationKind,
    /// What a later version put here.
    pub kept: KeptContent,
}

/// Which operation it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperationKind {
    /// The VFs are out or on their way, and the domain goes into a file.
    Save,
    /// The domain came from a file, paused, and its VFs are not all in.
    Restore {
        /// The file. While it has this name no CPU of the domain has run.
        checkpoint: PathBuf,
    },
    /// The domain is moving.
    Migrate {
        /// The destination, as OpenNebula names it.
        to: String,
        /// Names this one move, on both hosts.
        id: String,
        /// The source, as OpenNebula names it, if it did.
        from: Option<String>,
        /// Whether the CPUs stood when the move began: then nobody but its user lets the VM run.
        was_paused: bool,
    },
    /// The guest was asked to release VFs and has not done so in time. It may do so later; then they are plugged back.
    PendingUnplug {
        /// The NICs whose VFs these are.
        positions: Vec<Position>,
    },
    /// One of a later version: not ours to finish.
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
            // The path came from a text: an argument, or this attribute.
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

/// The name, as the metadata have it.
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

/// The one value of an attribute that is only there when something is so.
fn yes(text: &str) -> Result<(), ParseError> {
    if text == "yes" { Ok(()) } else { Err(ParseError::new("yes", text)) }
}
