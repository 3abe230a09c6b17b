//! The probe: OpenNebula's monitoring puts a host right, every half minute; so does what is run when a VM has left.

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::host::Host;
use crate::identity;
use crate::reconcile::{Options, reconcile};
use crate::signals;
use crate::wire;

/// After this time nothing is waited for: OpenNebula runs its probes one after the other, every 30 s.
const LIMIT: Duration = Duration::from_secs(20);

/// Between two times that `poll` puts the host right: as often as a probe does it in later versions.
const EVERY: Duration = Duration::from_secs(30);

/// Reconciles the host that this program was copied to. Says nothing on standard output, where OpenNebula expects what a probe
/// knows of VMs. Each repair is a line in the journal.
///
/// * `name` - of the program, for its log
/// * returns success always: one probe that fails keeps OpenNebula from hearing of all the others
///
/// # Source
/// OpenNebula's `im/kvm-probes.d/vm/monitor`, run by `monitord-client.rb`; and `vnm/<driver>/clean`, run when a VM has left the host,
/// which failed the whole action if it failed.
pub fn run(name: &'static str) -> ExitCode {
    signals::hold();
    wire::log_to_stderr(name);
    let driver = wire::driver_of(&env::current_exe().unwrap_or_default());
    match heal(&driver) {
        Ok(()) => {}
        Err(cause) => log::warn!("{cause}; the host is put right by the next probe, or the next action"),
    }
    ExitCode::SUCCESS
}

/// What OpenNebula's versions without probes for VMs (up to 5.10) have instead: `poll`, which they run for every VM, puts the host right,
/// too, if none did so in the last 30 s. Takes at most 20 s, waits for no lock, and never fails: `poll` has an answer of its own.
pub fn run_with_poll(driver: &Path) {
    if let Err(cause) = heal_in_turn(driver) {
        log::warn!("{cause}; the host is put right by a later poll, or the next action");
    }
}

fn heal_in_turn(driver: &Path) -> Result<(), Cause> {
    let host = Host::open_lenient_until(driver, Instant::now() + LIMIT)?;
    // Who has the turn keeps it until its work is done, however long its VMs take.
    let turn = match host.existing_claims()? {
        Some(store) => match store.poll_turn(EVERY)? {
            Some(turn) => Some(turn),
            None => return Ok(()),
        },
        None => None,
    };
    let healed = put_right(&host);
    drop(turn);
    healed
}

fn heal(driver: &Path) -> Result<(), Cause> {
    identity::become_owner_of(driver)?;
    put_right(&Host::open_lenient_until(driver, Instant::now() + LIMIT)?)
}

fn put_right(host: &Host) -> Result<(), Cause> {
    let report = reconcile(host, &Options { timeout: LIMIT / 2, ..Options::default() })?;
    for problem in &report.problems {
        log::warn!("{problem}");
    }
    Ok(())
}
