//! OpenNebula's end: how it calls the driver's programs and reads their answers.

mod call;
pub mod network;
pub mod probe;

pub use call::{Call, run, run_detached};
