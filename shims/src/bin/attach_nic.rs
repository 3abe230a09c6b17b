//! `attach_nic`: plugs a NIC into a running VM.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::AttachNic, |call| {
        let (id, nic) = (call.arg(0, "deploy id")?, call.nic()?);
        let input = call.data()?;
        actions::attach_nic(&call.host()?, &id, &nic, input.as_ref().map(|input| &input.vm)).map(|()| None)
    })
}
