//! A host of a test: the driver as a version of OpenNebula has it, before a libvirtd of its own.

use std::fs;
use std::path::{Path, PathBuf};

use kvm_sriov::DeployId;
use kvm_sriov::libvirt::{DomainCalls, DomainRef};

use crate::caller::{Caller, Version};
use crate::daemon::Daemon;
use crate::project;
use crate::remotes::Remotes;

/// A host. All of it is gone with the value.
pub struct Site {
    daemon: Daemon,
    remotes: Remotes,
    version: Version,
}

impl Site {
    /// The host of this version.
    pub fn new(version: Version) -> Self {
        let (daemon, remotes) = (Daemon::start(), Remotes::of(version));
        let site = Self { daemon, remotes, version };
        site.configure("");
        fs::create_dir_all(site.datastores()).unwrap();
        site
    }

    /// Writes kvmrc: what makes the driver work here, and these lines.
    pub fn configure(&self, lines: &str) {
        let (uri, state) = (self.daemon.uri(), self.state());
        let text = format!(
            "LIBVIRT_URI={uri}\nVF_STATE_DIR={}\nDUMMY_BRIDGE=lo\nDUMMY_MAC_PREFIX=aa\nVIRSH_RETRIES=1\n{lines}\n",
            state.display()
        );
        fs::write(self.remotes.path().join("etc/vmm/kvm-sriov/kvmrc"), text).unwrap();
    }

    /// What calls it, for the VM with this number.
    pub fn caller(&self, vm: u32) -> Caller {
        Caller::new(self.version, self.remotes.path()).vm(vm)
    }

    /// The same host after an upgrade of the front-end, or before.
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

    /// Where claims are.
    pub fn state(&self) -> PathBuf {
        self.remotes.path().join("state")
    }

    /// Where its datastores are.
    pub fn datastores(&self) -> PathBuf {
        self.remotes.path().join("datastores")
    }

    /// The domain with this name or UUID, if it runs.
    pub fn domain(&self, id: &str) -> Option<DomainRef> {
        self.daemon.libvirt().find(&id.parse::<DeployId>().unwrap()).unwrap()
    }

    /// The live XML of a domain, if it runs.
    pub fn live(&self, id: &str) -> Option<String> {
        self.domain(id).and_then(|domain| self.daemon.libvirt().live_xml(&domain).unwrap())
    }

    /// A text that was recorded, for this host: its datastores, and what libvirt's test driver knows of machines.
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

/// A call that was recorded from OpenNebula 7.5.80.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its name, such as `01-deploy-on-hostA`.
    pub name: String,
    /// Which action.
    pub action: String,
    /// On which host.
    pub host: String,
    /// The VM's number.
    pub vm: u32,
    /// The arguments, without the two that are appended.
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
        // To `exec` nothing is appended: its first argument is the VM.
        let vm = if action == "exec" { args[0].parse() } else { args.split_off(args.len() - 2)[0].parse() };
        Self { name, action, host, vm: vm.unwrap(), args, stdin: file("stdin") }
    }

    /// The same call, for what this host has.
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
