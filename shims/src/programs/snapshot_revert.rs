//! `snapshot_revert`: returns a VM and its disks to a snapshot.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::SnapshotRevert, |call| {
        let (id, name) = (call.arg(0, "deploy id")?, call.arg(1, "snapshot name")?);
        let input = call.input()?;
        actions::snapshot_revert(&call.host()?, &id, &name, input.vm.as_ref()).map(|()| None)
    })
}
