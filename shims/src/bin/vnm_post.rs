//! `vnm/sriov/post`: nothing is left to do for the networks of a VM that runs.
use kvm_sriov::wire;

fn main() -> std::process::ExitCode {
    wire::run("vnm post", |_| Ok(None))
}
