//! `sriov_clock`: sets the clock of a guest that was stopped. The driver starts it.
use kvm_sriov::{Action, opennebula, vm};

pub(super) fn main() -> u8 {
    opennebula::run_detached(Action::Clock, vm::sync_clock)
}
