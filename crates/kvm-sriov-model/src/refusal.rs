//! libvirt's errors: number and text as `virErrorMsg` forms them. The library classifies them itself.

use kvm_sriov::libvirt::{LibvirtError, LibvirtErrorKind};

fn other(code: u32, text: String) -> LibvirtError {
    LibvirtError::of_libvirt(code, text)
}

pub(super) fn internal(text: impl AsRef<str>) -> LibvirtError {
    other(1, format!("internal error: {}", text.as_ref()))
}

/// QEMU's monitor refused a command.
pub(super) fn monitor(command: &str, text: impl AsRef<str>) -> LibvirtError {
    internal(format!("unable to execute QEMU command '{command}': {}", text.as_ref()))
}

pub(super) fn argument(text: impl AsRef<str>) -> LibvirtError {
    other(8, format!("invalid argument: {}", text.as_ref()))
}

pub(super) fn failed(text: impl AsRef<str>) -> LibvirtError {
    other(9, format!("operation failed: {}", text.as_ref()))
}

pub(super) fn xml(text: impl AsRef<str>) -> LibvirtError {
    other(27, format!("XML error: {}", text.as_ref()))
}

/// A system call failed. The text contains the kernel's reason.
pub(super) fn system(text: impl Into<String>) -> LibvirtError {
    other(38, text.into())
}

pub(super) fn no_domain(uuid: &str) -> LibvirtError {
    other(42, format!("Domain not found: no domain with matching uuid '{uuid}'"))
}

pub(super) fn invalid(text: impl AsRef<str>) -> LibvirtError {
    other(55, format!("Requested operation is not valid: {}", text.as_ref()))
}

pub(super) fn unsupported(text: impl AsRef<str>) -> LibvirtError {
    other(67, format!("unsupported configuration: {}", text.as_ref()))
}

/// Another job has held the domain for the 30 s that libvirt waits.
pub(super) fn locked(job: &str) -> LibvirtError {
    let text = format!(
        "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomain{job})"
    );
    other(68, text)
}

/// The guest has not released a CPU within the 5 s that libvirt waits.
pub(super) fn kept_vcpu() -> LibvirtError {
    let text = "vcpu unplug request timed out. Unplug result must be manually inspected in the domain";
    other(68, format!("Timed out during operation: {text}"))
}

pub(super) fn no_snapshot(name: &str) -> LibvirtError {
    other(72, format!("Domain snapshot not found: no domain snapshot with matching name '{name}'"))
}

pub(super) fn aborted(job: &str) -> LibvirtError {
    other(78, format!("operation aborted: {job}: canceled by client"))
}

pub(super) fn no_agent() -> LibvirtError {
    other(86, "Guest agent is not responding: QEMU guest agent is not connected".into())
}

pub(super) fn no_disk(disk: &str) -> LibvirtError {
    argument(format!("invalid path {disk} not assigned to domain"))
}

/// The disk is being copied, and a disk can have only one job.
pub(super) fn copy_runs(disk: &str) -> LibvirtError {
    other(83, format!("block copy still active: disk '{disk}' already in active block job"))
}

pub(super) fn no_copy(disk: &str) -> LibvirtError {
    invalid(format!("disk {disk} does not have an active block job"))
}

pub(super) fn copy_not_ready(disk: &str) -> LibvirtError {
    other(83, format!("block copy still active: disk '{disk}' not ready for pivot yet"))
}

/// No device has this alias: libvirt reports an internal error (virDomainDefFindDevice).
pub(super) fn no_alias(alias: &str) -> LibvirtError {
    internal(format!("no device found with alias {alias}"))
}

/// No device matches this XML.
pub(super) fn no_device(what: &str) -> LibvirtError {
    other(99, format!("device not found: {what} not found"))
}

/// The connection broke during a call, or can't be opened again yet.
pub(super) fn cut_off() -> LibvirtError {
    LibvirtError::new(LibvirtErrorKind::Disconnected, 38, "Cannot recv data: Connection reset by peer")
}

/// Another host can't be reached.
pub(super) fn unreachable(host: &str) -> LibvirtError {
    let text = format!("unable to connect to server at '{host}:16514': No route to host");
    LibvirtError::new(LibvirtErrorKind::Unreachable, 38, text)
}
