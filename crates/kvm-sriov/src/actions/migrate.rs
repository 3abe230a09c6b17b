//! `migrate`: moves a running VM to another host, or to another datastore of its host.
//!
//! * `prepare` - the destination checks what it needs and claims VFs; this host changes nothing
//! * `depart` - this host sends files and unplugs VFs
//! * `call` - the call to libvirt that moves the domain
//! * `whereabouts` - where the VM is after a failure
//! * `ending` - what follows on both hosts
//! * `relocate` - the VM stays on its host, and its files go to another datastore

mod call;
mod depart;
mod ending;
mod prepare;
mod relocate;
mod whereabouts;

use relocate::relocate;
use whereabouts::Whereabouts;

use super::Route;
use crate::agent::{Agent, Reach};
use crate::base::{Action, DomainId, HostName};
use crate::error::{ActionError, Cause};
use crate::host::Host;
use crate::libvirt::{Migration, MigrationOptions};
use crate::reconcile;
use crate::vm::storage::Storage;
use crate::vm::{Found, gone};
use crate::xml::VmData;

/// Moves a running VM to another host, or to another datastore of this host.
///
/// An agent on the destination first checks what the VM needs there and claims VFs. Then this host unplugs the VM's
/// VFs, and libvirt moves the domain. The domain arrives paused, and stays paused until it is seen to be gone here.
/// Then the agent resumes it and plugs in VFs of the destination at the same guest addresses. When only the datastore
/// changes, the VM keeps its VFs.
///
/// * `data` - OpenNebula's description of the VM and of its move
/// * `reach` - the way to the destination
///
/// # Errors
/// The VM runs on here with its VFs, and nothing is claimed at the destination; or the error's state says exactly what
/// is left. Once the VM is gone here, the action succeeds: a VF that can't be plugged in at the destination is logged
/// and left to reconciliation.
///
/// # Source
/// OpenNebula's stock `migrate`.
pub fn migrate(
    host: &Host,
    id: &DomainId,
    route: &Route,
    data: Option<&VmData>,
    reach: &dyn Reach,
) -> Result<(), ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(Action::Migrate, cause);
    let is_here = route.from.as_ref() == Some(&route.to);
    let options = options(host, data).map_err(untouched)?;
    // The lock of a VM with VFs is held until this function returns.
    if is_here {
        return relocate(host, reconcile::open(host, Action::Migrate, id, data).map_err(untouched)?.domain(), data);
    }
    let found = reconcile::open_to_unplug(host, Action::Migrate, id, data).map_err(untouched)?;
    Departure::prepare(host, found, route, options, data, reach).map_err(untouched)?.run()
}

/// The options of MIGRATE_OPTIONS, and those of the VM's features.
fn options(host: &Host, data: Option<&VmData>) -> Result<MigrationOptions, Cause> {
    let wrong = |what: &str| {
        let what = what.to_owned();
        move |source| Cause::Value { what, source }
    };
    let mut options = MigrationOptions::parse(&host.settings().migrate_options).map_err(wrong("MIGRATE_OPTIONS"))?;
    if let Some(vm_move) = data.map(VmData::vm_move) {
        options
            .add_features(vm_move.auto_converge.as_deref(), vm_move.is_compressed)
            .map_err(wrong("the feature MIGRATE_AUTO_CONVERGE"))?;
    }
    Ok(options)
}

/// A VM whose destination is ready for it.
struct Departure<'a> {
    host: &'a Host,
    found: Found<'a>,
    agent: Agent,
    reach: &'a dyn Reach,
    /// The name of this move, the same on both hosts.
    id: String,
    /// The name that OpenNebula has for this host.
    from: Option<HostName>,
    /// The bridge of the dummies at the destination.
    bridge: Option<String>,
    /// The VM's files that the destination lacks; `None` with shared storage.
    storage: Option<Storage>,
    migration: Migration,
    /// The XML of each snapshot that was taken from libvirt here, and whether it is the current one.
    snapshots: Vec<(String, bool)>,
    /// Whether libvirt was asked to move the domain. From then on a failure is judged by what both hosts show.
    is_under_way: bool,
}

impl Departure<'_> {
    /// Moves the VM. If that fails, the place where the VM is then decides what follows.
    fn run(mut self) -> Result<(), ActionError> {
        let (moved, cause) = match self.depart() {
            Ok(()) if self.is_cancelled() => (true, Cause::Cancelled { name: self.found.domain().name.clone() }),
            Ok(()) if self.is_gone() => return self.hand_over(),
            Ok(()) => (true, self.still_here()),
            Err(cause) => (false, cause),
        };
        match self.whereabouts(&cause, moved) {
            Whereabouts::There => {
                log::warn!("{cause}; nevertheless {} is on {}", self.found.domain().name, self.agent.host());
                self.arrive()
            }
            Whereabouts::Here => Err(self.stay(cause)),
            Whereabouts::Gone => Err(self.lost(cause)),
            Whereabouts::InDoubt => Err(self.in_doubt(cause)),
        }
    }

    /// Whether the domain is seen to be gone here.
    fn is_gone(&self) -> bool {
        let (host, domain) = (self.host, self.found.domain());
        let gone = host.patiently(|| gone::is_gone(host, domain));
        gone.inspect_err(|cause| log::warn!("{cause}")).unwrap_or(false)
    }

    fn still_here(&self) -> Cause {
        let name = self.found.domain().name.clone();
        Cause::NotAsAsked {
            name,
            what: "libvirt reports that it was moved, but it was not seen to be gone here".into(),
        }
    }

    fn is_cancelled(&mut self) -> bool {
        self.found.with_vfs().is_some_and(|vm| vm.lock.cancelled())
    }
}
