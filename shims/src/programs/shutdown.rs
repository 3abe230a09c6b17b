//! `shutdown`: asks a guest to power off, and waits until it has.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Shutdown, |call| {
        let id = call.arg(0, "deploy id")?;
        actions::shutdown(&call.host_lenient()?, &id, call.caller().absent_is_shut_down()).map(|()| None)
    })
}
