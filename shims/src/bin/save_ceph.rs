//! `save.ceph`: moves a checkpoint into Ceph. `save` runs it, with its own arguments.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::SaveCeph, |call| {
        let (file, vm): (std::path::PathBuf, _) = (call.arg(1, "checkpoint")?, call.arg(3, "VM id")?);
        let ceph = actions::Ceph::of(&call.needed_data()?.text, call.driver_dir());
        actions::save_ceph(&ceph.map_err(|cause| call.untouched(cause))?, &file, vm).map(|()| None)
    })
}
