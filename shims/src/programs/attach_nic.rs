//! `attach_nic`: plugs a NIC into a running VM.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::AttachNic, |call| {
        let (id, input) = (call.arg(0, "deploy id")?, call.input()?);
        let nic = call.nic(input.vm.as_ref())?;
        actions::attach_nic(&call.host()?, &id, &nic, input.vm.as_ref()).map(|()| None)
    })
}
