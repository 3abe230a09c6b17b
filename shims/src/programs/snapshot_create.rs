//! `snapshot_create`: takes a snapshot of a VM and its disks.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::SnapshotCreate, |call| {
        let (id, number) = (call.arg(0, "deploy id")?, call.arg(1, "snapshot id")?);
        let input = call.input()?;
        let name = actions::snapshot_create(&call.host()?, &id, number, input.vm.as_ref())?;
        Ok(Some(name.to_string()))
    })
}
