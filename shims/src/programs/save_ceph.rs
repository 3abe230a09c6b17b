//! `save.ceph`: moves a checkpoint into Ceph. `save` runs it with its own arguments.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::SaveCeph, |call| {
        let (file, vm): (std::path::PathBuf, _) = (call.arg(1, "checkpoint")?, call.arg(3, "VM id")?);
        let ceph = call.needed_input()?.message.ceph(call.driver_dir())?;
        actions::save_ceph(&ceph, &file, vm).map(|()| None)
    })
}
