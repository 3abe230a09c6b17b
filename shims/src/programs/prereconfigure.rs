//! `prereconfigure`: takes the contextualization CD out of its drive.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Prereconfigure, |call| {
        let (id, target): (_, Option<String>) = (call.arg(0, "deploy id")?, call.optional_arg(1, "target")?);
        let input = call.input()?;
        actions::prereconfigure(&call.host()?, &id, target.as_deref(), input.vm.as_ref()).map(|()| None)
    })
}
