//! `vnm/sriov/pre`: looks whether the host can give a VM its networks.
use kvm_sriov::{network, wire};

fn main() -> std::process::ExitCode {
    wire::run("vnm pre", |call| {
        let vm = call.network_data()?;
        network::pre(&call.host()?, &vm).map(|()| None)
    })
}
