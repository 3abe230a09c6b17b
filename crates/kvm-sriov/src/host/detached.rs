//! Programs that go on after the action that started them has ended.

use std::process::{Command, Stdio};

use crate::base::signals;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::os;

/// The program that plugs back a VF which a guest releases after its action stopped waiting.
pub(crate) const WATCHER: &str = "sriov_watcher";

/// The program that sets the clock of a guest that was stopped.
pub(crate) const CLOCK: &str = "sriov_clock";

/// The program that repairs the host.
pub(crate) const PROBE: &str = "sriov_probe";

/// Starts one of the driver's programs for a domain. The program gets none of this process's pipes, because OpenNebula
/// waits until all of them are closed, and it makes a session of its own. A program that can't be started is only
/// logged: a later action does its work.
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
        // This is checked before the start, because a process that is being started holds a copy of every lock until
        // its program begins or fails to begin.
        log::warn!("{} was not started for {subject}: there is no such program", path.display());
        return;
    }
    if let Some(os) = os::simulated() {
        return match os.start_program(&path, arg) {
            Ok(()) => log::debug!("{program} runs for {subject}"),
            Err(error) => log::warn!("{} was not started for {subject}: {error}", path.display()),
        };
    }
    let started =
        Command::new(&path).args(arg).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    match started {
        Ok(child) => log::debug!("{program} runs for {subject} (pid {})", child.id()),
        Err(error) => log::warn!("{} was not started for {subject}: {error}", path.display()),
    }
}

/// Makes this process independent of its terminal, of its directory and of ssh, and lets it end at SIGTERM: the next action does the work
/// that it has left. Such a program calls it first.
pub(crate) fn detach() {
    signals::release();
    if let Err(error) = nix::unistd::setsid() {
        log::debug!("no session of its own: {error}");
    }
    leave_directory();
}

/// Leaves the directory that this process was started in, so that its file system can be unmounted.
pub(crate) fn leave_directory() {
    if let Err(error) = std::env::set_current_dir("/") {
        log::debug!("the directory can't be left: {error}");
    }
}
