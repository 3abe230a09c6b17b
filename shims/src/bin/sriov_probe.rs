//! `sriov_probe`: puts the host right. Run by OpenNebula's monitoring.
fn main() -> std::process::ExitCode {
    kvm_sriov::probe::run("sriov_probe")
}
