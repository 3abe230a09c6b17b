//! Calls that find and read domains.

use kvm_sriov::DomainId;
use kvm_sriov::libvirt::{DomainCalls, DomainRef, LibvirtError, RunState, Usage};

use crate::world::Domain;
use crate::{Model, refusal};

impl DomainCalls for Model {
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError> {
        Ok(self.enter()?.sites[self.site].domains.iter().map(Domain::reference).collect())
    }

    fn find(&self, id: &DomainId) -> Result<Option<DomainRef>, LibvirtError> {
        let domains = self.domains()?;
        Ok(domains.into_iter().find(|domain| match id {
            DomainId::Uuid(uuid) => domain.uuid == *uuid,
            DomainId::Name(name) => domain.name == *name,
            DomainId::Id(id) => domain.id == Some(*id),
        }))
    }

    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError> {
        self.look(domain, |domain| {
            let mut definition = domain.definition.clone();
            domain.copies.iter().for_each(|(disk, copy)| definition.mirror(disk, &copy.target));
            definition.to_xml(Some(domain.id))
        })
    }

    fn migratable_xml(&self, domain: &DomainRef) -> Result<String, LibvirtError> {
        let found = self.look(domain, |domain| domain.definition.to_xml(None))?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))
    }

    fn state(&self, domain: &DomainRef) -> Result<Option<RunState>, LibvirtError> {
        self.look(domain, |domain| domain.state)
    }

    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError> {
        let found = self.look(domain, |domain| domain.definition.metadata(uri))?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))
    }

    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError> {
        self.change(domain, |domain| domain.definition.set_metadata(xml, prefix, uri))
    }

    fn usage(
        &self,
        domain: &DomainRef,
        interfaces: &[String],
        disks: &[String],
    ) -> Result<Option<Usage>, LibvirtError> {
        let count = |things: &[String], each: u64| each * u64::try_from(things.len()).unwrap_or(0);
        self.look(domain, |domain| Usage {
            cpu_ns: 0,
            memory_kib: domain.definition.memory_kib("memory"),
            received: count(interfaces, 1000),
            sent: count(interfaces, 100),
            read: (count(disks, 4096), count(disks, 8)),
            written: (count(disks, 512), count(disks, 1)),
            is_paused: !domain.state.runs(),
            is_stuck: domain.state == RunState::PausedByUser,
        })
    }
}
