//! `snapshot_create`: keeps a VM's disks and memory as they are now.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::SnapshotCreate, |call| {
        let (id, number) = (call.arg(0, "deploy id")?, call.arg(1, "snapshot id")?);
        let input = call.data()?;
        let name = actions::snapshot_create(&call.host()?, &id, number, input.as_ref().map(|input| &input.vm))?;
        Ok(Some(name.to_string()))
    })
}
