//! `deploy`: starts a VM, with a VF for each of its NICs that asks for one.

use std::path::Path;

use crate::base::{Action, DomainId, MacAddress, NicMode, Owner, WantedVf};
use crate::claims::{Claim, ClaimError, ClaimRequest, ClaimStore, VmLock};
use crate::config::{VfMap, mode_of};
use crate::error::{ActionError, Cause, HostState, RefusedVf};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::{DomainRef, LibvirtErrorKind};
use crate::vm::dir::{self, VmDir};
use crate::vm::gone;
use crate::vm::{self, PlugFailure, VfCall, with_refusals};
use crate::xml::{Deployment, LiveDomain, PlannedNic, VmData, Wanted, WantedNic, alias_of};

/// Starts the VM that `xml` describes and returns its domain.
///
/// The XML is also written to `file`, where OpenNebula expects it. Each NIC on a bridge `sriov_<root>` becomes a free
/// VF of that root and a dummy interface that carries the NIC's IP address. Everything else goes to libvirt byte for
/// byte. For a VM without such NICs neither claims nor maps are read.
///
/// # Errors
/// Nothing was started and no VF is claimed, or the error's state says exactly what is left.
///
/// # Source
/// OpenNebula's stock `deploy`.
pub fn deploy(host: &Host, file: &Path, xml: &str) -> Result<DomainRef, ActionError> {
    let untouched = |cause: Cause| ActionError::untouched(Action::Deploy, cause);
    let deployment = Deployment::parse(xml)
        .map_err(|source| untouched(Cause::Xml { what: "the deployment file".into(), source }))?;
    let vm_dir = VmDir::of(file).map_err(untouched)?;
    let disks = dir::linked_disks(deployment.disk_files());
    // The file is stored as OpenNebula wrote it, and again at each attempt whose XML is another one.
    dir::store(file, xml).map_err(untouched)?;
    let start = Start { host, xml, deployment: &deployment, file, disks, vm_dir };
    let domain = if deployment.sriov_nics().next().is_none() { start.without_vfs()? } else { start.with_vfs()? };
    start.vm_dir.redefine_snapshots(host.hypervisor(), &domain);
    Ok(domain)
}

/// A VM that is about to start.
struct Start<'a> {
    host: &'a Host,
    /// What OpenNebula wrote, which is in `file` already.
    xml: &'a str,
    deployment: &'a Deployment,
    file: &'a Path,
    disks: Vec<(std::path::PathBuf, std::path::PathBuf)>,
    vm_dir: VmDir,
}

/// What a VM with VFs needs besides free VFs. Checked before a VF is claimed.
struct Needs {
    /// The bridge of the dummies; `None` for a VM without dummies.
    dummy_bridge: Option<String>,
    maps: Vec<VfMap>,
    nics: Vec<NewNic>,
}

/// An SR-IOV NIC before its VF is claimed.
struct NewNic {
    wanted: WantedNic,
    /// `None` for a NIC without a dummy.
    dummy_mac: Option<MacAddress>,
}

impl Start<'_> {
    /// The stock driver's preparations before it creates a domain.
    fn prepare(&self) -> Result<(), Cause> {
        let sudo = Sudo::ask();
        let settings = self.host.settings();
        if settings.cleanup_memory_on_start {
            sudo.compact_memory();
        }
        if let Some(nvram) = self.deployment.nvram() {
            dir::provide_nvram(&nvram, &settings.ovmf_nvram)?;
        }
        sudo.vgpu(self.host.remotes().as_deref(), "CREATE", &self.vm_dir.vm_xml());
        if let Some(uuid) = self.deployment.uuid() {
            if let Err(cause) = self.vm_dir.provide_tpm() {
                log::warn!("{cause}; the TPM of {} begins without a state", self.deployment.name());
            }
            if self.vm_dir.path().join("tpm").is_dir() {
                sudo.vtpm(self.host.remotes().as_deref(), "recover", uuid, self.vm_dir.path());
            }
        }
        Ok(())
    }

    fn without_vfs(&self) -> Result<DomainRef, ActionError> {
        let untouched = |cause: Cause| ActionError::untouched(Action::Deploy, cause);
        let xml = self.rewrite(&[], "").map_err(untouched)?;
        self.prepare().map_err(untouched)?;
        self.create(&xml).map_err(|cause| ActionError::new(Action::Deploy, cause, self.what_runs()))
    }

    /// The state after a failed start. The call may have started the domain before the connection broke.
    fn what_runs(&self) -> HostState {
        let name = || DomainId::Name(self.deployment.name().clone());
        let id = self.deployment.uuid().cloned().map_or_else(name, DomainId::Uuid);
        match self.host.patiently(|| Ok(self.host.hypervisor().find(&id)?)) {
            Ok(Some(domain)) if domain.id.is_some() => HostState::Left("a domain of this name or UUID runs".into()),
            Ok(_) => HostState::NothingStarted,
            Err(error) => HostState::InDoubt(format!("it is not known whether the domain runs ({error})")),
        }
    }

    /// The XML for libvirt, which is also written to the deployment file.
    fn rewrite(&self, nics: &[PlannedNic], dummy_bridge: &str) -> Result<String, Cause> {
        let xml = self
            .deployment
            .rewrite(&self.disks, nics, dummy_bridge)
            .map_err(|source| Cause::Xml { what: "the deployment file".into(), source })?;
        if xml != self.xml {
            dir::store(self.file, &xml)?;
        }
        Ok(xml)
    }

    fn create(&self, xml: &str) -> Result<DomainRef, Cause> {
        let limit = self.host.call_limit(self.deployment.memory_kib());
        self.host
            .past_udev(|| self.host.hypervisor().create(xml, limit))
            .map_err(|source| Cause::Call { what: format!("create domain from {}", self.file.display()), source })
    }

    fn with_vfs(&self) -> Result<DomainRef, ActionError> {
        let untouched = |cause: Cause| ActionError::untouched(Action::Deploy, cause);
        let name = self.deployment.name();
        let needs = self.needs().map_err(untouched)?;
        let store = self.host.claims().map_err(|e| untouched(e.into()))?;
        let lock = self.host.lock_vm(&store, name, Action::Deploy).map_err(untouched)?;
        let existing = self.host.hypervisor().find(&DomainId::Name(name.clone())).map_err(|e| untouched(e.into()))?;
        if existing.is_some_and(|domain| domain.id.is_some()) {
            return Err(untouched(Cause::Exists { name: name.clone() }));
        }
        self.prepare().map_err(untouched)?;
        let owner = Owner { vm: name.clone(), uuid: self.deployment.uuid().cloned() };
        self.try_vfs(&store, &lock, &owner, &needs)
    }

    fn needs(&self) -> Result<Needs, Cause> {
        // OpenNebula's description of the VM, where there is one (6.0 and later).
        let data = self.vm_dir.vm_data();
        let mut nics = self.deployment.described(data.as_ref());
        let maps = self.host.maps_and_others(nics.iter().map(|nic| &nic.root))?;
        for nic in &mut nics {
            nic.mode = mode_of(&maps, &nic.root).unwrap_or_default();
        }
        nics.iter()
            .filter(|nic| nic.mode == NicMode::Ethernet)
            .try_for_each(|nic| self.can_be_ethernet(nic, data.as_ref()))?;
        let dummy_bridge = if nics.iter().any(WantedNic::has_dummy) {
            let macs = data.iter().flat_map(VmData::macs).chain(self.deployment.macs().iter().copied());
            self.host.check_macs(macs)?;
            Some(self.host.dummy_bridge()?.to_owned())
        } else {
            None
        };
        let new = |wanted: WantedNic| {
            let mac = || self.host.dummy_mac(wanted.mac, wanted.position);
            Ok(NewNic { dummy_mac: wanted.has_dummy().then(mac).transpose()?, wanted })
        };
        let nics = nics.into_iter().map(new).collect::<Result<Vec<_>, Cause>>()?;
        Ok(Needs { dummy_bridge, maps, nics })
    }

    /// Refuses a NIC that asks for what its VF can't have, and a NIC whose VLAN is not known.
    fn can_be_ethernet(&self, nic: &WantedNic, data: Option<&VmData>) -> Result<(), Cause> {
        let mac = nic.mac;
        if let Some(what) = self.deployment.needs_bridge(nic.position) {
            return Err(Cause::NeedsBridge { mac, what });
        }
        // A NIC without a NIC_ID has no description, and only the description has its VLAN.
        let described =
            data.into_iter().flat_map(VmData::nics).find(|other| nic.nic_id.is_some() && other.id == nic.nic_id);
        described.map_or(Err(Cause::NoVlanKnown { mac }), |described| vm::check_mode(described, nic.mode))
    }

    /// Claims VFs and creates the domain. When libvirt refuses a VF, tries the next free one.
    fn try_vfs(
        &self,
        store: &ClaimStore,
        lock: &VmLock,
        owner: &Owner,
        needs: &Needs,
    ) -> Result<DomainRef, ActionError> {
        let vfs: Vec<WantedVf> = needs.nics.iter().map(|nic| nic.wanted.vf()).collect();
        let mut refusals: Vec<RefusedVf> = Vec::new();
        loop {
            self.host.check_stop().map_err(|cause| ActionError::untouched(Action::Deploy, cause))?;
            let refused: Vec<_> = refusals.iter().map(|r| r.vf).collect();
            let request =
                ClaimRequest { owner, lock, vfs: &vfs, maps: &needs.maps, sysfs: self.host.sysfs(), refused: &refused };
            let claims = self
                .host
                .claim(store, &request, Action::Deploy)
                .map_err(|cause| ActionError::untouched(Action::Deploy, with_refusals(cause, &refusals)))?;
            let claimed = Claimed::new(self, store, owner, needs, claims);
            match claimed.start_domain(lock, &refusals) {
                Ok(domain) => return Ok(domain),
                Err(PlugFailure::OneVf(refusal)) => {
                    claimed.give_back().map_err(|undo| claimed.left_claimed(Cause::Claims(undo)))?;
                    log::warn!("libvirt refused VF {} ({}); trying the next free one", refusal.vf, refusal.why);
                    refusals.push(refusal);
                }
                Err(PlugFailure::AnyVf(cause)) => return Err(claimed.undo(cause)),
            }
        }
    }

    fn journal(&self, claims: &[Claim], result: &str) {
        for claim in claims {
            self.host.journal().vf(Action::Deploy, &claim.owner.vm, &claim.root, claim.vf, result);
        }
    }
}

/// A VM whose VFs are claimed.
struct Claimed<'a> {
    start: &'a Start<'a>,
    store: &'a ClaimStore,
    owner: &'a Owner,
    needs: &'a Needs,
    claims: Vec<Claim>,
    /// The NICs with the VFs of these claims.
    nics: Vec<PlannedNic>,
}

impl<'a> Claimed<'a> {
    fn new(
        start: &'a Start<'a>,
        store: &'a ClaimStore,
        owner: &'a Owner,
        needs: &'a Needs,
        claims: Vec<Claim>,
    ) -> Self {
        let planned = |(nic, claim): (&NewNic, &Claim)| PlannedNic {
            wanted: nic.wanted.clone(),
            vf: claim.vf,
            dummy_mac: nic.dummy_mac,
        };
        let nics = needs.nics.iter().zip(&claims).map(planned).collect();
        Self { start, store, owner, needs, claims, nics }
    }

    fn start_domain(&self, lock: &VmLock, refusals: &[RefusedVf]) -> Result<DomainRef, PlugFailure> {
        let cancelled = || Cause::Cancelled { name: self.owner.vm.clone() };
        let start = self.start;
        let xml = start.rewrite(&self.nics, self.needs.dummy_bridge.as_deref().unwrap_or_default())?;
        if lock.cancelled() {
            return Err(cancelled().into());
        }
        let domain = start.create(&xml).map_err(|cause| self.judge(cause, refusals))?;
        self.verify(&domain)?;
        if lock.cancelled() {
            return Err(cancelled().into());
        }
        // Before OpenNebula 6.0 the deployment file has no UUID, but the domain has one.
        let owner = Owner { uuid: Some(domain.uuid.clone()), ..self.owner.clone() };
        let claims: Vec<_> = self.claims.iter().map(|claim| Claim { owner: owner.clone(), ..claim.clone() }).collect();
        self.store.commit(&claims, &self.needs.maps)?;
        for PlannedNic { wanted, vf, .. } in &self.nics {
            log::info!("{} has VF {vf} of {} for NIC {}", self.owner.vm, wanted.root, wanted.mac);
        }
        start.journal(&self.claims, "plugged");
        Ok(domain)
    }

    /// Whether one VF caused the failure of the start, or something else did.
    fn judge(&self, cause: Cause, refusals: &[RefusedVf]) -> PlugFailure {
        let Cause::Call { what, source } = cause else { return PlugFailure::AnyVf(cause) };
        let vfs: Vec<_> = self.nics.iter().map(|nic| nic.vf).collect();
        let (guest_kib, limit_kib) = (self.start.deployment.memory_kib(), self.start.deployment.limit_kib());
        VfCall { what, vfs: &vfs, refusals, guest_kib, limit_kib, sysfs: self.start.host.sysfs() }.judge(source)
    }

    /// Checks in the live XML that every VF and every dummy is there, and that the guest sees the VFs in their order.
    fn verify(&self, domain: &DomainRef) -> Result<(), Cause> {
        let name = &self.owner.vm;
        let hypervisor = self.start.host.hypervisor();
        let differs = |what: String| Cause::NotAsAsked { name: name.clone(), what };
        let text = hypervisor.live_xml(domain)?.ok_or_else(|| differs("it is already gone".into()))?;
        let live = LiveDomain::parse(&text)
            .map_err(|source| Cause::Xml { what: format!("the live XML of {name}"), source })?;
        let mut nics = Vec::new();
        for PlannedNic { wanted, vf, dummy_mac } in &self.nics {
            let alias = alias_of(wanted.position);
            let found = live.device_of(wanted).ok_or_else(|| differs(format!("VF {vf} (alias {alias}) is missing")))?;
            if found.vf != *vf || (wanted.guest.is_some() && found.guest != wanted.guest) {
                return Err(differs(format!(
                    "{alias} is VF {} instead of {vf}, or at another guest address",
                    found.vf
                )));
            }
            if let Some(what) = found.differs_from_network_of(wanted) {
                return Err(differs(format!("{alias} has {what}")));
            }
            nics.push(WantedNic { guest: found.guest, ..wanted.clone() });
            if let (Some(mac), Some(bridge)) = (dummy_mac, &self.needs.dummy_bridge) {
                let dummy = live.dummy_of(wanted);
                if !dummy.is_some_and(|it| it.mac == *mac && it.bridge.as_ref() == Some(bridge)) {
                    return Err(differs(format!("the dummy interface {mac} on {bridge} is missing")));
                }
            }
        }
        if nics.iter().any(|nic| nic.guest.is_none()) || !nics.is_sorted_by_key(|nic| nic.guest) {
            return Err(differs("its VFs are not at ascending guest addresses".into()));
        }
        self.note_guest_addresses(domain, &live, nics)
    }

    /// Writes the guest addresses that libvirt chose into the domain's metadata. A VF that is plugged in again gets the
    /// same one.
    fn note_guest_addresses(&self, domain: &DomainRef, live: &LiveDomain, nics: Vec<WantedNic>) -> Result<(), Cause> {
        let wanted = live.wanted.clone().map_err(|source| Cause::Xml { what: "our metadata".into(), source })?;
        let missing = || Cause::NotAsAsked { name: self.owner.vm.clone(), what: "our metadata is missing".into() };
        let wanted = wanted.ok_or_else(missing)?;
        if wanted.nics == nics {
            return Ok(());
        }
        let element = Wanted { nics, ..wanted }.to_unqualified_xml();
        let hypervisor = self.start.host.hypervisor();
        Ok(hypervisor.set_metadata(domain, Some(&element), Wanted::PREFIX, Wanted::NAMESPACE)?)
    }

    fn give_back(&self) -> Result<(), ClaimError> {
        self.store.release(&self.claims)?;
        self.start.journal(&self.claims, "released");
        Ok(())
    }

    /// Undoes a failed start: destroys the domain if it is there, then releases the claims.
    fn undo(&self, cause: Cause) -> ActionError {
        // The domain may still start. Its VFs must stay claimed until it is known whether it runs.
        let unknown = |kind| matches!(kind, LibvirtErrorKind::NoAnswer | LibvirtErrorKind::Disconnected);
        if matches!(&cause, Cause::Call { source, .. } if unknown(source.kind())) {
            return self.left_claimed(cause);
        }
        let gone = self.own_domain().and_then(|found| match found {
            Some(domain) => gone::destroy(self.start.host, &domain),
            None => Ok(()),
        });
        match gone.and_then(|()| Ok(self.give_back()?)) {
            Ok(()) => ActionError::untouched(Action::Deploy, cause),
            Err(undo) => self.left_claimed(cause.and_undo(undo)),
        }
    }

    /// The domain that this action started, if it runs. A domain of the same name without these VFs was started by
    /// somebody else.
    fn own_domain(&self) -> Result<Option<DomainRef>, Cause> {
        let hypervisor = self.start.host.hypervisor();
        let Some(domain) = hypervisor.find(&DomainId::Name(self.owner.vm.clone()))? else { return Ok(None) };
        let Some(text) = hypervisor.live_xml(&domain)? else { return Ok(None) };
        let live = LiveDomain::parse(&text)
            .map_err(|source| Cause::Xml { what: format!("the live XML of {}", domain.name), source })?;
        let ours = live.vfs().any(|vf| self.claims.iter().any(|claim| claim.vf == vf));
        Ok(ours.then_some(domain))
    }

    fn left_claimed(&self, cause: Cause) -> ActionError {
        let vfs: Vec<String> = self.claims.iter().map(|claim| claim.vf.to_string()).collect();
        let state = HostState::InDoubt(format!(
            "VF {} stays claimed by {} until it is known whether the domain runs; cancel the VM to free it",
            vfs.join(", "),
            self.owner.vm
        ));
        ActionError::new(Action::Deploy, cause, state)
    }
}
