//! Hooks of a transfer driver: `save.<TM>` and `restore.<TM>` beside the actions.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::base::Action;
use crate::base::program;

/// A hook that is there and may be run, and what it is to be given.
#[derive(Debug, Clone)]
pub struct Hook {
    program: PathBuf,
    args: Vec<String>,
    stdin: String,
}

impl Hook {
    /// The hook of an action for the transfer driver that the XML on standard input names; `None` when there is none.
    ///
    /// * `args` - the action's own arguments, which the hook gets, too; `stdin` - so with its standard input
    pub fn find(driver_dir: &Path, action: Action, args: &[String], stdin: &str, tm_mad: Option<&str>) -> Option<Self> {
        let named =
            |tm: &&str| !tm.is_empty() && tm.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        let program = driver_dir.join(format!("{action}.{}", tm_mad.filter(named)?));
        program.is_file().then(|| Self { program, args: args.to_vec(), stdin: stdin.to_owned() })
    }

    /// Runs it. A failure is a line in the log: the domain is saved or can be restored all the same.
    pub(crate) fn run(&self) {
        let outcome = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(|mut child| {
                if let Some(mut pipe) = child.stdin.take() {
                    // A hook that does not read its input is no failure.
                    if let Err(error) = pipe.write_all(self.stdin.as_bytes()) {
                        log::debug!("{}: {error}", self.program.display());
                    }
                }
                child.wait_with_output()
            });
        match outcome {
            Ok(output) => {
                if let Err(said) = program::check(&output) {
                    log::error!("{} failed ({}): {said}", self.program.display(), output.status);
                }
            }
            Err(error) => log::error!("cannot run {}: {error}", self.program.display()),
        }
    }
}
