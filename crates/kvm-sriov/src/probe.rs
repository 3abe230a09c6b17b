//! The probe: OpenNebula's monitoring puts a host right, every half minute.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::host::Host;
use crate::identity;
use crate::reconcile::{Options, reconcile};
use crate::wire;

/// After this time nothing is waited for: OpenNebula runs its probes one after the other, every 30 s.
const LIMIT: Duration = Duration::from_secs(20);

/// Where the driver lies in the directory that holds the probe as well.
const DRIVER: &str = "vmm/kvm-sriov";

/// Reconciles the host that this program was copied to. Says nothing on standard output, where OpenNebula expects what a probe
/// knows of VMs. Each repair is a line in the journal.
///
/// * returns success always: one probe that fails keeps OpenNebula from hearing of all the others
///
/// # Source
/// OpenNebula's `im/kvm-probes.d/vm/monitor`, run by `monitord-client.rb`.
pub fn run() -> ExitCode {
    wire::log_to_stderr("sriov_probe");
    let program = env::current_exe().unwrap_or_default();
    match driver_of(&program).map_or_else(|| Ok(()), |driver| heal(&driver)) {
        Ok(()) => {}
        Err(cause) => log::warn!("{cause}; the host is put right by the next probe, or the next action"),
    }
    ExitCode::SUCCESS
}

/// The driver's directory in the tree of OpenNebula's remotes that a program lies in; `None` when it lies in none.
fn driver_of(program: &Path) -> Option<PathBuf> {
    program.ancestors().map(|dir| dir.join(DRIVER)).find(|driver| driver.is_dir())
}

fn heal(driver: &Path) -> Result<(), Cause> {
    identity::become_owner_of(driver)?;
    let host = Host::open_lenient_until(driver, Instant::now() + LIMIT)?;
    let report = reconcile(&host, &Options { timeout: LIMIT / 2, ..Options::default() })?;
    for problem in &report.problems {
        log::warn!("{problem}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_found_from_where_probes_lie() {
        let remotes = tempfile::tempdir().unwrap();
        let driver = remotes.path().join(DRIVER);
        let probe = remotes.path().join("im/kvm-probes.d/vm/monitor/kvm_sriov");
        assert_eq!(driver_of(&probe), None);
        std::fs::create_dir_all(&driver).unwrap();
        for probe in [probe, remotes.path().join("im/kvm-probes.d/kvm_sriov"), driver.join("sriov_probe")] {
            assert_eq!(driver_of(&probe), Some(driver.clone()), "{}", probe.display());
        }
    }
}
