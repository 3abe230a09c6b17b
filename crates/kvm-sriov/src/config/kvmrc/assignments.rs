//! The variables that files set.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::KvmrcError;
use super::lexer::{self, LogicalLine, Unreadable};
use crate::base::file;

/// The size limit of a kvmrc, in bytes.
const LIMIT: u64 = 256 * 1024;

/// A value, and the line that set it.
pub(in crate::config) struct Setting {
    pub(in crate::config) value: String,
    pub(in crate::config) path: PathBuf,
    pub(in crate::config) line: usize,
}

/// The variables that the files set; later files override earlier ones.
pub(in crate::config) struct Assignments {
    pub(in crate::config) values: BTreeMap<String, Setting>,
    pub(in crate::config) problems: Vec<KvmrcError>,
    /// The lines that can't be read and only set variables that are not used.
    pub(in crate::config) warnings: Vec<String>,
    is_used: fn(&str) -> bool,
}

impl Assignments {
    /// * `is_used` - whether the driver uses a variable of this name
    pub(in crate::config) fn new(is_used: fn(&str) -> bool) -> Self {
        Self { values: BTreeMap::new(), problems: Vec::new(), warnings: Vec::new(), is_used }
    }

    pub(in crate::config) fn read(&mut self, path: &Path) {
        let mut bytes = Vec::new();
        let read = file::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes)).and_then(|length| {
            if length as u64 > LIMIT {
                Err(io::Error::other(format!("the file is longer than {LIMIT} bytes")))
            } else {
                Ok(())
            }
        });
        match read {
            Ok(()) => self.parse(path, &String::from_utf8_lossy(&bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => self.problems.push(KvmrcError::Unreadable { path: path.into(), error }),
        }
    }

    fn parse(&mut self, path: &Path, text: &str) {
        for LogicalLine { number: line, content } in lexer::lines(text) {
            match content {
                Ok(assignments) => {
                    for (name, value) in assignments {
                        self.values.insert(name, Setting { value, path: path.into(), line });
                    }
                }
                Err(Unreadable { expected, found, only_sets }) => {
                    let error = KvmrcError::Line { path: path.into(), line, expected, found };
                    if only_sets.is_some_and(|name| !(self.is_used)(&name)) {
                        self.warnings.push(error.to_string());
                    } else {
                        self.problems.push(error);
                    }
                }
            }
        }
    }
}
