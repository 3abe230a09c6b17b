//! An action finds its VM and takes the VM's lock.

use super::{Vm, adopt, read, wanted};
use crate::base::{Action, DomainId, Position};
use crate::claims::{ClaimStore, VmLock};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::xml::{LiveDomain, VmData, Wanted};

/// The VM of an action.
pub(crate) enum Found<'a> {
    /// A VM with VFs. Its lock is held.
    WithVfs(Box<Vm<'a>>),
    /// A VM without VFs. Neither claims nor maps were read.
    Plain(DomainRef, Box<LiveDomain>),
}

impl<'a> Found<'a> {
    /// The domain.
    pub(crate) fn domain(&self) -> &DomainRef {
        match self {
            Self::WithVfs(vm) => &vm.domain,
            Self::Plain(domain, _) => domain,
        }
    }

    /// The VM, when it has VFs.
    pub(crate) fn with_vfs(&mut self) -> Option<&mut Vm<'a>> {
        match self {
            Self::WithVfs(vm) => Some(vm),
            Self::Plain(..) => None,
        }
    }

    /// The VFs that the VM should have, when it has VFs.
    pub(crate) fn wanted(&self) -> Option<&Wanted> {
        match self {
            Self::WithVfs(vm) => Some(&vm.wanted),
            Self::Plain(..) => None,
        }
    }

    /// The positions of the NICs that had no VF when the action began.
    pub(crate) fn lacking(&self) -> Vec<Position> {
        match self {
            Self::WithVfs(vm) => vm.lacking.iter().map(|nic| nic.position).collect(),
            Self::Plain(..) => Vec::new(),
        }
    }

    /// The live XML of the domain, as it was read last.
    pub(crate) fn live(&self) -> &LiveDomain {
        match self {
            Self::WithVfs(vm) => &vm.live,
            Self::Plain(_, live) => live,
        }
    }
}

impl<'a> Vm<'a> {
    /// Finds a VM, and takes its lock when it has VFs. Repairs nothing that an earlier action left.
    ///
    /// * `data` - OpenNebula's description of the VM, for a domain that is adopted
    ///
    /// # Errors
    /// Nothing was changed: there is no such domain, another action has the lock, or a newer version wrote the
    /// metadata.
    pub(crate) fn open_as_is(
        host: &'a Host,
        action: Action,
        id: &DomainId,
        data: Option<&VmData>,
    ) -> Result<Found<'a>, Cause> {
        host.check_stop()?;
        let domain = host.find(id)?;
        // A VM that was locked before most likely has VFs. When its lock is free, the live XML is read once, not twice.
        let lock = Self::lock_as_before(host, action, &domain);
        let live = read(host, &domain)?;
        // A domain may have our devices but no metadata: the action that plugged them died before it wrote the
        // metadata.
        let has_ours =
            || Ok::<_, Cause>(!live.positions().is_empty() || !adopt::adoptable(host, &live, data)?.is_empty());
        if wanted(&live)?.is_none() && !has_ours()? {
            return Ok(Found::Plain(domain, Box::new(live)));
        }
        let vm = match lock {
            Some((store, lock)) => Self::seen(host, action, domain, live, store, lock, data)?,
            None => Self::lock_as_is(host, action, domain, data)?,
        };
        Ok(Found::WithVfs(Box::new(vm)))
    }

    /// Takes the lock of a VM that was locked before. `None` when it never was, when the lock is held, or when it can't
    /// be taken: none of that matters for a VM without VFs.
    fn lock_as_before(host: &Host, action: Action, domain: &DomainRef) -> Option<(ClaimStore, VmLock)> {
        let store = host.existing_claims().ok()??;
        let lock = store.lock_vm_again(&domain.name, action).ok()??;
        Some((store, lock))
    }

    /// Takes the lock of a VM that has VFs, or is about to get its first one. Repairs nothing that an earlier action
    /// left.
    ///
    /// # Errors
    /// As [`Vm::open_as_is`].
    pub(crate) fn lock_as_is(
        host: &'a Host,
        action: Action,
        domain: DomainRef,
        data: Option<&VmData>,
    ) -> Result<Self, Cause> {
        let store = host.claims()?;
        let lock = host.lock_vm(&store, &domain.name, action)?;
        Self::locked(host, action, domain, store, lock, data)
    }

    /// A VM whose lock is held. Reads the live XML, because another action may have changed it before the lock was
    /// taken.
    pub(crate) fn locked(
        host: &'a Host,
        action: Action,
        domain: DomainRef,
        store: ClaimStore,
        lock: VmLock,
        data: Option<&VmData>,
    ) -> Result<Self, Cause> {
        let live = read(host, &domain)?;
        Self::seen(host, action, domain, live, store, lock, data)
    }

    /// A VM whose live XML was read with its lock held.
    pub(crate) fn seen(
        host: &'a Host,
        action: Action,
        domain: DomainRef,
        live: LiveDomain,
        store: ClaimStore,
        lock: VmLock,
        data: Option<&VmData>,
    ) -> Result<Self, Cause> {
        let known = wanted(&live)?;
        let is_ours = known.is_some();
        let wanted = known.unwrap_or_default();
        let mut vm = Self { host, action, domain, live, wanted, store, lock, noted: Vec::new(), lacking: Vec::new() };
        if is_ours {
            adopt::complete(&mut vm)?;
        } else {
            adopt::adopt(&mut vm, data)?;
        }
        vm.note_lacking();
        Ok(vm)
    }
}
