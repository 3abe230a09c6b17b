//! What is wrong in a kvmrc, or in the settings of a root.

use std::io;
use std::path::PathBuf;

/// What is wrong in a kvmrc, or in the settings of a root, which have the same form. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmrcError {
    /// A line holds more than assignments.
    #[error("{}, line {line}: expected {expected}, found \"{found}\"", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the driver can read there.
        expected: &'static str,
        /// The text in the file, control characters escaped.
        found: String,
    },
    /// A value does not fit its variable.
    #[error("{}, line {line}: {variable}: expected {expected}, found \"{found}\"", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The variable.
        variable: &'static str,
        /// What fits.
        expected: &'static str,
        /// The text in the file, control characters escaped.
        found: String,
    },
    /// A variable that the driver does not use, and whose name resembles a used one. The line sets nothing.
    #[error("{}, line {line}: {name} sets nothing; is {likely} meant?", path.display())]
    Misspelt {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The name in the file.
        name: String,
        /// The name that is probably meant.
        likely: String,
    },
    /// A setting that no root has.
    #[error("{}, line {line}: {name} is no setting of a root: expected {known}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The name in the file.
        name: String,
        /// The settings of a root.
        known: &'static str,
    },
    /// The file exists, but can't be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
}
