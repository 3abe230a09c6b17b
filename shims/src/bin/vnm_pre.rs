//! `vnm/sriov/pre`: looks whether the host can give a VM its networks.
use kvm_sriov::Action;
use kvm_sriov::opennebula;

fn main() -> std::process::ExitCode {
    opennebula::run(Action::NetworkPre, |call| {
        let vm = call.network_data()?;
        opennebula::network::pre(&call.host()?, &vm).map(|()| None)
    })
}
