//! `reset`: resets a VM without asking its guest.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::Reset, |call| {
        let id = call.arg(0, "deploy id")?;
        actions::reset(&call.host_lenient()?, &id).map(|()| None)
    })
}
