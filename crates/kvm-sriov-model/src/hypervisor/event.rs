//! Watches of domains.

use std::sync::{Arc, mpsc};

use kvm_sriov::DomainUuid;
use kvm_sriov::libvirt::{DomainRef, EventCalls, Events, LibvirtError};

use crate::Model;
use crate::world::{Shared, Watcher};

/// Ends a watch when it is dropped.
struct Subscription {
    shared: Arc<Shared>,
    site: usize,
    token: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.lock().sites[self.site].watchers.retain(|watcher| watcher.token != self.token);
    }
}

impl EventCalls for Model {
    fn watch(&self, domain: &DomainRef) -> Result<Events, LibvirtError> {
        self.enter()?.sites[self.site].existing(&domain.uuid)?;
        self.watch_for(&domain.uuid)
    }

    fn watch_for(&self, uuid: &DomainUuid) -> Result<Events, LibvirtError> {
        let mut world = self.enter()?;
        let token = world.token();
        let site = &mut world.sites[self.site];
        let (sender, receiver) = mpsc::channel();
        site.watchers.push(Watcher { token, uuid: uuid.clone(), sender });
        let subscription = Subscription { shared: Arc::clone(&self.shared), site: self.site, token };
        Ok(Events::new(receiver, Box::new(subscription)))
    }
}
