//! A whole program: its user, its signals, its answer.

use std::io::{self, Write};

use super::place::driver_of;
use super::{Call, stderr_log};
use crate::base::span::{Kind, Span};
use crate::base::{Action, DomainId, signals};
use crate::claims;
use crate::config::OneVersion;
use crate::error::{ActionError, Cause, HostState};
use crate::host::{Host, become_owner_of, detached};

/// Runs one action and answers as the caller's version expects. A shim's `main` consists of this call.
///
/// * returns the exit code of the program
///
/// As root the process first becomes the owner of the program's directory, so that all files of the driver have one
/// owner. On SIGTERM and SIGHUP the action goes on until it has finished, or has undone what it began.
pub fn run(action: Action, body: impl FnOnce(&Call) -> Result<Option<String>, ActionError>) -> u8 {
    signals::hold();
    claims::this_is_program(action);
    answer(action, body)
}

/// As [`run`], for a program that an action started for a domain and that goes on after the action has ended. SIGTERM
/// ends it.
pub fn run_detached(action: Action, body: impl FnOnce(&Host, &DomainId) -> Result<(), Cause>) -> u8 {
    detached::detach();
    answer(action, |call| {
        let failed = |cause| ActionError::new(action, cause, HostState::RunsOn);
        body(&call.host_lenient()?, &call.arg(0, "deploy id")?).map(|()| None).map_err(failed)
    })
}

fn answer(action: Action, body: impl FnOnce(&Call) -> Result<Option<String>, ActionError>) -> u8 {
    stderr_log::to_stderr(action);
    let _span = Span::begin(Kind::Action, action.as_str());
    let driver_dir = driver_of(&std::env::current_exe().unwrap_or_default());
    let outcome = become_owner_of(&driver_dir)
        .map_err(|cause| ActionError::untouched(action, cause))
        .and_then(|()| Call::new(action, std::env::args_os().skip(1).collect(), driver_dir.clone()))
        .and_then(|call| body(&call));
    match outcome {
        Ok(answer) => answer.map_or(0, |line| print_answer(action, &line)),
        Err(error) => {
            let text = OneVersion::detect(&driver_dir).failure(&error.to_string());
            // With a closed standard error only the exit code is left to tell.
            match io::stderr().write_all(text.as_bytes()) {
                Ok(()) | Err(_) => error.exit_code(),
            }
        }
    }
}

/// Prints the answer. A closed standard output does not undo the action, so its error is not an action's failure.
fn print_answer(action: Action, line: &str) -> u8 {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => 0,
        Err(error) => {
            log::error!(
                "cannot write the answer of {action}: {error}; {action} itself succeeded (state: {:?})",
                HostState::Done
            );
            1
        }
    }
}
