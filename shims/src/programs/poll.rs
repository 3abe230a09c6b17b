//! `poll`: measures what a VM uses, and starts the probe (OpenNebula up to 5.10).
use kvm_sriov::{Action, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Poll, |call| {
        let id = call.arg(0, "deploy id")?;
        let host = call.host_lenient()?;
        opennebula::probe::start_in_turn(&host);
        opennebula::poll(&host, &id, call.caller()).map(Some)
    })
}
