//! The hooks of a transfer driver: `save.<TM>` and `restore.<TM>` beside the actions' programs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::base::Action;
use crate::base::program;

/// A hook that exists, with its arguments and its standard input.
#[derive(Debug, Clone)]
pub struct Hook {
    program: PathBuf,
    args: Vec<String>,
    stdin: String,
}

impl Hook {
    /// The hook of an action for a transfer driver; `None` when there is no such program.
    ///
    /// * `args`, `stdin` - the action's arguments and standard input, which the hook gets as well
    /// * `tm_mad` - the name of the transfer driver
    pub fn find(driver_dir: &Path, action: Action, args: &[String], stdin: &str, tm_mad: Option<&str>) -> Option<Self> {
        let named =
            |tm: &&str| !tm.is_empty() && tm.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        let program = driver_dir.join(format!("{action}.{}", tm_mad.filter(named)?));
        program.is_file().then(|| Self { program, args: args.to_vec(), stdin: stdin.to_owned() })
    }

    /// Runs the hook. A failure is only logged, because the domain is saved, or can be restored, in any case.
    pub(crate) fn run(&self) {
        let outcome = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(|mut child| {
                if let Some(mut pipe) = child.stdin.take() {
                    // A hook need not read its input.
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
