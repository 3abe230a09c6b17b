//! The names of kvmrc's variables.

/// The variables that the driver uses. It ignores the values of all others.
const USED: [&str; 21] = [
    "LIBVIRT_URI",
    "SHUTDOWN_TIMEOUT",
    "FORCE_DESTROY",
    "CANCEL_NO_ACPI",
    "CLEANUP_MEMORY_ON_START",
    "CLEANUP_MEMORY_ON_STOP",
    "OVMF_NVRAM",
    "DUMMY_BRIDGE",
    "DUMMY_MAC_PREFIX",
    "VF_MAPS_PATH",
    "VF_STATE_DIR",
    "SRIOV_LOCK_TIMEOUT",
    "SRIOV_CALL_TIMEOUT",
    "SRIOV_UNPLUG_TIMEOUT",
    "SRIOV_UNPLUG_GRACE",
    "MIGRATE_OPTIONS",
    "QEMU_PROTOCOL",
    "SYNC_TIME",
    "VIRSH_RETRIES",
    "DEFAULT_ATTACH_NIC_MODEL",
    "DEFAULT_ATTACH_NIC_FILTER",
];

/// The prefix of the defaults for disks. OpenNebula's name of the attribute follows.
pub(super) const DISK_DEFAULT: &str = "DEFAULT_ATTACH_";

/// Variables of OpenNebula's own drivers that the driver does not use, but whose names resemble used ones.
///
/// # Source
/// OpenNebula's `vmm/kvm/kvmrc`, and the environment that its `migrate` reads.
const STOCK: [&str; 4] = ["VIRSH_TRIES", "VIRSH_TIMEOUT", "LIBVIRT_MD_URI", "LIBVIRT_MD_KEY"];

/// How many letters (added, missing, wrong or swapped) a misspelt name may differ in from a used one.
const SLIPS: usize = 2;

pub(super) fn is_used(name: &str) -> bool {
    USED.contains(&name) || name.starts_with(DISK_DEFAULT)
}

/// The full names of all variables that the driver uses.
pub(super) fn used_names() -> impl Iterator<Item = String> {
    let limits = ["TOTAL", "READ", "WRITE"].into_iter().flat_map(|direction| {
        let units = ["BYTES", "IOPS"].into_iter();
        units.flat_map(move |unit| ["", "_MAX", "_MAX_LENGTH"].map(|end| format!("{direction}_{unit}_SEC{end}")))
    });
    let others = ["CACHE", "DISCARD", "IO", "VIRTIO_BLK_QUEUES", "VIRTIO_BLK_IOTHREAD", "SIZE_IOPS_SEC"];
    let of_disks = others.map(str::to_owned).into_iter().chain(limits).map(|name| format!("{DISK_DEFAULT}{name}"));
    USED.map(str::to_owned).into_iter().chain(of_disks)
}

/// The variable that an unused name probably stands for.
pub(super) fn likely(name: &str) -> Option<String> {
    // A used name is not misspelt.
    if STOCK.contains(&name) || used_names().any(|used| used == name) {
        return None;
    }
    let written = name.to_ascii_uppercase();
    // Each program reads kvmrc when it starts. Counting slips takes long, and is needed for few names.
    let near = used_names().filter(|meant| meant.len().abs_diff(written.len()) <= SLIPS);
    let near = near.map(|meant| (strsim::osa_distance(&written, &meant), meant));
    near.filter(|(slips, _)| *slips <= SLIPS).min_by_key(|(slips, _)| *slips).map(|(_, meant)| meant)
}
