//! The answer of `poll`, as OpenNebula up to 5.10 reads it.

use crate::actions::{self, Measurement};
use crate::base::DomainId;
use crate::config::OneVersion;
use crate::error::ActionError;
use crate::host::Host;

/// The state of a VM and what it uses: `STATE=a CPU=12.5 MEMORY=1048576 NETRX=...`. CPU is in percent of one CPU,
/// memory in KiB. The other values are bytes or requests since the domain started. A domain that is not there has
/// `STATE=-`.
///
/// # Errors
/// As [`actions::poll`].
///
/// # Source
/// OpenNebula's stock `poll` (5.10).
pub fn poll(host: &Host, id: &DomainId, caller: &OneVersion) -> Result<String, ActionError> {
    let measured = actions::poll(host, id)?;
    Ok(measured.map_or_else(|| "STATE=-".into(), |measured| line(&measured, caller)))
}

fn line(measured: &Measurement, caller: &OneVersion) -> String {
    let Measurement { usage, cpu } = measured;
    let state = match (usage.is_paused, usage.is_stuck) {
        (true, is_stuck) => caller.paused_state(is_stuck),
        (false, true) => 'e',
        (false, false) => 'a',
    };
    let (memory, received, sent) = (usage.memory_kib, usage.received, usage.sent);
    let (read, written) = (usage.read, usage.written);
    format!(
        "STATE={state} CPU={cpu:.2} MEMORY={memory} NETRX={received} NETTX={sent} DISKRDBYTES={} DISKWRBYTES={} \
         DISKRDIOPS={} DISKWRIOPS={}",
        read.0, written.0, read.1, written.1
    )
}
