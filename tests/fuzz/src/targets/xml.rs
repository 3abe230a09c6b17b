//! libvirt's and OpenNebula's documents.

use std::path::{Path, PathBuf};

use kvm_sriov::opennebula::Message;
use kvm_sriov::xml::{
    Deployment, Disk, LiveDomain, Medium, NicDefaults, PlannedNic, Resize, Sizes, VmData, VmDisk, Wanted, WantedNic,
    XmlError, adapted_to_host, datastore_values, dummy_interface_of, hostdev_of, interface_of, mentions, nic_alias,
    pci_of, snapshot_of, tpm_state, wanted_in_snapshot, with_system_datastore,
};
use kvm_sriov::{Action, PciAddress, Position};
use roxmltree::Document;

use super::{Described, check_message, text};
use crate::changes::{Change, changes};

pub(super) fn targets() -> Vec<Described> {
    vec![
        ("deployment", 1, deployment),
        ("live", 1, live),
        ("image", 1, image),
        ("snapshot", 1, snapshot),
        ("wanted", 1, wanted),
        ("vm_data", 1, vm_data),
        ("vm_disk", 1, vm_disk),
    ]
}

/// The result, if the text was read. A failure must be one line.
fn read<T>(result: Result<T, XmlError>) -> Option<T> {
    result.map_err(|error| check_message(&error.to_string())).ok()
}

#[track_caller]
fn check_xml(xml: &str) {
    if let Err(error) = Document::parse(xml) {
        panic!("{error}: {xml}");
    }
}

/// Elements that a rewrite replaces as a whole.
const WHOLE: [&str; 3] = ["interface", "hostdev", "domain"];

fn deployment(input: &[u8]) {
    let text = text(input);
    let Some(deployment) = read(Deployment::parse(&text)) else { return };
    if deployment.sriov_nics().next().is_none() {
        assert_eq!(deployment.rewrite(&[], &[], "br").unwrap(), text);
    }
    let planned = |(number, nic): (u8, &WantedNic)| PlannedNic {
        wanted: nic.clone(),
        vf: PciAddress::new(0, 0x81, number, 1).unwrap(),
        dummy_mac: Some("aa:00:00:00:00:01".parse().unwrap()),
    };
    let nics: Vec<PlannedNic> = (0..).zip(deployment.sriov_nics()).map(planned).collect();
    let (old, new) = (PathBuf::from("/var/lib/one//datastores/0/42/disk.0"), PathBuf::from("/it's"));
    let disks = [(old, new)];
    let Some(rewritten) = read(deployment.rewrite(&disks, &nics, "b&r")) else { return };
    let again = Deployment::parse(&rewritten).unwrap_or_else(|error| panic!("{error}: {rewritten}"));
    assert_eq!((again.name(), again.sriov_nics().count()), (deployment.name(), 0), "{rewritten}");
    for change in changes(&text, &rewritten, &WHOLE).unwrap() {
        let (Change::Removed { at, .. } | Change::Added { at, .. } | Change::Value { at, .. }) = &change;
        let is_meant = match &change {
            Change::Value { to, .. } => at.ends_with("/disk/source@file") && to.as_deref() == Some("/it's"),
            Change::Removed { text, .. } => {
                (at.ends_with("/devices") && text.contains("sriov_")) || at.ends_with("/metadata")
            }
            Change::Added { text, .. } => {
                let is_device = text.starts_with("<hostdev mode='sub") || text.starts_with("<interface type='bridge'>");
                (at.ends_with("/devices") && is_device)
                    || at.ends_with("/metadata")
                    || (at == "domain" && text.starts_with("<metadata>"))
            }
        };
        assert!(is_meant, "{change:?} in {rewritten}");
    }
}

fn live(input: &[u8]) {
    let text = text(input);
    read(Disk::all(&text)).into_iter().flatten().for_each(|disk| {
        for medium in [None, Some(Medium { path: "/a'b".into(), is_block: true })] {
            if let Some(changed) = read(disk.with_medium(medium.as_ref())) {
                check_xml(&changed);
            }
        }
        check_xml(&disk.copy_into(&Medium { path: "/a'b".into(), is_block: false }));
    });
    read(mentions(&text, &["/var/lib/one/datastores/0/42", "/"]));
    if let Some(sizes) = read(Sizes::parse(&text)) {
        check_xml(&sizes.dimm_of(sizes.memory_kib));
    }
    let Some(domain) = read(LiveDomain::parse(&text)) else { return };
    assert!(domain.vfs().count() >= domain.hostdevs.len());
    let positions = domain.positions();
    assert!(positions.len() <= 16);
    let wanted = read(domain.wanted.clone()).flatten().unwrap_or_default();
    if let Some(place) = domain.free.place(&wanted.nics, &positions) {
        assert!(!positions.contains(&place.position) && wanted.nics.iter().all(|nic| nic.position != place.position));
        assert!(place.guest.is_none_or(|guest| !domain.uses_guest_address(guest)), "{place:?}");
    }
    for nic in &wanted.nics {
        domain.free.address_for(&wanted.nics, nic.position);
        check_xml(&hostdev_of(nic, PciAddress::new(0, 7, 0, 1).unwrap()));
        assert_eq!(domain.missing().any(|missing| missing == nic), domain.device_of(nic).is_none());
    }
}

/// A domain that was saved, or that migrates.
fn image(input: &[u8]) {
    let text = text(input);
    let wanted = Wanted::parse(
        "<domain version='1.0'><nic mac='02:00:00:00:00:01' root='ib0' mode='hostdev' position='3'/></domain>",
    )
    .unwrap();
    let checkpoint = Path::new("/var/lib/one//datastores/104/42/checkpoint");
    let Some(adapted) = read(adapted_to_host(&text, checkpoint, Some(&wanted), Some("b&r"))) else { return };
    let found = changes(&text, &adapted, &["domain"]).unwrap_or_else(|error| panic!("{error}: {adapted}"));
    for change in found {
        let is_meant = match &change {
            Change::Value { at, to, .. } if at.ends_with("/interface/source@bridge") => to.as_deref() == Some("b&r"),
            Change::Value { to, .. } => to.as_deref().is_some_and(|to| to.contains("/datastores/104/42")),
            Change::Removed { at, .. } => at.ends_with("/metadata"),
            Change::Added { at, text } => at.ends_with("/metadata") && *text == wanted.to_xml(),
        };
        assert!(is_meant, "{change:?} in {adapted}");
    }
    assert_eq!(adapted_to_host(&adapted, checkpoint, Some(&wanted), Some("b&r")).unwrap(), adapted);
    if let Some(moved) = read(with_system_datastore(&text, Path::new("/a'b"))) {
        check_xml(&moved);
    }
}

fn snapshot(input: &[u8]) {
    const UUID: &str = "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10";
    let text = text(input);
    read(wanted_in_snapshot(&text));
    let Some(adapted) = read(snapshot_of(&text, &UUID.parse().unwrap())) else { return };
    for change in changes(&text, &adapted, &[]).unwrap() {
        // The whole content is replaced, also if it is divided.
        let (Change::Removed { at, text: to }
        | Change::Added { at, text: to }
        | Change::Value { at, to: Some(to), .. }) = &change
        else {
            panic!("{change:?}")
        };
        let is_of_domain = at.ends_with("/domain/uuid") || at.ends_with("/inactiveDomain/uuid");
        assert!(is_of_domain && (to == UUID || matches!(change, Change::Removed { .. })), "{change:?}");
    }
}

fn wanted(input: &[u8]) {
    let Some(wanted) = read(Wanted::parse(&text(input))) else { return };
    let xml = wanted.to_xml();
    let again = Wanted::parse(&xml).unwrap_or_else(|error| panic!("{error}: {xml}"));
    assert_eq!(again.to_xml(), xml);
    assert_eq!((&again.nics, &again.operation, again.minor), (&wanted.nics, &wanted.operation, wanted.minor));
    let bare = wanted.to_unqualified_xml();
    assert_eq!(Wanted::parse(&bare).unwrap_or_else(|error| panic!("{error}: {bare}")), again);
}

fn vm_data(input: &[u8]) {
    let text = text(input);
    read(tpm_state(&text));
    read(datastore_values(&text, ["CEPH_USER", "POOL_NAME"]));
    read(Resize::parse(&text));
    super::settings::check_network(&text);
    let Some(data) = read(VmData::parse(&text)) else { return };
    let defaults = NicDefaults { model: "virtio", filter: Some("clean-traffic"), vcpus: data.vcpus() };
    for nic in data.nics() {
        check_xml(&interface_of(nic, defaults, &nic_alias(nic)));
        check_xml(&dummy_interface_of(nic, defaults, Position::new(0).unwrap(), nic.mac, "b'r"));
        assert!(data.nic_of_action(nic.mac).is_none_or(|found| found.mac == nic.mac));
    }
    if let Some(pci) = data.attached_pci() {
        check_xml(&pci_of(pci, true, None));
        check_xml(&pci_of(pci, false, pci.guest));
    }
}

fn vm_disk(input: &[u8]) {
    let text = text(input);
    let message = Message::new(Action::AttachDisk, text.clone());
    if let Err(error) = message.target_of(0) {
        check_message(&error.to_string());
    }
    for id in [None, Some(0)] {
        let Some(disk) = read(VmDisk::find(&text, id)).flatten() else { continue };
        let (place, target) = (disk.place("/ds/0/42/disk.3"), disk.target().unwrap_or("vda"));
        check_xml(&disk.to_xml(&place, target, &[1, 2], &|name| (name == "CACHE").then_some("none")));
        check_xml(&disk.to_xml(&place, "sda", &[], &|_| None));
    }
}
