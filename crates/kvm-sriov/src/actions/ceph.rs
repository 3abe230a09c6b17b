//! `save.ceph` and `restore.ceph`: a checkpoint of a VM whose system datastore is Ceph lies in its pool, because the directory of
//! the VM is not there on the host that it goes on on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config;
use crate::error::{ActionError, Cause, HostState};
use crate::vm::checkpoint;
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
    fn image(&self, vm: u32) -> String {
        format!("{}/one-sys-{vm}-checkpoint", self.pool)
    }

    /// Runs `rbd` with these arguments.
    fn rbd(&self, what: &str, args: &[&str]) -> Result<(), Cause> {
        let mut command = Command::new(&self.program);
        for (option, value) in [("--id", &self.user), ("--conf", &self.conf)] {
            if let Some(value) = value {
                command.arg(option).arg(value);
            }
        }
        let failed = |why: String| Err(Cause::Program { what: what.to_owned(), why });
        match command.args(args).stdin(Stdio::null()).output() {
            Ok(out) if out.status.success() => Ok(()),
            Ok(out) => {
                let said = String::from_utf8_lossy(&out.stderr);
                failed(format!("rbd says \"{}\"", said.lines().map(str::trim).collect::<Vec<_>>().join(" ")))
            }
            Err(error) => failed(format!("cannot run {}: {error}", self.program.display())),
        }
    }
}

/// Moves a checkpoint into the pool. An image of an earlier save is of no use any more: the VM has run since.
///
/// # Errors
/// The checkpoint is where it was, and `restore` takes it from there.
///
/// # Source
/// OpenNebula's stock `save.ceph`.
pub fn save_ceph(ceph: &Ceph, checkpoint: &Path, vm: u32) -> Result<(), ActionError> {
    let failed = |cause| {
        ActionError::new("save.ceph", cause, HostState::Left(format!("the checkpoint stays {}", checkpoint.display())))
    };
    let image = ceph.image(vm);
    let file = text(checkpoint).map_err(failed)?;
    if ceph.rbd("find the image", &["info", &image]).is_ok() {
        ceph.rbd(&format!("remove the old {image}"), &["rm", "--no-progress", &image]).map_err(failed)?;
    }
    let mut import = vec!["import", "--no-progress"];
    if let Some(format) = &ceph.format {
        import.extend(["--image-format", format]);
    }
    import.extend([file, &image]);
    ceph.rbd(&format!("import the checkpoint into {image}"), &import).map_err(failed)?;
    fs::remove_file(checkpoint).map_err(|error| failed(Cause::file("remove", checkpoint)(error)))
}

/// Moves a checkpoint from the pool back into its file. The file has its name only when it is complete.
///
/// # Errors
/// The checkpoint is still in the pool.
///
/// # Source
/// OpenNebula's stock `restore.ceph`.
pub fn restore_ceph(ceph: &Ceph, checkpoint: &Path, vm: u32) -> Result<(), ActionError> {
    let image = ceph.image(vm);
    let failed =
        |cause| ActionError::new("restore.ceph", cause, HostState::Left(format!("the checkpoint stays in {image}")));
    let mut name = std::ffi::OsString::from(".");
    name.push(checkpoint.file_name().unwrap_or_default());
    name.push(".ceph");
    let unfinished = checkpoint.with_file_name(name);
    let file = text(&unfinished).map_err(failed)?;
    let remove = || match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Cause::file("remove", &unfinished)(error)),
        _ => Ok(()),
    };
    // What a dead process left.
    remove().map_err(failed)?;
    let exported = ceph
        .rbd(&format!("export the checkpoint from {image}"), &["export", "--no-progress", &image, file])
        .and_then(|()| match checkpoint::is_complete(&unfinished) {
            Ok(true) => fs::rename(&unfinished, checkpoint).map_err(Cause::file("rename", &unfinished)),
            Ok(false) => Err(Cause::BadImage { path: unfinished.clone() }),
            Err(error) => Err(Cause::file("read", &unfinished)(error)),
        });
    if let Err(cause) = exported {
        return Err(failed(match remove() {
            Ok(()) => cause,
            Err(undo) => Cause::Twice { cause: Box::new(cause), undo: Box::new(undo) },
        }));
    }
    if let Err(cause) = ceph.rbd(&format!("remove {image}"), &["rm", "--no-progress", &image]) {
        log::warn!("{cause}; the checkpoint is {} now, the next save removes the image", checkpoint.display());
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str, Cause> {
    let odd = || Cause::Argument { name: "checkpoint", problem: format!("expected UTF-8, found {}", path.display()) };
    path.to_str().ok_or_else(odd)
}
