//! A host of a test: the driver as a version of OpenNebula installs it, with a libvirtd of the test.

use std::fs;
use std::path::{Path, PathBuf};

use kvm_sriov::DomainId;
use kvm_sriov::libvirt::{DomainCalls, DomainRef};

use crate::caller::{Caller, Version};
use crate::daemon::Daemon;
use crate::project;
use crate::remotes::Remotes;

/// A host. It is removed when this value is dropped.
pub struct Site {
    daemon: Daemon,
    remotes: Remotes,
    version: Version,
}

impl Site {
    /// A host of this version.
    pub fn new(version: Version) -> Self {
        let (daemon, remotes) = (Daemon::start(), Remotes::of(version));
        let site = Self { daemon, remotes, version };
        site.configure("");
        fs::create_dir_all(site.datastores()).unwrap();
        site
    }

    /// Writes kvmrc: the settings of this host, and these lines.
    pub fn configure(&self, lines: &str) {
        let (uri, state) = (self.daemon.uri(), self.state());
        let text = format!(
            "LIBVIRT_URI={uri}\nVF_STATE_DIR={}\nDUMMY_BRIDGE=lo\nDUMMY_MAC_PREFIX=aa\nVIRSH_RETRIES=1\n{lines}\n",
            state.display()
        );
        fs::write(self.remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), text).unwrap();
    }

    /// Writes the map of a root beside the driver.
    pub fn write_map(&self, root: &str, text: &str) {
        let maps = self.remotes.path().join("vmm/kvm-sriov/vf_maps");
        fs::create_dir_all(&maps).unwrap();
        fs::write(maps.join(root), text).unwrap();
    }

    /// The caller, for the VM with this number.
    pub fn caller(&self, vm: u32) -> Caller {
        Caller::new(self.version, self.remotes.path()).vm(vm)
    }

    /// The same host with the remotes of another version, as after an upgrade.
    pub fn becomes(&mut self, version: Version) {
        self.remotes.become_those_of(version);
        self.version = version;
    }

    /// Its remotes.
    pub fn remotes(&self) -> &Remotes {
        &self.remotes
    }

    /// Its libvirtd.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// The directory of the claims.
    pub fn state(&self) -> PathBuf {
        self.remotes.path().join("state")
    }

    /// The directory of its datastores.
    pub fn datastores(&self) -> PathBuf {
        self.remotes.path().join("datastores")
    }

    /// The domain with this name or UUID, if it runs.
    pub fn domain(&self, id: &str) -> Option<DomainRef> {
        self.daemon.libvirt().find(&id.parse::<DomainId>().unwrap()).unwrap()
    }

    /// The live XML of a domain, if it runs.
    pub fn live(&self, id: &str) -> Option<String> {
        self.domain(id).and_then(|domain| self.daemon.libvirt().live_xml(&domain).unwrap())
    }

    /// A recorded text, changed for this host: its datastores, and a machine that libvirt's test driver knows.
    pub fn fit(&self, text: &str) -> String {
        let mut text = text
            .replace("type='kvm'", "type='test'")
            .replace("/var/lib/one//datastores", &self.datastores().display().to_string());
        for machine in ["q35", "pc"] {
            text = text.replace(&format!("arch='x86_64' machine='{machine}'"), "arch='i686'");
        }
        text
    }
}

/// A call recorded from OpenNebula 7.5.80.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its name, such as `01-deploy-on-hostA`.
    pub name: String,
    /// The action.
    pub action: String,
    /// The host.
    pub host: String,
    /// The VM's number.
    pub vm: u32,
    /// The arguments, without the two that OpenNebula appends.
    pub args: Vec<String>,
    /// Standard input.
    pub stdin: String,
}

impl Recorded {
    /// Every call, in order.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(project().join("tests/fixtures/wire")).unwrap();
        let mut places: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        places.sort();
        places.iter().map(|place| Self::read(place)).collect()
    }

    /// The first call of an action.
    pub fn first(action: &str) -> Self {
        Self::all().into_iter().find(|call| call.action == action).unwrap()
    }

    fn read(place: &Path) -> Self {
        let name = place.file_name().unwrap().to_str().unwrap().to_owned();
        let mut parts = name.splitn(4, '-').map(str::to_owned);
        let (action, host) = (parts.nth(1).unwrap(), parts.nth(1).unwrap());
        let file = |name| fs::read_to_string(place.join(name)).unwrap();
        let mut args: Vec<String> = file("argv").lines().map(str::to_owned).collect();
        // OpenNebula appends nothing for `exec`: its first argument is the VM.
        let vm = if action == "exec" { args[0].parse() } else { args.split_off(args.len() - 2)[0].parse() };
        Self { name, action, host, vm: vm.unwrap(), args, stdin: file("stdin") }
    }

    /// The same call, changed for this host.
    #[must_use]
    pub fn fit(mut self, site: &Site) -> Self {
        self.args.iter_mut().chain([&mut self.stdin]).for_each(|text| *text = site.fit(text));
        self
    }

    /// Its arguments.
    pub fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }
}
