//! A migration that the front-end orders: the source's agent runs the driver's own `migrate`, as OpenNebula would.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::lines::Lines;
use super::{AgentAnswer, MoveOrder, logged, unclear_state};
use crate::error::Cause;

/// The action. Its program is in the directory of the agent's.
const MIGRATE: &str = "migrate";

/// The longest line that the program writes, in bytes. Its message is one line.
const LONGEST_LINE: u64 = 64 * 1024;

/// How many of the program's last lines are its message, if it has not the driver's own form.
const LAST_LINES: usize = 10;

/// Migrates a VM of this host, logs what the action logs, and answers with the action's message.
///
/// * `driver_dir` - the directory of the driver's programs
///
/// # Errors
/// The program can't be started; nothing was changed.
pub(super) fn carry_out(driver_dir: &Path, order: &MoveOrder) -> Result<AgentAnswer, Cause> {
    let program = driver_dir.join(MIGRATE);
    let mut child = Command::new(&program)
        .args([order.id.to_string(), order.to.to_string()])
        .args(order.from.as_ref().map(ToString::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Cause::file("start", program))?;
    give(&mut child, order.data.as_deref().unwrap_or_default());
    let said = listen(&mut child);
    Ok(match child.wait() {
        Ok(status) if status.success() => AgentAnswer::Done,
        Ok(status) => failed(&said, status, order),
        Err(error) => unclear(format!("how {MIGRATE} ended is not known: {error}"), order),
    })
}

/// Writes the program's input. A program that ended without reading it says why on its standard error.
fn give(child: &mut Child, data: &str) {
    if let Some(Err(error)) = child.stdin.take().map(|mut input| input.write_all(data.as_bytes())) {
        log::debug!("{MIGRATE} did not read all of its input: {error}");
    }
}

/// Logs what the program logs, until it ends. Returns its other lines: its message.
fn listen(child: &mut Child) -> String {
    let mut said = VecDeque::new();
    for line in child.stderr.take().into_iter().flat_map(|errors| Lines::new(errors, LONGEST_LINE)) {
        match logged(&line.text, MIGRATE) {
            Some((level, text)) => log::log!(level, "{text}"),
            // For OpenNebula up to 6.0, marker lines are around the message.
            None if line.text.starts_with("ERROR MESSAGE ") => {}
            None => said.push_back(line.text),
        }
        if said.len() > LAST_LINES {
            said.pop_front();
        }
    }
    Vec::from(said).join(" ")
}

/// Splits the message of the failed program, "action: cause; state of the host", into cause and state.
fn failed(said: &str, status: ExitStatus, order: &MoveOrder) -> AgentAnswer {
    let text = said.strip_prefix(MIGRATE).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(said);
    let text = text.strip_suffix('.').unwrap_or(text);
    match text.rsplit_once("; ") {
        Some((cause, state)) => AgentAnswer::Failed { cause: cause.to_owned(), state: state.to_owned() },
        // The program was killed, or is not ours.
        None => unclear(format!("{MIGRATE} ended early ({status}) {text}").trim_end().to_owned(), order),
    }
}

fn unclear(cause: String, order: &MoveOrder) -> AgentAnswer {
    AgentAnswer::Failed { cause, state: unclear_state(&order.id) }
}
