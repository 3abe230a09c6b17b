//! `migrate`: moves a running VM to another host, or to another datastore.
use kvm_sriov::{Action, actions, agent, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::Migrate, |call| {
        let route = actions::Route { to: call.arg(1, "destination")?, from: call.arg(2, "source").ok() };
        let (id, input) = (call.arg(0, "deploy id")?, call.input()?);
        let ssh = agent::Ssh::new(call.driver_dir()).forwarding();
        actions::migrate(&call.host()?, &id, &route, input.vm.as_ref(), &ssh).map(|()| None)
    })
}
