//! Where the driver's programs are in OpenNebula's remotes, and the files of a VM in a datastore.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::base::DomainName;

/// The driver's directory below OpenNebula's remotes. The probe and the network driver are in other directories there.
const DRIVER: &str = "vmm/kvm-sriov";

/// The driver's directory: the directory of the program or, if that is not in `vmm/`, the driver in the same remotes.
pub(super) fn driver_of(program: &Path) -> PathBuf {
    let own = program.parent().unwrap_or(Path::new(""));
    let is_vmm = own.parent().and_then(Path::file_name).is_some_and(|dir| dir == "vmm");
    let beside = || program.ancestors().map(|dir| dir.join(DRIVER)).find(|driver| driver.is_dir());
    Some(own).filter(|_| is_vmm).map(Path::to_owned).or_else(beside).unwrap_or_else(|| own.to_owned())
}

/// The name of the VM whose checkpoint has this path. OpenNebula names the directory of a VM after the VM's number.
///
/// # Source
/// OpenNebula's stock `restore` (6.8 and later), which knows the VM by the directory of its checkpoint.
pub fn vm_of_checkpoint(checkpoint: &Path) -> Option<DomainName> {
    let number = checkpoint.parent()?.file_name().and_then(OsStr::to_str)?;
    format!("one-{number}").parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_driver_is_found_from_everything_that_it_brings() {
        let remotes = tempfile::tempdir().unwrap();
        let (driver, second) = (remotes.path().join(DRIVER), remotes.path().join("vmm/second"));
        let pre = remotes.path().join("vnm/sriov/pre");
        assert_eq!(driver_of(&pre), remotes.path().join("vnm/sriov"));
        fs::create_dir_all(&driver).unwrap();
        fs::create_dir_all(&second).unwrap();
        let probe = remotes.path().join("im/kvm-probes.d/vm/monitor/sriov_probe");
        for program in [pre, probe, remotes.path().join("im/kvm-probes.d/sriov_probe"), driver.join("deploy")] {
            assert_eq!(driver_of(&program), driver, "{}", program.display());
        }
        assert_eq!(driver_of(&second.join("deploy")), second);
    }
}
