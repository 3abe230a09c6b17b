//! The error of this module.

use std::fmt::{self, Display};

use roxmltree::{Error, Node, TextPos};

use crate::base::is_hidden;

/// Why a text could not be read or changed, and where. Prints as one line: `line:column: expected ..., found ...`.
///
/// Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {problem}")]
pub struct XmlError {
    line: u32,
    column: u32,
    problem: String,
}

impl XmlError {
    /// The line, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The column in characters, from 1.
    pub fn column(&self) -> u32 {
        self.column
    }

    pub(in crate::xml) fn new(position: TextPos, problem: impl Display) -> Self {
        Self { line: position.row, column: position.col, problem: OneLine(problem).to_string() }
    }

    pub(in crate::xml) fn at(node: Node<'_, '_>, problem: impl Display) -> Self {
        Self::new(node.document().text_pos_at(node.range().start), problem)
    }

    pub(in crate::xml) fn in_text(text: &str, offset: usize, problem: impl Display) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let position = TextPos::new(
            count(before.matches('\n').count()).saturating_add(1),
            count(line.chars().count()).saturating_add(1),
        );
        Self::new(position, problem)
    }

    pub(in crate::xml) fn from_parser(text: &str, error: &Error) -> Self {
        let end = |problem| Self::in_text(text, text.len(), problem);
        let hint = "a < or & in a value must be written as &lt; or &amp;";
        match error {
            Error::UnexpectedEndOfStream => end("expected more, found the end of the text (is it cut off?)"),
            Error::UnclosedRootNode => {
                end("expected the end tag of the first element, found the end of the text (is it cut off?)")
            }
            Error::NoRootNode => end("expected an element, found none"),
            Error::MalformedEntityReference(at) => {
                Self::new(*at, format_args!("expected an entity such as &amp;, found a bare & ({hint})"))
            }
            Error::UnknownEntityReference(name, at) => {
                Self::new(*at, format_args!("expected one of XML's five entities, found &{name}; ({hint})"))
            }
            Error::InvalidChar(expected, found @ b'<', at) => Self::new(
                *at,
                format_args!("expected {}, found {} ({hint})", char::from(*expected), char::from(*found)),
            ),
            other => {
                let position = other.pos();
                // The parser's text ends with the position, which the message already has in front.
                Self::new(position, other.to_string().replace(&format!(" at {position}"), ""))
            }
        }
    }
}

/// Escapes control characters: text from outside must not break a line of the log or of OpenNebula's answer.
struct OneLine<T>(T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .to_string()
            .chars()
            .try_for_each(|c| if is_hidden(c) { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}
