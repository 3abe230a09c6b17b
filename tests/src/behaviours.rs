//! The behaviours of libvirt and QEMU on which the actions rely: one list for the model and for the lab.
//!
//! The list runs against any [`Hypervisor`]; a [`Rig`] makes its domains and guests. When the model shows a behaviour
//! and the lab does not, the model is wrong.

use std::mem::{self, Discriminant};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kvm_sriov::libvirt::{DomainRef, Event, Events, Hypervisor, LibvirtError, LibvirtErrorKind, Migration, RunState};
use kvm_sriov::xml::{
    AdoptedDevices, KeptContent, LiveDomain, LiveHostdev, Medium, Wanted, WantedNic, alias_of, hostdev_of,
};
use kvm_sriov::{NicMode, PciAddress, Position};

use crate::CALL_LIMIT;
use crate::vm::Vm;

/// A host with VFs and guests.
pub trait Rig {
    /// Its libvirtd.
    fn libvirt(&self) -> &dyn Hypervisor;

    /// Starts a VM. A VM made [`Vm::with_guest`] has booted when this returns, and its guest answers. No other guest
    /// ever answers.
    fn start(&self, vm: &Vm) -> DomainRef;

    /// Three free VFs.
    fn vfs(&self) -> [PciAddress; 3];

    /// A file with this content, which libvirtd can write.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf;

    /// The longest time in which a guest answers.
    fn patience(&self) -> Duration;

    /// An administrator pauses a domain.
    fn pause(&self, domain: &DomainRef);

    /// Restarts libvirtd. It answers again when this returns.
    fn restart_daemon(&self);

    /// Another host to which domains can migrate, and the address of its libvirtd from this one.
    fn other(&self) -> Option<(&dyn Rig, String)>;
}

/// A behaviour, by what it needs. The next behaviour uses the same domain if this one left it unchanged, because each
/// start takes seconds in the lab.
#[derive(Clone, Copy)]
pub enum Behaviour {
    /// It starts its own domains.
    Alone(fn(&dyn Rig)),
    /// A domain without VFs, whose guest never answers.
    OnDeaf(fn(&dyn Rig, &DomainRef)),
    /// A domain whose guest never answers, with the first VF as its NIC 0.
    WithVf(fn(&dyn Rig, &DomainRef)),
    /// A domain without VFs, whose guest answers.
    WithGuest(fn(&dyn Rig, &DomainRef)),
}

use Behaviour::{Alone, OnDeaf, WithGuest, WithVf};

/// A domain of behaviours, and its state at its start.
struct Shared {
    domain: DomainRef,
    before: LiveDomain,
}

impl Behaviour {
    /// Starts the domain.
    fn start(self, rig: &dyn Rig) -> Option<Shared> {
        let domain = match self {
            Alone(_) => return None,
            OnDeaf(_) | WithVf(_) => rig.start(&Vm::new(63).nic("br0")),
            WithGuest(_) => rig.start(&Vm::new(60).with_guest().nic("br0")),
        };
        if let WithVf(_) = self {
            plug(rig, &domain, 0, rig.vfs()[0]).unwrap();
        }
        let before = live(rig, &domain);
        Some(Shared { domain, before })
    }

    fn shows(self, rig: &dyn Rig, shared: Option<&Shared>) {
        match (self, shared) {
            (Alone(shows), _) => shows(rig),
            (OnDeaf(shows) | WithVf(shows) | WithGuest(shows), Some(shared)) => shows(rig, &shared.domain),
            (_, None) => panic!("it has no domain"),
        }
    }
}

impl Shared {
    /// Whether a behaviour left it unchanged.
    fn is_intact(&self, rig: &dyn Rig) -> bool {
        let text = rig.libvirt().live_xml(&self.domain).unwrap();
        let is_same =
            |now: LiveDomain| (now.hostdevs, now.wanted) == (self.before.hostdevs.clone(), self.before.wanted.clone());
        text.is_some_and(|text| is_same(LiveDomain::parse(&text).unwrap()))
            && rig.libvirt().state(&self.domain).unwrap() == Some(RunState::Running)
    }

    fn end(&self, rig: &dyn Rig) {
        // A behaviour may have ended it already.
        drop(rig.libvirt().destroy(&self.domain));
    }
}

/// The behaviours that one host shows.
pub const ON_A_HOST: [(&str, Behaviour); 25] = [
    ("vfs_that_are_asked_for_together_leave_one_by_one", WithGuest(vfs_that_are_asked_for_together_leave_one_by_one)),
    ("a_paused_guest_answers_when_it_is_resumed", WithGuest(a_paused_guest_answers_when_it_is_resumed)),
    ("metadata_lose_their_prefix_and_get_it_back", OnDeaf(metadata_lose_their_prefix_and_get_it_back)),
    ("metadata_that_declare_the_prefix_are_refused", OnDeaf(metadata_that_declare_the_prefix_are_refused)),
    ("a_device_that_is_not_there_can_not_leave", OnDeaf(a_device_that_is_not_there_can_not_leave)),
    ("without_a_job_nothing_is_aborted", OnDeaf(without_a_job_nothing_is_aborted)),
    ("a_domain_is_there_once", OnDeaf(a_domain_is_there_once)),
    ("pause_and_resume_are_told", OnDeaf(pause_and_resume_are_told)),
    ("a_device_that_asks_for_nothing_gets_name_and_place", OnDeaf(a_device_that_asks_for_nothing_gets_name_and_place)),
    ("a_mac_may_be_there_twice", OnDeaf(a_mac_may_be_there_twice)),
    ("a_domain_gets_no_more_than_it_was_started_for", OnDeaf(a_domain_gets_no_more_than_it_was_started_for)),
    ("a_disk_has_a_target_and_a_size_of_its_own", OnDeaf(a_disk_has_a_target_and_a_size_of_its_own)),
    ("a_disk_is_copied_and_switched", OnDeaf(a_disk_is_copied_and_switched)),
    ("a_vf_is_where_it_was_asked_for", WithVf(a_vf_is_where_it_was_asked_for)),
    ("a_vf_is_in_one_domain", WithVf(a_vf_is_in_one_domain)),
    ("a_vf_that_is_not_there_is_refused_by_its_address", WithVf(a_vf_that_is_not_there_is_refused_by_its_address)),
    ("a_place_is_taken_once", WithVf(a_place_is_taken_once)),
    ("an_alias_is_given_once", WithVf(an_alias_is_given_once)),
    ("a_domain_with_a_vf_is_not_saved", WithVf(a_domain_with_a_vf_is_not_saved)),
    ("who_watches_hears_that_libvirtd_restarts", WithVf(who_watches_hears_that_libvirtd_restarts)),
    ("a_reset_carries_out_what_was_asked", WithVf(a_reset_carries_out_what_was_asked)),
    ("a_deaf_guest_keeps_its_vf", WithVf(a_deaf_guest_keeps_its_vf)),
    ("a_saved_domain_comes_back_paused_and_takes_a_vf", Alone(a_saved_domain_comes_back_paused_and_takes_a_vf)),
    ("an_image_that_is_not_complete_is_refused", Alone(an_image_that_is_not_complete_is_refused)),
    ("a_domain_that_ended_is_nowhere", Alone(a_domain_that_ended_is_nowhere)),
];

/// The behaviours that need two hosts, so [`Rig::other`].
pub const BETWEEN_HOSTS: [(&str, Behaviour); 2] = [
    ("a_domain_with_a_vf_does_not_move", WithVf(a_domain_with_a_vf_does_not_move)),
    ("a_domain_that_moves_takes_its_metadata_along", Alone(a_domain_that_moves_takes_its_metadata_along)),
];

/// Runs a list and prints how long each behaviour took. A failure does not stop the others.
///
/// # Panics
/// At least one behaviour failed.
pub fn run(rig: &dyn Rig, list: &[(&str, Behaviour)]) {
    let mut failed = Vec::new();
    let mut shared: Option<(Discriminant<Behaviour>, Shared)> = None;
    for &(name, behaviour) in list {
        let begin = Instant::now();
        let kind = mem::discriminant(&behaviour);
        let shows = || {
            let kept = shared.take_if(|(other, _)| *other == kind).map(|(_, domain)| domain);
            if let Some((_, other)) = shared.take() {
                other.end(rig);
            }
            let domain = kept.or_else(|| behaviour.start(rig));
            let ending = Ending { rig, domain };
            behaviour.shows(rig, ending.domain.as_ref());
            shared = ending.intact().map(|domain| (kind, domain));
        };
        if catch_unwind(AssertUnwindSafe(shows)).is_err() {
            failed.push(name);
        }
        eprintln!("  {name}: {} ms", begin.elapsed().as_millis());
    }
    if let Some((_, domain)) = shared {
        domain.end(rig);
    }
    assert!(failed.is_empty(), "not shown: {}", failed.join(", "));
    for domain in rig.libvirt().domains().unwrap() {
        assert!(!domain.name.as_str().starts_with("one-6"), "{} was left", domain.name);
    }
}

/// Ends the domain after a behaviour that failed or changed it.
struct Ending<'a> {
    rig: &'a dyn Rig,
    domain: Option<Shared>,
}

impl Ending<'_> {
    /// The domain for the next behaviour, if it is unchanged.
    fn intact(mut self) -> Option<Shared> {
        self.domain.take_if(|domain| domain.is_intact(self.rig))
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Some(domain) = &self.domain {
            domain.end(self.rig);
        }
    }
}

/// A domain whose guest never answers. It ends after the behaviour.
struct Deaf<'a> {
    rig: &'a dyn Rig,
    domain: DomainRef,
}

impl<'a> Deaf<'a> {
    fn start(rig: &'a dyn Rig, id: u32) -> Self {
        Self { rig, domain: rig.start(&Vm::new(id).nic("br0")) }
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        // A behaviour may have ended it already.
        drop(self.rig.libvirt().destroy(&self.domain));
    }
}

fn live(rig: &dyn Rig, domain: &DomainRef) -> LiveDomain {
    LiveDomain::parse(&rig.libvirt().live_xml(domain).unwrap().unwrap()).unwrap()
}

/// The NIC at this position. Its guest address is in the upper half of a PC's bus.
fn nic(number: u8) -> WantedNic {
    WantedNic {
        mac: format!("02:00:0a:00:3c:{number:02x}").parse().unwrap(),
        root: "pf0".parse().unwrap(),
        mode: NicMode::Hostdev,
        position: Position::new(number.into()).unwrap(),
        guest: Some(PciAddress::new(0, 0, 0x10 + number, 0).unwrap()),
        boot_order: None,
        vlan: None,
        nic_id: None,
        dummy: None,
        adopted: AdoptedDevices::default(),
        kept: KeptContent::default(),
    }
}

fn alias(number: u8) -> String {
    alias_of(Position::new(number.into()).unwrap())
}

fn plug(rig: &dyn Rig, domain: &DomainRef, number: u8, vf: PciAddress) -> Result<(), LibvirtError> {
    attach(rig, domain, &hostdev_of(&nic(number), vf))
}

/// Plugs a device. As the driver does, it tries again when udev has not handled the device yet.
fn attach(rig: &dyn Rig, domain: &DomainRef, device: &str) -> Result<(), LibvirtError> {
    let begin = Instant::now();
    loop {
        match rig.libvirt().attach(domain, device, CALL_LIMIT) {
            Err(error) if error.text().contains("Permission denied") && begin.elapsed() < rig.patience() => {}
            other => return other,
        }
    }
}

fn device(rig: &dyn Rig, domain: &DomainRef, alias: &str) -> Option<LiveHostdev> {
    live(rig, domain).hostdevs.into_iter().find(|device| device.alias.as_deref() == Some(alias))
}

/// Waits for an event and ignores all others.
#[track_caller]
fn hear(events: &Events, what: &Event, patience: Duration) {
    let begin = Instant::now();
    while let Some(rest) = patience.checked_sub(begin.elapsed()) {
        if events.next(rest).as_ref() == Some(what) {
            return;
        }
    }
    panic!("{what:?} did not come in {} s", patience.as_secs());
}

/// Whether this event comes within half a second. For events that must not come.
fn hears_soon(events: &Events, what: &Event) -> bool {
    let begin = Instant::now();
    let soon = Duration::from_millis(500);
    std::iter::from_fn(|| events.next(soon.checked_sub(begin.elapsed())?)).any(|event| event == *what)
}

/// An error must have this number, and its text must contain all of these.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, LibvirtError>, code: u32, texts: &[&str]) {
    let error = result.unwrap_err();
    assert!(error.code() == code && texts.iter().all(|text| error.text().contains(text)), "{} {error}", error.code());
}

const OURS: &str =
    "<domain version='1.0'><nic mac='02:00:0a:00:3c:00' root='pf0' mode='hostdev' position='0'/></domain>";

fn set_ours(rig: &dyn Rig, domain: &DomainRef, text: Option<&str>) -> Result<(), LibvirtError> {
    rig.libvirt().set_metadata(domain, text, Wanted::PREFIX, Wanted::NAMESPACE)
}

fn metadata_lose_their_prefix_and_get_it_back(rig: &dyn Rig, domain: &DomainRef) {
    let read = || rig.libvirt().metadata(domain, Wanted::NAMESPACE).unwrap();
    assert_eq!(read(), None);
    set_ours(rig, domain, Some(OURS)).unwrap();
    let text = rig.libvirt().live_xml(domain).unwrap().unwrap();
    assert!(text.contains("<sriov:domain xmlns:sriov=") && text.contains("<sriov:nic "), "{text}");
    let back = read().unwrap();
    assert!(!back.contains("sriov:") && !back.contains("xmlns"), "{back}");
    let wanted = Wanted::parse(OURS).unwrap();
    assert_eq!(Wanted::parse(&back).unwrap(), wanted);
    let live = LiveDomain::parse(&text).unwrap();
    assert_eq!(live.wanted, Ok(Some(wanted)));
    assert!(live.vm_dir.is_some(), "OpenNebula's own metadata are gone");
    set_ours(rig, domain, None).unwrap();
    assert_eq!(read(), None);
}

fn metadata_that_declare_the_prefix_are_refused(rig: &dyn Rig, domain: &DomainRef) {
    let prefixed = Wanted::parse(OURS).unwrap().to_xml();
    refused(set_ours(rig, domain, Some(&prefixed)), 1, &["namespace"]);
    assert_eq!(rig.libvirt().metadata(domain, Wanted::NAMESPACE).unwrap(), None);
}

fn a_vf_is_where_it_was_asked_for(rig: &dyn Rig, domain: &DomainRef) {
    let expected = LiveHostdev {
        alias: Some(alias(0)),
        vf: rig.vfs()[0],
        guest: nic(0).guest,
        mac: None,
        vlan: None,
        is_transient: false,
    };
    assert_eq!(live(rig, domain).hostdevs, [expected]);
}

fn a_device_that_asks_for_nothing_gets_name_and_place(rig: &dyn Rig, domain: &DomainRef) {
    let before = live(rig, domain);
    assert_eq!(before.interfaces[0].alias.as_deref(), Some("net0"));
    let text = format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address {}/></source></hostdev>",
        rig.vfs()[0].to_attributes()
    );
    attach(rig, domain, &text).unwrap();
    let found = device(rig, domain, "hostdev0").unwrap();
    assert!(found.guest.is_some() && found.guest != before.interfaces[0].guest);
}

fn a_vf_is_in_one_domain(rig: &dyn Rig, domain: &DomainRef) {
    let second = Deaf::start(rig, 62);
    let [vf, ..] = rig.vfs();
    let in_use = ["in use", &vf.to_string()];
    refused(plug(rig, &second.domain, 0, vf), 55, &in_use);
    assert_eq!(live(rig, &second.domain).hostdevs, []);
    refused(plug(rig, domain, 1, vf), 55, &in_use);
    assert_eq!(live(rig, domain).hostdevs.len(), 1);
}

fn a_vf_that_is_not_there_is_refused_by_its_address(rig: &dyn Rig, domain: &DomainRef) {
    let absent = PciAddress::new(0, rig.vfs()[0].bus(), 0x1f, 7).unwrap();
    let error = plug(rig, domain, 1, absent).unwrap_err();
    assert!(error.text().contains(&absent.to_string()), "{error}");
    assert_eq!(live(rig, domain).hostdevs.len(), 1);
}

fn a_mac_may_be_there_twice(rig: &dyn Rig, domain: &DomainRef) {
    let mac = "02:00:0a:00:3f:09";
    let aliases = ["ua-nic-8-02000a003f09", "ua-nic-9-02000a003f09"];
    for alias in aliases {
        let interface = format!(
            "<interface type='bridge'><source bridge='br0'/><mac address='{mac}'/><model type='virtio'/><alias name='{alias}'/>\
             </interface>"
        );
        attach(rig, domain, &interface).unwrap();
    }
    let live = live(rig, domain);
    let there = live.interfaces.iter().filter(|interface| interface.mac.to_string() == mac);
    assert_eq!(there.filter_map(|interface| interface.alias.as_deref()).collect::<Vec<_>>(), aliases);
}

fn a_place_is_taken_once(rig: &dyn Rig, domain: &DomainRef) {
    let [_, b, _] = rig.vfs();
    let same_place = WantedNic { guest: nic(0).guest, ..nic(1) };
    let place = nic(0).guest.unwrap().to_string();
    refused(attach(rig, domain, &hostdev_of(&same_place, b)), 27, &["double use", &place]);
}

fn an_alias_is_given_once(rig: &dyn Rig, domain: &DomainRef) {
    let [_, b, _] = rig.vfs();
    let same_name = WantedNic { guest: nic(1).guest, ..nic(0) };
    refused(attach(rig, domain, &hostdev_of(&same_name, b)), 67, &["alias", &alias(0)]);
}

fn a_device_that_is_not_there_can_not_leave(rig: &dyn Rig, domain: &DomainRef) {
    let result = rig.libvirt().detach_alias(domain, &alias(0), CALL_LIMIT);
    assert_eq!(result.as_ref().map_err(LibvirtError::kind), Err(LibvirtErrorKind::NoDevice));
    refused(result, 1, &["no device found", &alias(0)]);
}

fn a_domain_gets_no_more_than_it_was_started_for(rig: &dyn Rig, domain: &DomainRef) {
    refused(rig.libvirt().set_vcpus(domain, 2), 8, &["greater than max"]);
    refused(rig.libvirt().set_memory(domain, 1 << 20), 8, &["higher than max memory"]);
}

fn a_disk_has_a_target_and_a_size_of_its_own(rig: &dyn Rig, domain: &DomainRef) {
    let disk = |name: &str| {
        let file = rig.file(name, &vec![0; 1 << 20]);
        let driver = "<driver name='qemu' type='raw'/>";
        format!("<disk type='file' device='disk'>{driver}<source file='{}'/><target dev='vdb'/></disk>", file.display())
    };
    rig.libvirt().attach(domain, &disk("one"), CALL_LIMIT).unwrap();
    refused(rig.libvirt().attach(domain, &disk("two"), CALL_LIMIT), 27, &["target 'vdb' duplicated"]);
    let shown = live(rig, domain);
    let shown = shown.disk("vdb").unwrap();
    assert!(shown.source.as_deref().unwrap().ends_with("/one") && shown.alias.is_some(), "{shown:?}");
    rig.libvirt().resize_disk(domain, "vdb", 96 << 20).unwrap();
    assert_eq!(rig.libvirt().disk_capacity(domain, "vdb").unwrap(), 96 << 20);
    assert_eq!(rig.libvirt().disk_capacity(domain, "vdz").unwrap_err().code(), 8);
}

fn a_disk_is_copied_and_switched(rig: &dyn Rig, domain: &DomainRef) {
    let [old, new] = ["old", "new"].map(|name| rig.file(name, &vec![0; 1 << 20]));
    let driver = "<driver name='qemu' type='raw'/>";
    let disk =
        format!("<disk type='file' device='disk'>{driver}<source file='{}'/><target dev='vdc'/></disk>", old.display());
    rig.libvirt().attach(domain, &disk, CALL_LIMIT).unwrap();
    let shows = || live(rig, domain).disk("vdc").map(|disk| (disk.file.clone(), disk.mirror.clone())).unwrap();
    let copy = || {
        let xml = live(rig, domain).disk("vdc").unwrap().copy_into(&Medium { path: new.clone(), is_block: false });
        rig.libvirt().block_copy(domain, "vdc", &xml, false)
    };
    let job = || rig.libvirt().block_job(domain, "vdc").unwrap();
    copy().unwrap();
    assert_eq!(shows(), (Some(old.clone()), Some(new.clone())));
    assert!(copy().is_err(), "a disk is copied twice at once");
    rig.libvirt().finish_block_job(domain, "vdc", false).unwrap();
    assert_eq!((shows(), job()), ((Some(old), None), None));
    copy().unwrap();
    let begin = Instant::now();
    while !job().is_some_and(|job| job.is_ready()) {
        assert!(begin.elapsed() < rig.patience(), "the copy is not ready");
    }
    rig.libvirt().finish_block_job(domain, "vdc", true).unwrap();
    assert_eq!((shows(), job()), ((Some(new), None), None));
    assert!(rig.libvirt().finish_block_job(domain, "vdc", true).is_err(), "there was nothing to switch");
}

fn a_deaf_guest_keeps_its_vf(rig: &dyn Rig, domain: &DomainRef) {
    let events = rig.libvirt().watch(domain).unwrap();
    rig.libvirt().detach_alias(domain, &alias(0), CALL_LIMIT).unwrap();
    assert!(!hears_soon(&events, &Event::DeviceRemoved(alias(0))));
    assert!(device(rig, domain, &alias(0)).is_some());
    match rig.libvirt().detach_alias(domain, &alias(0), CALL_LIMIT) {
        Err(error) if error.kind() != LibvirtErrorKind::UnplugInProgress => panic!("{error}"),
        _ => {}
    }
    assert!(device(rig, domain, &alias(0)).is_some());
}

fn a_reset_carries_out_what_was_asked(rig: &dyn Rig, domain: &DomainRef) {
    let events = rig.libvirt().watch(domain).unwrap();
    rig.libvirt().detach_alias(domain, &alias(0), CALL_LIMIT).unwrap();
    rig.libvirt().reset(domain).unwrap();
    hear(&events, &Event::DeviceRemoved(alias(0)), rig.patience());
    assert_eq!(device(rig, domain, &alias(0)), None);
    plug(rig, domain, 0, rig.vfs()[0]).unwrap();
}

fn a_domain_with_a_vf_is_not_saved(rig: &dyn Rig, domain: &DomainRef) {
    let [vf, ..] = rig.vfs();
    let file = rig.file("image", b"");
    refused(rig.libvirt().save(domain, &file), 55, &["cannot migrate domain", &vf.to_string(), "VFIO"]);
    assert_eq!(rig.libvirt().state(domain).unwrap(), Some(RunState::Running));
    assert_eq!(rig.libvirt().job(domain).unwrap(), None);
}

fn a_saved_domain_comes_back_paused_and_takes_a_vf(rig: &dyn Rig) {
    let deaf = Deaf::start(rig, 61);
    set_ours(rig, &deaf.domain, Some(OURS)).unwrap();
    let events = rig.libvirt().watch(&deaf.domain).unwrap();
    let file = rig.file("image", b"");
    rig.libvirt().save(&deaf.domain, &file).unwrap();
    hear(&events, &Event::Ended, rig.patience());
    assert_eq!(rig.libvirt().state(&deaf.domain).unwrap(), None);
    let text = rig.libvirt().image_xml(&file).unwrap();
    let saved = LiveDomain::parse(&text).unwrap();
    assert_eq!((&saved.name, &saved.uuid), (&deaf.domain.name, &deaf.domain.uuid));
    assert_eq!(saved.wanted, Ok(Some(Wanted::parse(OURS).unwrap())));
    rig.libvirt().restore(&file, &text, true, CALL_LIMIT).unwrap();
    assert_eq!(rig.libvirt().state(&deaf.domain).unwrap(), Some(RunState::PausedForMigration));
    assert_eq!(rig.libvirt().job(&deaf.domain).unwrap(), None);
    plug(rig, &deaf.domain, 0, rig.vfs()[0]).unwrap();
    set_ours(rig, &deaf.domain, None).unwrap();
    rig.libvirt().resume(&deaf.domain).unwrap();
    assert_eq!(rig.libvirt().state(&deaf.domain).unwrap(), Some(RunState::Running));
    assert_eq!(device(rig, &deaf.domain, &alias(0)).unwrap().guest, nic(0).guest);
}

fn an_image_that_is_not_complete_is_refused(rig: &dyn Rig) {
    let mut partial = b"LibvirtQemudPart".to_vec();
    partial.resize(4096, 0);
    refused(rig.libvirt().image_xml(&rig.file("partial", &partial)), 9, &["incomplete"]);
    assert!(rig.libvirt().image_xml(&rig.file("empty", b"")).is_err());
}

fn without_a_job_nothing_is_aborted(rig: &dyn Rig, domain: &DomainRef) {
    refused(rig.libvirt().abort_job(domain), 55, &["no job"]);
}

fn a_domain_is_there_once(rig: &dyn Rig, domain: &DomainRef) {
    let text = rig.libvirt().live_xml(domain).unwrap().unwrap();
    refused(rig.libvirt().create(&text, CALL_LIMIT), 55, &["already active", domain.name.as_str()]);
    refused(rig.libvirt().resume(domain), 55, &["already running"]);
}

fn pause_and_resume_are_told(rig: &dyn Rig, domain: &DomainRef) {
    let events = rig.libvirt().watch(domain).unwrap();
    rig.pause(domain);
    hear(&events, &Event::Suspended, rig.patience());
    assert_eq!(rig.libvirt().state(domain).unwrap(), Some(RunState::PausedByUser));
    rig.libvirt().resume(domain).unwrap();
    hear(&events, &Event::Resumed, rig.patience());
    assert_eq!(rig.libvirt().state(domain).unwrap(), Some(RunState::Running));
}

fn a_domain_that_ended_is_nowhere(rig: &dyn Rig) {
    let deaf = Deaf::start(rig, 61);
    let libvirt = rig.libvirt();
    let events = libvirt.watch(&deaf.domain).unwrap();
    libvirt.destroy(&deaf.domain).unwrap();
    hear(&events, &Event::Ended, rig.patience());
    assert_eq!(libvirt.find(&deaf.domain.uuid.to_string().parse().unwrap()).unwrap(), None);
    assert_eq!(libvirt.live_xml(&deaf.domain).unwrap(), None);
    assert_eq!(libvirt.state(&deaf.domain).unwrap(), None);
    assert_eq!(libvirt.job(&deaf.domain).unwrap(), None);
    let gone = [
        libvirt.detach_alias(&deaf.domain, "net0", CALL_LIMIT),
        libvirt.destroy(&deaf.domain),
        set_ours(rig, &deaf.domain, None),
        libvirt.watch(&deaf.domain).map(drop),
    ];
    for result in gone {
        assert_eq!(result.unwrap_err().kind(), LibvirtErrorKind::NoDomain);
    }
}

fn who_watches_hears_that_libvirtd_restarts(rig: &dyn Rig, domain: &DomainRef) {
    let events = rig.libvirt().watch(domain).unwrap();
    rig.restart_daemon();
    hear(&events, &Event::Disconnected, rig.patience());
    let begin = Instant::now();
    let found = loop {
        match rig.libvirt().live_xml(domain) {
            Ok(text) => break text,
            Err(error) => {
                assert!(error.kind() == LibvirtErrorKind::Disconnected && begin.elapsed() < rig.patience(), "{error}")
            }
        }
    };
    assert!(found.is_some(), "the domain did not outlive libvirtd");
    let events = rig.libvirt().watch(domain).unwrap();
    rig.libvirt().reset(domain).unwrap();
    hear(&events, &Event::Rebooted, rig.patience());
    assert_eq!(live(rig, domain).hostdevs.len(), 1);
}

fn a_domain_that_moves_takes_its_metadata_along(rig: &dyn Rig) {
    let (other, destination) = rig.other().unwrap();
    let deaf = Deaf::start(rig, 61);
    set_ours(rig, &deaf.domain, Some(OURS)).unwrap();
    let before = live(rig, &deaf.domain);
    let events = rig.libvirt().watch(&deaf.domain).unwrap();
    rig.libvirt().migrate(&deaf.domain, &Migration { destination, ..Migration::default() }).unwrap();
    hear(&events, &Event::Ended, rig.patience());
    assert_eq!(rig.libvirt().state(&deaf.domain).unwrap(), None);
    let arrived = Deaf { rig: other, domain: deaf.domain.clone() };
    assert_eq!(other.libvirt().state(&arrived.domain).unwrap(), Some(RunState::Running));
    assert_eq!(other.libvirt().job(&arrived.domain).unwrap(), None);
    let after = live(other, &arrived.domain);
    assert_eq!(after.wanted, Ok(Some(Wanted::parse(OURS).unwrap())));
    assert_eq!(after.interfaces, before.interfaces);
    plug(other, &arrived.domain, 0, other.vfs()[0]).unwrap();
}

fn a_domain_with_a_vf_does_not_move(rig: &dyn Rig, domain: &DomainRef) {
    let (other, destination) = rig.other().unwrap();
    let migration = Migration { destination, ..Migration::default() };
    refused(rig.libvirt().migrate(domain, &migration), 55, &["cannot migrate domain", "VFIO"]);
    assert_eq!(rig.libvirt().state(domain).unwrap(), Some(RunState::Running));
    assert_eq!(other.libvirt().state(domain).unwrap(), None);
}

fn vfs_that_are_asked_for_together_leave_one_by_one(rig: &dyn Rig, domain: &DomainRef) {
    for (number, vf) in (0..).zip(rig.vfs()) {
        plug(rig, domain, number, vf).unwrap();
    }
    let events = rig.libvirt().watch(domain).unwrap();
    let mut waiting: Vec<String> = (0..3).map(alias).collect();
    // QEMU refuses a request that comes too soon after the plug: "guest is busy".
    for alias in &waiting {
        ask_until_taken(rig, domain, alias);
    }
    let begin = Instant::now();
    while let (false, Some(rest)) = (waiting.is_empty(), rig.patience().checked_sub(begin.elapsed())) {
        if let Some(Event::DeviceRemoved(gone)) = events.next(rest) {
            waiting.retain(|alias| *alias != gone);
            assert_eq!(device(rig, domain, &gone), None, "libvirt told of a removal that it does not show");
        }
    }
    assert_eq!(waiting, [""; 0], "did not leave");
}

fn ask_until_taken(rig: &dyn Rig, domain: &DomainRef, alias: &str) {
    let begin = Instant::now();
    while let Err(error) = rig.libvirt().detach_alias(domain, alias, CALL_LIMIT) {
        let busy = error.kind() == LibvirtErrorKind::GuestBusy && begin.elapsed() < rig.patience();
        assert!(busy, "{error}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn a_paused_guest_answers_when_it_is_resumed(rig: &dyn Rig, domain: &DomainRef) {
    plug(rig, domain, 0, rig.vfs()[0]).unwrap();
    let events = rig.libvirt().watch(domain).unwrap();
    rig.pause(domain);
    ask_until_taken(rig, domain, &alias(0));
    assert!(!hears_soon(&events, &Event::DeviceRemoved(alias(0))));
    assert!(device(rig, domain, &alias(0)).is_some());
    rig.libvirt().resume(domain).unwrap();
    hear(&events, &Event::DeviceRemoved(alias(0)), rig.patience());
    assert_eq!(device(rig, domain, &alias(0)), None);
}
