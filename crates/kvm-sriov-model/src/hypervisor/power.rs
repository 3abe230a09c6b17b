//! Calls that start, end, reset and resume domains.

use std::time::Duration;

use kvm_sriov::libvirt::{DomainRef, LibvirtError, PowerCalls, RunState};

use crate::definition::Definition;
use crate::{Model, refusal};

impl PowerCalls for Model {
    fn create(&self, xml: &str, _limit: Duration) -> Result<DomainRef, LibvirtError> {
        let mut world = self.enter()?;
        let token = world.token();
        let uuid = format!("00000000-0000-4000-8000-{token:012x}").parse().map_err(|_| refusal::internal("uuid"))?;
        let mut definition = Definition::parse(xml, &uuid)?;
        world.sites[self.site].is_new(&definition)?;
        definition.complete()?;
        world.sites[self.site].can_have(&definition.name, definition.devices())?;
        for device in definition.devices() {
            world.sites[self.site].may_open(device)?;
        }
        let memory = world.new_memory(&definition.uuid);
        let created = world.sites[self.site].admit(definition, RunState::PausedOtherwise, memory, false);
        world.start_cpus(self.site, &created.uuid);
        Ok(created)
    }

    fn destroy(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        world.sites[self.site].existing(&domain.uuid)?;
        world.end(self.site, &domain.uuid);
        Ok(())
    }

    fn shutdown(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        if let Some(after) = there.guest.powers_off().filter(|_| there.hears()) {
            let (site, uuid, id) = (self.site, domain.uuid.clone(), there.id);
            world.later(after, move |world| {
                if world.sites[site].domain(&uuid).is_some_and(|domain| domain.id == id) {
                    world.end(site, &uuid);
                }
            });
        }
        Ok(())
    }

    fn reboot(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let there = world.sites[self.site].changeable(&domain.uuid)?;
        if let Some(after) = there.guest.powers_off().filter(|_| there.hears()) {
            let (site, uuid) = (self.site, domain.uuid.clone());
            world.later(after, move |world| world.begin_anew(site, &uuid));
        }
        Ok(())
    }

    fn reset(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        world.sites[self.site].changeable(&domain.uuid)?;
        world.begin_anew(self.site, &domain.uuid);
        Ok(())
    }

    fn resume(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        match world.sites[self.site].changeable(&domain.uuid)?.state {
            RunState::Running => return Err(refusal::invalid("domain is already running")),
            RunState::PmSuspended => return Err(refusal::invalid("domain is pmsuspended")),
            _ => world.start_cpus(self.site, &domain.uuid),
        }
        Ok(())
    }

    fn wake_up(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        if world.sites[self.site].changeable(&domain.uuid)?.state != RunState::PmSuspended {
            return Err(refusal::invalid("Unable to wake up domain: domain is not pmsuspended"));
        }
        world.start_cpus(self.site, &domain.uuid);
        Ok(())
    }
}
