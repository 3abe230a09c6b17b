//! `resize`: changes the memory and the number of CPUs of a running VM.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Resize, |call| {
        let (id, input) = (call.arg(0, "deploy id")?, call.needed_input()?);
        let wanted = input.message.resize()?;
        actions::resize(&call.host()?, &id, &wanted, input.vm.as_ref()).map(|()| None)
    })
}
