//! The calls of libvirt, as the model answers them.

mod device;
mod disk;
mod domain;
mod event;
mod guest;
mod job;
mod power;
mod snapshot;

use std::sync::MutexGuard;

use kvm_sriov::libvirt::{DomainRef, LibvirtError};

use super::Model;
use super::refusal;
use super::world::{Daemon, Domain, World};

impl Model {
    /// Begins a call, or fails as a call does whose connection is gone.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, World>, LibvirtError> {
        let mut world = self.shared.lock();
        let site = &mut world.sites[self.site];
        match site.daemon {
            Daemon::Runs => Ok(world),
            Daemon::Restarted => {
                site.daemon = Daemon::Runs;
                Err(refusal::cut_off())
            }
            Daemon::Stopped => Err(refusal::cut_off()),
        }
    }

    /// A call that changes a domain.
    pub(super) fn change<T>(
        &self,
        domain: &DomainRef,
        change: impl FnOnce(&mut Domain) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        change(self.enter()?.sites[self.site].changeable(&domain.uuid)?)
    }

    /// A call that reads a domain. `None` if the domain does not run.
    pub(super) fn look<T>(
        &self,
        domain: &DomainRef,
        look: impl FnOnce(&Domain) -> T,
    ) -> Result<Option<T>, LibvirtError> {
        Ok(self.enter()?.sites[self.site].domain(&domain.uuid).map(look))
    }
}
