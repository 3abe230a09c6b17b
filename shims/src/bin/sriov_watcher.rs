//! `sriov_watcher`: plugs back what leaves a domain after its action stopped waiting. Started by the driver itself.
use kvm_sriov::{vm, wire};

fn main() -> std::process::ExitCode {
    wire::run_detached("sriov_watcher", |call| {
        vm::watch(&call.host_lenient()?, &call.arg(0, "deploy id")?).map_err(|cause| call.failed(cause)).map(|()| None)
    })
}
