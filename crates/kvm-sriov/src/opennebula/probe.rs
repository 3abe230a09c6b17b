//! The probe: repairs the VMs of a host, every 30 s and when a VM has left the host.

use std::env;
use std::path::Path;
use std::time::Duration;

use crate::base::{Action, signals};
use crate::error::Cause;
use crate::host::Host;
use crate::host::become_owner_of;
use crate::host::detached;
use crate::os;
use crate::reconcile::{Options, reconcile};

/// The probe ends after this time.
const LIMIT: Duration = Duration::from_secs(20);

/// The time between two probes that `poll` starts. Monitoring of later versions starts its probes as often.
const EVERY: Duration = Duration::from_secs(30);

/// Reconciles this host, unless another probe is doing so. Each repair is a line in the journal. Always returns
/// success.
///
/// # Source
/// OpenNebula's `monitord-client.rb` runs `im/kvm-probes.d/vm/monitor`, and OpenNebula runs `vnm/<driver>/clean` when a
/// VM has left the host. A script in each of these places starts this program and does not wait for it.
pub fn run() -> u8 {
    signals::hold();
    detached::leave_directory();
    super::stderr_log::to_stderr(Action::Probe);
    let driver = super::place::driver_of(&env::current_exe().unwrap_or_default());
    match repair(&driver) {
        Ok(()) => {}
        Err(cause) => log::warn!("{cause}; the next probe, or the next action, repairs this host"),
    }
    0
}

/// Starts the probe if none was started in the last 30 s. `poll` calls this for OpenNebula up to 5.10, which has no
/// probes for VMs but runs `poll` for every VM. Does not wait. A failure is only logged, because it must not fail
/// `poll`.
pub fn start_in_turn(host: &Host) {
    match is_due(host) {
        Ok(true) => detached::start_probe(host),
        Ok(false) => {}
        Err(cause) => log::warn!("{cause}; a later poll, or the next action, repairs this host"),
    }
}

fn is_due(host: &Host) -> Result<bool, Cause> {
    let Some(store) = host.existing_claims()? else { return Ok(true) };
    Ok(store.probe_turn(EVERY)?.is_some())
}

fn repair(driver: &Path) -> Result<(), Cause> {
    become_owner_of(driver)?;
    let host = Host::open_lenient_until(driver, os::now() + LIMIT)?;
    // The turn is kept until the work is done, however long its VMs take.
    let turn = match host.existing_claims()? {
        Some(store) => match store.probe_turn(Duration::ZERO)? {
            Some(turn) => Some(turn),
            None => return Ok(()),
        },
        None => None,
    };
    let report = reconcile(&host, &Options { timeout: LIMIT / 2, ..Options::default() })?;
    for problem in &report.problems {
        log::warn!("{problem}");
    }
    drop(turn);
    Ok(())
}
