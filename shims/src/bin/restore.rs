//! `restore`: a VM comes back from a file.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::Restore, |call| {
        let file: std::path::PathBuf = call.arg(0, "checkpoint")?;
        actions::restore(&call.host()?, &file, call.data()?.as_ref()).map(|()| None)
    })
}
