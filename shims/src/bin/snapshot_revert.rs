//! `snapshot_revert`: a VM's disks and memory become what they were.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::SnapshotRevert, |call| {
        let (id, name) = (call.arg(0, "deploy id")?, call.arg(1, "snapshot name")?);
        let input = call.data()?;
        actions::snapshot_revert(&call.host()?, &id, &name, input.as_ref().map(|input| &input.vm)).map(|()| None)
    })
}
