//! libvirt's documents: a running domain, a snapshot, a save image, and the driver's element in their metadata.

mod adapt;
mod disk;
mod elements;
mod guest_bus;
mod hostdev;
mod live;
mod sizes;
mod snapshot;
mod wanted;

pub use adapt::adapted_to_host;
pub use disk::{Disk, Medium, Mention, mentions, with_system_datastore};
pub(in crate::xml) use elements::{devices, guest_address, hard_limit, kibibytes, mac_of, uuid_of};
pub(in crate::xml) use guest_bus::choose_guest_addresses;
pub use guest_bus::{FreeAddresses, NicPlace};
pub(in crate::xml) use hostdev::hostdev;
pub use hostdev::{alias_of, dummy_alias_of, hostdev_of};
pub(crate) use live::ONE_NAMESPACE;
pub use live::{LiveDomain, LiveHostdev, LiveInterface, PciDevice};
pub use sizes::{Dimm, HugePages, Sizes};
pub use snapshot::{snapshot_of, wanted_in_snapshot};
pub use wanted::{AdoptedDevices, KeptContent, Operation, OperationKind, Wanted, WantedNic};
