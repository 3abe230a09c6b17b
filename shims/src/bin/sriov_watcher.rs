//! `sriov_watcher`: plugs back what leaves a domain after its action stopped waiting. Started by the driver itself.
use kvm_sriov::{Action, opennebula, reconcile};

fn main() -> std::process::ExitCode {
    opennebula::run_detached(Action::Watcher, |call| {
        reconcile::watch(&call.host_lenient()?, &call.arg(0, "deploy id")?)
            .map_err(|cause| call.failed(cause))
            .map(|()| None)
    })
}
