//! A small device manager: each domain that it looks after has one VF, whatever happens to it.
//!
//! Runs on a model host, where a VF is detached behind its back after each round. On a real host a round takes half a
//! minute.

use std::{error::Error, thread, time::Duration};

use kvm_sriov::reconcile::Options;
use kvm_sriov::{DomainId, MacAddress};
use kvm_sriov_model::host::ModelHost;

fn main() -> Result<(), Box<dyn Error>> {
    let model = ModelHost::default();
    let host = model.host();
    let mut wanted: Vec<(DomainId, MacAddress)> = Vec::new();
    for number in 1..=2 {
        model.start_domain(&format!("vm-{number}"))?;
        wanted.push((format!("vm-{number}").parse()?, format!("02:00:c0:a8:01:0{number}").parse()?));
    }
    for round in 1..=3 {
        for vm in host.reconcile(&Options::default())?.vms {
            vm.done.iter().for_each(|repair| println!("round {round}: {}: {repair}", vm.owner.vm));
        }
        for (domain, mac) in &wanted {
            match host.plug(domain, &"ib0".parse()?, *mac) {
                Ok(plugged) => println!("round {round}: {domain} has VF {}", plugged.vf),
                Err(error) => println!("round {round}: {error}"),
            }
        }
        let alias = model.domain("vm-1").and_then(|live| live.hostdevs.first()?.alias.clone());
        let vm = host.find(&"vm-1".parse()?)?;
        host.hypervisor().detach_alias(&vm, &alias.ok_or("vm-1 has no VF")?, host.settings().call_timeout)?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
