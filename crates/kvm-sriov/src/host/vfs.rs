//! Every VF of a host, and what it is used for.

use super::Host;
use crate::base::{PciAddress, RootName};
use crate::claims::{Backing, Entry};
use crate::config::VfMap;
use crate::error::Cause;
use crate::libvirt::DomainRef;
use crate::sysfs::NoVf;
use crate::xml::LiveDomain;

/// A running domain, as it was read.
pub(crate) struct SeenDomain {
    pub(crate) domain: DomainRef,
    /// The domain's live XML; `None` when it was not read: the domain ended after it was listed, its XML is not valid, or
    /// libvirtd did not answer.
    pub(crate) live: Option<LiveDomain>,
}

/// The running domains of a host, each of which was read once.
pub(crate) struct SeenDomains {
    pub(crate) domains: Vec<SeenDomain>,
    /// What backs claims, or why a domain could not be read.
    pub(crate) backing: Result<Backing, Cause>,
}

impl Host {
    /// Reads the devices of every running domain of this host, and the VFs that each domain should have.
    ///
    /// # Errors
    /// libvirtd does not answer. Nothing was changed. A domain whose XML can't be read is no error: it is in
    /// [`Backing::unreadable`].
    pub fn backing(&self) -> Result<Backing, Cause> {
        self.read_domains()?.backing
    }

    /// Reads every running domain of this host.
    ///
    /// # Errors
    /// libvirtd does not list its domains.
    pub(crate) fn read_domains(&self) -> Result<SeenDomains, Cause> {
        let mut seen = SeenDomains { domains: Vec::new(), backing: Ok(Backing::default()) };
        for domain in self.hypervisor.domains()? {
            let live = match &mut seen.backing {
                Ok(backing) => match self.read_domain(&domain, backing) {
                    Ok(live) => live,
                    Err(cause) => {
                        seen.backing = Err(cause);
                        None
                    }
                },
                // A libvirtd that does not answer is not asked for every other domain.
                Err(_) => None,
            };
            seen.domains.push(SeenDomain { domain, live });
        }
        Ok(seen)
    }

    /// Reads one domain, and adds what it backs.
    fn read_domain(&self, domain: &DomainRef, backing: &mut Backing) -> Result<Option<LiveDomain>, Cause> {
        // The domain ended after it was listed.
        let Some(text) = self.hypervisor.live_xml(domain)? else { return Ok(None) };
        let owner = domain.owner();
        let live = match LiveDomain::parse(&text) {
            Ok(live) => live,
            Err(error) => {
                log::warn!("the live XML of {}: {error}; its claims stay", domain.name);
                backing.unreadable.push(owner);
                return Ok(None);
            }
        };
        if live.wanted.is_err() {
            backing.unreadable.push(owner.clone());
        }
        backing.devices.extend(live.vfs().map(|vf| (vf, owner.clone())));
        let wanted = live.wanted.as_ref().ok().and_then(Option::as_ref).map_or(&[][..], |wanted| &wanted.nics);
        backing.nics.extend(wanted.iter().filter_map(|nic| Some((live.device_of(nic)?.vf, nic.key()))));
        backing.wanting.extend(live.missing().map(|nic| (owner.clone(), nic.key())));
        Ok(Some(live))
    }

    /// Every VF of every root, in the order of the maps, and what it is used for.
    ///
    /// # Errors
    /// The state directory can't be read, or libvirtd does not answer. Nothing was changed. A map that can't be read is
    /// no error: the log names it.
    pub fn vfs(&self) -> Result<Vec<Vf>, Cause> {
        let (maps, problems) = self.readable_maps();
        for problem in problems {
            log::warn!("{problem}");
        }
        let entries = match self.existing_claims()? {
            Some(store) => store.entries()?,
            None => Vec::new(),
        };
        Ok(self.vfs_by(&maps, &entries, &self.backing()?))
    }

    /// What every VF of these maps is used for, by these claims and by what backs them.
    pub(crate) fn vfs_by(&self, maps: &[VfMap], entries: &[Entry], backing: &Backing) -> Vec<Vf> {
        let mut vfs = Vec::new();
        for map in maps {
            for (index, address) in map.vfs().iter().enumerate() {
                let user = backing.user(*address).map(|owner| owner.vm.to_string());
                let claim = entries.iter().find(|entry| {
                    entry.vf() == Some(*address)
                        || (entry.root() == map.root() && entry.index() == index && entry.vf().is_none())
                });
                let is_vf = self.sysfs.check_vf(*address);
                let state = match (user, claim) {
                    (user, claim) if is_vf.is_err() => {
                        let vm = user.or_else(|| claim.map(Entry::user));
                        if is_vf == Err(NoVf::Missing) { VfState::Missing { vm } } else { VfState::NotVf { vm } }
                    }
                    (Some(vm), Some(_)) => VfState::Used { vm },
                    (Some(vm), None) => VfState::Unclaimed { vm },
                    (None, Some(entry)) => VfState::Unbacked { vm: entry.user() },
                    (None, None) => VfState::Free,
                };
                vfs.push(Vf { root: map.root().clone(), index, address: *address, state });
            }
        }
        vfs
    }
}

/// A VF of a map, and what it is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vf {
    /// The root whose map lists it.
    pub root: RootName,
    /// The number of its line in the map, from 0.
    pub index: usize,
    /// Its address on the host's PCI bus.
    pub address: PciAddress,
    /// What it is used for.
    pub state: VfState,
}

/// What a VF is used for, according to the claims and to libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VfState {
    /// No domain has it, and no claim names it.
    Free,
    /// A running domain has it, and a claim names it.
    Used {
        /// The domain's name.
        vm: String,
    },
    /// A running domain has it, and no claim names it: the domain is not one of the driver's, or the state directory
    /// was lost.
    Unclaimed {
        /// The domain's name.
        vm: String,
    },
    /// The host has no such PCI function: the adapter's driver is not loaded, its VFs are not created, or the map is of
    /// another host. No VM gets it.
    Missing {
        /// The domain that shows it nevertheless, or the VM that claims it.
        vm: Option<String>,
    },
    /// The PCI function is not a VF: it is the adapter itself, or another device. No VM gets it.
    NotVf {
        /// The domain that has it nevertheless, or the VM that claims it.
        vm: Option<String>,
    },
    /// A claim names it, but no running domain has it: an action works on the VM, or the claim is stale. The next
    /// deploy frees a stale claim.
    Unbacked {
        /// The VM that the claim names.
        vm: String,
    },
}

impl std::fmt::Display for VfState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            Self::Missing { vm: None } => f.write_str("missing"),
            Self::Missing { vm: Some(vm) } => write!(f, "missing, used by {vm}"),
            Self::NotVf { vm: None } => f.write_str("not a VF"),
            Self::NotVf { vm: Some(vm) } => write!(f, "not a VF, used by {vm}"),
            Self::Used { vm } => write!(f, "used by {vm}"),
            Self::Unclaimed { vm } => write!(f, "used by {vm}, without a claim"),
            Self::Unbacked { vm } => write!(f, "claimed by {vm}, in no running domain"),
        }
    }
}
