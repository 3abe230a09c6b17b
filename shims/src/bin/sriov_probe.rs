//! `sriov_probe`: puts the host right. Started by OpenNebula's monitoring, and when a VM has left.
fn main() -> std::process::ExitCode {
    kvm_sriov::opennebula::probe::run()
}
