//! `cancel`: ends a VM at once.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Cancel, |call| {
        let id = call.arg(0, "deploy id")?;
        actions::cancel(&call.host_lenient()?, &id, call.vm().as_ref()).map(|()| None)
    })
}
