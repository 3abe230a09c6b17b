//! The settings of a host.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::DummyMacPrefix;

/// The default of [`Settings::arrival_grace`].
const ARRIVAL: Duration = Duration::from_secs(90);

/// The settings of a host: timeouts, directories, and how guests get their VFs.
///
/// [`Kvmrc`](super::Kvmrc) reads them from the driver's files. A program that embeds the crate may set the fields
/// itself. A field names its variable in kvmrc, if it has one. The defaults are kvmrc's.
///
/// ```
/// use kvm_sriov::config::Settings;
/// let mut settings = Settings::default();
/// settings.state_dir = "/var/lib/my-program/vfs".into();
/// assert_eq!(settings.unplug_timeout.as_secs(), 60);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// LIBVIRT_URI: the libvirtd of this host.
    pub libvirt_uri: String,
    /// SHUTDOWN_TIMEOUT: how long a guest may take to power off.
    pub shutdown_timeout: Duration,
    /// FORCE_DESTROY: whether a guest that does not power off in time is destroyed.
    pub force_destroy: bool,
    /// CANCEL_NO_ACPI: whether a domain without ACPI is destroyed instead of shut down.
    pub cancel_no_acpi: bool,
    /// CLEANUP_MEMORY_ON_START: whether memory is compacted before a domain starts.
    pub cleanup_memory_on_start: bool,
    /// CLEANUP_MEMORY_ON_STOP: whether memory is compacted after a domain ended.
    pub cleanup_memory_on_stop: bool,
    /// OVMF_NVRAM: the template of the UEFI variables.
    pub ovmf_nvram: PathBuf,
    /// DUMMY_BRIDGE: the Linux bridge of the dummy interfaces. A domain with VFs can't start without it.
    pub dummy_bridge: Option<String>,
    /// DUMMY_MAC_PREFIX: the first byte of the dummies' MACs. A domain with VFs can't start without it.
    pub dummy_mac_prefix: Option<DummyMacPrefix>,
    /// VF_STATE_DIR: the directory of the claims: absolute, and not shared with other hosts.
    pub state_dir: PathBuf,
    /// SRIOV_LOCK_TIMEOUT: how long an action waits for another action of the same domain.
    pub lock_timeout: Duration,
    /// SRIOV_CALL_TIMEOUT: how long one call to libvirt may take.
    pub call_timeout: Duration,
    /// SRIOV_UNPLUG_TIMEOUT: how long a guest may take to release its VFs.
    pub unplug_timeout: Duration,
    /// SRIOV_UNPLUG_GRACE: how long after SRIOV_UNPLUG_TIMEOUT the driver still plugs back VFs that the guest releases
    /// late.
    pub unplug_grace: Duration,
    /// How long the destination of a migration keeps the claims of a VM that has not been seen there, after the
    /// migration has begun and the source was lost. The source notices within a minute that it is lost; until then
    /// libvirt may still bring the VM. So a program must not set less than a minute, and kvmrc can't set it.
    pub arrival_grace: Duration,
    /// MIGRATE_OPTIONS: options of `virsh migrate`, separated by blanks.
    pub migrate_options: String,
    /// QEMU_PROTOCOL: the scheme of the URI of libvirtd on another host.
    pub qemu_protocol: String,
    /// SYNC_TIME: whether the driver sets the clock of a guest whose CPUs were stopped.
    pub sync_time: bool,
    /// VIRSH_RETRIES: how many times the driver tries a call that may fail for a moment.
    pub retries: u32,
    /// DEFAULT_ATTACH_NIC_MODEL: the model of a NIC that names none.
    pub nic_model: String,
    /// DEFAULT_ATTACH_NIC_FILTER: the network filter of a NIC that names none.
    pub nic_filter: Option<String>,
    /// DEFAULT_ATTACH_`name`: attributes of a disk whose description does not have them, by names such as `CACHE`.
    pub disk_defaults: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            libvirt_uri: "qemu:///system".into(),
            shutdown_timeout: Duration::from_secs(180),
            force_destroy: false,
            cancel_no_acpi: false,
            cleanup_memory_on_start: false,
            cleanup_memory_on_stop: false,
            ovmf_nvram: "/usr/share/OVMF/OVMF_VARS.fd".into(),
            dummy_bridge: None,
            dummy_mac_prefix: None,
            state_dir: "/tmp/vf_interfaces".into(),
            lock_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(300),
            unplug_timeout: Duration::from_secs(60),
            unplug_grace: Duration::from_secs(600),
            arrival_grace: ARRIVAL,
            migrate_options: String::new(),
            qemu_protocol: "qemu+ssh".into(),
            sync_time: false,
            retries: 3,
            nic_model: "virtio".into(),
            nic_filter: None,
            disk_defaults: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// The default of an attribute of a disk, by OpenNebula's name of the attribute, such as `CACHE`.
    pub fn disk_default(&self, name: &str) -> Option<&str> {
        self.disk_defaults.get(name).map(String::as_str)
    }
}
