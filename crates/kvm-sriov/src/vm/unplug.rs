//! The unplug engine: asks a guest to release devices, and believes only the live XML.

use std::thread;
use std::time::{Duration, Instant};

use crate::base::span::{Kind, Span};
use crate::error::UnplugOutcome;
use crate::libvirt::{DomainRef, Event, Events, Hypervisor, LibvirtErrorKind};
use crate::xml::{LiveDomain, XmlError};

/// A guest that says nothing is asked again: one that still boots forgets what it was asked.
///
/// # Source
/// QEMU `hw/acpi/pcihp.c`: a guest that takes over hot-plug clears what is pending.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The least time between two requests: a second press of the attention button within 5 s takes the first one back.
///
/// # Source
/// Linux `drivers/pci/hotplug/pciehp_ctrl.c`; PCI Express Base Specification, "attention button".
const NEVER_SOONER: Duration = Duration::from_millis(5_100);

/// What a request has at the least when the deadline is near.
const LEAST: Duration = Duration::from_secs(1);

/// Why a guest was not asked for the last ones.
const NO_TIME: &str = "no time was left to ask the guest";

/// Between two tries to reach a libvirtd that went away.
const RECONNECT: Duration = Duration::from_millis(100);

/// Asks a running domain to release devices, all at once, and waits for all of them with one deadline.
///
/// * `aliases` - the devices, by the names that libvirt knows them by
/// * `timeout` - the longest wait for the slowest of them
/// * returns one outcome for each alias, in their order, and when the last removal was heard of
///
/// # Errors
/// libvirt's XML of the domain can't be read; devices may have left.
pub fn unplug(
    hypervisor: &dyn Hypervisor,
    domain: &DomainRef,
    aliases: &[String],
    timeout: Duration,
) -> Result<Vec<UnplugOutcome>, XmlError> {
    let requests = aliases.iter().map(Removal::new);
    let deadline = Instant::now() + timeout;
    Engine { hypervisor, domain, requests: requests.collect(), deadline }.run()
}

/// One device that is to leave.
struct Removal<'a> {
    alias: &'a str,
    /// When it was asked for last.
    asked: Option<Instant>,
    /// How long after that it is asked for again.
    again: Duration,
    /// libvirt's refusal: believed when it is repeated, because an error may come although the device is on its way.
    refused: Option<String>,
    /// Whether the guest may have been asked.
    was_asked: bool,
    /// Why it could not be asked the last time.
    busy: Option<String>,
    outcome: Option<UnplugOutcome>,
    /// From the first time it is asked for until it is heard to be gone.
    on_its_way: Option<Span>,
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
            on_its_way: None,
        }
    }

    fn is_open(&self) -> bool {
        self.outcome.is_none()
    }

    /// The clock is read after what is due at once was: that is never later.
    fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= Instant::now())
    }

    fn due(&self) -> Option<Instant> {
        self.is_open().then(|| self.asked.map_or_else(Instant::now, |asked| asked + self.again))
    }
}

struct Engine<'a> {
    hypervisor: &'a dyn Hypervisor,
    domain: &'a DomainRef,
    requests: Vec<Removal<'a>>,
    deadline: Instant,
}

/// What the engine does next.
enum NextStep {
    /// Look at the live XML: an event or an answer says that something changed.
    Look,
    /// Ask for what is due.
    Ask,
    /// libvirtd is to be reached again.
    Reconnect,
}

impl Engine<'_> {
    fn run(mut self) -> Result<Vec<UnplugOutcome>, XmlError> {
        // The event may come before the call returns: registered first.
        let mut events = self.watch();
        while let Some(source) = events.as_ref().filter(|_| self.requests.iter().any(Removal::is_open)) {
            let next = match self.ask() {
                Some(next) => next,
                None => self.listen(source),
            };
            match next {
                NextStep::Ask => {}
                NextStep::Look => self.look()?,
                NextStep::Reconnect => {
                    // What was said meanwhile is lost: the live XML knows.
                    events = self.watch();
                    self.look()?;
                }
            }
            if Instant::now() >= self.deadline {
                self.look()?;
                break;
            }
        }
        let rest = if events.is_some() { UnplugOutcome::Pending } else { UnplugOutcome::DaemonGone };
        let outcome = |request: Removal<'_>| {
            let no_time = || events.as_ref().filter(|_| request.asked.is_none()).map(|_| NO_TIME.to_owned());
            let busy = request.busy.or_else(no_time).filter(|_| !request.was_asked).map(UnplugOutcome::Busy);
            let refused = request.refused.map(UnplugOutcome::Refused);
            request.outcome.or(refused).or(busy).unwrap_or_else(|| rest.clone())
        };
        Ok(self.requests.into_iter().map(outcome).collect())
    }

    /// Watches the domain; tries again until the deadline when libvirtd is away.
    fn watch(&mut self) -> Option<Events> {
        loop {
            match self.hypervisor.watch(self.domain) {
                Ok(events) => return Some(events),
                Err(error) if error.kind() == LibvirtErrorKind::NoDomain => {
                    self.close_all(&UnplugOutcome::DomainGone);
                    return None;
                }
                Err(error) if Instant::now() >= self.deadline => {
                    log::warn!("libvirtd can't be reached: {error}");
                    return None;
                }
                Err(_) => thread::sleep(RECONNECT),
            }
        }
    }

    /// Asks for every device that is due, as long as there is time.
    fn ask(&mut self) -> Option<NextStep> {
        for at in 0..self.requests.len() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let Some(request) = self.requests.get_mut(at).filter(|_| !left.is_zero()) else { break };
            if !request.is_due() {
                continue;
            }
            request.asked = Some(Instant::now());
            request.again = ASK_AGAIN;
            request.on_its_way.get_or_insert_with(|| Span::begin(Kind::Device, request.alias.to_owned()));
            let asked = self.hypervisor.detach_alias(self.domain, request.alias, left.max(LEAST));
            let Err(error) = asked else {
                (request.was_asked, request.refused) = (true, None);
                continue;
            };
            match error.kind() {
                // It was asked before, by us or by somebody else: that request stands.
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
                    // It may have been asked: a second press would take the first one back.
                    request.again = NEVER_SOONER;
                    return Some(NextStep::Reconnect);
                }
                // An error may come although the device is gone, or on its way: only the live XML decides.
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

    /// What holds the domain holds it for every device: libvirt has waited 30 s for it, and would wait as long for each of the others.
    ///
    /// # Source
    /// libvirt `QEMU_JOB_WAIT_TIME`.
    fn all_busy(&mut self, asked: usize, why: &str) {
        for (at, request) in self.requests.iter_mut().enumerate() {
            if at == asked || request.is_due() {
                request.busy = Some(why.to_owned());
                (request.asked, request.again) = (Some(Instant::now()), NEVER_SOONER);
            }
        }
    }

    /// Waits for an event, until something is due.
    fn listen(&mut self, events: &Events) -> NextStep {
        let due = self.requests.iter().filter_map(Removal::due).min().unwrap_or(self.deadline).min(self.deadline);
        let heard = {
            let _span = Span::begin(Kind::Guest, "unplug");
            events.next(due.saturating_duration_since(Instant::now()))
        };
        match heard {
            None => NextStep::Ask,
            Some(Event::DeviceRemoved(alias)) => {
                let is_it = |request: &&mut Removal<'_>| request.alias == alias && request.is_open();
                if let Some(request) = self.requests.iter_mut().find(is_it) {
                    request.on_its_way = None;
                    request.outcome = Some(UnplugOutcome::Released);
                }
                // Read once, when all have been heard of.
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

    /// Believes the live XML: what it does not show is released, whatever else was said.
    fn look(&mut self) -> Result<(), XmlError> {
        let text = match self.hypervisor.live_xml(self.domain) {
            Ok(Some(text)) => text,
            Ok(None) => {
                self.close_all(&UnplugOutcome::DomainGone);
                return Ok(());
            }
            // Heard of, but not seen: open again until libvirtd answers or the deadline passes.
            Err(error) => {
                log::debug!("cannot look at {}: {error}", self.domain.name);
                self.reopen(|_| true);
                return Ok(());
            }
        };
        let live = LiveDomain::parse(&text)?;
        for request in &mut self.requests {
            if !live.shows(request.alias) {
                request.outcome = Some(UnplugOutcome::Released);
            }
        }
        self.reopen(|alias| live.shows(alias));
        Ok(())
    }

    fn reopen(&mut self, shown: impl Fn(&str) -> bool) {
        for request in &mut self.requests {
            if request.outcome == Some(UnplugOutcome::Released) && shown(request.alias) {
                request.outcome = None;
            }
        }
    }

    fn close_all(&mut self, outcome: &UnplugOutcome) {
        for request in &mut self.requests {
            request.outcome = Some(outcome.clone());
        }
    }
}
