//! `deploy`: starts a VM.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::Deploy, |call| {
        let file: std::path::PathBuf = call.arg(0, "deployment file")?;
        let xml = call.stdin()?;
        actions::deploy(&call.host()?, &file, &xml).map(|domain| Some(call.deploy_id(&domain)))
    })
}
