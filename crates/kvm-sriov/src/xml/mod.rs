//! libvirt's and OpenNebula's XML. Texts are read within limits and edited by splices; everything else in them stays
//! byte for byte.
//!
//! * [`Deployment`] - the domain that OpenNebula wants started
//! * [`VmData`] - OpenNebula's description of a VM
//! * [`LiveDomain`] - a running domain, as libvirt shows it
//! * [`Wanted`] - the driver's own element in the metadata of a domain: the VFs that the domain should have
//!
//! A NIC has these types:
//!
//! * [`VmNic`] - a NIC as OpenNebula describes it
//! * [`WantedNic`] - an SR-IOV NIC that a domain should have, as the domain's metadata keep it
//! * [`PlannedNic`] - a [`WantedNic`] with the VF and the dummy that its domain will start with
//! * [`WantedVf`](crate::WantedVf) and [`NicKey`](crate::NicKey) - what a claim needs to know of it
//!
//! Inside:
//!
//! * `domain` - libvirt's documents: a domain, a snapshot, a save image, and the driver's element in their metadata
//! * `opennebula` - OpenNebula's documents: the deployment file, and the description of a VM
//! * `parse`, `read`, `splice`, `write` - parsing texts, reading elements, editing texts, writing elements
//!
//! # Source
//! docs/reference/wire.md for OpenNebula's documents; libvirt's formatdomain for the domain;
//! docs/decisions/0003-metadata-in-the-domain.md for the driver's element.

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

pub(crate) use domain::ONE_NAMESPACE;
pub use domain::{
    AdoptedDevices, Dimm, Disk, FreeAddresses, HugePages, KeptContent, LiveDomain, LiveHostdev, LiveInterface, Medium,
    Mention, NicPlace, Operation, OperationKind, PciDevice, Sizes, Wanted, WantedNic, adapted_to_host, alias_of,
    dummy_alias_of, hostdev_of, mentions, snapshot_of, wanted_in_snapshot, with_system_datastore,
};
pub use error::XmlError;
pub use opennebula::{
    Bandwidth, Deployment, DiskPlace, NicDefaults, Nvram, PlannedNic, Resize, VmData, VmDisk, VmMove, VmNic, VmPci,
    datastore_values, dummy_interface_of, interface_of, nic_alias, pci_of, tpm_state,
};
