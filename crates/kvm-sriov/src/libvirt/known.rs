//! The domains that a connection has seen, so that a call does not look up its domain first.
//!
//! libvirt's object of a domain is the domain's UUID on a connection. libvirtd finds the domain by its UUID in every
//! call. So an object may be kept: a call on a domain that is gone fails as its lookup would.

use std::collections::BTreeMap;
use std::sync::Mutex;

use virt::domain::Domain;

use crate::base::lock;

/// How many domains are kept. More are only looked up again. A host that lists its domains keeps all that it listed.
const KEPT: usize = 1024;

/// libvirt's objects by UUID. Each holds a reference to its connection.
#[derive(Default)]
pub(super) struct KnownDomains(Mutex<BTreeMap<String, Domain>>);

impl KnownDomains {
    pub(super) fn get(&self, uuid: &str) -> Option<Domain> {
        lock(&self.0).get(uuid).cloned()
    }

    /// Keeps a domain that was looked up just now, and returns it.
    pub(super) fn keep(&self, uuid: &str, domain: Domain) -> Domain {
        let mut known = lock(&self.0);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(uuid.to_owned(), domain.clone());
        domain
    }

    /// Keeps these domains in place of all others. They were listed just now, so any other is gone or is a new one.
    pub(super) fn replace(&self, domains: BTreeMap<String, Domain>) {
        let old = std::mem::replace(&mut *lock(&self.0), domains);
        drop(old);
    }

    pub(super) fn forget(&self, uuid: &str) {
        let gone = lock(&self.0).remove(uuid);
        drop(gone);
    }
}
