//! `detach_disk`: takes a disk out of a running VM.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::DetachDisk, |call| {
        let (id, target): (_, String) = (call.arg(0, "deploy id")?, call.arg(2, "target")?);
        let input = call.input()?;
        actions::detach_disk(&call.host()?, &id, &target, input.vm.as_ref()).map(|()| None)
    })
}
