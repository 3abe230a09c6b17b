//! What fails below the driver: an adapter under running VMs, a disk, the clock.

use kvm_sriov_tests::rig_host::{RigHost, SOON};
use kvm_sriov_tests::vm::{PRIVATE, Vm};

use super::suspend::{boot, has_again, identity, shows, under_strace, was_killed};
use super::whole::{is_whole, is_whole_after_one_reconcile};
use super::{STATE, cancel, deploy, plugged};

/// The PCI address of `pf0`, which the emulated adapter has in each boot of a host.
const PF: &str = "/sys/bus/pci/devices/0000:01:00.0";

/// The root port of that adapter.
const PORT: &str = "/sys/bus/pci/devices/0000:00:06.0";

/// What goes wrong with the adapter of `pf0`, and how it is mended. Each returns at once, or when the adapter is as it
/// should be then.
struct Fault {
    name: &'static str,
    strikes: fn(RigHost),
    mended: fn(RigHost),
    /// Whether the VM has no VF of this adapter until it is mended.
    takes_the_vf: bool,
    /// Whether the kernel tells QEMU that the VF is broken. Then QEMU stops the guest until a reset.
    stops_the_guest: bool,
}

const FAULTS: [Fault; 6] = [
    Fault {
        name: "the cable is pulled",
        strikes: |host| {
            host.monitor("set_link igb0 off");
            carrier_is(host, "0");
        },
        mended: |host| {
            host.monitor("set_link igb0 on");
            carrier_is(host, "1");
        },
        takes_the_vf: false,
        stops_the_guest: false,
    },
    Fault {
        name: "the adapter is reset",
        strikes: |host| {
            host.root(&format!("echo 1 >{PF}/reset")).ok();
        },
        mended: |host| carrier_is(host, "1"),
        takes_the_vf: false,
        stops_the_guest: false,
    },
    Fault {
        name: "the adapter reports a corrected error",
        strikes: |host| reports(host, 0, 1, "cor"),
        mended: |_| {},
        takes_the_vf: false,
        stops_the_guest: false,
    },
    Fault {
        name: "the adapter reports an error that is not fatal",
        strikes: |host| reports(host, 0x4000, 0, "nonfatal"),
        mended: |_| {},
        takes_the_vf: false,
        stops_the_guest: true,
    },
    Fault {
        name: "the adapter's driver is unbound and bound",
        strikes: |host| leaves(host, &format!("echo 0000:01:00.0 >{PF}/driver/unbind")),
        mended: |host| {
            host.root("echo 0000:01:00.0 >/sys/bus/pci/drivers/igb/bind").ok();
            makes_vfs(host);
        },
        takes_the_vf: true,
        stops_the_guest: false,
    },
    Fault {
        name: "the adapter is removed and found again",
        strikes: |host| leaves(host, &format!("echo 1 >{PF}/remove")),
        mended: |host| {
            host.root("echo 1 >/sys/bus/pci/rescan").ok();
            makes_vfs(host);
        },
        takes_the_vf: true,
        stops_the_guest: false,
    },
];

/// Waits until the kernel says whether `pf0` has a link.
fn carrier_is(host: RigHost, carrier: &str) {
    host.wait(&format!("carrier {carrier} of pf0"), SOON, |host| {
        host.root("cat /sys/class/net/pf0/carrier").out.trim() == carrier
    });
}

/// Makes the kernel see an error of the adapter, with these bits of the status of errors that are not corrected, or are.
/// Waits until the root port has counted it. The emulated adapter can't send a message of an error itself, and after a
/// fatal one the emulated port's link does not come back from the reset.
///
/// # Source
/// Linux, drivers/pci/pcie/aer_inject.c, struct aer_error_inj.
fn reports(host: RigHost, uncorrected: u32, corrected: u32, kind: &str) {
    let words: Vec<u8> =
        [1, uncorrected, corrected, 0, 0, 0, 0, 0].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    let count = |host: RigHost| host.root(&format!("cat {PORT}/aer_rootport_total_err_{kind}")).ok();
    let before = count(host);
    host.root("modprobe aer_inject").ok();
    host.write_bytes("/dev/aer_inject", &words);
    host.wait("the kernel to see the error", SOON, |host| count(host) != before);
}

/// Takes the adapter's VFs away. The kernel waits for a VM that has one, so the command may end later.
fn leaves(host: RigHost, command: &str) {
    host.root(&format!("({command}) >/dev/null 2>&1 </dev/null &")).ok();
    host.wait("the VFs to be gone", SOON * 2, |host| host.root("test -e /sys/bus/pci/devices/0000:01:10.0").code == 1);
    host.wait("the adapter to be gone", SOON, |host| host.root(&format!("test -e {PF}/net")).code == 1);
}

/// Makes the adapter's VFs as at a boot.
fn makes_vfs(host: RigHost) {
    host.wait("the adapter to be there", SOON, |host| host.root(&format!("test -e {PF}/net")).code == 0);
    host.root(&format!(
        "udevadm settle -t 20; nic=$(ls {PF}/net); [ $nic = pf0 ] || ip link set $nic name pf0; ip link set pf0 up; \
         echo 4 >{PF}/sriov_numvfs; udevadm settle -t 20"
    ))
    .ok();
}

/// After each fault one reconciliation is enough: the VM has its VFs at their guest addresses, none is lost or shared,
/// and another VM gets one.
pub(super) fn an_adapter_fails_under_its_vms(host: RigHost) {
    let vm = Vm::new(90).with_guest().nic("sriov_pf0").nic("sriov_pf1");
    let next = Vm::new(91).nic("sriov_pf0");
    let before = identity(&boot(host, &vm, 4));
    for Fault { name, strikes, mended, takes_the_vf, stops_the_guest } in &FAULTS {
        println!("  {name}");
        strikes(host);
        if *takes_the_vf {
            host.wait(&format!("the VF to leave: {name}"), SOON, |host| plugged(&host.live_xml(&vm)).len() == 1);
        }
        mended(host);
        if *stops_the_guest {
            host.wait(&format!("the guest to stop: {name}"), SOON, |host| host.state(&vm) != "running");
            let (name, boots) = (vm.name(), host.console(&vm).boots());
            host.oneadmin(&format!("v='virsh -q -c qemu:///system'; $v reset {name}; $v resume {name}")).ok();
            host.wait("the guest to boot", super::GUEST_BOOT, |host| host.console(&vm).boots() > boots);
        }
        is_whole_after_one_reconcile(host, name);
        has_again(host, &vm, &before);
        host.wait_tick(&vm);
        shows(host, &vm, 4, SOON);
        deploy(host, &next);
        is_whole(host, name);
        cancel(host, &next);
    }
    cancel(host, &vm);
}

/// Without space for claims nothing begins that needs one, and nothing is lost. Without space for an image, a save
/// leaves the VM as it was.
pub(super) fn a_disk_is_full(host: RigHost) {
    let small = "/tmp/small";
    host.root(&format!(
        "mkdir -p {small} {STATE} && mount -t tmpfs -o size=256k small {small} && install -d -o oneadmin -m 700 {small}/state && \
         mount --bind {small}/state {STATE}"
    ))
    .ok();
    let one = Vm::new(92).datastore(PRIVATE).with_guest().nic("sriov_pf0");
    let two = one.clone().nic("sriov_pf1");
    host.root(&format!("install -d -o oneadmin {0} && mount -t tmpfs -o size=16m,uid=9869 image {0}", one.dir())).ok();
    let before = identity(&boot(host, &one, 2));
    let full = || host.root(&format!("cat /dev/zero >{small}/filler")).code == 1;
    assert!(full(), "{small} is not full");
    let said = host.attach_nic(&two, 1);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.message().contains("No space left on device"), "{said:?}");
    assert_eq!(identity(&host.live_xml(&one)), before);
    let next = Vm::new(93).nic("sriov_pf0");
    super::deploy_fails(host, &next, &["No space left on device"]);
    host.root("timeout 60 kvm-sriov reconcile").ok();
    is_whole(host, "the state directory is full");
    host.root(&format!("rm {small}/filler")).ok();
    is_whole_after_one_reconcile(host, "the state directory was full");
    assert_eq!(host.attach_nic(&two, 1).code, 0);
    let before = identity(&host.live_xml(&two));

    let boot_id = host.wait_tick(&two).boot;
    let said = host.save(&two);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.message().contains("No space left on device"), "{said:?}");
    is_whole_after_one_reconcile(host, "the datastore is full");
    has_again(host, &two, &before);
    assert_eq!(host.wait_tick(&two).boot, boot_id);
    // What a VM leaves must be removable while the disk is full.
    assert!(full(), "{small} is not full");
    cancel(host, &two);
    assert_eq!(host.claims(), Vec::<String>::new());
    host.root(&format!("umount {STATE} {small} {} && rmdir {small}", one.dir())).ok();
}

/// A claim that was being written and the claims of a VM seem to come from the future.
pub(super) fn the_clock_is_set_back(host: RigHost) {
    let one = Vm::new(94).with_guest().nic("sriov_pf0");
    let two = one.clone().nic("sriov_pf1");
    let before = identity(&boot(host, &one, 2));
    let path = "/var/tmp/one/vmm/kvm-sriov/attach_nic";
    let args = format!("{} {} sriov_pf1 virtio bridge one-94-1 94 host1", two.uuid(), two.mac(1));
    let said = host.oneadmin(&format!("{} {args} </dev/null", under_strace(path, "renameat2", 1)));
    assert!(was_killed(host), "{said:?}");
    host.root("date -s \"@$(($(date +%s) - 86400))\"").ok();
    is_whole_after_one_reconcile(host, "the clock was set back by a day");
    has_again(host, &one, &before);
    assert_eq!(host.attach_nic(&two, 1).code, 0);
    is_whole(host, "a NIC was attached a day ago");
    assert_eq!(host.save(&two).code, 0);
    is_whole(host, "it was saved a day ago");
    host.root("date -s \"@$(($(date +%s) + 86400))\"").ok();
    assert_eq!(host.restore(&two).code, 0);
    is_whole_after_one_reconcile(host, "the clock was set forward by a day");
    assert_eq!(plugged(&host.live_xml(&two)).len(), 2);
    cancel(host, &two);
    host.root(&format!("rm -f {STATE}/*/.new-*")).ok();
}
