//! The repairs of a VM that claims VFs and has no domain on this host.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::apply::{self, Scope};
use super::{ACTION, Elsewhere, Facts, Repair, VmReport, decide};
use crate::base::{DomainId, Owner};
use crate::claims::{ClaimStore, VmLock};
use crate::error::Cause;
use crate::host::Host;
use crate::vm::checkpoint::Checkpoint;
use crate::vm::{self, Vm, gone};
use crate::xml::{LiveDomain, OperationKind, adapted_to_host};

/// A VM that claims VFs and has no domain here. Its lock is held.
pub(super) struct Domainless<'a> {
    pub(super) host: &'a Host,
    pub(super) store: ClaimStore,
    pub(super) lock: VmLock,
    pub(super) owner: Owner,
}

impl<'a> Domainless<'a> {
    /// Repairs the VM; `None` when it no longer claims anything.
    ///
    /// # Errors
    /// The claims can't be read, or a domain that was started from its image can no longer be read.
    pub(super) fn repair(self, until: Instant, elsewhere: Elsewhere) -> Result<Option<VmReport>, Cause> {
        let Some(claimant) = self.store.claimants()?.into_iter().find(|claimant| claimant.owner.is(&self.owner)) else {
            return Ok(None);
        };
        let facts = Facts::of_claimant(&claimant, is_outlived(self.host, &self.owner)?, elsewhere);
        let repairs = decide(&facts);
        let mut report = VmReport::new(self.owner.clone(), facts);
        let path = claimant.image.clone().unwrap_or_default();
        for repair in &repairs {
            let done = match repair {
                Repair::RestoreImage => return self.restore(path, report, until, elsewhere).map(Some),
                Repair::RemoveImage => Checkpoint::of_unfinished(&path).map_or(Ok(()), |image| image.discard()),
                Repair::ReleaseAll => gone::release(self.host, &self.store, &self.owner, ACTION).map_err(Cause::from),
                _ => {
                    report.left.push(repair.clone());
                    continue;
                }
            };
            let is_done = done.is_ok();
            report.record(repair, done);
            if !is_done {
                break;
            }
            if *repair == Repair::RemoveImage {
                self.host.journal().vm(ACTION, &self.owner.vm, "image-removed");
            }
        }
        Ok(Some(report))
    }

    /// Starts the VM, paused, from the image of an unfinished save. Then repairs that domain, which resumes it.
    fn restore(
        self,
        path: PathBuf,
        mut report: VmReport,
        until: Instant,
        elsewhere: Elsewhere,
    ) -> Result<VmReport, Cause> {
        let (host, owner) = (self.host, self.owner.clone());
        match self.start(&path) {
            Ok(mut vm) => {
                report.record(&Repair::RestoreImage, Ok(()));
                host.journal().vm(ACTION, &owner.vm, "image-restored");
                report.extend(apply::repair(&mut vm, until, elsewhere, Scope::Everything)?);
            }
            Err(cause) => {
                report.left.push(Repair::RestoreImage);
                report.record(&Repair::RestoreImage, Err(cause));
            }
        }
        Ok(report)
    }

    fn start(self, path: &Path) -> Result<Vm<'a>, Cause> {
        let hypervisor = self.host.hypervisor();
        let text = hypervisor
            .image_xml(path)
            .map_err(|source| Cause::Call { what: format!("read the domain in {}", path.display()), source })?;
        let of_image = |source| Cause::Xml { what: format!("the domain in {}", path.display()), source };
        let saved = LiveDomain::parse(&text).map_err(of_image)?;
        let mut wanted = vm::wanted(&saved)?.unwrap_or_default();
        wanted.operation = Some(OperationKind::Restore { checkpoint: path.to_owned() }.into());
        let xml = adapted_to_host(&text, path, Some(&wanted), self.host.settings().dummy_bridge.as_deref())
            .map_err(of_image)?;
        // The claims need no holder: a claim that names an image is never stale.
        hypervisor.restore(path, &xml, true, self.host.copy_limit(saved.memory_kib)).map_err(|source| Cause::Call {
            what: format!("start {} from {}", self.owner.vm, path.display()),
            source,
        })?;
        let domain = self.host.find(&DomainId::Uuid(saved.uuid))?;
        Vm::locked(self.host, ACTION, domain, self.store, self.lock, None)
    }
}

/// Whether another domain with the VM's name runs here. Then the older image must not be started any more.
pub(super) fn is_outlived(host: &Host, owner: &Owner) -> Result<bool, Cause> {
    let found = host.hypervisor().find(&DomainId::Name(owner.vm.clone()))?;
    Ok(found.is_some_and(|domain| domain.id.is_some() && owner.uuid.as_ref() != Some(&domain.uuid)))
}
