//! `restore.ceph`: moves a checkpoint out of Ceph. `restore` runs it with its own arguments.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::RestoreCeph, |call| {
        let (file, vm): (std::path::PathBuf, _) = (call.arg(0, "checkpoint")?, call.arg(3, "VM id")?);
        let ceph = call.needed_input()?.message.ceph(call.driver_dir())?;
        actions::restore_ceph(&ceph, &file, vm).map(|()| None)
    })
}
