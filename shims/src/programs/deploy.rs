//! `deploy`: starts a VM.
use kvm_sriov::{Action, actions, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Deploy, |call| {
        let file: std::path::PathBuf = call.arg(0, "deployment file")?;
        let xml = call.stdin()?;
        actions::deploy(&call.host()?, &file, &xml).map(|domain| Some(call.deploy_id(&domain)))
    })
}
