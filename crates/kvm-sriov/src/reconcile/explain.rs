//! What is known of one VM, and the word of a person about it.

use super::pass::{Pass, Subject, claimants};
use super::{Elsewhere, Options, VmReport};
use crate::base::{DomainId, DomainName, Owner};
use crate::claims::{Claim, ClaimStore, Holder};
use crate::error::Cause;
use crate::host::Host;
use crate::os;
use crate::vm;
use crate::xml::{LiveDomain, Wanted};

/// All that is known of one VM, and what [`reconcile`](super::reconcile) would do to it.
#[derive(Debug)]
pub struct Explanation {
    /// What is known of the VM; `left` holds the repairs that would be done.
    pub report: VmReport,
    /// The NICs that the VM should have. Empty when it has no domain on this host.
    pub wanted: Wanted,
    /// The VM's domain as libvirt shows it; `None` when it has none on this host.
    pub live: Option<LiveDomain>,
    /// The VM's claims.
    pub claims: Vec<Claim>,
    /// The action that holds the VM's lock.
    pub holder: Option<Holder>,
}

/// Inspects one VM. Changes nothing.
///
/// # Errors
/// The host has no such domain and no claim of such a VM, or the VM can't be read.
pub fn explain(host: &Host, id: &DomainId) -> Result<Explanation, Cause> {
    let pass = Pass { host, dry_run: true, until: os::now(), elsewhere: Elsewhere::Unknown };
    let store = host.existing_claims()?;
    let claims = |owner: &Owner| store.as_ref().map_or_else(|| Ok(Vec::new()), |store| store.claims_of(owner));
    let holder = |vm: &DomainName| store.as_ref().map_or(Ok(None), |store| store.vm_holder(vm));
    let absent = || Cause::Absent { id: id.to_string() };
    let Some(domain) = host.hypervisor().find(id)?.filter(|domain| domain.id.is_some()) else {
        let owner = claimant(store.as_ref(), id)?.ok_or_else(absent)?;
        let report = pass.over_domainless(owner.clone())?.ok_or_else(absent)?;
        return Ok(Explanation {
            report,
            wanted: Wanted::default(),
            live: None,
            claims: claims(&owner)?,
            holder: holder(&owner.vm)?,
        });
    };
    let live = vm::read(host, &domain)?;
    let wanted = vm::wanted(&live)?.unwrap_or_default();
    let report = pass.inspect_wanting(&domain, &live, &wanted, &pass.claimants()?)?;
    let (claims, holder) = (claims(&domain.owner())?, holder(&domain.name)?);
    Ok(Explanation { report, wanted, live: Some(live), claims, holder })
}

/// Reconciles one VM with what is known of it on another host.
///
/// * `elsewhere` - what the other host or a person says
///
/// # Errors
/// There is no such VM, or it can't be read; nothing was changed. That another action works on the VM is no error: the
/// report says so.
pub fn resolve(host: &Host, id: &DomainId, elsewhere: Elsewhere) -> Result<VmReport, Cause> {
    let until = os::now() + Options::default().timeout;
    let pass = Pass { host, dry_run: false, until, elsewhere };
    let absent = || Cause::Absent { id: id.to_string() };
    let subject = match host.hypervisor().find(id)?.filter(|domain| domain.id.is_some()) {
        Some(domain) => Subject::Domain(domain, None),
        None => Subject::Domainless(claimant(host.existing_claims()?.as_ref(), id)?.ok_or_else(absent)?),
    };
    pass.over(subject, &[])?.ok_or_else(absent)
}

/// The VM with this id among those that claim VFs.
fn claimant(store: Option<&ClaimStore>, id: &DomainId) -> Result<Option<Owner>, Cause> {
    let is_meant = |owner: &Owner| match id {
        DomainId::Uuid(uuid) => owner.uuid.as_ref() == Some(uuid),
        DomainId::Name(name) => owner.vm == *name,
        DomainId::Id(_) => false,
    };
    Ok(claimants(store)?.into_iter().map(|claimant| claimant.owner).find(is_meant))
}
