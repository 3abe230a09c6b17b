//! `attach_disk`: plugs a disk into a running VM.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::AttachDisk, |call| {
        let (id, path): (_, String) = (call.arg(0, "deploy id")?, call.arg(1, "source")?);
        let (target, disk): (String, _) = (call.arg(2, "target")?, call.message(4)?.attached_disk()?);
        let input = call.input()?;
        actions::attach_disk(&call.host()?, &id, &disk, &path, &target, input.vm.as_ref()).map(|()| None)
    })
}
