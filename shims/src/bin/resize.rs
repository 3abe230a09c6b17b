//! `resize`: a running VM gets more CPUs and memory, or less.
use kvm_sriov::{Action, actions, opennebula};

fn main() -> std::process::ExitCode {
    opennebula::run(Action::Resize, |call| {
        let id = call.arg(0, "deploy id")?;
        let input = call.needed_data()?;
        actions::resize(&call.host()?, &id, &input.text, Some(&input.vm)).map(|()| None)
    })
}
