//! A domain that ends, and its VFs, which are free then. For actions that end a domain, or find that it has ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::base::{Action, DomainId, Owner, POLL};
use crate::claims::{ClaimError, ClaimStore};
use crate::error::Cause;
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::DomainRef;
use crate::os;
use crate::xml::LiveDomain;

/// How long a destroyed domain is waited for.
///
/// # Source
/// OpenNebula's stock driver: 60 tries, 1 s apart.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(60);

/// The time between two requests to destroy a domain.
const DESTROY_AGAIN: Duration = Duration::from_secs(1);

/// Destroys a domain, and waits until it is gone.
///
/// # Errors
/// The domain is still there, or libvirtd does not answer.
pub(crate) fn destroy(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    let begin = os::now();
    let mut asked = None;
    let mut refused = None;
    while os::since(begin) < DESTROY_TIMEOUT {
        if is_gone(host, domain)? {
            return Ok(());
        }
        if asked.is_none_or(|at: Instant| os::since(at) >= DESTROY_AGAIN) {
            asked = Some(os::now());
            // The domain may have ended by itself. The next read tells.
            refused = host.hypervisor().destroy(domain).err();
        } else {
            os::sleep(POLL);
        }
    }
    let id = domain.name.to_string();
    Err(refused.map_or_else(
        || Cause::StillThere { id: id.clone(), seconds: DESTROY_TIMEOUT.as_secs() },
        |source| Cause::Call { what: format!("destroy {id}"), source },
    ))
}

/// Whether the domain with this UUID no longer runs. A domain of the same name is another one. OpenNebula's domains are
/// transient; libvirt still shows a persistent domain that has ended, without an id.
pub(crate) fn is_gone(host: &Host, domain: &DomainRef) -> Result<bool, Cause> {
    let found = host.hypervisor().find(&DomainId::Uuid(domain.uuid.clone()))?;
    Ok(found.is_none_or(|domain| domain.id.is_none()))
}

/// Releases all claims of a VM. Call it with the VM's lock, when its domain is gone.
pub(crate) fn release(host: &Host, store: &ClaimStore, owner: &Owner, action: Action) -> Result<(), ClaimError> {
    for claim in store.release_domain(owner)? {
        log::info!("VF {} of {} is free", claim.vf, claim.root);
        host.journal().vf(action, &owner.vm, &claim.root, claim.vf, "released");
    }
    Ok(())
}

/// The claims of this host; `None` when they can't be used. An action that ends a VM must not fail because of that.
pub(crate) fn usable_claims(host: &Host) -> Option<ClaimStore> {
    host.existing_claims()
        .inspect_err(|error| log::warn!("{error}; a VF that is claimed there stays claimed"))
        .ok()
        .flatten()
}

/// What must be read from a domain before it ends.
#[derive(Default)]
pub(crate) struct LastLook {
    /// The VM's directory, as OpenNebula wrote it into the domain.
    pub(crate) vm_dir: Option<PathBuf>,
    /// Whether the domain has an emulated TPM. libvirt deletes the TPM's state with the domain.
    pub(crate) has_tpm: bool,
    /// Whether the XML has the word "acpi". OpenNebula's stock driver looks for that word.
    pub(crate) mentions_acpi: bool,
}

impl LastLook {
    /// Reads it from the live XML. What can't be read is missing, because the domain is ended nevertheless.
    pub(crate) fn at(host: &Host, domain: &DomainRef) -> Self {
        let text = match host.hypervisor().live_xml(domain) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                log::warn!("cannot read the live XML of {}: {error}", domain.name);
                return Self::default();
            }
        };
        match LiveDomain::parse(&text) {
            Ok(live) => Self { vm_dir: live.vm_dir, has_tpm: live.has_emulated_tpm, mentions_acpi: live.mentions_acpi },
            Err(_) => Self { mentions_acpi: text.contains("acpi"), ..Self::default() },
        }
    }
}

/// Does what OpenNebula's stock driver does when a VM has ended: removes mediated devices, and compacts memory.
pub(crate) fn clean_up(host: &Host, sudo: &Sudo, last: &LastLook) {
    if let Some(dir) = &last.vm_dir {
        sudo.vgpu(host.remotes().as_deref(), "DELETE", &dir.join("vm.xml"));
    }
    if host.settings().cleanup_memory_on_stop {
        sudo.compact_memory();
    }
}
