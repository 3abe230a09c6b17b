//! A host: its settings, its libvirtd, its maps and its claims.
//!
//! * `builder` - [`HostBuilder`]: a host from its parts
//! * `vfs` - every VF and its use; `maps` - VF maps and the repair of claims; `dummies` - bridge and MACs of dummies
//! * `patience` - how long a host waits; `stop` - [`Stop`]: ends actions early; `progress` - [`Progress`]
//! * `journal` - one line for every claim, release and repair
//! * `detached` - programs that go on when the action has ended; `sudo` - commands that run as root
//! * `identity` - root becomes the driver's user

mod builder;
pub(crate) mod detached;
mod dummies;
mod identity;
mod journal;
mod maps;
mod patience;
mod progress;
mod stop;
pub(crate) mod sudo;
mod vfs;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use builder::HostBuilder;
pub use identity::{NotTheDriversUser, become_drivers_user, become_owner_of};
pub use progress::Progress;
pub use stop::Stop;
pub(crate) use vfs::{SeenDomain, SeenDomains};
pub use vfs::{Vf, VfState};

use crate::base::DomainId;
use crate::claims::{ClaimError, ClaimStore};
use crate::config::{Kvmrc, MapDirs, Settings};
use crate::error::Cause;
use crate::libvirt::{DomainRef, Hypervisor, Libvirt};
use crate::sysfs::Sysfs;
use journal::Journal;
use progress::Observer;

/// Everything that an action needs to know of its host. A clone shares the connection to libvirtd.
///
/// ```
/// use kvm_sriov::Host;
/// let dir = tempfile::tempdir()?;
/// let host = Host::builder().uri("test:///default").state_dir(dir.path().join("state")).maps_in("vf_maps").open()?;
/// for vf in host.vfs()? {
///     println!("{} {} {}", vf.root, vf.address, vf.state);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Host {
    settings: Settings,
    hypervisor: Arc<dyn Hypervisor>,
    maps: MapDirs,
    sysfs: Sysfs,
    journal: Journal,
    /// The directory of the driver's programs; `None` for a host that has none.
    driver_dir: Option<PathBuf>,
    run_dir: PathBuf,
    /// After this time libvirtd is not waited for.
    end: Option<Instant>,
    stop: Option<Stop>,
    progress: Option<Observer>,
}

impl Host {
    /// Begins a host from its parts: see [`HostBuilder`].
    pub fn builder() -> HostBuilder {
        HostBuilder::new()
    }

    /// The host of a driver in `driver_dir`, for an action that starts or plugs something.
    ///
    /// # Errors
    /// Nothing was changed: kvmrc has a line that can't be read, or libvirtd does not answer.
    pub fn open(driver_dir: &Path) -> Result<Self, Cause> {
        let kvmrc = Kvmrc::load(&Kvmrc::places(driver_dir)).strict()?;
        Self::connect(kvmrc, driver_dir, None)
    }

    /// The host of a driver in `driver_dir`, for an action that ends or frees something. A line of kvmrc that can't be
    /// read is logged, and the default is used.
    ///
    /// # Errors
    /// Nothing was changed: libvirtd does not answer.
    pub fn open_lenient(driver_dir: &Path) -> Result<Self, Cause> {
        Self::lenient(driver_dir, None)
    }

    /// As [`Host::open_lenient`], with a time limit. After `end` no call to libvirt is made or waited for, except for a
    /// VM that starts from the image of its save.
    ///
    /// # Errors
    /// Nothing was changed: libvirtd does not answer.
    pub fn open_lenient_until(driver_dir: &Path, end: Instant) -> Result<Self, Cause> {
        Self::lenient(driver_dir, Some(end))
    }

    fn lenient(driver_dir: &Path, end: Option<Instant>) -> Result<Self, Cause> {
        let kvmrc = Kvmrc::load(&Kvmrc::places(driver_dir));
        for problem in kvmrc.problems() {
            log::warn!("{problem}; the default is used");
        }
        Self::connect(kvmrc, driver_dir, end)
    }

    fn connect(kvmrc: Kvmrc, driver_dir: &Path, end: Option<Instant>) -> Result<Self, Cause> {
        for misspelt in kvmrc.misspelt() {
            log::warn!("{misspelt}");
        }
        for warning in kvmrc.warnings() {
            log::debug!("{warning}");
        }
        let dirs = Self::map_dirs(&kvmrc, driver_dir);
        let (uri, timeout) = (&kvmrc.settings().libvirt_uri, kvmrc.settings().call_timeout);
        let libvirt = end.map_or_else(|| Libvirt::open(uri, timeout), |end| Libvirt::open_until(uri, timeout, end))?;
        let builder = Self::builder().settings(kvmrc.into_settings()).programs(driver_dir);
        let host = dirs.into_iter().fold(builder, HostBuilder::maps_in).with_hypervisor(Arc::new(libvirt));
        Ok(Self { end, ..host })
    }

    /// The directory of OpenNebula's remotes, which has the programs that OpenNebula runs as root; `None` without
    /// OpenNebula.
    pub(crate) fn remotes(&self) -> Option<PathBuf> {
        Some(self.driver_dir.as_deref()?.join("../.."))
    }

    /// The directory that stands for OpenNebula's `/var/run/one`.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The directory of the driver's programs; `None` for a host that has none.
    pub(crate) fn driver_dir(&self) -> Option<&Path> {
        self.driver_dir.as_deref()
    }

    /// Finds a domain.
    ///
    /// # Errors
    /// There is no such domain, or libvirtd does not answer. Nothing was changed.
    pub fn find(&self, id: &DomainId) -> Result<DomainRef, Cause> {
        self.hypervisor.find(id)?.ok_or_else(|| Cause::Absent { id: id.to_string() })
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its libvirtd.
    pub fn hypervisor(&self) -> &dyn Hypervisor {
        self.hypervisor.as_ref()
    }

    /// Its libvirtd, for a thread whose call may last longer than the action.
    pub(crate) fn shared_hypervisor(&self) -> Arc<dyn Hypervisor> {
        Arc::clone(&self.hypervisor)
    }

    /// Its VF maps.
    pub fn maps(&self) -> &MapDirs {
        &self.maps
    }

    /// Its kernel's files.
    pub fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Its claims. Creates the state directory when it is missing.
    ///
    /// # Errors
    /// The directory can't be created, or is not safe to use. Nothing was changed.
    pub fn claims(&self) -> Result<ClaimStore, ClaimError> {
        ClaimStore::create(&self.settings.state_dir)
    }

    /// Its claims; `None` when there is no state directory, because no VF was claimed since it was removed.
    ///
    /// # Errors
    /// The directory is not safe to use. Nothing was changed.
    pub fn existing_claims(&self) -> Result<Option<ClaimStore>, ClaimError> {
        ClaimStore::open(&self.settings.state_dir)
    }
}
