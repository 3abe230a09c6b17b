//! What libvirt refused.

use crate::base::PciAddress;

/// A VF that libvirt refused to give to a domain. The action then tries the next free VF.
#[derive(Debug, Clone)]
pub(crate) struct RefusedVf {
    pub(crate) vf: PciAddress,
    /// What libvirt said.
    pub(crate) why: String,
    /// Whether the host does not allow QEMU to open the VF's vfio device.
    pub(crate) is_denied: bool,
}
