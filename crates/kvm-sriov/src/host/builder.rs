//! Builds a [`Host`] from settings, maps and directories, for programs that have no kvmrc.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Host, Journal};
use crate::base::DummyMacPrefix;
use crate::config::{MapDirs, Settings, VfMap};
use crate::error::Cause;
use crate::libvirt::{Hypervisor, Libvirt};
use crate::sysfs::Sysfs;

/// The directory of OpenNebula's files that last until the host boots (7.2 and later).
const RUN_DIR: &str = "/var/run/one";

/// Puts a [`Host`] together from its parts. Nothing is read and nothing is connected before [`open`](Self::open).
///
/// ```
/// use kvm_sriov::Host;
/// use kvm_sriov::config::VfMap;
/// let dir = tempfile::tempdir()?;
/// let vfs = vec!["0000:07:00.1".parse()?, "0000:07:00.2".parse()?];
/// let host = Host::builder()
///     .uri("test:///default")
///     .state_dir(dir.path().join("state"))
///     .map(VfMap::new("ib0".parse()?, vfs)?)
///     .journal(false)
///     .open()?;
/// assert_eq!(host.vfs()?.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct HostBuilder {
    settings: Settings,
    maps: MapDirs,
    sysfs: Sysfs,
    journal: Journal,
    programs: Option<PathBuf>,
    run_dir: PathBuf,
}

impl HostBuilder {
    pub(super) fn new() -> Self {
        Self {
            settings: Settings::default(),
            maps: MapDirs::new(Vec::new()),
            sysfs: Sysfs::default(),
            journal: Journal::default(),
            programs: None,
            run_dir: RUN_DIR.into(),
        }
    }

    /// Replaces all settings, those made before included.
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// The URI of the host's libvirtd; `qemu:///system` when it is not set.
    #[must_use]
    pub fn uri(mut self, uri: impl Into<String>) -> Self {
        self.settings.libvirt_uri = uri.into();
        self
    }

    /// The directory of the claims: absolute, of this host alone, and writable for this process. It is made when it is
    /// missing.
    #[must_use]
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.settings.state_dir = dir.into();
        self
    }

    /// The Linux bridge of the dummy interfaces, and the first byte of their MACs. Without it no VF can be plugged: the
    /// guest learns the IP address of a VF from its dummy.
    #[must_use]
    pub fn dummy(mut self, bridge: impl Into<String>, prefix: DummyMacPrefix) -> Self {
        self.settings.dummy_bridge = Some(bridge.into());
        self.settings.dummy_mac_prefix = Some(prefix);
        self
    }

    /// Adds the map of one root. It takes the place of a map of that root in a directory.
    #[must_use]
    pub fn map(self, map: VfMap) -> Self {
        Self { maps: self.maps.with(map), ..self }
    }

    /// Adds a directory of map files. The first directory that has a root wins.
    #[must_use]
    pub fn maps_in(self, dir: impl Into<PathBuf>) -> Self {
        Self { maps: self.maps.and(dir.into()), ..self }
    }

    /// The directory of the programs `sriov_watcher`, `sriov_clock` and `sriov_agent`. Without it none is started: a VF
    /// that a guest releases late is plugged back by the next [`Host::reconcile`].
    #[must_use]
    pub fn programs(self, dir: impl Into<PathBuf>) -> Self {
        Self { programs: Some(dir.into()), ..self }
    }

    /// The directory for files that last until the host boots; `/var/run/one` when it is not set.
    #[must_use]
    pub fn run_dir(self, dir: impl Into<PathBuf>) -> Self {
        Self { run_dir: dir.into(), ..self }
    }

    /// Whether claims, releases and repairs are written to the host's journal; they are when it is not set.
    #[must_use]
    pub fn journal(self, journal: bool) -> Self {
        Self { journal: if journal { Journal::default() } else { Journal::none() }, ..self }
    }

    /// Another view of the kernel, such as a directory that stands for `/`.
    #[must_use]
    pub fn sysfs(self, sysfs: Sysfs) -> Self {
        Self { sysfs, ..self }
    }

    /// Connects to libvirtd.
    ///
    /// # Errors
    /// libvirtd does not answer. Nothing was changed.
    pub fn open(self) -> Result<Host, Cause> {
        let libvirt = Libvirt::open(&self.settings.libvirt_uri, self.settings.call_timeout)?;
        Ok(self.with_hypervisor(Arc::new(libvirt)))
    }

    /// The same host on a connection that is open already, or on a test double such as the crate `kvm-sriov-model`.
    pub fn with_hypervisor(self, hypervisor: Arc<dyn Hypervisor>) -> Host {
        let Self { settings, maps, sysfs, journal, programs: driver_dir, run_dir } = self;
        let (end, stop, progress) = (None, None, None);
        Host { settings, hypervisor, maps, sysfs, journal, driver_dir, run_dir, end, stop, progress }
    }
}
