//! `attach_nic`: plugs a NIC into a running VM.
use kvm_sriov::{actions, wire};

fn main() -> std::process::ExitCode {
    wire::run("attach_nic", |call| {
        let (id, nic) = (call.arg(0, "deploy id")?, actions::NicArgs::of(call)?);
        let input = call.data()?;
        actions::attach_nic(&call.host()?, &id, &nic, input.as_ref().map(|input| &input.vm)).map(|()| None)
    })
}
