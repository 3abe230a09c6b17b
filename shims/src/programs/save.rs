//! `save`: saves a VM into a file and ends it.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Save, |call| {
        let (id, file): (_, std::path::PathBuf) = (call.arg(0, "deploy id")?, call.arg(1, "checkpoint")?);
        let (host, input) = (call.host_lenient()?, call.input()?);
        actions::save(&host, &id, &file, input.vm.as_ref())?;
        input.run_hook();
        Ok(None)
    })
}
