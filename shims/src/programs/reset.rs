//! `reset`: resets a VM without asking its guest.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Reset, |call| {
        let id = call.arg(0, "deploy id")?;
        actions::reset(&call.host_lenient()?, &id).map(|()| None)
    })
}
