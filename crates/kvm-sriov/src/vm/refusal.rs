//! Why libvirt refused to give a domain its VFs: because of one VF, or because of something that every VF would meet.

use crate::base::PciAddress;
use crate::claims::ClaimError;
use crate::error::{Cause, RefusedVf};
use crate::libvirt::{LibvirtError, LibvirtErrorKind};
use crate::sysfs::{Sysfs, denied_vfio_device};

/// Why a domain did not get its VFs.
#[derive(Debug)]
pub(crate) enum PlugFailure {
    /// Because of this VF. Another VF may succeed.
    OneVf(RefusedVf),
    /// Because of the domain or the host. Another VF would fail as well.
    AnyVf(Cause),
}

impl<E: Into<Cause>> From<E> for PlugFailure {
    fn from(cause: E) -> Self {
        Self::AnyVf(cause.into())
    }
}

/// A call that gives a domain VFs.
pub(crate) struct VfCall<'a> {
    /// What the call does, for the message: "plug VF 0000:07:00.3 into one-42".
    pub(crate) what: String,
    /// The VFs of the call.
    pub(crate) vfs: &'a [PciAddress],
    /// The VFs that were refused before, in earlier calls of the action.
    pub(crate) refusals: &'a [RefusedVf],
    /// The memory of the guest, in KiB.
    pub(crate) guest_kib: u64,
    /// `<hard_limit>` of the domain, in KiB.
    pub(crate) limit_kib: Option<u64>,
    pub(crate) sysfs: &'a Sysfs,
}

/// Parts of refusals that every VF would meet, although the text may name one VF. An address of the guest may look like
/// an address of the host.
///
/// # Source
/// libvirt `src/conf/domain_addr.c`; `virProcessSetMaxMemLock`. QEMU `hw/vfio/container.c`, `hw/vfio/iommufd.c`: a
/// mapping of the guest's memory is refused for its addresses, or because the kernel's limit of mappings is reached.
const EVERY_VF: [&str; 8] = [
    // "Attempted double use of PCI Address 0000:00:05.0", "Invalid PCI address 0000:00:05.0. slot must be <= 31".
    "PCI address",
    "PCI Address",
    // Older versions: "Attempted double use of PCI slot 0000:00:05.0".
    "PCI slot",
    "memory listener initialization failed",
    "dma_map(",
    // Without interrupt remapping, the kernel allows no process to do it.
    "Failed to set iommu for container",
    "Too many open files",
    "No space left on device",
];

impl VfCall<'_> {
    /// Decides whether a refusal is because of one VF. That is so only when libvirt or QEMU names the VF or its vfio
    /// device.
    pub(crate) fn judge(self, error: LibvirtError) -> PlugFailure {
        let text = error.text().to_owned();
        match error.kind() {
            LibvirtErrorKind::NoMemory => {
                let (guest_kib, limit_kib) = (self.guest_kib, self.limit_kib);
                let free_kib = self.sysfs.available_memory_kib();
                return PlugFailure::AnyVf(Cause::NoMemory { text, guest_kib, limit_kib, free_kib });
            }
            // A VF that no longer exists is reported as a missing device.
            LibvirtErrorKind::Other | LibvirtErrorKind::NoDevice => {}
            _ => return self.not_a_vfs(error),
        }
        if EVERY_VF.iter().any(|part| text.contains(part)) {
            return self.not_a_vfs(error);
        }
        if let Some(device) = denied_vfio_device(&text) {
            let advice = self.sysfs.vfio_advice();
            // udev may have missed one device. When a second device is denied, the host's udev rules are missing.
            return match self.vfs.iter().find(|vf| self.is_device_of(&device, **vf, &text)) {
                Some(vf) if !self.refusals.iter().any(|before| before.is_denied) => {
                    let why = format!("QEMU may not open {device}: {advice}");
                    PlugFailure::OneVf(RefusedVf { vf: *vf, why, is_denied: true })
                }
                _ => PlugFailure::AnyVf(Cause::VfioDenied { device, text, advice }),
            };
        }
        match self.vfs.iter().find(|vf| is_named(**vf, &text)) {
            Some(vf) => PlugFailure::OneVf(RefusedVf { vf: *vf, why: text, is_denied: false }),
            None => self.not_a_vfs(error),
        }
    }

    fn not_a_vfs(self, source: LibvirtError) -> PlugFailure {
        PlugFailure::AnyVf(Cause::Call { what: self.what, source })
    }

    /// Whether this is the vfio device of this VF. `/dev/vfio/vfio` belongs to no VF.
    fn is_device_of(&self, device: &str, vf: PciAddress, text: &str) -> bool {
        let group: Option<u32> = device.strip_prefix("/dev/vfio/").and_then(|group| group.parse().ok());
        match (group, self.sysfs.iommu_group(vf)) {
            (Some(device), Some(own)) => device == own,
            _ => device != "/dev/vfio/vfio" && is_named(vf, text),
        }
    }
}

/// Whether a text names a VF. QEMU prints its `-device` argument before each message about a device. A VF that is named
/// only in that argument does not count.
///
/// # Source
/// libvirt `qemuBuildPCIHostdevDevProps`: `-device {"driver":"vfio-pci","host":"0000:07:00.3",...}` since 6.10,
/// `-device vfio-pci,host=0000:07:00.3,...` before. QEMU `loc_vpush`: the argument, a colon, then the message.
fn is_named(vf: PciAddress, text: &str) -> bool {
    let name = vf.to_string();
    text.match_indices(&name).any(|(at, _)| {
        let before = text.get(..at).unwrap_or_default();
        !before.ends_with("host=") && !before.ends_with("\"host\":\"")
    })
}

/// Adds the refused VFs to the error of a map without a free VF.
pub(crate) fn with_refusals(cause: Cause, refusals: &[RefusedVf]) -> Cause {
    match cause {
        Cause::Claims(exhausted @ ClaimError::Exhausted { .. }) if !refusals.is_empty() => {
            let reasons: Vec<String> = refusals.iter().map(|r| format!("{}: {}", r.vf, r.why)).collect();
            Cause::AllRefused { exhausted: Box::new(exhausted), reasons: reasons.join(", ") }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const OURS: [&str; 2] = ["0000:07:00.1", "0000:07:00.3"];

    /// Why a call was refused.
    #[derive(Debug, PartialEq, Eq)]
    enum Whose {
        Vf(&'static str),
        Memory,
        Denied,
        NoVfs,
    }
    use Whose::{Denied, Memory, NoVfs, Vf};

    /// A host whose VFs are in the IOMMU groups 11 and 13.
    fn host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (vf, group) in OURS.iter().zip(["11", "13"]) {
            let device = dir.path().join("sys/bus/pci/devices").join(vf);
            fs::create_dir_all(&device).unwrap();
            std::os::unix::fs::symlink(format!("../../../kernel/iommu_groups/{group}"), device.join("iommu_group"))
                .unwrap();
        }
        dir
    }

    fn judge(dir: &tempfile::TempDir, refusals: &[RefusedVf], code: u32, text: &str) -> Whose {
        let vfs = OURS.map(|vf| vf.parse().unwrap());
        let sysfs = Sysfs::at(dir.path().to_owned());
        let what = "create domain".into();
        let attempt = VfCall { what, vfs: &vfs, refusals, guest_kib: 1, limit_kib: None, sysfs: &sysfs };
        match attempt.judge(LibvirtError::of_libvirt(code, text)) {
            PlugFailure::OneVf(refusal) => Vf(OURS.iter().find(|vf| refusal.vf.to_string() == **vf).unwrap()),
            PlugFailure::AnyVf(Cause::NoMemory { .. }) => Memory,
            PlugFailure::AnyVf(Cause::VfioDenied { .. }) => Denied,
            PlugFailure::AnyVf(_) => NoVfs,
        }
    }

    /// The texts are those of libvirt 8 to 11 and of QEMU 6 to 10.
    #[test]
    fn only_what_is_a_vfs_moves_on_to_the_next() {
        // virErrorNumber: an internal error, an invalid operation, a system call, XML, the configuration.
        let (internal, invalid, system, xml, unsupported) = (1, 55, 38, 27, 67);
        let dir = host();
        for (code, text, whose) in [
            // Because of a VF: virHostdevPreparePCIDevices, virPCIDeviceNew, virPCIDeviceReset, virPCIDeviceBindToStub.
            (
                invalid,
                "Requested operation is not valid: PCI device 0000:07:00.3 is in use by driver QEMU, domain one-7",
                Vf("0000:07:00.3"),
            ),
            (
                invalid,
                "Requested operation is not valid: Unmanaged PCI device 0000:07:00.1 must be manually detached from the host",
                Vf("0000:07:00.1"),
            ),
            (
                system,
                "Device 0000:07:00.3 not found: could not access /sys/bus/pci/devices/0000:07:00.3/config: No such file or \
                 directory",
                Vf("0000:07:00.3"),
            ),
            (
                internal,
                "internal error: Unable to reset PCI device 0000:07:00.3: no FLR, PM reset or bus reset available",
                Vf("0000:07:00.3"),
            ),
            (
                system,
                "Failed to bind PCI device '0000:07:00.1' to vfio-pci: Device or resource busy",
                Vf("0000:07:00.1"),
            ),
            // Because of a VF: vfio_get_group, vfio_get_device, in the monitor and on the command line.
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': vfio 0000:07:00.3: group 13 is not viable",
                Vf("0000:07:00.3"),
            ),
            (
                internal,
                "internal error: QEMU unexpectedly closed the monitor (vm='one-42'): 2026-11-29T10:00:00.000000Z \
                 qemu-system-x86_64: -device {\"driver\":\"vfio-pci\",\"host\":\"0000:07:00.1\",\"id\":\"ua-sriov-0\",\
                 \"bus\":\"pci.0\",\"addr\":\"0x10\"}: vfio 0000:07:00.1: error getting device from group 11: No such device",
                Vf("0000:07:00.1"),
            ),
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': vfio 0000:07:00.3: Could not open \
                 '/dev/vfio/13': Permission denied",
                Vf("0000:07:00.3"),
            ),
            // QEMU 6.2 does not name the function.
            (
                internal,
                "internal error: process exited while connecting to monitor: qemu-system-x86_64: -device \
                 vfio-pci,host=0000:07:00.1,id=ua-sriov-0,bus=pci.0,addr=0x10: failed to open /dev/vfio/11: Permission denied",
                Vf("0000:07:00.1"),
            ),
            // `/dev/vfio/vfio`, which every VF needs.
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': vfio 0000:07:00.3: failed to open \
                 /dev/vfio/vfio: Permission denied",
                Denied,
            ),
            // Memory: vfio_container_dma_map, virProcessSetMaxMemLock.
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': vfio 0000:07:00.3: failed to setup container \
                 for group 13: memory listener initialization failed: Region pc.ram: vfio_container_dma_map(0x55d1, 0x0, \
                 0x80000000, 0x7f00) = -12 (Cannot allocate memory)",
                Memory,
            ),
            (system, "cannot limit locked memory of process 4711 to 2147483648: Operation not permitted", Memory),
            (
                internal,
                "internal error: process exited while connecting to monitor: qemu-system-x86_64: -device \
                 vfio-pci,host=0000:07:00.3,id=ua-sriov-0: vfio 0000:07:00.3: failed to setup container for group 13: memory \
                 listener initialization failed: Region pc.ram: vfio_dma_map(0x55ba53e7a9d0, 0x100000000, 0xff30000000, \
                 0x7ed243e00000) = -22 (Invalid argument)",
                NoVfs,
            ),
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': vfio 0000:07:00.3: failed to setup container \
                 for group 13: Failed to set iommu for container: Operation not permitted",
                NoVfs,
            ),
            // The guest's bus: virDomainPCIAddressGetNextAddr, virDomainPCIAddressReserveAddrInternal,
            // do_pci_register_device, qdev_device_add. The guest address looks like the host address of a VF.
            (internal, "internal error: No more available PCI slots", NoVfs),
            (xml, "XML error: Attempted double use of PCI Address 0000:07:00.3", NoVfs),
            (xml, "XML error: Invalid PCI address 0000:07:00.3. slot must be <= 0", NoVfs),
            (
                internal,
                "internal error: Attempted double use of PCI slot 0000:07:00.3 (may need \"multifunction='on'\" for device \
                 on function 0)",
                NoVfs,
            ),
            (
                internal,
                "internal error: QEMU unexpectedly closed the monitor (vm='one-42'): qemu-system-x86_64: -device \
                 {\"driver\":\"vfio-pci\",\"host\":\"0000:07:00.1\",\"id\":\"ua-sriov-0\",\"bus\":\"pci.0\",\"addr\":\"0x5\"}: \
                 PCI: slot 5 function 0 not available for vfio-pci, in use by virtio-balloon-pci,id=balloon0",
                NoVfs,
            ),
            (
                internal,
                "internal error: process exited while connecting to monitor: qemu-system-x86_64: -device \
                 vfio-pci,host=0000:07:00.1,id=ua-sriov-0,bus=pci.9,addr=0x0: Bus 'pci.9' not found",
                NoVfs,
            ),
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': Bus 'pcie.0' does not support hotplugging",
                NoVfs,
            ),
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': Duplicate device ID 'ua-sriov-0'",
                NoVfs,
            ),
            // Because of the host or the domain.
            (unsupported, "unsupported configuration: host doesn't support passthrough of host PCI devices", NoVfs),
            (
                internal,
                "internal error: unable to execute QEMU command 'device_add': vfio 0000:07:00.3: Could not open \
                 '/dev/vfio/13': Too many open files",
                NoVfs,
            ),
            (internal, "internal error: cannot update AppArmor profile 'libvirt-7f1c2a52'", NoVfs),
            (42, "Domain not found: no domain with matching uuid '7f1c2a52'", NoVfs),
            (9, "operation failed: domain 'one-42' already exists with uuid 7f1c2a52", NoVfs),
            (
                68,
                "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainSave)",
                NoVfs,
            ),
        ] {
            assert_eq!(judge(&dir, &[], code, text), whose, "{text}");
        }
        // When QEMU may not open a second VF either, no VF is the reason.
        let denied = "vfio 0000:07:00.3: Could not open '/dev/vfio/13': Permission denied";
        let before = |is_denied| [RefusedVf { vf: "0000:07:00.2".parse().unwrap(), why: String::new(), is_denied }];
        assert_eq!(judge(&dir, &before(false), internal, denied), Vf("0000:07:00.3"));
        assert_eq!(judge(&dir, &before(true), internal, denied), Denied);
    }
}
