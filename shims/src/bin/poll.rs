//! `poll`: what a VM uses, and a host that is put right (OpenNebula up to 5.10).
use kvm_sriov::{actions, probe, wire};

fn main() -> std::process::ExitCode {
    wire::run("poll", |call| {
        let id = call.arg(0, "deploy id")?;
        probe::run_with_poll(call.driver_dir());
        actions::poll(&call.host_lenient()?, &id, call.caller()).map(Some)
    })
}
