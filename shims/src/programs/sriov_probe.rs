//! `sriov_probe`: repairs the VMs of a host. OpenNebula's monitoring starts it, and `vnm/sriov/clean` when a VM has
//! left the host.
pub(super) fn main() -> u8 {
    kvm_sriov::opennebula::probe::run()
}
