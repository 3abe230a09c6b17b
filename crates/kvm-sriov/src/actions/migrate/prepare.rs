//! Before a VM moves: both hosts check what it needs, and the destination claims its VFs.

use super::Departure;
use crate::actions::Route;
use crate::agent::{Agent, AgentAnswer, AgentRequest, IncomingVm, Reach};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::{DomainRef, Migration, MigrationOptions};
use crate::vm::storage::{Storage, is_same};
use crate::vm::{self, Found};
use crate::xml::VmData;

impl<'a> Departure<'a> {
    /// Has the destination check what the VM needs and claim its VFs. Nothing is changed on this host.
    pub(super) fn prepare(
        host: &'a Host,
        found: Found<'a>,
        route: &Route,
        options: MigrationOptions,
        data: Option<&VmData>,
        reach: &'a dyn Reach,
    ) -> Result<Self, Cause> {
        check(host, &found)?;
        if found.wanted().is_some() {
            let what = || "MIGRATE_OPTIONS".to_owned();
            options.check_hand_over().map_err(|source| Cause::Value { what: what(), source })?;
        }
        let domain = found.domain().clone();
        let storage = storage(host, &domain, data)?;
        let copied = |storage: &Storage| storage.written.iter().map(|(disk, _)| disk.target.clone()).collect();
        let migration = Migration {
            // When the destination's last answer is lost, libvirt resumes the domain at the source although it is at
            // the destination (virDomainMigrateVersion3Full). So it stays paused there until it is seen to be gone
            // here.
            paused: found.wanted().is_some(),
            destination: format!("{}://{}/system", host.settings().qemu_protocol, route.to),
            copied_disks: storage.as_ref().map(copied).unwrap_or_default(),
            options,
            ..Migration::default()
        };
        let id = new_id()?;
        let incoming = IncomingVm {
            name: domain.name.clone(),
            uuid: domain.uuid.clone(),
            id: id.clone(),
            from: route.from.clone(),
            wanted: found.wanted().cloned(),
            lacking: found.lacking(),
            dir: storage.as_ref().map(|storage| storage.dir.clone()),
        };
        let mut agent = Agent::start(reach, &route.to)?.with_call_timeout(host.settings().call_timeout);
        let bridge = match agent.ask(&AgentRequest::Prepare(Box::new(incoming)))? {
            AgentAnswer::Ready { bridge } => bridge,
            other => return Err(agent.unexpected(&other).into()),
        };
        let (snapshots, is_under_way, from) = (Vec::new(), false, route.from.clone());
        Ok(Self { host, found, agent, reach, id, from, bridge, storage, migration, snapshots, is_under_way })
    }
}

/// The VM's files that the destination lacks; `None` with shared storage.
fn storage(host: &Host, domain: &DomainRef, data: Option<&VmData>) -> Result<Option<Storage>, Cause> {
    let Some(vm_move) = data.map(VmData::vm_move) else { return Ok(None) };
    let no_move = |how: &str| Cause::NoMove { vm: domain.name.clone(), how: how.into() };
    let (source, target) = (vm_move.source_dir.as_deref(), vm_move.target_dir.as_deref());
    if source.zip(target).is_some_and(|(source, target)| !is_same(source, target)) {
        return Err(no_move("live to another host and another datastore at once"));
    }
    if vm_move.is_shared {
        return Ok(None);
    }
    let dir =
        target.or(source).ok_or_else(|| no_move("to storage that is not shared: OpenNebula did not say where"))?;
    let storage = Storage::of(&domain.name, dir, &vm::read_text(host, domain)?, host.sysfs())?;
    if let Some((disk, volume)) = storage.volumes.first() {
        let (disk, volume) = (&disk.target, volume.target.display());
        return Err(no_move(&format!(
            "live to storage that is not shared: its disk {disk} is the logical volume {volume}"
        )));
    }
    Ok(Some(storage))
}

/// Refuses a VM that can't be moved, before the destination is asked.
fn check(host: &Host, found: &Found<'_>) -> Result<(), Cause> {
    let Found::WithVfs(vm) = found else { return Ok(()) };
    if host.hypervisor().job(&vm.domain)?.is_some() {
        return Err(Cause::JobRuns { vm: vm.domain.name.clone(), what: "a copy or a save" });
    }
    vm.check_can_leave("migrated")
}

/// A unique name for this move.
fn new_id() -> Result<String, Cause> {
    let path = "/proc/sys/kernel/random/uuid";
    let id = std::fs::read_to_string(path).map_err(Cause::file("read", path))?;
    Ok(id.trim().to_owned())
}
