//! The answers of the agent in a guest, for tests/fuzz.

use super::shared::guest_command::{has_ended, process_in, returned};

/// The process id and whether the process has ended, each as far as this answer says it.
pub fn guest_answer(text: &str) -> (Option<u64>, Option<bool>) {
    returned(text).map_or((None, None), |answer| (process_in(&answer), has_ended(&answer)))
}
