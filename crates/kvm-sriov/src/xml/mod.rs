//! The XML of libvirt and OpenNebula: read with limits, edited by splices, never written anew.
//!
//! A domain is OpenNebula's and libvirt's; only a few places in it are ours. [`Deployment`] is what OpenNebula wants
//! started, [`LiveDomain`] what libvirt shows of a running domain, [`VmData`] OpenNebula's own description of the VM,
//! [`Wanted`] the element that we keep in the domain.
//!
//! # Source
//! docs/reference/wire.md for what arrives; libvirt's formatdomain for the domain;
//! docs/decisions/0003-metadata-in-the-domain.md for our element.

//! * `domain` - libvirt's documents: a domain, a snapshot, a save image, and our element in them
//! * `opennebula` - OpenNebula's documents: the deployment file, and its description of a VM
//! * `parse`, `read`, `splice`, `write` - texts to trees, trees to values, and edits of a text

mod domain;
mod error;
#[cfg(test)]
mod fixtures;
mod opennebula;
mod parse;
mod read;
mod splice;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use domain::ONE;
pub use domain::{
    AdoptedDevices, Dimm, Disk, FreeAddresses, HugePages, KeptContent, LiveDomain, LiveHostdev, LiveInterface, Medium,
    Mention, NicMode, NicPlace, Operation, OperationKind, PciDevice, Sizes, Wanted, WantedNic, alias_of,
    dummy_alias_of, hostdev_of, image_for, mentions, snapshot_of, wanted_in_snapshot, with_system_datastore,
};
pub use error::XmlError;
pub use opennebula::{
    Bandwidth, Deployment, DiskPlace, NicDefaults, Nvram, PlannedNic, Resize, VmData, VmDisk, VmMove, VmNic, VmPci,
    datastore_values, dummy_interface_of, interface_of, nic_alias, pci_of, tpm_state,
};
