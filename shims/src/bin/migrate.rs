//! `migrate`: moves a running VM to another host.
use kvm_sriov::{Action, actions, agent, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::Migrate, |call| {
        let route = actions::Route { to: call.arg(1, "destination")?, from: call.arg(2, "source").ok() };
        let (id, data, ssh) =
            (call.arg(0, "deploy id")?, call.data()?, agent::Ssh::new(call.driver_dir()).forwarding());
        actions::migrate(&call.host()?, &id, &route, data.as_ref().map(|data| &data.vm), &ssh).map(|()| None)
    })
}
