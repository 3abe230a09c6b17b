//! Block jobs: libvirt copies a disk, and refuses other work on the domain meanwhile.

use std::thread;
use std::time::Duration;

use crate::base::DomainName;
use crate::libvirt::{LibvirtError, LibvirtErrorKind};

/// How often a call that libvirt refuses because of a block job is made.
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
    /// Whether the call is to be made again after [`WAIT`]: libvirt refused it because of a block job, and tries are left.
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
            Err(error) if tries.again(vm, &error) => thread::sleep(WAIT),
            other => return other,
        }
    }
}
