//! A VM with VFs: what it has, and what it should have.

use super::read;
use crate::base::{Action, NicKey, Owner, Position};
use crate::claims::{ClaimStore, VmLock};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::DomainRef;
use crate::xml::{LiveDomain, LiveHostdev, OperationKind, Wanted, WantedNic};

/// A running VM with VFs, whose lock is held.
pub(crate) struct Vm<'a> {
    pub(crate) host: &'a Host,
    pub(crate) action: Action,
    pub(crate) domain: DomainRef,
    /// The live XML, as it was read last.
    pub(crate) live: LiveDomain,
    /// The NICs with VFs that the VM should have, and its operation. The domain holds the same in its metadata.
    pub(crate) wanted: Wanted,
    pub(crate) store: ClaimStore,
    pub(crate) lock: VmLock,
    /// The positions whose unplug was pending when the current operation began.
    pub(super) noted: Vec<Position>,
    /// The NICs that had no VF when the action began. The action does not fail because of them.
    pub(super) lacking: Vec<NicKey>,
}

/// A NIC and its device.
#[derive(Debug, Clone)]
pub(crate) struct Plugged {
    pub(crate) nic: WantedNic,
    pub(crate) device: LiveHostdev,
    pub(crate) alias: String,
}

/// What a domain should have, as its metadata say. `None` when the domain is not one of the driver's.
///
/// # Errors
/// The driver's metadata can't be read, or a newer version wrote them.
pub(crate) fn wanted(live: &LiveDomain) -> Result<Option<Wanted>, Cause> {
    live.wanted
        .clone()
        .map_err(|source| Cause::Xml { what: format!("the metadata of kvm-sriov in {}", live.name), source })
}

impl Vm<'_> {
    /// The owner of this VM's claims: its name and UUID.
    pub(crate) fn owner(&self) -> Owner {
        self.domain.owner()
    }

    /// Reads the live XML again. What the VM should have stays as this action knows it.
    pub(crate) fn reread(&mut self) -> Result<(), Cause> {
        self.live = read(self.host, &self.domain)?;
        Ok(())
    }

    /// The NICs that have a VF.
    pub(crate) fn plugged(&self) -> Vec<Plugged> {
        let device = |nic: &WantedNic| {
            let device = self.live.device_of(nic)?.clone();
            let alias = device.alias.clone()?;
            Some(Plugged { nic: nic.clone(), device, alias })
        };
        self.wanted.nics.iter().filter_map(device).collect()
    }

    /// The NICs that have no VF.
    pub(crate) fn missing(&self) -> Vec<WantedNic> {
        self.wanted.nics.iter().filter(|nic| self.live.device_of(nic).is_none()).cloned().collect()
    }

    /// Records which NICs have no VF, before the action changes anything.
    pub(crate) fn note_lacking(&mut self) {
        self.lacking = self.missing().iter().map(WantedNic::key).collect();
    }

    /// The NICs that had no VF when the action began.
    pub(crate) fn lacking(&self) -> &[NicKey] {
        &self.lacking
    }

    /// The NICs that lost their VF after the action began.
    pub(crate) fn lost(&self) -> Vec<WantedNic> {
        let mut lost = self.missing();
        lost.retain(|nic| !self.lacking.contains(&nic.key()));
        lost
    }

    /// Writes what the VM should have into the metadata of the domain. A VM that should have nothing gets no metadata:
    /// it is then not one of the driver's.
    ///
    /// # Errors
    /// libvirt refused. The metadata are as before.
    pub(crate) fn write_wanted(&self) -> Result<(), Cause> {
        let text = (self.wanted != Wanted::default()).then(|| self.wanted.to_unqualified_xml());
        let hypervisor = self.host.hypervisor();
        Ok(hypervisor.set_metadata(&self.domain, text.as_deref(), Wanted::PREFIX, Wanted::NAMESPACE)?)
    }

    /// Writes what the VM should have, unless the live XML has it already. After a write that failed, it is not known
    /// whether the write took effect; then the live XML decides.
    pub(crate) fn ensure_written(&self) -> Result<(), Cause> {
        let written = wanted(&self.live)?.unwrap_or_default();
        if written == self.wanted { Ok(()) } else { self.host.patiently(|| self.write_wanted()) }
    }

    /// Writes into the domain which operation is under way, or that none is.
    pub(crate) fn set_operation(&mut self, operation: Option<OperationKind>) -> Result<(), Cause> {
        if self.wanted.operation.as_ref().map(|operation| &operation.kind) == operation.as_ref() {
            return Ok(());
        }
        let before = self.wanted.operation.take();
        self.wanted.operation = operation.map(Into::into);
        self.write_wanted().inspect_err(|_| self.wanted.operation = before)
    }

    /// Writes one line into the journal for each of these NICs.
    pub(crate) fn journal(&self, devices: &[Plugged], result: &str) {
        for Plugged { nic, device, .. } in devices {
            self.host.journal().vf(self.action, &self.domain.name, &nic.root, device.vf, result);
        }
    }
}
