//! What the tests and the demo share: the built driver laid out as OpenNebula does, a lab host to call it on, and
//! deployment files in OpenNebula's form.

// A test may stop at the first surprise.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod behaviours;
pub mod caller;
pub mod daemon;
pub mod guest;
mod guest_cpu;
pub mod lab;
pub mod model;
pub mod remotes;
pub mod scenarios;
pub mod site;
pub mod vm;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long something may take that takes milliseconds.
const MOMENT: Duration = Duration::from_secs(60);

/// How long a call to libvirt may take that a test makes itself.
pub const CALL_LIMIT: Duration = MOMENT;

/// Waits until something is so that is so in a moment: a test that waits in vain fails, and says what for.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < MOMENT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The project's directory.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
