//! A domain that goes, and the VFs that are free then: whoever ends a domain, or finds that it has ended.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::base::{Action, DeployId, Owner, POLL};
use crate::claims::{ClaimError, ClaimStore};
use crate::error::Cause;
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::DomainRef;
use crate::xml::LiveDomain;

/// How long a destroyed domain may stay: OpenNebula's stock driver asks 60 times, a second apart.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two requests to destroy.
const DESTROY_AGAIN: Duration = Duration::from_secs(1);

/// Destroys a domain and returns when it is no longer there.
pub(crate) fn destroy(host: &Host, domain: &DomainRef) -> Result<(), Cause> {
    let begin = Instant::now();
    let mut asked = None;
    let mut refused = None;
    while begin.elapsed() < DESTROY_TIMEOUT {
        if is_gone(host, domain)? {
            return Ok(());
        }
        if asked.is_none_or(|at: Instant| at.elapsed() >= DESTROY_AGAIN) {
            asked = Some(Instant::now());
            // The domain may have gone by itself: only the next look counts.
            refused = host.hypervisor().destroy(domain).err();
        } else {
            thread::sleep(POLL);
        }
    }
    let id = domain.name.to_string();
    Err(refused.map_or_else(
        || Cause::StillThere { id: id.clone(), seconds: DESTROY_TIMEOUT.as_secs() },
        |source| Cause::Call { what: format!("destroy {id}"), source },
    ))
}

/// Whether this very domain, not one of the same name, no longer runs. OpenNebula's domains are transient; one that
/// somebody defined is still known when it has ended.
pub(crate) fn is_gone(host: &Host, domain: &DomainRef) -> Result<bool, Cause> {
    let found = host.hypervisor().find(&DeployId::Uuid(domain.uuid.clone()))?;
    Ok(found.is_none_or(|domain| domain.id.is_none()))
}

/// Frees what the owner claims. To be called with the lock of the VM, when its domain is gone.
pub(crate) fn release(host: &Host, store: &ClaimStore, owner: &Owner, action: Action) -> Result<(), ClaimError> {
    for claim in store.release_domain(owner)? {
        log::info!("VF {} of {} is free", claim.vf, claim.root);
        host.journal().vf(action, &owner.vm, &claim.root, claim.vf, "released");
    }
    Ok(())
}

/// The claims of the VMs of this host, or none when they can't be used: what ends a VM must not fail for that.
pub(crate) fn usable_claims(host: &Host) -> Option<ClaimStore> {
    host.existing_claims()
        .inspect_err(|error| log::warn!("{error}; a VF that is claimed there stays claimed"))
        .ok()
        .flatten()
}

/// What must be known of a domain before it ends.
#[derive(Default)]
pub(crate) struct LastLook {
    /// Its directory, as OpenNebula wrote it into the domain.
    pub(crate) vm_dir: Option<PathBuf>,
    /// Whether it has an emulated TPM, whose state libvirt deletes with the domain.
    pub(crate) has_tpm: bool,
    /// Whether its XML has the word "acpi", which is what the stock driver looks for.
    pub(crate) mentions_acpi: bool,
}

impl LastLook {
    /// Reads it from the live XML; what can't be read is not there, because the domain ends all the same.
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

/// What the stock driver does when a VM has ended: its mediated devices go, memory is compacted.
pub(crate) fn clean_up(host: &Host, sudo: &Sudo, last: &LastLook) {
    if let Some(dir) = &last.vm_dir {
        sudo.vgpu(host.remotes().as_deref(), "DELETE", &dir.join("vm.xml"));
    }
    if host.settings().cleanup_memory_on_stop {
        sudo.compact_memory();
    }
}
