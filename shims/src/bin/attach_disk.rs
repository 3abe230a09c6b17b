//! `attach_disk`: plugs a disk into a running VM.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::AttachDisk, |call| {
        let (id, path, target): (_, String, String) =
            (call.arg(0, "deploy id")?, call.arg(1, "source")?, call.arg(2, "target")?);
        let (message, input) = (call.encoded_arg(4, "message")?, call.data()?);
        let data = input.as_ref().map(|input| &input.vm);
        actions::attach_disk(&call.host()?, &id, &path, &target, &message, data).map(|()| None)
    })
}
