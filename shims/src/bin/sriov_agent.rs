//! `sriov_agent`: the driver's end on another host of a migration. Started by the driver itself, through ssh.
use kvm_sriov::{Host, agent, wire};

fn main() -> std::process::ExitCode {
    wire::run("sriov_agent", |call| {
        let (input, output) = (std::io::stdin(), std::io::stdout());
        agent::serve(|| Host::open(call.driver_dir()), input, output, &agent::Ssh::new(call.driver_dir()));
        Ok(None)
    })
}
