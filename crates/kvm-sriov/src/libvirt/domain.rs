//! Domains: which ones run, what they are made of, and how they run.

use std::collections::BTreeMap;
use std::ffi::c_int;

use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use super::error::found;
use super::text::without_nul;
use super::{Libvirt, LibvirtError, ffi};
use crate::base::{DomainId, DomainName, DomainUuid, Owner, ParseError};

/// A domain, as it was when it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainRef {
    /// The domain's name, such as `one-42`.
    pub name: DomainName,
    /// The domain's UUID. No other domain ever has the same one.
    pub uuid: DomainUuid,
    /// libvirt's number of the running domain; `None` when the domain does not run.
    pub id: Option<u32>,
}

impl DomainRef {
    /// The claim owner for this domain: its name and UUID.
    pub fn owner(&self) -> Owner {
        Owner { vm: self.name.clone(), uuid: Some(self.uuid.clone()) }
    }
}

/// How a domain runs. Only states that an action treats differently are distinguished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunState {
    /// The CPUs run.
    Running,
    /// A user or an administrator paused the domain.
    PausedByUser,
    /// The domain is being started, waits for its memory (the incoming side of a migration, or a restore that was not
    /// resumed), or has sent its memory and waits for the end of its migration.
    PausedForMigration,
    /// The domain is paused for another reason, such as an I/O error.
    PausedOtherwise,
    /// The guest suspended itself to memory.
    PmSuspended,
    /// The domain is ending, or its QEMU process is gone.
    Ending,
}

impl RunState {
    /// Whether the CPUs may execute.
    pub fn runs(self) -> bool {
        self == Self::Running
    }
}

/// The resources that a domain has used since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Time on the host's CPUs, in nanoseconds.
    pub cpu_ns: u64,
    /// The most memory that the domain may have, in KiB.
    pub memory_kib: u64,
    /// Bytes that its interfaces have received.
    pub received: u64,
    /// Bytes that its interfaces have sent.
    pub sent: u64,
    /// Bytes and requests that its disks have read.
    pub read: (u64, u64),
    /// Bytes and requests that its disks have written.
    pub written: (u64, u64),
    /// Whether the domain is paused.
    pub is_paused: bool,
    /// Whether the CPUs are stopped for a reason that does not pass by itself: a user paused the domain, its storage
    /// failed, its watchdog fired, or the guest crashed or suspended itself.
    pub is_stuck: bool,
}

/// Calls that find a domain and read its XML, metadata, state and usage.
///
/// # Errors
/// See [`Hypervisor`](super::Hypervisor#errors).
#[allow(clippy::missing_errors_doc)]
pub trait DomainCalls: Send + Sync {
    /// The running domains.
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError>;
    /// The running domain with this name, UUID or number; `None` when no such domain runs. A definition that is shut
    /// off does not count: a snapshot's revert or `--persistent` may leave one.
    fn find(&self, id: &DomainId) -> Result<Option<DomainRef>, LibvirtError>;
    /// The XML of the running domain, without passwords; `None` when the domain is gone.
    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError>;
    /// The XML of the domain in the form that libvirtd on another host accepts, with passwords.
    fn migratable_xml(&self, domain: &DomainRef) -> Result<String, LibvirtError>;
    /// How a running domain runs; `None` when the domain is gone.
    fn state(&self, domain: &DomainRef) -> Result<Option<RunState>, LibvirtError>;
    /// The element of the namespace `uri` in the metadata of a running domain; `None` when there is no such element.
    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError>;
    /// Sets the element of the namespace `uri` in the metadata of a running domain. `None` removes the element.
    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError>;
    /// What a running domain has used so far; `None` when the domain is gone.
    ///
    /// * `interfaces` - names of devices on the host, such as `one-42-0`
    /// * `disks` - targets, such as `vda`
    fn usage(&self, domain: &DomainRef, interfaces: &[String], disks: &[String])
    -> Result<Option<Usage>, LibvirtError>;
}

impl DomainCalls for Libvirt {
    fn domains(&self) -> Result<Vec<DomainRef>, LibvirtError> {
        self.call("virConnectListAllDomains", |connection| {
            let all = connection.connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)?;
            let (mut found, mut known) = (Vec::new(), BTreeMap::new());
            for domain in all {
                // A domain that has ended meanwhile, or whose name is not valid here, must not hide the other domains.
                match reference(&domain) {
                    Ok(reference) => {
                        known.insert(reference.uuid.to_string(), domain);
                        found.push(reference);
                    }
                    Err(error) => log::warn!("a domain is skipped: {error}"),
                }
            }
            connection.known.replace(known);
            Ok(found)
        })
    }

    fn find(&self, id: &DomainId) -> Result<Option<DomainRef>, LibvirtError> {
        let id = id.clone();
        self.call("virDomainLookup", move |connection| {
            let connect = &connection.connect;
            let domain = match &id {
                DomainId::Uuid(uuid) => connect.lookup_domain_by_uuid_string(uuid.as_str()),
                DomainId::Id(id) => connect.lookup_domain_by_id(*id),
                DomainId::Name(name) => connect.lookup_domain_by_name(name.as_str()),
            };
            let Some(domain) = found(domain, ErrorNumber::NoDomain)? else { return Ok(None) };
            let reference = reference(&domain)?;
            if reference.id.is_none() {
                return Ok(None);
            }
            connection.known.keep(reference.uuid.as_str(), domain);
            Ok(Some(reference))
        })
    }

    fn live_xml(&self, domain: &DomainRef) -> Result<Option<String>, LibvirtError> {
        self.on_domain_if_there("virDomainGetXMLDesc", domain, |domain| domain.xml_desc(0))
    }

    fn migratable_xml(&self, domain: &DomainRef) -> Result<String, LibvirtError> {
        self.on_domain("virDomainGetXMLDesc", domain, |domain| {
            domain.xml_desc(sys::VIR_DOMAIN_XML_MIGRATABLE | sys::VIR_DOMAIN_XML_SECURE)
        })
    }

    fn state(&self, domain: &DomainRef) -> Result<Option<RunState>, LibvirtError> {
        let state = self.on_domain_if_there("virDomainGetState", domain, ffi::state)?;
        Ok(state.map(|(state, reason)| run_state(state, reason)))
    }

    fn metadata(&self, domain: &DomainRef, uri: &str) -> Result<Option<String>, LibvirtError> {
        without_nul(uri)?;
        let uri = uri.to_owned();
        let uuid = domain.uuid.to_string();
        self.call("virDomainGetMetadata", move |connection| {
            let element = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
            connection.on_domain(&uuid, |domain| {
                found(domain.metadata(element, Some(&uri), sys::VIR_DOMAIN_AFFECT_LIVE), ErrorNumber::NoDomainMetadata)
            })
        })
    }

    fn set_metadata(&self, domain: &DomainRef, xml: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError> {
        for text in [xml.unwrap_or_default(), prefix, uri] {
            without_nul(text)?;
        }
        let (xml, prefix, uri) = (xml.map(str::to_owned), prefix.to_owned(), uri.to_owned());
        self.on_domain("virDomainSetMetadata", domain, move |domain| {
            let element = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
            domain.set_metadata(element, xml.as_deref(), Some(&prefix), Some(&uri), sys::VIR_DOMAIN_AFFECT_LIVE)
        })
    }

    fn usage(
        &self,
        domain: &DomainRef,
        interfaces: &[String],
        disks: &[String],
    ) -> Result<Option<Usage>, LibvirtError> {
        for text in interfaces.iter().chain(disks) {
            without_nul(text)?;
        }
        let (interfaces, disks) = (interfaces.to_vec(), disks.to_vec());
        self.on_domain_if_there("virDomainGetInfo", domain, move |domain| usage(domain, &interfaces, &disks))
    }
}

/// The domain's name, UUID and number, as libvirt has them now.
pub(super) fn reference(domain: &Domain) -> Result<DomainRef, LibvirtError> {
    let (name, uuid) = (domain.name()?, domain.uuid_string()?);
    let odd = |error: ParseError| {
        LibvirtError::other(format!("libvirt has a domain whose name or UUID is not valid: {error}"))
    };
    Ok(DomainRef { name: name.parse().map_err(odd)?, uuid: uuid.parse().map_err(odd)?, id: domain.id() })
}

/// # Source
/// libvirt `virDomainState`, `virDomainPausedReason`.
fn run_state(state: c_int, reason: c_int) -> RunState {
    let (Ok(state), Ok(reason)) = (u32::try_from(state), u32::try_from(reason)) else {
        return RunState::PausedOtherwise;
    };
    match (state, reason) {
        (sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED, _) => RunState::Running,
        (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_USER) => RunState::PausedByUser,
        (
            sys::VIR_DOMAIN_PAUSED,
            sys::VIR_DOMAIN_PAUSED_MIGRATION
            | sys::VIR_DOMAIN_PAUSED_STARTING_UP
            | sys::VIR_DOMAIN_PAUSED_POSTCOPY
            | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        ) => RunState::PausedForMigration,
        (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN) => RunState::Ending,
        (sys::VIR_DOMAIN_PMSUSPENDED, _) => RunState::PmSuspended,
        (sys::VIR_DOMAIN_SHUTDOWN | sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_CRASHED, _) => RunState::Ending,
        _ => RunState::PausedOtherwise,
    }
}

/// Adds up what libvirt counts. An interface or a disk that libvirt does not know counts as unused.
fn usage(domain: &Domain, interfaces: &[String], disks: &[String]) -> Result<Usage, Error> {
    let (state, reason) = ffi::state(domain)?;
    let info = domain.info()?;
    let mut usage = Usage {
        cpu_ns: info.cpu_time,
        memory_kib: info.max_mem,
        is_paused: state == sys::VIR_DOMAIN_PAUSED as c_int,
        is_stuck: is_stuck(state, reason),
        ..Usage::default()
    };
    let count = |sum: &mut u64, more: i64| *sum = sum.saturating_add(u64::try_from(more).unwrap_or(0));
    for stats in interfaces.iter().filter_map(|device| domain.interface_stats(device).ok()) {
        count(&mut usage.received, stats.rx_bytes);
        count(&mut usage.sent, stats.tx_bytes);
    }
    for stats in disks.iter().filter_map(|disk| domain.block_stats(disk).ok()) {
        count(&mut usage.read.0, stats.rd_bytes);
        count(&mut usage.read.1, stats.rd_req);
        count(&mut usage.written.0, stats.wr_bytes);
        count(&mut usage.written.1, stats.wr_req);
    }
    Ok(usage)
}

/// # Source
/// OpenNebula's `poll` of 5.8 to 5.10; libvirt `virDomainState`, `virDomainPausedReason`.
fn is_stuck(state: c_int, reason: c_int) -> bool {
    match (u32::try_from(state), u32::try_from(reason)) {
        (Ok(sys::VIR_DOMAIN_CRASHED | sys::VIR_DOMAIN_PMSUSPENDED), _) => true,
        (Ok(sys::VIR_DOMAIN_PAUSED), Ok(reason)) => matches!(
            reason,
            sys::VIR_DOMAIN_PAUSED_UNKNOWN
                | sys::VIR_DOMAIN_PAUSED_USER
                | sys::VIR_DOMAIN_PAUSED_IOERROR
                | sys::VIR_DOMAIN_PAUSED_WATCHDOG
                | sys::VIR_DOMAIN_PAUSED_CRASHED
                | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_sorted_by_what_an_action_may_do() {
        use RunState::*;
        for (state, reason, expected) in [
            (sys::VIR_DOMAIN_RUNNING, sys::VIR_DOMAIN_RUNNING_UNPAUSED, Running),
            (sys::VIR_DOMAIN_BLOCKED, 0, Running),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_USER, PausedByUser),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_MIGRATION, PausedForMigration),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_STARTING_UP, PausedForMigration),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_UNKNOWN, PausedOtherwise),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_IOERROR, PausedOtherwise),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN, Ending),
            (sys::VIR_DOMAIN_PAUSED, 4711, PausedOtherwise),
            (sys::VIR_DOMAIN_SHUTDOWN, 0, Ending),
            (sys::VIR_DOMAIN_SHUTOFF, sys::VIR_DOMAIN_SHUTOFF_SAVED, Ending),
            (sys::VIR_DOMAIN_CRASHED, 0, Ending),
            (sys::VIR_DOMAIN_PMSUSPENDED, 0, PmSuspended),
            (sys::VIR_DOMAIN_NOSTATE, 0, PausedOtherwise),
        ] {
            assert_eq!(run_state(state as c_int, reason as c_int), expected, "{state} {reason}");
        }
        assert_eq!(run_state(-1, -1), PausedOtherwise);
    }

    #[test]
    fn a_pause_that_passes_is_not_stuck() {
        for (state, reason, expected) in [
            (sys::VIR_DOMAIN_RUNNING, 0, false),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_USER, true),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_IOERROR, true),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_MIGRATION, false),
            (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_SAVE, false),
            (sys::VIR_DOMAIN_PMSUSPENDED, 0, true),
            (sys::VIR_DOMAIN_CRASHED, 0, true),
        ] {
            assert_eq!(is_stuck(state as c_int, reason as c_int), expected, "{state} {reason}");
        }
    }
}
