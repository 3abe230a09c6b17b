//! `save`: a VM goes into a file.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::Save, |call| {
        let (id, file): (_, std::path::PathBuf) = (call.arg(0, "deploy id")?, call.arg(1, "checkpoint")?);
        actions::save(&call.host_lenient()?, &id, &file, call.data()?.as_ref()).map(|()| None)
    })
}
