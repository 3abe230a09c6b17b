//! How OpenNebula calls the driver's programs and reads their answers.
//!
//! OpenNebula gives a program its own arguments and then `<vm id> <host>`, and writes XML to its standard input. The
//! program answers with an exit code, at most one line on standard output, and lines on standard error. OpenNebula
//! takes each line of standard error that does not start with `ERROR:`, `INFO:`, `WARN:` or `DEBUG:` as the message for
//! the user. So a failure is exactly one such line, and log lines start with their severity.
//!
//! * `run` - a whole program: its user, its signals, its answer
//! * `call` - the arguments of one call
//! * `input` - standard input
//! * `message` - what OpenNebula's XML says besides the description of a VM
//! * `nic` - a NIC as the arguments of `attach_nic` describe it
//! * `hook` - the hooks `save.<TM>` and `restore.<TM>` of a transfer driver
//! * `monitor` - the answer of `poll`
//! * [`network`] - the companion network driver `vnm/sriov`
//! * [`probe`] - reconciliation on the request of OpenNebula's monitoring
//! * `stderr_log` - log lines on standard error
//! * `place` - where the programs and the files of a VM are
//!
//! # Source
//! OpenNebula's `one_vmm_exec.rb`, `DriverExecHelper.rb` and `scripts_common.sh`; docs/reference/wire.md.

mod call;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod hook;
mod input;
mod message;
mod monitor;
pub mod network;
mod nic;
mod place;
pub mod probe;
mod run;
mod stderr_log;

pub use call::Call;
pub use hook::Hook;
pub use input::Input;
pub use message::Message;
pub use monitor::poll;
pub use nic::NicArgs;
pub use place::vm_of_checkpoint;
pub use run::{run, run_detached};
