//! Snapshots of domains.

use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::error::ErrorNumber;
use virt::sys;

use super::error::found;
use super::{DomainRef, Libvirt, LibvirtError};

/// The snapshots of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshots {
    /// Their names, parents before children.
    pub names: Vec<String>,
    /// The snapshot that the domain is based on.
    pub current: Option<String>,
}

/// Calls on the snapshots of a domain.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait SnapshotCalls: Send + Sync {
    /// The names of a domain's snapshots, parents before children, and the current one.
    fn snapshots(&self, domain: &DomainRef) -> Result<Snapshots, LibvirtError>;
    /// Takes a snapshot of disks and memory.
    fn create_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError>;
    /// The XML of a snapshot, with passwords.
    fn snapshot_xml(&self, domain: &DomainRef, name: &str) -> Result<String, LibvirtError>;
    /// Reverts a domain to a snapshot, even when libvirt must end QEMU for it.
    fn revert_snapshot(&self, domain: &DomainRef, name: &str) -> Result<(), LibvirtError>;
    /// Deletes a snapshot.
    ///
    /// * `metadata_only` - libvirt only forgets the snapshot; the disks keep it
    fn delete_snapshot(&self, domain: &DomainRef, name: &str, metadata_only: bool) -> Result<(), LibvirtError>;
    /// Tells libvirt of a snapshot that the domain's disks already hold.
    ///
    /// * `current` - the snapshot becomes the current one
    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str, current: bool) -> Result<(), LibvirtError>;
}

impl SnapshotCalls for Libvirt {
    fn snapshots(&self, domain: &DomainRef) -> Result<Snapshots, LibvirtError> {
        let uuid = domain.uuid.to_string();
        self.call("virDomainListAllSnapshots", move |connection| {
            connection.on_domain(&uuid, |domain| {
                let list = domain.list_all_snapshots(sys::VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)?;
                let names = list.iter().map(DomainSnapshot::name).collect::<Result<_, _>>()?;
                let current = found(domain.current_snapshot(0), ErrorNumber::NoDomainSnapshot)?;
                Ok(Snapshots { names, current: current.map(|snapshot| snapshot.name()).transpose()? })
            })
        })
    }

    fn create_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError> {
        let xml = xml.to_owned();
        self.long_on_domain("virDomainSnapshotCreateXML", domain, move |domain| {
            domain.create_snapshot_xml(&xml, 0)?;
            Ok(())
        })
    }

    fn snapshot_xml(&self, domain: &DomainRef, name: &str) -> Result<String, LibvirtError> {
        let name = name.to_owned();
        self.on_domain("virDomainSnapshotGetXMLDesc", domain, move |domain| {
            Domain::lookup_snapshot_by_name(domain, &name, 0)?.xml_desc(sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        })
    }

    fn revert_snapshot(&self, domain: &DomainRef, name: &str) -> Result<(), LibvirtError> {
        let name = name.to_owned();
        self.long_on_domain("virDomainRevertToSnapshot", domain, move |domain| {
            let snapshot = Domain::lookup_snapshot_by_name(domain, &name, 0)?;
            Ok(snapshot.revert(sys::VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)?)
        })
    }

    fn delete_snapshot(&self, domain: &DomainRef, name: &str, metadata_only: bool) -> Result<(), LibvirtError> {
        let name = name.to_owned();
        let flags = if metadata_only { sys::VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY } else { 0 };
        self.long_on_domain("virDomainSnapshotDelete", domain, move |domain| {
            Ok(Domain::lookup_snapshot_by_name(domain, &name, 0)?.delete(flags)?)
        })
    }

    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str, current: bool) -> Result<(), LibvirtError> {
        let xml = xml.to_owned();
        let flags = if current { sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT } else { 0 };
        self.on_domain("virDomainSnapshotCreateXML", domain, move |domain| {
            domain.create_snapshot_xml(&xml, sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | flags).map(drop)
        })
    }
}
