//! An operation of a VM: its VFs leave the domain, and come back.
//!
//! While an operation is under way, the domain records it and the claims name this process. Whoever finds an operation
//! that was interrupted can therefore finish or undo it.

use std::path::Path;

use super::{Vm, read, wanted};
use crate::base::Position;
use crate::error::{Cause, UnplugOutcome};
use crate::host::detached;
use crate::xml::{OperationKind, WantedNic};

/// The VFs that a guest kept, and why, when a cause names any.
fn kept_by(cause: &Cause) -> impl Iterator<Item = (Position, &UnplugOutcome)> {
    let kept = match cause {
        Cause::NotReleased { kept, .. } | Cause::Stopped { kept } => kept.as_slice(),
        _ => &[],
    };
    kept.iter().map(|(position, _, outcome)| (*position, outcome))
}

/// What an error says when the guest may still release a VF; `None` when it can't.
pub(crate) fn pending_text(cause: &Cause) -> Option<&'static str> {
    kept_by(cause).any(|(_, outcome)| outcome.is_pending()).then_some(
        "the VM runs on, the request stays pending in the guest and a VF that leaves later is plugged back (is the guest's \
         PCI hot-plug driver loaded?)",
    )
}

impl Vm<'_> {
    /// The positions of the NICs whose VF or dummy the guest may still release.
    pub(crate) fn pending(&self) -> Vec<Position> {
        match self.wanted.operation.as_ref().map(|operation| &operation.kind) {
            Some(OperationKind::PendingUnplug { positions }) => positions.clone(),
            _ => Vec::new(),
        }
    }

    /// Begins an operation during which VFs are out of the domain: the claims name this process, and the domain records
    /// the operation.
    ///
    /// * `image` - the file that the domain is saved into, if it is
    ///
    /// # Errors
    /// The host was told to stop, or libvirt or the claims failed. No VF has left.
    pub(crate) fn begin(&mut self, operation: OperationKind, image: Option<&Path>) -> Result<(), Cause> {
        self.host.check_stop()?;
        self.store.hold(&self.lock, &self.owner(), image)?;
        self.noted = self.pending();
        self.set_operation(Some(operation))
    }

    /// Ends an operation: the domain backs its claims again, and records no operation.
    pub(crate) fn finish(&mut self) -> Result<(), Cause> {
        self.set_operation(None)?;
        self.store.settle(&self.owner())?;
        Ok(())
    }

    /// Ends an operation after which the guest may still release the VFs at these positions. The domain records the
    /// positions, and the watcher is started.
    pub(crate) fn finish_pending(&mut self, positions: Vec<Position>) -> Result<(), Cause> {
        self.set_operation(Some(OperationKind::PendingUnplug { positions }))?;
        self.store.settle(&self.owner())?;
        detached::start(self.host, detached::WATCHER, &self.domain);
        Ok(())
    }

    /// Ends an operation that plugged VFs for these NICs right after their old VFs had left. Linux may still hold
    /// queued eject requests from the unplug and apply them to the new VFs, if the guest was paused or saved just after
    /// it released the last of several VFs. Therefore the watcher is started for two or more VFs. When the domain can't
    /// record that, the operation ends nevertheless, and the next action plugs back what leaves.
    ///
    /// # Source
    /// QEMU `hw/acpi/pcihp.c`: each request notifies the guest of all open requests, so of the first ones more than
    /// once. Linux `drivers/pci/hotplug/acpiphp_glue.c`: it handles the requests one after the other, and ejects an
    /// empty slot as well.
    pub(crate) fn finish_plugged(&mut self, nics: &[WantedNic]) -> Result<(), Cause> {
        if let [_, _, ..] = nics {
            let noted = self.finish_pending(nics.iter().map(|nic| nic.position).collect());
            return noted.or_else(|cause| {
                log::warn!("{cause}; {} is not watched for VFs that its guest may still release", self.domain.name);
                self.finish()
            });
        }
        self.finish()
    }

    /// Plugs a VF for each NIC that has none, as far as VFs are free. A failure is logged; reconciliation tries again.
    pub(crate) fn plug_lacking(&mut self) {
        for nic in self.missing() {
            if let Err(cause) = self.plug(std::slice::from_ref(&nic)) {
                log::warn!(
                    "{cause}; NIC {} of {} still has no VF, reconciliation tries again",
                    nic.mac,
                    self.domain.name
                );
            }
        }
    }

    /// Ends an operation that failed: plugs back the VFs that left, at their guest addresses. The domain records the
    /// VFs that the guest may still release, and the watcher is started for them.
    ///
    /// * `cause` - why the action failed; it names the VFs whose unplug is pending
    ///
    /// # Errors
    /// VFs may be missing. The operation stays open.
    pub(crate) fn plug_back(&mut self, cause: &Cause) -> Result<(), Cause> {
        let mut pending: Vec<Position> =
            kept_by(cause).filter(|(_, outcome)| outcome.is_pending()).map(|(position, _)| position).collect();
        self.live = self.host.patiently(|| read(self.host, &self.domain))?;
        // A write of the operation that failed may have taken effect nevertheless.
        if let Some(written) = wanted(&self.live)? {
            self.wanted.operation = written.operation;
        }
        let lost = self.lost();
        self.plug(&lost)?;
        self.plug_lacking();
        // No action that ends here unplugs a dummy, so a missing dummy is no reason to fail.
        if let Err(cause) = self.plug_dummies() {
            log::warn!("{cause}; reconciliation tries again");
        }
        if pending.is_empty() {
            pending = self.noted_before();
        }
        self.finish_as(pending)
    }

    /// The positions whose unplug was pending when this action began.
    pub(crate) fn noted_before(&self) -> Vec<Position> {
        if self.noted.is_empty() { self.pending() } else { self.noted.clone() }
    }

    /// Ends an operation; the unplug at these positions is pending.
    pub(crate) fn finish_as(&mut self, pending: Vec<Position>) -> Result<(), Cause> {
        if pending.is_empty() { self.finish() } else { self.finish_pending(pending) }
    }
}
