//! `save.ceph`: moves a checkpoint into Ceph. `save` runs it with its own arguments.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::SaveCeph, |call| {
        let (file, vm): (std::path::PathBuf, _) = (call.arg(1, "checkpoint")?, call.arg(3, "VM id")?);
        let ceph = call.needed_input()?.message.ceph(call.driver_dir())?;
        actions::save_ceph(&ceph, &file, vm).map(|()| None)
    })
}
