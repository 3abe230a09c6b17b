//! `shutdown`: asks the guest to power off, and waits until it has.

use std::time::Duration;

use crate::base::{Action, DomainId, Owner, POLL};
use crate::claims::{ClaimError, ClaimStore, VmLock};
use crate::error::{ActionError, Cause, HostState};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::DomainRef;
use crate::os;
use crate::vm::gone::{self, LastLook};

/// Shuts the domain down and frees its VFs once it is gone.
///
/// The guest has SHUTDOWN_TIMEOUT seconds, and is asked again after half of them. After that time the domain is
/// destroyed with FORCE_DESTROY=yes. With CANCEL_NO_ACPI=yes a domain without ACPI is destroyed at once, because its
/// guest gets no request.
///
/// * `absent_is_done` - whether a domain that is not there is a success (OpenNebula 5.12 and later)
///
/// # Errors
/// The domain keeps its VFs: the guest did not power off in time (and may still do so), libvirt refused, or another
/// action of this VM is running.
///
/// # Source
/// OpenNebula's stock `shutdown`.
pub fn shutdown(host: &Host, id: &DomainId, absent_is_done: bool) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(Action::Shutdown, cause);
    host.check_stop().map_err(untouched)?;
    let store = gone::usable_claims(host);
    let Some(domain) = host.hypervisor().find(id).map_err(|e| untouched(e.into()))? else {
        return if absent_is_done { Ok(()) } else { Err(untouched(Cause::Absent { id: id.to_string() })) };
    };
    let owner = Owner { vm: domain.name.clone(), uuid: Some(domain.uuid.clone()) };
    let lock = lock(host, store.as_ref(), &owner).map_err(|e| untouched(e.into()))?;
    let sudo = Sudo::ask();
    let last = LastLook::at(host, &domain);
    if let (true, Some(dir)) = (last.has_tpm, &last.vm_dir) {
        sudo.vtpm(host.remotes().as_deref(), "backup", &domain.uuid, dir);
    }
    end(host, &domain, id, &last).map_err(|cause| ActionError::new(Action::Shutdown, cause, HostState::MayEnd))?;
    if let (Some(store), Some(_held)) = (&store, &lock) {
        if let Err(error) = gone::release(host, store, &owner, Action::Shutdown) {
            log::warn!("{error}; the domain is gone, the next reconciliation frees its VFs");
        }
    }
    gone::clean_up(host, &sudo, &last);
    Ok(())
}

/// The lock of the VM, if the VM has claims. Claims that can't be read are no reason to keep the VM running.
fn lock(host: &Host, store: Option<&ClaimStore>, owner: &Owner) -> Result<Option<VmLock>, ClaimError> {
    let Some(store) = store else { return Ok(None) };
    let locked = store.has_any(owner).and_then(|any| {
        any.then(|| store.lock_vm(&owner.vm, Action::Shutdown, host.settings().lock_timeout)).transpose()
    });
    match locked {
        Err(error) if !matches!(error, ClaimError::Busy { .. }) => {
            log::warn!("{error}; the next reconciliation frees the VFs of {}", owner.vm);
            Ok(None)
        }
        other => other,
    }
}

fn end(host: &Host, domain: &DomainRef, id: &DomainId, last: &LastLook) -> Result<(), Cause> {
    if host.settings().cancel_no_acpi && !last.mentions_acpi {
        return gone::destroy(host, domain);
    }
    let timeout = host.settings().shutdown_timeout;
    if ask(host, domain, id, timeout)? {
        return Ok(());
    }
    if host.settings().force_destroy {
        log::error!("Timeout shutting down {id}. Destroying it");
        return gone::destroy(host, domain);
    }
    Err(Cause::ShutdownTimeout { id: id.to_string(), seconds: timeout.as_secs() })
}

/// Whether the guest powered off within `timeout`.
fn ask(host: &Host, domain: &DomainRef, id: &DomainId, timeout: Duration) -> Result<bool, Cause> {
    if let Err(source) = host.hypervisor().shutdown(domain) {
        // The guest may have powered off just now.
        return if gone::is_gone(host, domain)? {
            Ok(true)
        } else {
            Err(Cause::Call { what: format!("shutdown {id}"), source })
        };
    }
    let begin = os::now();
    let mut asked_again = false;
    while !gone::is_gone(host, domain)? {
        if os::since(begin) >= timeout {
            return Ok(false);
        }
        if !asked_again && os::since(begin) >= timeout / 2 {
            asked_again = true;
            if let Err(error) = host.hypervisor().shutdown(domain) {
                log::warn!("could not ask {id} again to shut down: {error}");
            }
        }
        host.check_stop()?;
        os::sleep(POLL);
    }
    Ok(true)
}
