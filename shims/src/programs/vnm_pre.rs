//! `vnm/sriov/pre`: checks that the host can give a VM its networks.
use kvm_sriov::{Action, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::NetworkPre, |call| {
        let vm = call.network_input()?;
        opennebula::network::pre(&call.host()?, &vm).map(|()| None)
    })
}
