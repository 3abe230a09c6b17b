//! A copy of a disk ends by itself: what libvirt refuses because of one is tried again.

use std::thread;
use std::time::Duration;

use crate::base::DomainName;
use crate::libvirt::{LibvirtError, LibvirtErrorKind};

/// How often it is tried.
///
/// # Source
/// OpenNebula's stock driver, for this and the next.
const TRIES: usize = 3;

/// Between two tries.
const WAIT: Duration = Duration::from_secs(5);

/// Calls libvirt, and again while a block job runs on a disk of the domain.
pub(crate) fn wait_out<T>(
    vm: &DomainName,
    mut call: impl FnMut() -> Result<T, LibvirtError>,
) -> Result<T, LibvirtError> {
    for _ in 1..TRIES {
        match call() {
            Err(error) if error.kind() == LibvirtErrorKind::ActiveBlockJob => {
                log::info!("a block job runs on a disk of {vm}: it is waited for");
                thread::sleep(WAIT);
            }
            other => return other,
        }
    }
    call()
}
