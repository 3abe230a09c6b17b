//! `resize_disk`: makes a disk of a running VM larger.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::ResizeDisk, |call| {
        let (id, disk, mib) = (call.arg(0, "deploy id")?, call.arg(1, "disk id")?, call.arg(2, "size")?);
        let (target, input) = (call.message(3)?.target_of(disk)?, call.input()?);
        actions::resize_disk(&call.host()?, &id, disk, &target, mib, input.vm.as_ref()).map(|()| None)
    })
}
