//! `snapshot_delete`: deletes a snapshot.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::SnapshotDelete, |call| {
        let (id, name) = (call.arg(0, "deploy id")?, call.arg(1, "snapshot name")?);
        actions::snapshot_delete(&call.host_lenient()?, &id, &name).map(|()| None)
    })
}
