//! The probe: puts a host right, every half minute and when a VM has left.

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::base::{Action, signals};
use crate::error::Cause;
use crate::host::Host;
use crate::host::become_owner_of;
use crate::host::detached;
use crate::reconcile::{Options, reconcile};

/// After this time nothing is waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// Between two times that `poll` puts the host right: as often as monitoring does it in later versions.
const EVERY: Duration = Duration::from_secs(30);

/// Reconciles the host that this program was copied to, unless another probe is at it. Each repair is a line in the journal.
///
/// * returns success always
///
/// # Source
/// OpenNebula's `im/kvm-probes.d/vm/monitor`, run by `monitord-client.rb`, and `vnm/<driver>/clean`, run when a VM has left the host: a
/// script there starts this program, and waits for nothing.
pub fn run() -> ExitCode {
    signals::hold();
    super::stderr_log::to_stderr(Action::Probe);
    let driver = super::place::driver_of(&env::current_exe().unwrap_or_default());
    match heal(&driver) {
        Ok(()) => {}
        Err(cause) => log::warn!("{cause}; the host is put right by the next probe, or the next action"),
    }
    ExitCode::SUCCESS
}

/// What OpenNebula's versions without probes for VMs (up to 5.10) have instead: `poll`, which they run for every VM, starts the probe, too, if
/// none was started in the last 30 s. Waits for nothing, and never fails: `poll` has an answer of its own.
pub fn start_in_turn(host: &Host) {
    match is_due(host) {
        Ok(true) => detached::start_probe(host),
        Ok(false) => {}
        Err(cause) => log::warn!("{cause}; the host is put right by a later poll, or the next action"),
    }
}

fn is_due(host: &Host) -> Result<bool, Cause> {
    let Some(store) = host.existing_claims()? else { return Ok(true) };
    Ok(store.probe_turn(EVERY)?.is_some())
}

fn heal(driver: &Path) -> Result<(), Cause> {
    become_owner_of(driver)?;
    let host = Host::open_lenient_until(driver, Instant::now() + LIMIT)?;
    // Who has the turn keeps it until its work is done, however long its VMs take.
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
