//! `poll`: what a VM uses (OpenNebula up to 5.10; later versions have probes of their own).

use std::thread;
use std::time::{Duration, Instant};

use crate::base::{Action, DeployId};
use crate::config::OneVersion;
use crate::error::{ActionError, Cause};
use crate::host::Host;
use crate::libvirt::Usage;
use crate::vm;

/// How long the use of CPUs is measured.
///
/// # Source
/// OpenNebula's stock `poll`.
const MEASURED: Duration = Duration::from_secs(1);

/// The state of a VM and what it uses, as OpenNebula reads it: `STATE=a CPU=12.5 MEMORY=1048576 NETRX=...`. CPU is in hundredths of
/// one CPU, memory in KiB, all else in bytes or requests since the domain started.
///
/// A domain that is not there has `STATE=-`. Nothing is changed.
///
/// # Errors
/// libvirtd does not answer, or the domain's XML can't be read.
///
/// # Source
/// OpenNebula's stock `poll` (5.10).
pub fn poll(host: &Host, id: &DeployId, caller: &OneVersion) -> Result<String, ActionError> {
    match measure(host, id) {
        Ok((usage, cpu)) => Ok(line(&usage, cpu, caller)),
        Err(Cause::Absent { .. }) => Ok("STATE=-".into()),
        Err(cause) => Err(ActionError::untouched(Action::Poll, cause)),
    }
}

/// What a domain has used, and how many hundredths of one CPU it uses now.
fn measure(host: &Host, id: &DeployId) -> Result<(Usage, f64), Cause> {
    let domain = host.find(id)?;
    let live = vm::read(host, &domain)?;
    let interfaces: Vec<String> = live.interfaces.iter().filter_map(|interface| interface.target.clone()).collect();
    let disks: Vec<String> = live.disks.iter().map(|disk| disk.target.clone()).collect();
    let look = || {
        let usage = host.hypervisor().usage(&domain, &interfaces, &disks)?;
        usage.ok_or_else(|| Cause::Absent { id: domain.name.to_string() })
    };
    let (begin, before) = (Instant::now(), look()?);
    thread::sleep(MEASURED);
    let (now, passed) = (look()?, begin.elapsed());
    let used = Duration::from_nanos(now.cpu_ns.saturating_sub(before.cpu_ns));
    Ok((now, used.as_secs_f64() / passed.as_secs_f64() * 100.0))
}

fn line(usage: &Usage, cpu: f64, caller: &OneVersion) -> String {
    let state = match (usage.is_paused, usage.is_stuck) {
        (true, is_stuck) => caller.paused(is_stuck),
        (false, true) => 'e',
        (false, false) => 'a',
    };
    let Usage { memory_kib, received, sent, read, written, .. } = usage;
    let mut line = format!("STATE={state} CPU={cpu:.2} MEMORY={memory_kib} NETRX={received} NETTX={sent}");
    line +=
        &format!(" DISKRDBYTES={} DISKWRBYTES={} DISKRDIOPS={} DISKWRIOPS={}", read.0, written.0, read.1, written.1);
    line
}
