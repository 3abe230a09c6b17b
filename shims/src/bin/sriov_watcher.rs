//! `sriov_watcher`: plugs back a VF that a guest releases after its action stopped waiting. The driver starts it.
use kvm_sriov::{Action, opennebula, reconcile};

fn main() -> std::process::ExitCode {
    opennebula::run_detached(Action::Watcher, reconcile::watch)
}
