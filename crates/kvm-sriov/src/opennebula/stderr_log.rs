//! Log lines on standard error, in the form that OpenNebula filters.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::base::{Action, printable};

/// The largest number of log lines of one action. From 6.2 to 6.10 OpenNebula adds all of them to the user's error
/// message.
const LOG_LINES: usize = 20;

/// Writes each log record as one line that starts with its severity.
struct StderrLog {
    action: Action,
    written: AtomicUsize,
}

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::LevelFilter::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) || self.written.fetch_add(1, Ordering::Relaxed) >= LOG_LINES {
            return;
        }
        let text = printable(&record.args().to_string());
        let line = format!("{}: {}: {text}\n", record.level(), self.action);
        // With a closed standard error nobody reads log lines.
        match io::stderr().write_all(line.as_bytes()) {
            Ok(()) | Err(_) => {}
        }
    }

    fn flush(&self) {}
}

/// Sends this program's log lines to standard error. A process that has a logger already keeps it, and its level.
pub(super) fn to_stderr(action: Action) {
    static LOG: OnceLock<StderrLog> = OnceLock::new();
    let log = LOG.get_or_init(|| StderrLog { action, written: AtomicUsize::new(0) });
    if log::set_logger(log).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
