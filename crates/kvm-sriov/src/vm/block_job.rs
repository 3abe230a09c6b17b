//! Block jobs: libvirt copies a disk while its domain runs, and refuses other work on the domain meanwhile.

use std::time::Duration;

use crate::base::DomainName;
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::{DomainRef, LibvirtError, LibvirtErrorKind};
use crate::os;

/// How many times a call is made that libvirt refuses because of a block job.
///
/// # Source
/// OpenNebula's stock driver, for this and the next constant.
const TRIES: usize = 3;

/// The time between two tries.
pub(crate) const WAIT: Duration = Duration::from_secs(5);

/// Counts the tries of a call that libvirt refuses while a block job runs.
#[derive(Default)]
pub(crate) struct Tries {
    refused: usize,
}

impl Tries {
    /// Whether the call is to be made again after [`WAIT`]: libvirt refused it because of a block job, and tries are
    /// left.
    pub(crate) fn again(&mut self, vm: &DomainName, error: &LibvirtError) -> bool {
        if error.kind() != LibvirtErrorKind::ActiveBlockJob {
            return false;
        }
        self.refused += 1;
        let is_left = self.refused < TRIES;
        if is_left {
            log::info!("a block job runs on a disk of {vm}: waiting for its end");
        }
        is_left
    }
}

/// Calls libvirt, and again while a block job runs on a disk of the domain.
pub(crate) fn wait_out<T>(
    vm: &DomainName,
    mut call: impl FnMut() -> Result<T, LibvirtError>,
) -> Result<T, LibvirtError> {
    let mut tries = Tries::default();
    loop {
        match call() {
            Err(error) if tries.again(vm, &error) => os::sleep(WAIT),
            other => return other,
        }
    }
}

/// Waits until the copy of every one of these disks holds what its disk holds. libvirt sends no event for that.
///
/// * `targets` - the disks, such as `vda`
///
/// # Errors
/// A copy has ended early, or libvirtd does not answer. The other copies go on.
pub(crate) fn wait_until_ready(host: &Host, domain: &DomainRef, targets: &[&str]) -> Result<(), Cause> {
    host.wait_until(None, || are_ready(host, domain, targets)).map(drop)
}

fn are_ready(host: &Host, domain: &DomainRef, targets: &[&str]) -> Result<bool, Cause> {
    for target in targets {
        match host.hypervisor().block_job(domain, target)? {
            Some(job) if job.is_ready() => {}
            Some(_) => return Ok(false),
            None => {
                let what = format!("the copy of its disk {target} has ended early (is the datastore full?)");
                return Err(Cause::NotAsAsked { name: domain.name.clone(), what });
            }
        }
    }
    Ok(true)
}

/// Ends the copy of a disk. When this function succeeds, no copy of the disk runs.
///
/// # Errors
/// The copy may still run.
pub(crate) fn end(host: &Host, domain: &DomainRef, target: &str) -> Result<(), Cause> {
    let hypervisor = host.hypervisor();
    let runs = || Ok::<_, Cause>(hypervisor.block_job(domain, target)?.is_some());
    host.patiently(|| {
        if !runs()? {
            return Ok(());
        }
        match hypervisor.finish_block_job(domain, target, false) {
            // A copy that ended by itself just now is no error.
            Err(source) if runs()? => {
                Err(Cause::Call { what: format!("end the copy of disk {target} of {}", domain.name), source })
            }
            _ => Ok(()),
        }
    })
}
