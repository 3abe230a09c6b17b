//! `detach_nic`: takes a NIC out of a running VM.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::DetachNic, |call| {
        let (id, mac) = (call.arg(0, "deploy id")?, call.arg(1, "MAC")?);
        let input = call.input()?;
        actions::detach_nic(&call.host_lenient()?, &id, mac, input.vm.as_ref()).map(|()| None)
    })
}
