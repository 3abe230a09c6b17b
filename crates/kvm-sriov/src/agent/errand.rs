//! A move that the front-end asks for: the agent on the source starts the driver's own `migrate`, as OpenNebula would.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{AgentAnswer, MoveOrder, logged};
use crate::error::Cause;

/// The action, and its program beside the agent's.
const MIGRATE: &str = "migrate";

/// Moves a VM of this host, and answers with what the action said. What it logs is logged here.
///
/// * `driver_dir` - where the driver's programs lie
///
/// # Errors
/// The program can't be started; nothing was changed.
pub(super) fn migrate(driver_dir: &Path, order: &MoveOrder) -> Result<AgentAnswer, Cause> {
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

/// A program that ended without reading its input says why on its standard error.
fn give(child: &mut Child, data: &str) {
    if let Some(Err(error)) = child.stdin.take().map(|mut input| input.write_all(data.as_bytes())) {
        log::debug!("{MIGRATE} did not read all of its input: {error}");
    }
}

/// Logs what the program logs until it ends; the rest is its message.
fn listen(child: &mut Child) -> String {
    let lines = child.stderr.take().into_iter().flat_map(|errors| BufReader::new(errors).lines());
    let mut said = Vec::new();
    for line in lines.map_while(io::Result::ok) {
        match logged(&line, MIGRATE) {
            Some((level, text)) => log::log!(level, "{text}"),
            // What stands around a message up to OpenNebula 6.0.
            None if line.starts_with("ERROR MESSAGE ") => {}
            None => said.push(line),
        }
    }
    said.join(" ")
}

/// An action's message is `action: cause; state of the host`.
fn failed(said: &str, status: ExitStatus, order: &MoveOrder) -> AgentAnswer {
    let text = said.strip_prefix(MIGRATE).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(said);
    let text = text.strip_suffix('.').unwrap_or(text);
    match text.rsplit_once("; ") {
        Some((cause, state)) => AgentAnswer::Failed { cause: cause.to_owned(), state: state.to_owned() },
        // It was killed, or is no program of ours.
        None => unclear(format!("{MIGRATE} ended early ({status}) {text}").trim_end().to_owned(), order),
    }
}

fn unclear(cause: String, order: &MoveOrder) -> AgentAnswer {
    let state = format!("the move may go on there; kvm-sriov explain {} on both hosts tells where the VM is", order.id);
    AgentAnswer::Failed { cause, state }
}
