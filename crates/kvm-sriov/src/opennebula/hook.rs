//! The hooks of a transfer driver: `save.<TM>` and `restore.<TM>` beside the actions' programs.

use std::io::{self, Seek, Write};
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
        let outcome = self.input().and_then(|input| {
            let mut hook = Command::new(&self.program);
            hook.args(&self.args).stdin(input).stdout(Stdio::null()).stderr(Stdio::piped()).output()
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

    /// The standard input as a file without a name. A pipe would have to be written while the hook runs, which may first
    /// write more than a pipe holds, or never read.
    fn input(&self) -> io::Result<Stdio> {
        let mut file = tempfile::tempfile()?;
        file.write_all(self.stdin.as_bytes())?;
        file.rewind()?;
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_hook_may_write_much_before_it_reads() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, read) = (dir.path().join("save.ceph"), dir.path().join("read"));
        let script = format!("#!/bin/sh\nhead -c 300000 /dev/zero >&2\ncat >{}\n", read.display());
        fs::write(&hook, script).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let stdin = "x".repeat(300_000);
        Hook::find(dir.path(), Action::Save, &[], &stdin, Some("ceph")).unwrap().run();
        assert_eq!(fs::read_to_string(read).unwrap(), stdin);
    }
}
