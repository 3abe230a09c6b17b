//! `restore`: starts a VM from the file of its save.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Restore, |call| {
        let file: std::path::PathBuf = call.arg(0, "checkpoint")?;
        let host = call.host()?;
        call.input()?.fetch(&file);
        actions::restore(&host, &file, opennebula::vm_of_checkpoint(&file).as_ref()).map(|()| None)
    })
}
