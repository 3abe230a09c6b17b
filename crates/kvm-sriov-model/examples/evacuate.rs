//! Empties a host: every domain moves to another host and has its VFs there.
//!
//! Runs on two model hosts. For real hosts take `agent::Ssh` in place of `OneAgent`.

use std::error::Error;

use kvm_sriov::libvirt::DomainCalls;
use kvm_sriov::{DomainId, HostName};
use kvm_sriov_model::agent::OneAgent;
use kvm_sriov_model::host::ModelHost;

fn main() -> Result<(), Box<dyn Error>> {
    let here = ModelHost::default();
    let there = here.beside("host2", 2);
    let to: HostName = "host2".parse()?;
    for number in 1..=3 {
        let name = format!("vm-{number}");
        here.start_domain(&name)?;
        let mac = format!("02:00:c0:a8:01:0{number}").parse()?;
        let plugged = here.host().plug(&name.parse()?, &"ib0".parse()?, mac)?;
        println!("{name} has VF {} of this host", plugged.vf);
    }
    // host2 has room for two of the three.
    for domain in here.model().domains()? {
        let id = DomainId::Uuid(domain.uuid);
        match here.host().migrate(&id, &to, &OneAgent::of(there.host())) {
            Ok(()) => println!("{} runs on {to}", domain.name),
            Err(error) => println!("{} stays: {error}", domain.name),
        }
    }
    for vf in there.host().vfs()? {
        println!("{to}: VF {} of {} is {}", vf.address, vf.root, vf.state);
    }
    Ok(())
}
