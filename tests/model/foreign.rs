//! Foreign devices of a VM beside its VFs, and a NIC that a guest could take for a dummy, on a model host.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use kvm_sriov::actions;
use kvm_sriov::libvirt::{DeviceCalls, DomainCalls, DomainRef};
use kvm_sriov::opennebula::{self, NicArgs};
use kvm_sriov::{ActionError, DomainId, PciAddress};
use kvm_sriov_model::check::Stage;
use kvm_sriov_model::host::ModelHost;
use kvm_sriov_tests::CALL_LIMIT;
use kvm_sriov_tests::model_host::OpenNebulaHost;
use kvm_sriov_tests::until;
use kvm_sriov_tests::vm::Vm;

fn vm() -> Vm {
    Vm::new(42).nic("sriov_ib0").nic("br0").nic("sriov_ib1")
}

fn id() -> DomainId {
    vm().uuid().parse().unwrap()
}

fn deploy(host: &ModelHost, vm: &Vm) -> Result<(), ActionError> {
    actions::deploy(&host.host(), &host.deployment_file(vm), &host.deployment(vm)).map(drop)
}

fn save(host: &ModelHost) -> Result<(), ActionError> {
    actions::save(&host.host(), &id(), &host.vm_dir(&vm()).join("checkpoint"), None)
}

fn a_running_vm() -> ModelHost {
    let host = ModelHost::default();
    deploy(&host, &vm()).unwrap();
    host
}

fn domain(host: &ModelHost) -> DomainRef {
    host.model().find(&id()).unwrap().unwrap()
}

/// Plugs a VF of a map into the VM by hand, at this guest address.
fn plug_by_hand(host: &ModelHost, vf: PciAddress, guest: &str) {
    let xml = format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address {}/></source>{guest}</hostdev>",
        vf.to_attributes()
    );
    host.model().attach(&domain(host), &xml, CALL_LIMIT).unwrap();
}

/// The host and guest address of each host device without our alias, and the guest addresses of the others.
fn devices(host: &ModelHost) -> (Vec<(PciAddress, String)>, Vec<String>) {
    let hostdevs = host.domain("one-42").unwrap().hostdevs;
    let (ours, foreign): (Vec<_>, Vec<_>) = hostdevs.into_iter().partition(|device| device.is_ours());
    let mut ours: Vec<String> = ours.iter().map(|device| device.guest.unwrap().to_string()).collect();
    ours.sort();
    (foreign.iter().map(|device| (device.vf, device.guest.unwrap().to_string())).collect(), ours)
}

#[test]
fn a_foreign_device_at_the_address_of_a_missing_vf_is_not_ours() {
    let host = a_running_vm();
    let foreign = host.vfs("ib1")[3];
    host.model().detach_alias(&domain(&host), "ua-sriov-0", CALL_LIMIT).unwrap();
    until("the VF has left", || host.domain("one-42").unwrap().hostdevs.len() == 1);
    plug_by_hand(&host, foreign, "<address type='pci' slot='0x10'/>");
    let there = vec![(foreign, "0000:00:10.0".to_owned())];
    assert_eq!(devices(&host), (there.clone(), vec!["0000:00:11.0".to_owned()]));

    // The foreign VF has the guest address of the missing one. There is no address of the usual range below that of the
    // second VF, but another address is free.
    let report = host.reconcile().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(devices(&host), (there.clone(), vec!["0000:00:0f.0".to_owned(), "0000:00:11.0".to_owned()]));
    assert_eq!(host.reconcile().unwrap().vms.iter().map(|vm| vm.done.len()).sum::<usize>(), 0);
    host.check();

    let before = host.portrait();
    let error = save(&host).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("save: one-42 also has host device {foreign}, which can't be saved; nothing was changed")
    );
    assert_eq!(host.portrait(), before);
    for number in [0, 2] {
        actions::detach_nic(&host.host(), &id(), vm().mac(number).parse().unwrap(), None).unwrap();
        assert_eq!(devices(&host).0, there);
    }
    assert_eq!(devices(&host).1, [""; 0]);
}

#[test]
fn a_usb_device_is_saved_with_the_vm() {
    let host = a_running_vm();
    let usb = "<hostdev mode='subsystem' type='usb' managed='no'><source><vendor id='0x1234'/><product id='0xbeef'/></source>\
               </hostdev>";
    host.model().attach(&domain(&host), usb, CALL_LIMIT).unwrap();
    let has_usb = || host.model().live_xml(&domain(&host)).unwrap().unwrap().contains("0xbeef");
    actions::snapshot_create(&host.host(), &id(), 0, None).unwrap();
    host.check();
    actions::snapshot_delete(&host.host(), &id(), &kvm_sriov::SnapshotName::of(0)).unwrap();
    save(&host).unwrap();
    assert!(host.domain("one-42").is_none());
    let checkpoint = host.vm_dir(&vm()).join("checkpoint");
    actions::restore(&host.host(), &checkpoint, opennebula::vm_of_checkpoint(&checkpoint).as_ref()).unwrap();
    assert!(has_usb());
    host.check();
}

#[test]
fn what_libvirt_does_not_save_is_named_before_anything_is_unplugged() {
    let uuid = "4b20d080-1b54-4048-85b3-a6a62d165c01";
    let (mdev, transient) = (format!("mdev {uuid}"), "<teaming type='transient' persistent='ua-x'/>");
    let mediated = format!(
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='{uuid}'/></source></hostdev>"
    );
    let interface = |rest: &str, vf: PciAddress| {
        format!(
            "<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:01'/><source><address type='pci' {}/>\
             </source>{rest}</interface>",
            vf.to_attributes()
        )
    };
    let host = a_running_vm();
    let vf = host.vfs("ib1")[3];
    for (xml, device) in [(mediated, mdev), (interface("", vf), vf.to_string())] {
        host.model().attach(&domain(&host), &xml, CALL_LIMIT).unwrap();
        let before = host.portrait();
        let error = save(&host).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("save: one-42 also has host device {device}, which can't be saved; nothing was changed")
        );
        let error = actions::snapshot_create(&host.host(), &id(), 0, None).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{device}, which can't be in a snapshot; nothing was changed")), "{error}");
        assert_eq!(host.portrait(), before);
        let live = host.domain("one-42").unwrap();
        let alias = live.mediated.into_iter().find_map(|(_, alias)| alias);
        let alias = alias.or(live.interfaces.into_iter().find(|it| it.vf.is_some()).and_then(|it| it.alias)).unwrap();
        host.model().detach_alias(&domain(&host), &alias, CALL_LIMIT).unwrap();
        until("the device has left", || !host.domain("one-42").unwrap().has_alias(&alias));
    }
    // QEMU unplugs this device by itself for a migration, so only libvirt can tell whether it can be saved.
    host.model().attach(&domain(&host), &interface(transient, vf), CALL_LIMIT).unwrap();
    let error = save(&host).unwrap_err().to_string();
    assert!(error.contains("VFIO migration is not supported"), "{error}");
    assert_eq!(host.domain("one-42").unwrap().hostdevs.len(), 2);
}

#[test]
fn a_nic_with_the_macs_of_dummies_is_refused_beside_vfs() {
    let host = ModelHost::default();
    let before = host.portrait();
    let xml = host.deployment(&vm()).replace(&vm().mac(1), "aa:01:01:01:01:28");
    let error = actions::deploy(&host.host(), &host.deployment_file(&vm()), &xml).unwrap_err().to_string();
    assert_eq!(
        error,
        "deploy: DUMMY_MAC_PREFIX: expected a DUMMY_MAC_PREFIX that is not the first byte of the MAC of a NIC of the VM, \
         found \"aa:01:01:01:01:28\"; nothing was started"
    );
    assert!(host.domain("one-42").is_none() && !host.state_dir().exists());
    assert_eq!(host.portrait(), before);

    // In a VM without VFs, such a MAC is allowed.
    let plain = Vm::new(43).nic("br0");
    let xml = host.deployment(&plain).replace(&plain.mac(0), "aa:01:01:01:01:29");
    actions::deploy(&host.host(), &host.deployment_file(&plain), &xml).unwrap();
    let attach = |vm: &Vm, mac: &str, bridge: &str| {
        let arguments = NicArgs {
            mac: mac.parse().unwrap(),
            bridge: Some(bridge.into()),
            model: None,
            vn_mad: None,
            target: Some("one-x".into()),
        };
        actions::attach_nic(&host.host(), &vm.uuid().parse().unwrap(), &arguments.described(None), None)
    };
    let before = host.portrait();
    let error = attach(&plain, &plain.mac(1), "sriov_ib0").unwrap_err().to_string();
    assert!(error.ends_with("found \"aa:01:01:01:01:29\"; nothing was changed"), "{error}");
    assert_eq!(host.portrait(), before);
    deploy(&host, &vm()).unwrap();
    let before = host.portrait();
    for bridge in ["br0", "sriov_ib0"] {
        let error = attach(&vm(), "aa:01:01:01:01:2a", bridge).unwrap_err().to_string();
        assert!(error.ends_with("found \"aa:01:01:01:01:2a\"; nothing was changed"), "{error}");
    }
    assert_eq!(host.portrait(), before);
    attach(&vm(), "ac:01:01:01:01:2a", "br0").unwrap();
    host.check();
}
