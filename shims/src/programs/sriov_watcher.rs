//! `sriov_watcher`: plugs back a VF that a guest releases after its action stopped waiting. The driver starts it.
use kvm_sriov::{Action, opennebula, reconcile};

pub(super) fn main() -> u8 {
    opennebula::run_detached(Action::Watcher, reconcile::watch)
}
