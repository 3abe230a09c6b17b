//! The agent itself: on the destination of a migration, and on the source of one that the front-end orders.
//!
//! * `reservation` - what is claimed and made here for a VM that is to come
//! * `arrival` - the VM has come: it runs and gets its VFs
//! * `source_lost` - the source was lost: what is true on this host decides
//! * `witness` - whether the VM was ever seen here

mod arrival;
mod reservation;
mod source_lost;
mod witness;

use std::io::{Read, Write};
use std::time::Duration;

use super::conversation::{Conversation, Heartbeat};
use super::{AgentAnswer, AgentRequest, IncomingVm, MAGIC, Presence, Reach, VERSION, order};
use crate::base::span::{Kind, Span};
use crate::base::{Action, DomainUuid, POLL};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::os;
use crate::vm::gone;
use crate::vm::storage::DiskImage;
use reservation::Reservation;

/// The action that the agent's locks and journal lines name.
const ACTION: Action = Action::Migrate;

/// How long an `abort` may wait for libvirtd, because the source waits for the answer. If libvirtd is away longer, the
/// claims are released when the source has gone.
const ABORT_PATIENCE: Duration = Duration::from_secs(30);

/// Answers requests until the source has gone. If a VM is still expected then, the agent acts on what is true: a VM
/// that runs here, or that its source has given away, gets everything that `finish` gives it; the claims of a VM that
/// does not come are released.
///
/// * `open` - opens this host; if that fails, every request is refused with the cause
/// * `reach` - how the agent reaches the source, which it asks when it has lost the connection
///
/// # Source
/// docs/reference/agent.md.
pub fn serve(
    open: impl FnOnce() -> Result<Host, Cause>,
    reach: &dyn Reach,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
) {
    let conversation = match Conversation::new(input, output, Heartbeat::default()) {
        Ok(conversation) => conversation,
        // The source notices that this program ends.
        Err(error) => return log::error!("the agent can't listen: {error}"),
    };
    conversation.say(format!("{MAGIC} {VERSION} {}", env!("CARGO_PKG_VERSION")));
    let host = match open() {
        Ok(host) => host,
        Err(cause) => {
            while conversation.wait().is_some() {
                conversation.say(AgentAnswer::from(&cause));
            }
            return;
        }
    };
    let mut server = Server { host: &host, reach, reservation: None };
    while let Some(line) = conversation.wait() {
        let _span = Span::begin(Kind::Request, "agent");
        let answer = match line.parse() {
            Ok(request) => server.answer(request).unwrap_or_else(|cause| AgentAnswer::from(&cause)),
            Err(error) => AgentAnswer::Refused(error.to_string()),
        };
        conversation.say(answer);
    }
    server.close();
}

/// The agent, and the VM that it expects.
struct Server<'h> {
    host: &'h Host,
    reach: &'h dyn Reach,
    reservation: Option<Reservation>,
}

impl Server<'_> {
    fn answer(&mut self, request: AgentRequest) -> Result<AgentAnswer, Cause> {
        match request {
            AgentRequest::Prepare(vm) => self.prepare(*vm),
            AgentRequest::Image { path, format, size } => {
                let limit = self.host.settings().call_timeout;
                self.reservation()?.make_image(DiskImage { path, format, size }, limit)?;
                Ok(AgentAnswer::Done)
            }
            AgentRequest::Symlink { path, target } => {
                let limit = self.host.settings().call_timeout;
                self.reservation()?.make_link(path, target, limit)?;
                Ok(AgentAnswer::Done)
            }
            AgentRequest::Snapshot { is_current, xml } => {
                self.reservation()?.snapshots.push((xml, is_current));
                Ok(AgentAnswer::Done)
            }
            AgentRequest::Go => {
                self.reservation()?.is_under_way = true;
                Ok(AgentAnswer::Done)
            }
            AgentRequest::Finish { .. } if self.reservation.is_some() => self.finish(),
            AgentRequest::Finish { uuid, id } => arrival::finish_unprepared(self.host, &uuid, &id),
            AgentRequest::Abort { destroy } => self.abort(destroy),
            AgentRequest::State(uuid) => Ok(AgentAnswer::State(self.presence(&uuid)?.0)),
            AgentRequest::Migrate(order) => match self.host.driver_dir() {
                Some(dir) => order::carry_out(dir, &order),
                None => Err(Cause::Program {
                    what: "start migrate".into(),
                    why: "this host has no programs of the driver".into(),
                }),
            },
        }
    }

    fn reservation(&mut self) -> Result<&mut Reservation, Cause> {
        self.reservation.as_mut().ok_or(Cause::NothingPrepared)
    }

    /// As [`Presence::on`], with what the witness has seen of the expected VM.
    fn presence(&mut self, uuid: &DomainUuid) -> Result<(Presence, Option<DomainRef>), Cause> {
        let (presence, domain) = Presence::on(self.host, uuid)?;
        let reservation = self.reservation.as_mut().filter(|reservation| reservation.vm.uuid == *uuid);
        Ok((reservation.map_or(presence, |reservation| reservation.witness.testify(presence)), domain))
    }

    /// Checks and claims everything that the VM needs here, or changes nothing.
    fn prepare(&mut self, vm: IncomingVm) -> Result<AgentAnswer, Cause> {
        if let Some(other) = &self.reservation {
            return Err(Cause::Exists { name: other.vm.name.clone() });
        }
        let (reservation, bridge) = Reservation::make(self.host, vm)?;
        self.reservation = Some(reservation);
        Ok(AgentAnswer::Ready { bridge })
    }

    /// The VM is here, and gone from its source: lets it run and gives it what it lacks.
    ///
    /// # Errors
    /// The VM has not come or can't run. It stays expected, so the source can abort or try again.
    fn finish(&mut self) -> Result<AgentAnswer, Cause> {
        let uuid = self.reservation()?.vm.uuid.clone();
        let (presence, domain) = self.wait_until_settled(&uuid, self.host.settings().call_timeout, Duration::ZERO)?;
        let host = self.host;
        let Some(domain) = domain else { return Err(Cause::Absent { id: uuid.to_string() }) };
        if !matches!(presence, Presence::Running | Presence::Paused) {
            return Err(Cause::NotAsAsked { name: domain.name, what: format!("it is still {presence} here") });
        }
        let left = self.reservation()?.receive(host, &domain, presence)?;
        self.reservation = None;
        Ok(done_or_left(&left))
    }

    /// The VM stays on its source: releases its claims and removes what was made for it.
    ///
    /// * `destroy` - whether a domain of the VM that is here is destroyed; without it, such a domain is an error
    fn abort(&mut self, destroy: bool) -> Result<AgentAnswer, Cause> {
        let uuid = self.reservation()?.vm.uuid.clone();
        let host = self.host;
        let patience = host.settings().call_timeout.min(ABORT_PATIENCE);
        if let (_, Some(domain)) = host.patiently_for(patience, || Presence::on(host, &uuid))? {
            if !destroy {
                return Err(Cause::Exists { name: domain.name });
            }
            gone::destroy(host, &domain)?;
        }
        self.reservation()?.cancel(host)?;
        self.reservation = None;
        Ok(AgentAnswer::Done)
    }

    /// Waits until the VM is whole here or not here at all.
    ///
    /// * `timeout` - how long the VM may be incoming or ending
    /// * `grace` - how long libvirt may still bring a VM that has not been seen here
    fn wait_until_settled(
        &mut self,
        uuid: &DomainUuid,
        timeout: Duration,
        grace: Duration,
    ) -> Result<(Presence, Option<DomainRef>), Cause> {
        let begin = os::now();
        let host = self.host;
        loop {
            let (presence, domain) = host.patiently(|| self.presence(uuid))?;
            let wait = match presence {
                Presence::Incoming | Presence::Ending => timeout,
                Presence::Absent if self.reservation.as_ref().is_some_and(Reservation::may_come) => grace,
                _ => Duration::ZERO,
            };
            if os::since(begin) >= wait {
                return Ok((presence, domain));
            }
            os::sleep(POLL);
        }
    }
}

/// The answer of a `finish` after which these things are left to reconciliation.
fn done_or_left(left: &[String]) -> AgentAnswer {
    if left.is_empty() { AgentAnswer::Done } else { AgentAnswer::Left(left.join("; ")) }
}
