//! `reboot`: asks a guest to reboot.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Reboot, |call| {
        let id = call.arg(0, "deploy id")?;
        actions::reboot(&call.host_lenient()?, &id).map(|()| None)
    })
}
