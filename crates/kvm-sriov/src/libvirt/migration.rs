//! How a domain is moved: virsh's words for it, and what becomes of them.

use std::ffi::{CStr, CString};
use std::time::Duration;

use virt::sys;

use super::error::LibvirtError;
use super::ffi::Value;

/// One move of a running domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Migration {
    /// The libvirtd there, such as `qemu+ssh://host2/system`.
    pub destination: String,
    /// The domain's XML there, when it differs from here (paths of another datastore).
    pub xml: Option<String>,
    /// Disks that are copied, by target, such as `vda`; none with shared storage.
    pub copied_disks: Vec<String>,
    /// Whether the domain stays paused there.
    pub paused: bool,
    /// Further flags and parameters.
    pub options: MigrationOptions,
}

/// Flags and parameters of a move, as MIGRATE_OPTIONS of kvmrc and the VM's features ask for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MigrationOptions {
    /// libvirt's `VIR_MIGRATE_*` flags.
    pub(crate) flags: u32,
    parameters: Vec<(&'static CStr, Value)>,
    suspend_after: Option<Duration>,
}

impl Migration {
    /// Parameters and flags for libvirt.
    pub(super) fn parameters(&self) -> Result<(Vec<(&'static CStr, Value)>, u32), LibvirtError> {
        let text = |text: &str| {
            CString::new(text)
                .map(Value::Text)
                .map_err(|_| LibvirtError::other("a text for libvirt has a NUL byte in it"))
        };
        let mut parameters = self.options.parameters.clone();
        let mut flags = self.options.flags | sys::VIR_MIGRATE_LIVE;
        if let Some(xml) = &self.xml {
            parameters.push((sys::VIR_MIGRATE_PARAM_DEST_XML, text(xml)?));
        }
        for disk in &self.copied_disks {
            parameters.push((sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS, text(disk)?));
        }
        if !self.copied_disks.is_empty() && flags & sys::VIR_MIGRATE_NON_SHARED_INC == 0 {
            flags |= sys::VIR_MIGRATE_NON_SHARED_DISK;
        }
        if self.paused {
            flags |= sys::VIR_MIGRATE_PAUSED;
        }
        Ok((parameters, flags))
    }
}

impl MigrationOptions {
    /// When the guest is suspended so that the copy can end.
    pub(super) fn suspend_after(&self) -> Option<Duration> {
        self.suspend_after
    }
}
