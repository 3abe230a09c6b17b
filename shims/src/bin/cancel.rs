//! `cancel`: ends a VM at once.
use kvm_sriov::{actions, wire};

fn main() -> std::process::ExitCode {
    wire::run("cancel", |call| {
        let id = call.arg(0, "deploy id")?;
        actions::cancel(&call.host_lenient()?, &id, call.vm_id()).map(|()| None)
    })
}
