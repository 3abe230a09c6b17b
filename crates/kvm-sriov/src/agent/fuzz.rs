//! What two agents say to each other, for tests/fuzz.

use std::io::{self, Cursor};

use super::conversation::{Conversation, Heartbeat};
use super::{AgentAnswer, AgentRequest};

/// Reads a request and writes it again.
///
/// # Errors
/// The line is no request. The text says why.
pub fn request(line: &str) -> Result<String, String> {
    line.parse().map(|request: AgentRequest| request.to_string()).map_err(|error| error.to_string())
}

/// Reads an answer and writes it again.
///
/// # Errors
/// The line is no answer. The text says why.
pub fn answer(line: &str) -> Result<String, String> {
    line.parse().map(|answer: AgentAnswer| answer.to_string()).map_err(|error| error.to_string())
}

/// The lines that arrive when the other end sends these bytes and closes its side.
///
/// # Errors
/// A thread could not be started.
pub fn arriving(bytes: Vec<u8>) -> io::Result<Vec<String>> {
    let conversation = Conversation::new(Cursor::new(bytes), io::sink(), Heartbeat::default())?;
    Ok(std::iter::from_fn(|| conversation.wait()).collect())
}
