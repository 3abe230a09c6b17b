//! Calls on disks.

use kvm_sriov::libvirt::{BlockJob, DiskCalls, DomainRef, LibvirtError};
use kvm_sriov::os;

use crate::element::Element;
use crate::world::DiskCopy;
use crate::{Model, refusal};

/// The size of every disk that was not resized, in bytes.
const CAPACITY: u64 = 64 << 20;

impl DiskCalls for Model {
    fn block_copy(&self, domain: &DomainRef, disk: &str, target_xml: &str, _shallow: bool) -> Result<(), LibvirtError> {
        let target = Element::parse(target_xml);
        let target = target.map_err(|error| refusal::xml(format!("(disk_definition): {error}")))?;
        self.change(domain, |domain| {
            if domain.copies.contains_key(disk) {
                return Err(refusal::copy_runs(disk));
            }
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            domain.copies.insert(disk.to_owned(), DiskCopy { target, begun: os::now() });
            Ok(())
        })
    }

    fn block_job(&self, domain: &DomainRef, disk: &str) -> Result<Option<BlockJob>, LibvirtError> {
        let found = self.look(domain, |domain| {
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            let done = |copy: &DiskCopy| if copy.is_ready() { 100 } else { 50 };
            Ok(domain.copies.get(disk).map(|copy| BlockJob { done: done(copy), all: 100 }))
        })?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))?
    }

    fn finish_block_job(&self, domain: &DomainRef, disk: &str, pivot: bool) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            let copy = domain.copies.get(disk).ok_or_else(|| refusal::no_copy(disk))?;
            if pivot && !copy.is_ready() {
                return Err(refusal::copy_not_ready(disk));
            }
            let target = domain.copies.remove(disk).map(|copy| copy.target);
            if let Some(target) = target.filter(|_| pivot) {
                domain.definition.pivot(disk, &target);
            }
            Ok(())
        })
    }

    fn disk_capacity(&self, domain: &DomainRef, disk: &str) -> Result<u64, LibvirtError> {
        let found = self.look(domain, |domain| {
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            Ok(domain.capacities.get(disk).copied().unwrap_or(CAPACITY))
        })?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))?
    }

    fn resize_disk(&self, domain: &DomainRef, disk: &str, bytes: u64) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            domain.definition.disk(disk).ok_or_else(|| refusal::no_disk(disk))?;
            if domain.copies.contains_key(disk) {
                let text = format!("Node '{disk}' is busy: block device is in use by block job: mirror");
                return Err(refusal::monitor("block_resize", text));
            }
            domain.capacities.insert(disk.to_owned(), bytes);
            Ok(())
        })
    }
}
