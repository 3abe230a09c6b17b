//! `vnm/sriov/clean`: puts the host right when a VM has left.
fn main() -> std::process::ExitCode {
    kvm_sriov::probe::run("vnm clean")
}
