//! The unplug engine asks a guest to release devices. Only the live XML tells whether a device has left.

use std::time::{Duration, Instant};

use crate::base::span::{Kind, Span};
use crate::base::{POLL, PciAddress};
use crate::error::UnplugOutcome;
use crate::host::{Host, Progress};
use crate::libvirt::{DomainRef, Event, Events, Hypervisor, LibvirtErrorKind};
use crate::os;
use crate::xml::{LiveDomain, XmlError};

/// When a guest does not answer, it is asked again after this time: a guest that boots forgets earlier requests.
///
/// # Source
/// QEMU `hw/acpi/pcihp.c`: a guest that takes over hot-plug clears the pending requests.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The shortest time between two requests. A second press of the attention button within 5 s withdraws the first one.
///
/// # Source
/// Linux `drivers/pci/hotplug/pciehp_ctrl.c`; PCI Express Base Specification, "attention button".
const NEVER_SOONER: Duration = Duration::from_millis(5_100);

/// The shortest time limit of a request, when the deadline is near.
const LEAST: Duration = Duration::from_secs(1);

/// Why a guest was not asked for some devices.
const NO_TIME: &str = "no time was left to ask the guest";
const TOLD_TO_STOP: &str = "the guest was not asked, because the caller stopped the action";

/// The time between two tries to reach a libvirtd that is away.
const RECONNECT: Duration = Duration::from_millis(100);

/// Asks a running domain to release devices, all at once, and waits for all of them until one deadline.
///
/// * `aliases` - libvirt's names of the devices
/// * `timeout` - how long the slowest device is waited for
/// * returns one outcome for each alias, in their order
///
/// # Errors
/// The live XML can't be read. Devices may have left.
pub fn unplug(
    hypervisor: &dyn Hypervisor,
    domain: &DomainRef,
    aliases: &[String],
    timeout: Duration,
) -> Result<Vec<UnplugOutcome>, XmlError> {
    Engine::new(hypervisor, domain, aliases, timeout, None).run()
}

/// When an unplug ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// At its deadline, or when the host is told to stop.
    Early,
    /// At its deadline: for the undo of an action.
    InTime,
}

/// As [`unplug`], for an action on `host`: within SRIOV_UNPLUG_TIMEOUT. Reports its progress.
///
/// * `vf_of` - the VF of an alias; `None` for another device
///
/// # Errors
/// As [`unplug`].
pub(crate) fn for_action(
    host: &Host,
    domain: &DomainRef,
    aliases: &[String],
    vf_of: &dyn Fn(&str) -> Option<PciAddress>,
    ends: Ends,
) -> Result<Vec<UnplugOutcome>, XmlError> {
    let vfs: Vec<PciAddress> = aliases.iter().filter_map(|alias| vf_of(alias)).collect();
    if !vfs.is_empty() {
        host.report(|| Progress::Unplugging { vfs });
    }
    let watched = Watched { host, vf_of, ends };
    Engine::new(host.hypervisor(), domain, aliases, host.settings().unplug_timeout, Some(watched)).run()
}

/// The action of an unplug, and when the unplug ends.
struct Watched<'a> {
    host: &'a Host,
    vf_of: &'a dyn Fn(&str) -> Option<PciAddress>,
    ends: Ends,
}

/// One device that the guest is asked to release.
struct Removal<'a> {
    alias: &'a str,
    /// When the guest was asked last.
    asked: Option<Instant>,
    /// How long after that the guest is asked again.
    again: Duration,
    /// The last refusal of libvirt. It counts only when it is repeated, because libvirt may return an error although
    /// the device is being unplugged.
    refused: Option<String>,
    /// Whether the guest may have been asked.
    was_asked: bool,
    /// Why the guest could not be asked the last time.
    busy: Option<String>,
    outcome: Option<UnplugOutcome>,
    /// Whether its release was reported.
    is_reported: bool,
    /// From the first request until the removal event.
    span: Option<Span>,
}

impl<'a> Removal<'a> {
    fn new(alias: &'a String) -> Self {
        Self {
            alias,
            asked: None,
            again: Duration::ZERO,
            refused: None,
            was_asked: false,
            busy: None,
            outcome: None,
            is_reported: false,
            span: None,
        }
    }

    fn is_open(&self) -> bool {
        self.outcome.is_none()
    }

    /// Whether the guest must be asked now. `due` is computed before the clock is read: a request that is due at once
    /// would otherwise be a moment in the future.
    fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= os::now())
    }

    fn due(&self) -> Option<Instant> {
        self.is_open().then(|| self.asked.map_or_else(os::now, |asked| asked + self.again))
    }
}

/// An unplug that is under way.
struct Engine<'a> {
    hypervisor: &'a dyn Hypervisor,
    domain: &'a DomainRef,
    requests: Vec<Removal<'a>>,
    deadline: Instant,
    watched: Option<Watched<'a>>,
}

/// What the engine does next.
enum NextStep {
    /// Read the live XML: an event or an answer says that something changed.
    Look,
    /// Ask for the devices that are due.
    Ask,
    /// Connect to libvirtd again.
    Reconnect,
}

impl<'a> Engine<'a> {
    fn new(
        hypervisor: &'a dyn Hypervisor,
        domain: &'a DomainRef,
        aliases: &'a [String],
        timeout: Duration,
        watched: Option<Watched<'a>>,
    ) -> Self {
        let requests = aliases.iter().map(Removal::new).collect();
        Self { hypervisor, domain, requests, deadline: os::now() + timeout, watched }
    }

    fn run(mut self) -> Result<Vec<UnplugOutcome>, XmlError> {
        // The events are registered first: a removal event may come before the call returns.
        let mut events = self.watch();
        while let Some(source) = events.as_ref().filter(|_| self.requests.iter().any(Removal::is_open)) {
            if self.is_stopped() {
                self.look()?;
                break;
            }
            let next = match self.ask() {
                Some(next) => next,
                None => self.listen(source),
            };
            match next {
                NextStep::Ask => {}
                NextStep::Look => self.look()?,
                NextStep::Reconnect => {
                    // Events of the time between are lost. The live XML tells what happened.
                    events = self.watch();
                    self.look()?;
                }
            }
            self.report();
            if os::now() >= self.deadline {
                self.look()?;
                break;
            }
        }
        self.report();
        let is_stopped = self.is_stopped();
        let rest = if events.is_some() { UnplugOutcome::Pending } else { UnplugOutcome::DaemonGone };
        let outcome = |request: Removal<'_>| {
            let why = if is_stopped { TOLD_TO_STOP } else { NO_TIME };
            let no_time = || events.as_ref().filter(|_| request.asked.is_none()).map(|_| why.to_owned());
            let busy = request.busy.or_else(no_time).filter(|_| !request.was_asked).map(UnplugOutcome::Busy);
            let refused = request.refused.map(UnplugOutcome::Refused);
            request.outcome.or(refused).or(busy).unwrap_or_else(|| rest.clone())
        };
        Ok(self.requests.into_iter().map(outcome).collect())
    }

    /// Whether the host is told to stop, and this unplug ends then.
    fn is_stopped(&self) -> bool {
        self.watched.as_ref().is_some_and(|watched| watched.ends == Ends::Early && watched.host.is_stopped())
    }

    /// Reports the VFs that were released since the last report.
    fn report(&mut self) {
        let Some(watched) = &self.watched else { return };
        let is_new =
            |request: &&mut Removal<'_>| request.outcome == Some(UnplugOutcome::Released) && !request.is_reported;
        for request in self.requests.iter_mut().filter(is_new) {
            request.is_reported = true;
            if let Some(vf) = (watched.vf_of)(request.alias) {
                watched.host.report(|| Progress::Released { vf });
            }
        }
    }

    /// Registers for the events of the domain. Tries again until the deadline while libvirtd is away.
    fn watch(&mut self) -> Option<Events> {
        loop {
            match self.hypervisor.watch(self.domain) {
                Ok(events) => return Some(events),
                Err(error) if error.kind() == LibvirtErrorKind::NoDomain => {
                    self.close_all(&UnplugOutcome::DomainGone);
                    return None;
                }
                Err(error) if os::now() >= self.deadline || self.is_stopped() => {
                    log::warn!("libvirtd can't be reached: {error}");
                    return None;
                }
                Err(_) => os::sleep(RECONNECT),
            }
        }
    }

    /// Asks the guest to release every device that is due, while time is left.
    fn ask(&mut self) -> Option<NextStep> {
        for at in 0..self.requests.len() {
            let left = self.deadline.saturating_duration_since(os::now());
            let Some(request) = self.requests.get_mut(at).filter(|_| !left.is_zero()) else { break };
            if !request.is_due() {
                continue;
            }
            request.asked = Some(os::now());
            request.again = ASK_AGAIN;
            request.span.get_or_insert_with(|| Span::begin(Kind::Device, request.alias.to_owned()));
            let asked = self.hypervisor.detach_alias(self.domain, request.alias, left.max(LEAST));
            let Err(error) = asked else {
                (request.was_asked, request.refused) = (true, None);
                continue;
            };
            match error.kind() {
                // The guest was asked before, by this driver or by somebody else. That request is still open.
                LibvirtErrorKind::UnplugInProgress => (request.was_asked, request.refused) = (true, None),
                LibvirtErrorKind::GuestBusy => {
                    request.busy = Some(error.text().to_owned());
                    request.again = NEVER_SOONER;
                }
                LibvirtErrorKind::DomainBusy => {
                    self.all_busy(at, error.text());
                    return None;
                }
                LibvirtErrorKind::NoDevice => return Some(NextStep::Look),
                LibvirtErrorKind::NoAnswer => {
                    request.was_asked = true;
                    return Some(NextStep::Look);
                }
                LibvirtErrorKind::NoDomain => {
                    self.close_all(&UnplugOutcome::DomainGone);
                    return None;
                }
                LibvirtErrorKind::Disconnected => {
                    request.was_asked = true;
                    // The guest may have been asked. A second press of the button would withdraw that request.
                    request.again = NEVER_SOONER;
                    return Some(NextStep::Reconnect);
                }
                // libvirt may return an error although the device has left, or is being unplugged. The live XML
                // decides.
                _ => {
                    let again = request.refused.replace(error.to_string());
                    request.outcome = again.map(|_| UnplugOutcome::Refused(error.to_string()));
                    request.again = NEVER_SOONER;
                    return Some(NextStep::Look);
                }
            }
        }
        None
    }

    /// Another job holds the domain, so no device can be asked for. libvirt has waited 30 s for the job, and would wait
    /// as long for each of the other devices.
    ///
    /// # Source
    /// libvirt `QEMU_JOB_WAIT_TIME`.
    fn all_busy(&mut self, asked: usize, why: &str) {
        for (at, request) in self.requests.iter_mut().enumerate() {
            if at == asked || request.is_due() {
                request.busy = Some(why.to_owned());
                (request.asked, request.again) = (Some(os::now()), NEVER_SOONER);
            }
        }
    }

    /// Waits for an event until a request is due.
    fn listen(&mut self, events: &Events) -> NextStep {
        let due = self.requests.iter().filter_map(Removal::due).min().unwrap_or(self.deadline).min(self.deadline);
        let heard = {
            let _span = Span::begin(Kind::Guest, "unplug");
            events.next(self.look_again(due.saturating_duration_since(os::now())))
        };
        match heard {
            None => NextStep::Ask,
            Some(Event::DeviceRemoved(alias)) => {
                let is_it = |request: &&mut Removal<'_>| request.alias == alias && request.is_open();
                if let Some(request) = self.requests.iter_mut().find(is_it) {
                    request.span = None;
                    request.outcome = Some(UnplugOutcome::Released);
                }
                // The live XML is read once, when there was an event for every device.
                if self.requests.iter().any(Removal::is_open) { NextStep::Ask } else { NextStep::Look }
            }
            Some(Event::DeviceRemovalFailed(alias)) => {
                if let Some(request) = self.requests.iter_mut().find(|request| request.alias == alias) {
                    request.outcome = Some(UnplugOutcome::Refused("the guest refused".into()));
                }
                NextStep::Look
            }
            Some(Event::Ended) => NextStep::Look,
            Some(Event::Disconnected) => NextStep::Reconnect,
            Some(_) => NextStep::Ask,
        }
    }

    /// How long to wait for an event: not longer than until the host's token is read again.
    fn look_again(&self, wait: Duration) -> Duration {
        let is_early =
            self.watched.as_ref().is_some_and(|watched| watched.ends == Ends::Early && watched.host.has_stop());
        if is_early { wait.min(POLL) } else { wait }
    }

    /// Reads the live XML. A device that it does not show is released, whatever events and answers said.
    fn look(&mut self) -> Result<(), XmlError> {
        let text = match self.hypervisor.live_xml(self.domain) {
            Ok(Some(text)) => text,
            Ok(None) => {
                self.close_all(&UnplugOutcome::DomainGone);
                return Ok(());
            }
            // There was an event, but the live XML can't confirm it: the request is open until libvirtd answers.
            Err(error) => {
                log::debug!("cannot read the live XML of {}: {error}", self.domain.name);
                self.reopen(|_| true);
                return Ok(());
            }
        };
        let live = LiveDomain::parse(&text)?;
        for request in &mut self.requests {
            if !live.has_alias(request.alias) {
                request.outcome = Some(UnplugOutcome::Released);
            }
        }
        self.reopen(|alias| live.has_alias(alias));
        Ok(())
    }

    /// Reopens each request whose device the live XML still shows.
    fn reopen(&mut self, shown: impl Fn(&str) -> bool) {
        for request in &mut self.requests {
            if request.outcome == Some(UnplugOutcome::Released) && shown(request.alias) {
                request.outcome = None;
            }
        }
    }

    /// Gives every request this outcome.
    fn close_all(&mut self, outcome: &UnplugOutcome) {
        for request in &mut self.requests {
            request.outcome = Some(outcome.clone());
        }
    }
}
