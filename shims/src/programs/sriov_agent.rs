//! `sriov_agent`: serves another host that migrates a VM to or from this one. The driver there starts it through ssh.
use kvm_sriov::{Action, Host, agent, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Agent, |call| {
        let ssh = agent::Ssh::new(call.driver_dir());
        agent::serve(|| Host::open(call.driver_dir()), &ssh, std::io::stdin(), std::io::stdout());
        Ok(None)
    })
}
