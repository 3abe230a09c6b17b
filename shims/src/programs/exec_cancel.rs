//! `exec_cancel`: ends the command that runs in a guest.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::ExecCancel, |call| {
        let vm = call.vm_name(0)?;
        actions::exec_cancel(&call.host_lenient()?, &vm).map(|()| None)
    })
}
