//! `resize_disk`: a disk of a running VM grows.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::ResizeDisk, |call| {
        let (id, disk, mib) = (call.arg(0, "deploy id")?, call.arg(1, "disk id")?, call.arg(2, "size")?);
        let (message, input) = (call.encoded_arg(3, "message")?, call.data()?);
        let data = input.as_ref().map(|input| &input.vm);
        actions::resize_disk(&call.host()?, &id, disk, mib, &message, data).map(|()| None)
    })
}
