//! `deploy`: starts a VM, with a VF for each of its NICs that asks for one.

use std::path::Path;

use crate::base::{DeployId, MacAddress, NicKey, Owner, RootName};
use crate::claims::{Claim, ClaimError, ClaimStore, Request, VmLock};
use crate::config::VfMap;
use crate::error::{ActionError, Cause, HostState, Refusal};
use crate::host::Host;
use crate::host::sudo::Sudo;
use crate::libvirt::{DomainRef, LibvirtErrorKind};
use crate::vm::dir::{self, VmDir};
use crate::vm::gone;
use crate::vm::{Attempt, Failure, with_refusals};
use crate::xml::{Deployment, LiveDomain, PlannedNic, SriovNic, VmData, VmNic, Wanted, dummy_alias_of};

/// Starts the VM that `xml` describes and returns its domain.
///
/// The XML is kept in `file`, where OpenNebula wants it. Each NIC on a bridge `sriov_<root>` becomes a free VF of that
/// root and a dummy interface that carries the NIC's IP address; everything else goes to libvirt byte for byte. A VM
/// without such NICs touches neither claims nor maps.
///
/// # Errors
/// Nothing was started and no VF is claimed, or the error's state says exactly what is left.
///
/// # Source
/// OpenNebula's stock `deploy`.
pub fn deploy(host: &Host, file: &Path, xml: &str) -> Result<DomainRef, ActionError> {
    let untouched = |cause: Cause| ActionError::untouched("deploy", cause);
    let deployment = Deployment::parse(xml)
        .map_err(|source| untouched(Cause::Xml { what: "the deployment file".into(), source }))?;
    let vm_dir = VmDir::of(file).map_err(untouched)?;
    let disks = dir::linked_disks(deployment.disk_files());
    dir::store(file, xml).map_err(untouched)?;
    let start = Start { host, deployment: &deployment, file, disks, vm_dir };
    let domain = if deployment.sriov_nics().is_empty() { start.without_vfs()? } else { start.with_vfs()? };
    start.vm_dir.redefine_snapshots(host.hypervisor(), &domain);
    Ok(domain)
}

/// A VM about to start.
struct Start<'a> {
    host: &'a Host,
    deployment: &'a Deployment,
    file: &'a Path,
    disks: Vec<(std::path::PathBuf, std::path::PathBuf)>,
    vm_dir: VmDir,
}

/// What a VM with VFs needs besides the VFs, checked before one is claimed.
struct Needs {
    dummy_bridge: String,
    dummy_macs: Vec<MacAddress>,
    maps: Vec<VfMap>,
    nics: Vec<(RootName, NicKey)>,
    /// OpenNebula's description of the VM, where there is one (6.0 and later).
    data: Option<VmData>,
}

impl Start<'_> {
    /// What the stock driver does before it creates a domain.
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
            sudo.vtpm(self.host.remotes().as_deref(), "recover", uuid, self.vm_dir.path());
        }
        Ok(())
    }

    fn without_vfs(&self) -> Result<DomainRef, ActionError> {
        let untouched = |cause: Cause| ActionError::untouched("deploy", cause);
        let xml = self.rewrite(&[], "").map_err(untouched)?;
        self.prepare().map_err(untouched)?;
        self.create(&xml).map_err(|cause| ActionError::new("deploy", cause, self.what_runs()))
    }

    /// What a start that failed left: the call may have had its effect before the connection broke.
    fn what_runs(&self) -> HostState {
        let name = || DeployId::Name(self.deployment.name().clone());
        let id = self.deployment.uuid().cloned().map_or_else(name, DeployId::Uuid);
        match self.host.patiently(|| Ok(self.host.hypervisor().find(&id)?)) {
            Ok(Some(domain)) if domain.id.is_some() => HostState::Left("the domain runs".into()),
            Ok(_) => HostState::NothingStarted,
            Err(error) => HostState::Left(format!("it is not known whether the domain runs ({error})")),
        }
    }

    /// The XML for libvirt, kept where OpenNebula wants it.
    fn rewrite(&self, nics: &[PlannedNic], dummy_bridge: &str) -> Result<String, Cause> {
        let xml = self
            .deployment
            .rewrite(&self.disks, nics, dummy_bridge)
            .map_err(|source| Cause::Xml { what: "the deployment file".into(), source })?;
        dir::store(self.file, &xml)?;
        Ok(xml)
    }

    fn create(&self, xml: &str) -> Result<DomainRef, Cause> {
        let limit = self.host.call_limit(self.deployment.memory_kib());
        self.host
            .past_udev(|| self.host.hypervisor().create(xml, limit))
            .map_err(|source| Cause::Call { what: format!("create domain from {}", self.file.display()), source })
    }

    fn with_vfs(&self) -> Result<DomainRef, ActionError> {
        let untouched = |cause: Cause| ActionError::untouched("deploy", cause);
        let name = self.deployment.name();
        let needs = self.needs().map_err(untouched)?;
        let store = self.host.claims().map_err(|e| untouched(e.into()))?;
        let timeout = self.host.settings().lock_timeout;
        let lock = store.lock_vm(name, "deploy", timeout).map_err(|e| untouched(e.into()))?;
        let existing = self.host.hypervisor().find(&DeployId::Name(name.clone())).map_err(|e| untouched(e.into()))?;
        if existing.is_some_and(|domain| domain.id.is_some()) {
            return Err(untouched(Cause::Exists { name: name.clone() }));
        }
        self.prepare().map_err(untouched)?;
        let owner = Owner { vm: name.clone(), uuid: self.deployment.uuid().cloned() };
        self.try_vfs(&store, &lock, &owner, &needs)
    }

    fn needs(&self) -> Result<Needs, Cause> {
        let data = self.vm_dir.vm_data();
        let macs = data.iter().flat_map(VmData::macs).chain(self.deployment.macs().iter().copied());
        self.host.check_macs(macs)?;
        let bridge = self.host.dummy_bridge()?;
        let nics = self.deployment.sriov_nics();
        let dummy_macs = nics.iter().map(|nic| self.host.dummy_mac(nic.mac, nic.position)).collect::<Result<_, _>>()?;
        let maps = self.host.maps_and_others(nics.iter().map(|nic| &nic.root))?;
        let nics = nics.iter().map(|nic| (nic.root.clone(), nic.key())).collect();
        Ok(Needs { dummy_bridge: bridge.to_owned(), dummy_macs, maps, nics, data })
    }

    /// Claims VFs and creates the domain; a VF that libvirt refuses is left out, and the next free one is tried.
    fn try_vfs(
        &self,
        store: &ClaimStore,
        lock: &VmLock,
        owner: &Owner,
        needs: &Needs,
    ) -> Result<DomainRef, ActionError> {
        let mut refusals: Vec<Refusal> = Vec::new();
        loop {
            let refused: Vec<_> = refusals.iter().map(|r| r.vf).collect();
            let request =
                Request { owner, nics: &needs.nics, maps: &needs.maps, sysfs: self.host.sysfs(), refused: &refused };
            let claims = self
                .host
                .recover(store, &needs.maps, "deploy")
                .and_then(|backing| Ok(store.claim_all(&request, &backing)?))
                .map_err(|cause| ActionError::untouched("deploy", with_refusals(cause, &refusals)))?;
            self.journal(&claims, "claimed");
            let claimed = Claimed { start: self, store, owner, claims };
            match claimed.start_domain(lock, needs, &refusals) {
                Ok(domain) => return Ok(domain),
                Err(Failure::Refused(refusal)) => {
                    claimed.give_back().map_err(|undo| claimed.left_claimed(Cause::Claims(undo)))?;
                    log::warn!("VF {} was refused ({}); the next free one is tried", refusal.vf, refusal.why);
                    refusals.push(refusal);
                }
                Err(Failure::Other(cause)) => return Err(claimed.undo(cause)),
            }
        }
    }

    fn journal(&self, claims: &[Claim], result: &str) {
        for claim in claims {
            self.host.journal().vf("deploy", &claim.owner.vm, &claim.root, claim.vf, result);
        }
    }
}

/// A VM whose VFs are claimed.
struct Claimed<'a> {
    start: &'a Start<'a>,
    store: &'a ClaimStore,
    owner: &'a Owner,
    claims: Vec<Claim>,
}

impl Claimed<'_> {
    fn start_domain(&self, lock: &VmLock, needs: &Needs, refusals: &[Refusal]) -> Result<DomainRef, Failure> {
        let cancelled = || Cause::Cancelled { name: self.owner.vm.clone() };
        let start = self.start;
        let plan = self.plan(needs);
        let xml = start.rewrite(&plan, &needs.dummy_bridge)?;
        if lock.cancelled() {
            return Err(cancelled().into());
        }
        let domain = start.create(&xml).map_err(|cause| self.judge(cause, refusals))?;
        self.verify(&domain, &plan, &needs.dummy_bridge)?;
        if lock.cancelled() {
            return Err(cancelled().into());
        }
        // Before 6.0 the deployment file has no UUID; the domain has one.
        let owner = Owner { uuid: Some(domain.uuid.clone()), ..self.owner.clone() };
        let claims: Vec<_> = self.claims.iter().map(|claim| Claim { owner: owner.clone(), ..claim.clone() }).collect();
        self.store.commit(&claims, &needs.maps)?;
        for (claim, nic) in self.claims.iter().zip(start.deployment.sriov_nics()) {
            log::info!("{} has VF {} of {} for NIC {}", self.owner.vm, claim.vf, claim.root, nic.mac);
        }
        start.journal(&self.claims, "plugged");
        Ok(domain)
    }

    fn plan(&self, needs: &Needs) -> Vec<PlannedNic> {
        let mut described: Vec<_> = needs.data.iter().flat_map(VmData::sriov_nics).collect();
        // Several may have one MAC. Each is one NIC of the deployment file: by its device on the host, or by their order.
        let mut describe = |nic: &SriovNic| {
            let is_it = |(described, root): &&(&VmNic, RootName)| described.mac == nic.mac && *root == nic.root;
            let is_target = |(described, _): &(&VmNic, RootName)| described.target == nic.target;
            let at = described.iter().position(|it| is_it(&it) && is_target(it));
            let at = at.or_else(|| described.iter().position(|it| is_it(&it)))?;
            Some(described.remove(at).0)
        };
        let guests = self.start.deployment.guest_addresses();
        self.claims
            .iter()
            .zip(self.start.deployment.sriov_nics())
            .zip(&needs.dummy_macs)
            .zip(guests)
            .map(|(((claim, nic), dummy_mac), guest)| {
                let nic = describe(nic);
                PlannedNic {
                    vf: claim.vf,
                    guest,
                    dummy_mac: *dummy_mac,
                    vlan: nic.and_then(|n| n.vlan),
                    nic_id: nic.and_then(|n| n.id),
                }
            })
            .collect()
    }

    /// Whose fault it is that the domain was not created.
    fn judge(&self, cause: Cause, refusals: &[Refusal]) -> Failure {
        let Cause::Call { what, source } = cause else { return Failure::Other(cause) };
        let vfs: Vec<_> = self.claims.iter().map(|claim| claim.vf).collect();
        let (guest_kib, limit_kib) = (self.start.deployment.memory_kib(), self.start.deployment.limit_kib());
        Attempt { what, vfs: &vfs, refusals, guest_kib, limit_kib, sysfs: self.start.host.sysfs() }.judge(source)
    }

    /// Believes only the live XML: every VF and every dummy is there, and the guest sees the VFs in their order.
    fn verify(&self, domain: &DomainRef, plan: &[PlannedNic], dummy_bridge: &str) -> Result<(), Cause> {
        let name = &self.owner.vm;
        let hypervisor = self.start.host.hypervisor();
        let differs = |what: String| Cause::NotAsAsked { name: name.clone(), what };
        let text = hypervisor.live_xml(domain)?.ok_or_else(|| differs("it is already gone".into()))?;
        let live = LiveDomain::parse(&text)
            .map_err(|source| Cause::Xml { what: format!("the live XML of {name}"), source })?;
        let mut guests = Vec::new();
        for (nic, planned) in self.start.deployment.sriov_nics().iter().zip(plan) {
            let alias = crate::xml::alias_of(nic.position);
            let found = live
                .hostdevs
                .iter()
                .find(|dev| dev.alias.as_deref() == Some(alias.as_str()))
                .ok_or_else(|| differs(format!("VF {} (alias {alias}) is missing", planned.vf)))?;
            if found.vf != planned.vf || (planned.guest.is_some() && found.guest != planned.guest) {
                return Err(differs(format!(
                    "{alias} is VF {} instead of {}, or at another guest address",
                    found.vf, planned.vf
                )));
            }
            guests.push(found.guest);
            let alias = dummy_alias_of(nic.position);
            let dummy = live.interfaces.iter().find(|interface| interface.alias.as_deref() == Some(alias.as_str()));
            if !dummy.is_some_and(|it| it.mac == planned.dummy_mac && it.bridge.as_deref() == Some(dummy_bridge)) {
                return Err(differs(format!("the dummy interface {} on {dummy_bridge} is missing", planned.dummy_mac)));
            }
        }
        if guests.iter().any(Option::is_none) || !guests.is_sorted() {
            return Err(differs("its VFs are not at ascending guest addresses".into()));
        }
        self.note_guest_addresses(domain, &live, &guests)
    }

    /// Writes the guest addresses that libvirt chose into our metadata, so that a VF that comes back gets its old one.
    fn note_guest_addresses(
        &self,
        domain: &DomainRef,
        live: &LiveDomain,
        guests: &[Option<crate::base::PciAddress>],
    ) -> Result<(), Cause> {
        let wanted = live.wanted.clone().map_err(|source| Cause::Xml { what: "our metadata".into(), source })?;
        let missing = || Cause::NotAsAsked { name: self.owner.vm.clone(), what: "our metadata is missing".into() };
        let mut wanted = wanted.ok_or_else(missing)?;
        let noted: Vec<_> = wanted.nics.iter().map(|nic| nic.guest).collect();
        if noted == guests {
            return Ok(());
        }
        for (nic, guest) in wanted.nics.iter_mut().zip(guests) {
            nic.guest = *guest;
        }
        let hypervisor = self.start.host.hypervisor();
        Ok(hypervisor.set_metadata(domain, Some(&wanted.to_unqualified_xml()), Wanted::PREFIX, Wanted::NAMESPACE)?)
    }

    fn give_back(&self) -> Result<(), ClaimError> {
        self.store.release(&self.claims)?;
        self.start.journal(&self.claims, "released");
        Ok(())
    }

    /// Undoes a start that failed: the domain goes if it is there, then the claims. Says what is left if that fails too.
    fn undo(&self, cause: Cause) -> ActionError {
        // Whether the domain will run is not known: its VFs must stay claimed until somebody has seen it.
        let unknown = |kind| matches!(kind, LibvirtErrorKind::NoAnswer | LibvirtErrorKind::Disconnected);
        if matches!(&cause, Cause::Call { source, .. } if unknown(source.kind())) {
            return self.left_claimed(cause);
        }
        let gone = self.own_domain().and_then(|found| match found {
            Some(domain) => gone::destroy(self.start.host, &domain),
            None => Ok(()),
        });
        match gone.and_then(|()| Ok(self.give_back()?)) {
            Ok(()) => ActionError::untouched("deploy", cause),
            Err(undo) => self.left_claimed(Cause::Twice { cause: Box::new(cause), undo: Box::new(undo) }),
        }
    }

    /// The domain that was started here, if it runs. One of the same name without our VFs is somebody else's work.
    fn own_domain(&self) -> Result<Option<DomainRef>, Cause> {
        let hypervisor = self.start.host.hypervisor();
        let Some(domain) = hypervisor.find(&DeployId::Name(self.owner.vm.clone()))? else { return Ok(None) };
        let Some(text) = hypervisor.live_xml(&domain)? else { return Ok(None) };
        let live = LiveDomain::parse(&text)
            .map_err(|source| Cause::Xml { what: format!("the live XML of {}", domain.name), source })?;
        let ours = live.vfs().any(|vf| self.claims.iter().any(|claim| claim.vf == vf));
        Ok(ours.then_some(domain))
    }

    fn left_claimed(&self, cause: Cause) -> ActionError {
        let vfs: Vec<String> = self.claims.iter().map(|claim| claim.vf.to_string()).collect();
        let state = HostState::Left(format!(
            "VF {} stays claimed by {} until it is seen whether the domain runs; cancel the VM to free it",
            vfs.join(", "),
            self.owner.vm
        ));
        ActionError::new("deploy", cause, state)
    }
}
