//! `reboot`: asks a guest to reboot.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::Reboot, |call| {
        let id = call.arg(0, "deploy id")?;
        actions::reboot(&call.host_lenient()?, &id).map(|()| None)
    })
}
