//! How a domain is moved: virsh's words for it, and what becomes of them.

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
}
