//! `poll`: measures what a VM uses, for OpenNebula up to 5.10. Later versions have probes of their own.

use std::time::Duration;

use crate::base::{Action, DomainId};
use crate::error::{ActionError, Cause};
use crate::host::Host;
use crate::libvirt::Usage;
use crate::os;
use crate::vm;

/// How long the use of the CPUs is measured.
///
/// # Source
/// OpenNebula's stock `poll`.
const MEASURED: Duration = Duration::from_secs(1);

/// What a VM uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// The sums since the domain started.
    pub usage: Usage,
    /// The present use of CPUs, in percent of one CPU.
    pub cpu: f64,
}

/// Measures for one second what a VM uses; `None` for a domain that is not there. Nothing is changed.
///
/// # Errors
/// libvirtd does not answer, or the domain's XML can't be read.
///
/// # Source
/// OpenNebula's stock `poll` (5.10).
pub fn poll(host: &Host, id: &DomainId) -> Result<Option<Measurement>, ActionError> {
    match measure(host, id) {
        Ok(measured) => Ok(Some(measured)),
        Err(Cause::Absent { .. }) => Ok(None),
        Err(cause) => Err(ActionError::untouched(Action::Poll, cause)),
    }
}

fn measure(host: &Host, id: &DomainId) -> Result<Measurement, Cause> {
    let domain = host.find(id)?;
    let live = vm::read(host, &domain)?;
    let interfaces: Vec<String> = live.interfaces.iter().filter_map(|interface| interface.target.clone()).collect();
    let disks: Vec<String> = live.disks.iter().map(|disk| disk.target.clone()).collect();
    let read = || {
        let usage = host.hypervisor().usage(&domain, &interfaces, &disks)?;
        usage.ok_or_else(|| Cause::Absent { id: domain.name.to_string() })
    };
    let (begin, before) = (os::now(), read()?);
    os::sleep(MEASURED);
    let (now, passed) = (read()?, os::since(begin));
    let used = Duration::from_nanos(now.cpu_ns.saturating_sub(before.cpu_ns));
    Ok(Measurement { usage: now, cpu: used.as_secs_f64() / passed.as_secs_f64() * 100.0 })
}
