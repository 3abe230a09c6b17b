//! Whether a VM was ever seen on this host.

use std::time::Duration;

use crate::agent::Presence;
use crate::libvirt::{Event, Events};

/// Watches for a domain from before it could come. Without it, "the domain is not here" would not tell whether its CPUs
/// have run here.
pub(super) struct Witness {
    events: Events,
    /// Whether the domain was seen here.
    pub(super) came: bool,
    /// Whether the domain's CPUs ran here, or may have run unseen.
    ran: bool,
}

impl Witness {
    pub(super) fn new(events: Events) -> Self {
        Self { events, came: false, ran: false }
    }

    /// Adds what the events tell to what one look has just found.
    pub(super) fn testify(&mut self, presence: Presence) -> Presence {
        while let Some(event) = self.events.next(Duration::ZERO) {
            self.came |= event != Event::Disconnected;
            // While libvirtd was away, no event told whether the CPUs ran.
            self.ran |= matches!(event, Event::Resumed | Event::Disconnected);
            if event == Event::Disconnected {
                break;
            }
        }
        self.came |= presence != Presence::Absent;
        self.ran |= presence == Presence::Running;
        if presence == Presence::Absent && self.ran { Presence::Ended } else { presence }
    }
}
