//! What the tests and the demo share: the built driver laid out as OpenNebula does, a lab host to call it on, and
//! deployment files in OpenNebula's form.

// A test may stop at the first surprise.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod behaviours;
pub mod caller;
pub mod daemon;
pub mod guest;
pub mod lab;
pub mod model;
pub mod remotes;
pub mod scenarios;
pub mod site;
pub mod vm;

use std::path::PathBuf;

/// The project's directory.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
