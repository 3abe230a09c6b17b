//! Calls that save, restore and migrate domains.

use std::path::Path;
use std::time::Duration;

use kvm_sriov::libvirt::{DomainRef, Job, JobCalls, JobKind, LibvirtError, Migration};

use crate::image::Image;
use crate::world::Domain;
use crate::{Model, refusal};

impl JobCalls for Model {
    fn job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        let job = |domain: &Domain| {
            let kind = domain.job.as_ref().map(|work| work.kind);
            kind.map(|kind| Job { kind, progress: Some((50, 100)), downtime_ms: None })
        };
        Ok(self.look(domain, job)?.flatten())
    }

    fn completed_job(&self, domain: &DomainRef) -> Result<Option<Job>, LibvirtError> {
        Ok(self.enter()?.sites[self.site].completed.get(&domain.uuid).copied())
    }

    fn abort_job(&self, domain: &DomainRef) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        match &mut world.sites[self.site].existing(&domain.uuid)?.job {
            None => return Err(refusal::invalid("no job is active on the domain")),
            Some(work) if work.kind == JobKind::MigrationIn => {
                return Err(refusal::invalid("cannot abort incoming migration; use virDomainDestroy instead"));
            }
            Some(work) => work.aborted = true,
        }
        self.shared.changed();
        Ok(())
    }

    fn save(&self, domain: &DomainRef, file: &Path) -> Result<(), LibvirtError> {
        let (domain, file) = (domain.clone(), file.to_owned());
        self.in_daemon(move |model| model.save_into(&domain, &file))
    }

    fn image_xml(&self, file: &Path) -> Result<String, LibvirtError> {
        drop(self.enter()?);
        Ok(Image::read(file)?.xml)
    }

    fn restore(&self, file: &Path, xml: &str, paused: bool, _: Duration) -> Result<(), LibvirtError> {
        let (file, xml) = (file.to_owned(), xml.to_owned());
        self.in_daemon(move |model| model.restore_from(&file, &xml, paused))
    }

    fn migrate(&self, domain: &DomainRef, migration: &Migration) -> Result<(), LibvirtError> {
        self.migrate_to(domain, migration)
    }
}
