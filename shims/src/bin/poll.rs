//! `poll`: what a VM uses (OpenNebula up to 5.10).
use kvm_sriov::{actions, wire};

fn main() -> std::process::ExitCode {
    wire::run("poll", |call| {
        let id = call.arg(0, "deploy id")?;
        actions::poll(&call.host_lenient()?, &id, call.caller()).map(Some)
    })
}
