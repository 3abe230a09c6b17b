//! `reset`: presses a VM's reset button.
use kvm_sriov::{actions, wire};

fn main() -> std::process::ExitCode {
    wire::run("reset", |call| {
        let id = call.arg(0, "deploy id")?;
        actions::reset(&call.host_lenient()?, &id).map(|()| None)
    })
}
