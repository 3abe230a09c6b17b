//! `exec_cancel`: ends the command that runs in a guest.
use kvm_sriov::{actions, wire};

fn main() -> std::process::ExitCode {
    wire::run("exec_cancel", |call| {
        let vm = call.vm_name(0)?;
        actions::exec_cancel(&call.host_lenient()?, &vm).map(|()| None)
    })
}
