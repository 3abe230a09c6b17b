//! `exec`: starts a command in a guest.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Exec, |call| {
        let (vm, command): (_, String) = (call.vm_name(0)?, call.arg(2, "command")?);
        actions::exec(&call.host()?, &vm, &command, call.text(3)).map(|()| None)
    })
}
