//! From the first change on this host to the end of libvirt's call.

use std::time::Duration;

use super::Departure;
use crate::agent::{AgentAnswer, AgentRequest};
use crate::base::span::{Kind, Span};
use crate::base::{HostName, POLL};
use crate::error::Cause;
use crate::os;
use crate::vm::block_job;
use crate::vm::storage::DiskImage;
use crate::xml::{LiveDomain, OperationKind, Wanted, adapted_to_host, dummy_alias_of};

impl Departure<'_> {
    /// Sends files, unplugs VFs, and has libvirt move the domain. `Ok` means that libvirt reports success.
    pub(super) fn depart(&mut self) -> Result<(), Cause> {
        self.send_files()?;
        let to = self.agent.host().to_string();
        if let Some(vm) = self.found.with_vfs() {
            vm.begin(operation(to, &self.id, self.from.as_ref(), false), None)?;
        }
        self.take_snapshots()?;
        if let Some(vm) = self.found.with_vfs() {
            let devices = vm.plugged();
            vm.unplug(&devices)?;
        }
        let mut tries = block_job::Tries::default();
        loop {
            match self.call() {
                Err(Cause::Call { source, .. }) if tries.again(&self.found.domain().name, &source) => {
                    self.pause(block_job::WAIT)?;
                }
                other => return other,
            }
        }
    }

    /// Gives the destination the files that it lacks: a copy of each file that nobody writes to, and an empty image for
    /// each disk that libvirt copies.
    fn send_files(&mut self) -> Result<(), Cause> {
        let Some(storage) = &self.storage else { return Ok(()) };
        {
            let _span = Span::begin(Kind::Copy, "files");
            self.reach.copy(&storage.files(), self.agent.host(), &storage.dir)?;
        }
        for (path, target) in &storage.links {
            self.agent.ask(&AgentRequest::Symlink { path: path.clone(), target: target.clone() })?;
        }
        // After the files: a copied snapshot directory also contains the image of the running disk, and the empty image
        // must replace it.
        for (_, DiskImage { path, format, size }) in &storage.written {
            self.agent.ask(&AgentRequest::Image { path: path.clone(), format: format.clone(), size: *size })?;
        }
        Ok(())
    }

    /// Takes the snapshots out of libvirt, which moves no domain that has some, and gives their XML to the destination.
    fn take_snapshots(&mut self) -> Result<(), Cause> {
        let (hypervisor, domain) = (self.host.hypervisor(), self.found.domain());
        let known = hypervisor.snapshots(domain)?;
        for name in &known.names {
            let xml = hypervisor.snapshot_xml(domain, name)?;
            let is_current = known.current.as_ref() == Some(name);
            self.agent.ask(&AgentRequest::Snapshot { is_current, xml: xml.clone() })?;
            self.snapshots.push((xml, is_current));
        }
        // Children first: after a crash each snapshot that is left still has its parents.
        for name in known.names.iter().rev() {
            hypervisor.delete_snapshot(domain, name, true)?;
        }
        Ok(())
    }

    /// The domain's XML for the destination; `None` when it is the same as here.
    fn xml_there(&mut self) -> Result<Option<String>, Cause> {
        let (host, bridge) = (self.host, self.bridge.clone());
        let Some((bridge, vm)) = bridge.zip(self.found.with_vfs()) else { return Ok(None) };
        if dummies_are_on(&vm.live, &vm.wanted, &bridge) {
            return Ok(None);
        }
        let text = host.hypervisor().migratable_xml(&vm.domain)?;
        adapted_to_host(&text, "".as_ref(), None, Some(&bridge))
            .map(Some)
            .map_err(|source| Cause::Xml { what: format!("the XML of {}", vm.domain.name), source })
    }

    /// Waits. A reason to stop ends the wait.
    fn pause(&mut self, time: Duration) -> Result<(), Cause> {
        let end = os::now() + time;
        while os::now() < end {
            match self.reason_to_stop() {
                Some(cause) => return Err(cause),
                None => os::sleep(POLL),
            }
        }
        Ok(())
    }

    /// Why the move must end early: the destination is lost, this host is told to stop, or the VM was cancelled.
    pub(super) fn reason_to_stop(&mut self) -> Option<Cause> {
        if self.agent.is_lost() {
            return Some(self.agent.lost().into());
        }
        if let Err(cause) = self.host.check_stop() {
            return Some(cause);
        }
        let vm = self.found.with_vfs()?;
        vm.lock.cancelled().then(|| Cause::Cancelled { name: vm.domain.name.clone() })
    }

    /// The last step before libvirt is asked. The domain's metadata records whether its CPUs are to run at the
    /// destination, and the agent answers once more. From then on the agent keeps its claims for as long as libvirt may
    /// bring the VM, even when this host is lost.
    pub(super) fn go(&mut self) -> Result<(), Cause> {
        if let Some(cause) = self.reason_to_stop() {
            return Err(cause);
        }
        let (to, host) = (self.agent.host().to_string(), self.host);
        let Some(vm) = self.found.with_vfs() else { return Ok(()) };
        let absent = || Cause::Absent { id: vm.domain.name.to_string() };
        let was_paused = !host.hypervisor().state(&vm.domain)?.ok_or_else(absent)?.runs();
        vm.set_operation(Some(operation(to, &self.id, self.from.as_ref(), was_paused)))?;
        // This XML has the metadata that was just written.
        self.migration.xml = self.xml_there()?;
        match self.agent.ask(&AgentRequest::Go)? {
            AgentAnswer::Done => Ok(()),
            other => Err(self.agent.unexpected(&other).into()),
        }
    }
}

/// Whether all dummies of a VM are on this bridge.
fn dummies_are_on(live: &LiveDomain, wanted: &Wanted, bridge: &str) -> bool {
    wanted.nics.iter().all(|nic| {
        let alias = dummy_alias_of(nic.position);
        let dummy = live.interfaces.iter().find(|interface| interface.alias.as_deref() == Some(alias.as_str()));
        dummy.is_none_or(|dummy| dummy.bridge.as_deref() == Some(bridge))
    })
}

/// What the domain's metadata record of the move.
fn operation(to: String, id: &str, from: Option<&HostName>, was_paused: bool) -> OperationKind {
    OperationKind::Migrate { to, id: id.to_owned(), from: from.map(ToString::to_string), was_paused }
}
