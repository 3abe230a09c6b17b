//! `save.ceph` and `restore.ceph`: a checkpoint of a VM whose system datastore is Ceph lies in its pool, because the directory of
//! the VM is not there on the host that it goes on on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::base::program;
use crate::config;
use crate::error::Cause;
use crate::xml;

/// A pool of Ceph, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceph {
    /// The program: `rbd`.
    pub program: PathBuf,
    /// The pool.
    pub pool: String,
    /// Its user (CEPH_USER).
    pub user: Option<String>,
    /// The cluster's file (CEPH_CONF).
    pub conf: Option<String>,
    /// The format of images (RBD_FORMAT).
    pub format: Option<String>,
}

impl Ceph {
    /// What OpenNebula says of the system datastore and, where it says nothing, `etc/datastore/ceph/ceph.conf` of its remotes.
    ///
    /// * `message` - `VMM_DRIVER_ACTION_DATA`
    ///
    /// # Errors
    /// The message can't be read.
    pub fn of(message: &str, driver_dir: &Path) -> Result<Self, Cause> {
        let names = ["CEPH_USER", "CEPH_CONF", "POOL_NAME", "RBD_FORMAT"];
        let said = xml::datastore_values(message, names)
            .map_err(|source| Cause::Xml { what: "the XML on standard input".into(), source })?;
        let defaults = config::variables(&driver_dir.join("../../etc/datastore/ceph/ceph.conf"));
        let [user, conf, pool, format] = said;
        let or_default = |said: Option<String>, name: &str| said.or_else(|| defaults.get(name).cloned());
        Ok(Self {
            program: "rbd".into(),
            pool: or_default(pool, "POOL_NAME").unwrap_or_else(|| "one".into()),
            user: or_default(user, "CEPH_USER"),
            conf: or_default(conf, "CEPH_CONF"),
            format: or_default(format, "RBD_FORMAT"),
        })
    }

    /// The image that the checkpoint of a VM is in.
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
