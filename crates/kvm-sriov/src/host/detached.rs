//! Programs that go on when the action that started them has ended.

use std::process::{Command, Stdio};

use crate::base::signals;
use crate::host::Host;
use crate::libvirt::DomainRef;

/// Plugs back what leaves a domain after its action stopped waiting.
pub(crate) const WATCHER: &str = "sriov_watcher";

/// Sets the clock of a guest that stood still.
pub(crate) const CLOCK: &str = "sriov_clock";

/// Puts the host right.
pub(crate) const PROBE: &str = "sriov_probe";

/// Starts one of the driver's programs for a domain, without any tie to this process but its parenthood: OpenNebula waits
/// until nobody holds its pipes any more. It makes itself a session of its own. Where it can't be started, a line in the
/// log says so: nothing that it does is lost, only late.
pub(crate) fn start(host: &Host, program: &str, domain: &DomainRef) {
    start_with(host, program, Some(domain.uuid.as_str()), domain.name.as_str());
}

/// Starts the probe in the same way.
pub(crate) fn start_probe(host: &Host) {
    start_with(host, PROBE, None, "this host");
}

fn start_with(host: &Host, program: &str, arg: Option<&str>, subject: &str) {
    let Some(path) = host.driver_dir().map(|dir| dir.join(program)) else {
        log::debug!("{program} was not started for {subject}: this host has no programs");
        return;
    };
    if !path.is_file() {
        // Not left to the start to find out: until a program has begun, or failed to, its process holds a copy of every lock.
        log::warn!("{} was not started for {subject}: there is no such program", path.display());
        return;
    }
    let started = Command::new(&path)
        .args(arg)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        Ok(child) => log::debug!("{program} runs for {subject} (pid {})", child.id()),
        Err(error) => log::warn!("{} was not started for {subject}: {error}", path.display()),
    }
}

/// Makes this process one that no terminal and no ssh ends, and that ends when it is told to: what it has not done by then, the next
/// action does. To be called by such a program first.
pub(crate) fn detach() {
    signals::release();
    if let Err(error) = nix::unistd::setsid() {
        log::debug!("no session of its own: {error}");
    }
}
