//! `reconfigure`: puts the new contextualization CD into its drive.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Reconfigure, |call| {
        let (id, target): (_, Option<String>) = (call.arg(0, "deploy id")?, call.optional_arg(1, "target")?);
        let (iso, input): (Option<std::path::PathBuf>, _) = (call.optional_arg(2, "image")?, call.input()?);
        let vm = input.vm.as_ref();
        actions::reconfigure(&call.host()?, &id, target.as_deref(), iso.as_deref(), vm).map(|()| None)
    })
}
