//! `migrate_local`: runs on the front-end, and has the source host move a running VM.
use kvm_sriov::{Action, actions, agent, opennebula};

pub(super) fn main() -> u8 {
    opennebula::run(Action::MigrateLocal, |call| {
        let route = actions::Route { to: call.arg(1, "destination")?, from: Some(call.arg(2, "source")?) };
        let (id, ssh) = (call.arg(0, "deploy id")?, agent::Ssh::from_front_end(call.driver_dir()));
        actions::migrate_local(&id, &route, call.front_end_input()?, &ssh).map(|()| None)
    })
}
