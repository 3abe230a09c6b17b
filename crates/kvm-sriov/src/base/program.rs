//! Programs that the driver runs and waits for.

use std::io;
use std::process::{Command, Output, Stdio};

/// Runs a program without input and waits for its end.
///
/// # Errors
/// The program did not start, or it failed: see [`check`].
pub(crate) fn run(command: &mut Command) -> io::Result<()> {
    check(&command.stdin(Stdio::null()).output()?)
}

/// Whether a program that has ended succeeded.
///
/// # Errors
/// The program failed. The error's text is what the program wrote to standard error, as one line.
pub(crate) fn check(output: &Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(text.lines().map(str::trim).collect::<Vec<_>>().join(" ")))
}
