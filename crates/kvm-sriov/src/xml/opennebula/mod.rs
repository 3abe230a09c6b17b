//! OpenNebula's documents: the deployment file, and the description of a VM.

mod deployment;
mod disk;
mod interface;
mod matching;
mod nic;
mod resize;
mod value;
mod vm;

pub use deployment::{Deployment, Nvram, PlannedNic};
pub use disk::{DiskPlace, VmDisk};
pub use interface::{NicDefaults, dummy_interface_of, interface_of, nic_alias, pci_of};
pub use nic::{Bandwidth, VmNic, VmPci};
pub use resize::Resize;
pub use vm::{VmData, VmMove, datastore_values, tpm_state};
