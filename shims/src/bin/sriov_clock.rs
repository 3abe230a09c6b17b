//! `sriov_clock`: sets the clock of a guest that stood still. Started by the driver itself.
use kvm_sriov::{Action, opennebula, vm};

fn main() -> std::process::ExitCode {
    opennebula::run_detached(Action::Clock, |call| {
        vm::sync_clock(&call.host_lenient()?, &call.arg(0, "deploy id")?)
            .map_err(|cause| call.failed(cause))
            .map(|()| None)
    })
}
