//! The source was lost while a VM was expected: what is true decides.

use std::time::Duration;

use super::Server;
use super::arrival::ASK_SOURCE;
use super::reservation::Reservation;
use crate::agent::{Presence, ask_state};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::os;
use crate::vm::gone;

/// How long a domain may still be incoming when the source was lost. The source notices within a minute that this agent
/// is lost; then it aborts the migration, and libvirt removes the domain here.
const INCOMING_TIME: Duration = Duration::from_secs(180);

/// The time between two questions to the source.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Server<'_> {
    /// Ends the agent. If a VM is still expected, the source was lost:
    ///
    /// * a VM that runs here stays and gets its VFs;
    /// * the claims of a VM that is not here are released;
    /// * a VM that waits here is resumed when the source says that it is gone there.
    pub(super) fn close(mut self) {
        let Some(reservation) = &self.reservation else { return };
        let (name, uuid) = (reservation.vm.name.clone(), reservation.vm.uuid.clone());
        log::warn!("{name}: the connection to its source was lost; the agent acts on what it finds on both hosts");
        let settled = self.wait_until_settled(&uuid, INCOMING_TIME, self.host.settings().arrival_grace);
        let Some(mut reservation) = self.reservation.take() else { return };
        let in_doubt = |why: String| log::warn!("{name} is in doubt: {why}; kvm-sriov resolve {name} decides");
        let cancel = |reservation: &mut Reservation, host: &Host| match reservation.cancel(host) {
            Ok(()) => log::info!("{name} did not come: its claims here are released"),
            Err(cause) => log::warn!("{cause}; reconciliation releases what {name} claims here"),
        };
        let receive = |reservation: &mut Reservation, host: &Host, domain: &DomainRef, presence| match reservation
            .receive(host, domain, presence)
        {
            Ok(left) => left.iter().for_each(|left| log::warn!("{left}")),
            Err(cause) => in_doubt(cause.to_string()),
        };
        match settled {
            Ok((Presence::Absent | Presence::Ended, _)) => cancel(&mut reservation, self.host),
            Ok((presence @ Presence::Running, Some(domain))) => {
                receive(&mut reservation, self.host, &domain, presence);
            }
            // libvirt has brought a VM without VFs in the state it had: its user had paused it.
            Ok((presence @ Presence::Paused, Some(domain))) if !reservation.is_handed_over() => {
                receive(&mut reservation, self.host, &domain, presence);
            }
            Ok((presence @ Presence::Paused, Some(domain))) => match self.ask_source(&reservation) {
                Ok(Presence::Running) => {
                    log::warn!("{name} runs on its source: the domain here has never run and is destroyed");
                    match gone::destroy(self.host, &domain) {
                        Ok(()) => cancel(&mut reservation, self.host),
                        Err(cause) => in_doubt(cause.to_string()),
                    }
                }
                Ok(Presence::Absent) => {
                    log::info!("{name} is gone from its source: it is resumed here");
                    receive(&mut reservation, self.host, &domain, presence);
                }
                Ok(there) => in_doubt(format!("it is paused here, and {there} on its source")),
                Err(why) => in_doubt(format!("it is paused here, and its source can't be asked: {why}")),
            },
            Ok((presence, _)) => in_doubt(format!("it is {presence} here")),
            Err(cause) => in_doubt(cause.to_string()),
        }
    }

    /// What the source says of the VM. Asks again until the VM runs there or is gone, at most for [`ASK_SOURCE`].
    fn ask_source(&self, reservation: &Reservation) -> Result<Presence, String> {
        let vm = &reservation.vm;
        let Some(from) = &vm.from else { return Err("OpenNebula did not name it".into()) };
        let end = os::now() + self.host.settings().call_timeout.min(ASK_SOURCE);
        loop {
            let says = ask_state(self.reach, from, &vm.uuid).map_err(|error| error.to_string());
            if matches!(says, Ok(Presence::Running | Presence::Absent)) || os::now() >= end {
                return says;
            }
            if reservation.is_cancelled() {
                return Err(Cause::Cancelled { name: vm.name.clone() }.to_string());
            }
            os::sleep(ASK_AGAIN);
        }
    }
}
