//! What libvirt refused.

use crate::base::PciAddress;

/// A VF that libvirt refused, and why; the next free one was tried.
#[derive(Debug, Clone)]
pub(crate) struct RefusedVf {
    pub(crate) vf: PciAddress,
    pub(crate) why: String,
    /// Whether QEMU may not open its vfio device.
    pub(crate) is_denied: bool,
}
