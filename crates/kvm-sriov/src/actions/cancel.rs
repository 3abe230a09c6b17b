//! `cancel`: ends a VM at once.

use std::time::Duration;

use crate::base::{Action, DomainId, DomainName, Owner};
use crate::claims::ClaimStore;
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::DomainRef;
use crate::vm::checkpoint::Checkpoint;
use crate::vm::gone::{self, LastLook};

/// How long `cancel` waits for an action that was told to end. Then it leaves the claims to reconciliation.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Destroys the domain and frees its VFs. Success when it is not there.
///
/// Does not wait for a running action of the same VM, because OpenNebula cancels a VM during its other actions. It
/// tells that action to end ([`VmLock::cancelled`](crate::claims::VmLock::cancelled)), destroys the domain, and only
/// then takes the lock, to look for the domain once more and to release the claims.
///
/// * `vm` - the VM's name, where the caller knows it: the claims of a domain that is gone are found by its name
///
/// # Errors
/// The domain is still there, or was not seen to be gone; its VFs stay claimed.
///
/// # Source
/// OpenNebula's stock `cancel`: destroys up to 60 times, a second apart.
pub fn cancel(host: &Host, id: &DomainId, vm: Option<&DomainName>) -> Result<(), ActionError> {
    let failed = |cause: Cause| ActionError::new(Action::Cancel, cause, HostState::MayEnd);
    let domain = host.hypervisor().find(id).map_err(|e| ActionError::untouched(Action::Cancel, e))?;
    let store = gone::usable_claims(host);
    let owner = owner_of(domain.as_ref(), id, vm, store.as_ref());
    if let (Some(store), Some(owner)) = (&store, &owner) {
        tell_holder(store, &owner.vm);
    }
    let last = domain.as_ref().map(|domain| LastLook::at(host, domain)).unwrap_or_default();
    if let Some(domain) = &domain {
        gone::destroy(host, domain).map_err(failed)?;
    }
    if let (Some(store), Some(owner)) = (&store, &owner) {
        free(host, store, owner).map_err(failed)?;
    }
    if domain.is_some() {
        gone::clean_up(host, &Sudo::ask(), &last);
    }
    Ok(())
}

/// The owner of the claims: the domain or, when it is gone, what is known of it.
fn owner_of(
    domain: Option<&DomainRef>,
    id: &DomainId,
    vm: Option<&DomainName>,
    store: Option<&ClaimStore>,
) -> Option<Owner> {
    if let Some(domain) = domain {
        return Some(Owner { vm: domain.name.clone(), uuid: Some(domain.uuid.clone()) });
    }
    match id {
        DomainId::Name(name) => Some(Owner { vm: name.clone(), uuid: None }),
        DomainId::Uuid(uuid) => store
            .and_then(|store| store.owner_with(uuid).ok().flatten())
            .or_else(|| vm.map(|vm| Owner { vm: vm.clone(), uuid: Some(uuid.clone()) })),
        DomainId::Id(_) => vm.map(|vm| Owner { vm: vm.clone(), uuid: None }),
    }
}

/// Tells an action that still runs for this VM to end.
fn tell_holder(store: &ClaimStore, vm: &DomainName) {
    let told = store.vm_holder(vm).and_then(|holder| match holder {
        None => Ok(()),
        Some(holder) => {
            log::info!("{vm} is busy: {holder}; telling it to end");
            store.request_cancel(vm, &holder)?;
            if !holder.end() {
                log::info!(
                    "{holder} does not work for {vm} alone, so it gets no signal: it reads the request and ends by itself"
                );
            }
            Ok(())
        }
    });
    if let Err(error) = told {
        log::warn!("{error}; an action that still runs for {vm} could not be told to end");
    }
}

/// Releases the VM's claims. An action that was told to end may have started the domain again, so with the lock held
/// the domain is looked up and destroyed once more. A VM without claims needs neither.
fn free(host: &Host, store: &ClaimStore, owner: &Owner) -> Result<(), Cause> {
    let released = store
        .has_any(owner)
        .and_then(|any| if any { store.lock_vm(&owner.vm, Action::Cancel, LOCK_TIMEOUT).map(Some) } else { Ok(None) });
    let lock = match released {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ok(()),
        Err(error) => {
            log::warn!("{error}; the domain is gone, the next reconciliation frees its VFs");
            return Ok(());
        }
    };
    let again = owner.uuid.clone().map_or_else(|| DomainId::Name(owner.vm.clone()), DomainId::Uuid);
    if let Some(domain) = host.hypervisor().find(&again)? {
        gone::destroy(host, &domain)?;
    }
    // An unfinished image of the VM's save is of no use any more.
    if let Err(error) =
        discard_image(store, owner).and_then(|()| Ok(gone::release(host, store, owner, Action::Cancel)?))
    {
        log::warn!("{error}; the domain is gone, the next reconciliation frees its VFs");
    }
    drop(lock);
    Ok(())
}

fn discard_image(store: &ClaimStore, owner: &Owner) -> Result<(), Cause> {
    let claimants = store.claimants()?;
    let unfinished = claimants.iter().filter(|claimant| claimant.owner.is(owner)).find_map(|c| c.image.as_deref());
    unfinished.and_then(Checkpoint::of_unfinished).map_or(Ok(()), |image| image.discard())
}
