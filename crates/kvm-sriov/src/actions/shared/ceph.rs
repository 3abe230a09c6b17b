//! A pool of Ceph that holds checkpoints. With a system datastore on Ceph the VM's directory is not shared, so another
//! host finds the checkpoint only in the pool.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::base::program;
use crate::error::Cause;

/// A pool of Ceph, and how `rbd` connects to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceph {
    /// The program: `rbd`.
    pub program: PathBuf,
    /// The pool.
    pub pool: String,
    /// The user (CEPH_USER).
    pub user: Option<String>,
    /// The configuration file of the cluster (CEPH_CONF).
    pub conf: Option<String>,
    /// The format of images (RBD_FORMAT).
    pub format: Option<String>,
}

impl Ceph {
    /// The image that holds the checkpoint of a VM.
    pub(crate) fn image(&self, vm: u32) -> String {
        format!("{}/one-sys-{vm}-checkpoint", self.pool)
    }

    /// Runs `rbd` with these arguments.
    pub(crate) fn rbd(&self, what: &str, args: &[&str]) -> Result<(), Cause> {
        let mut command = Command::new(&self.program);
        for (option, value) in [("--id", &self.user), ("--conf", &self.conf)] {
            if let Some(value) = value {
                command.arg(option).arg(value);
            }
        }
        let failed = |why: String| Err(Cause::Program { what: what.to_owned(), why });
        match command.args(args).stdin(Stdio::null()).output() {
            Ok(out) => program::check(&out).or_else(|said| failed(format!("rbd says \"{said}\""))),
            Err(error) => failed(format!("cannot run {}: {error}", self.program.display())),
        }
    }
}

pub(crate) fn text(path: &Path) -> Result<&str, Cause> {
    let odd = || Cause::Argument { name: "checkpoint", problem: format!("expected UTF-8, found {}", path.display()) };
    path.to_str().ok_or_else(odd)
}
