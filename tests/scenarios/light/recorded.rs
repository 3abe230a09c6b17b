//! The calls recorded from OpenNebula, in their order, on hosts that can carry them out.

use kvm_sriov_tests::caller::Version;
use kvm_sriov_tests::site::Recorded;
use kvm_sriov_tests::vm::Vm;

use super::Site;

/// The text of a call, changed for this site, whose VMs are emulated and have the guest.
fn fit(site: Site, vm: &Vm, text: &str) -> String {
    let boot = "hvm</type><kernel>/lab/vmlinux</kernel><initrd>/lab/guest.cpio.gz</initrd>\
                <cmdline>console=ttyS0 mitigations=off quiet</cmdline>";
    let console = format!("<serial type='file'><source path='{}'/></serial>\n\t\t<graphics", vm.console());
    // A NIC's traffic limits need a kernel feature that this kernel may lack.
    let limited =
        text.split("<bandwidth>").map(|part| part.split_once("</bandwidth>").map_or(part, |(_, after)| after));
    let text: String = limited.collect();
    text.replace("type='kvm'", "type='qemu'")
        .replace("name='vhost'", "name='qemu'")
        .replace("INBOUND_AVG_BW", "UNLIMITED")
        .replace("hvm</type>", boot)
        .replace("<graphics", &console)
        .replace("hostA", &site.host.name())
        .replace("hostB", &site.other.name())
}

/// The expected result of a call: its standard output, or a part of its message.
fn expected(call: &Recorded, uuid: &str) -> Result<String, &'static str> {
    match &call.name[..2] {
        // A PCI device, for which these hosts lack an IOMMU.
        "12" => Err("host doesn't support passthrough of host PCI devices; nothing was changed."),
        "21" => Err("could not create snapshot snap-0 for domain"),
        "22" => Err("could not revert to snapshot snap-0 for domain"),
        "44" => Err("is already active; a domain of this name or UUID runs."),
        "45" => Err("nothing was moved, the domain runs on."),
        _ if call.action == "deploy" => Ok(format!("{uuid}\n")),
        _ => Ok(String::new()),
    }
}

pub(super) fn calls_recorded_from_opennebula(site: Site) {
    for vm in 0..3 {
        let dir = Vm::new(vm).dir();
        site.host.oneadmin(&format!("mkdir -p {dir} && cd {dir} && truncate -s 64M disk.0 disk.1 disk.2")).ok();
    }
    let mut boots = 0;
    let mut uuid = String::new();
    for call in Recorded::all() {
        let vm = Vm::new(call.vm);
        let at = if call.host == "hostA" { site } else { site.turned() };
        if call.action == "deploy" {
            uuid = call.stdin.split("<uuid>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        }
        // This migration was also refused when it was recorded. Here the other host lacks the bridge.
        if call.name.starts_with("45") {
            site.other.root("ip link set onebr0 name onebr9").ok();
        }
        let args: Vec<String> = call.args.iter().map(|arg| fit(site, &vm, arg)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let answer = at.call(Version::V7, &vm, &call.action, &args, &fit(site, &vm, &call.stdin));
        if call.name.starts_with("45") {
            site.other.root("ip link set onebr9 name onebr0").ok();
        }
        match expected(&call, &uuid) {
            Ok(out) => assert_eq!((answer.code, &answer.stdout), (0, &out), "{}: {answer:?}", call.name),
            Err(text) => {
                let said = answer.code != 0 && answer.stdout.is_empty() && answer.message.contains(text);
                assert!(said, "{}: {text:?}: {answer:?}", call.name);
            }
        }
        let ends = matches!(call.action.as_str(), "cancel" | "shutdown" | "save") || call.name.starts_with("31");
        assert_eq!(at.host.state(&vm), if ends { "" } else { "running" }, "{}", call.name);
        // The next calls need a guest that releases devices, reacts to its power button, or has an agent.
        match &call.name[..2] {
            "01" | "39" | "48" => {
                boots = site.host.console(&vm).boots().max(1);
                site.boots(&vm, boots);
            }
            "27" | "28" => {
                boots += 1;
                site.boots(&vm, boots);
            }
            _ => {}
        }
    }
    site.host
        .oneadmin("rm -r /var/lib/one/datastores/0/0 /var/lib/one/datastores/0/1 /var/lib/one/datastores/0/2")
        .ok();
}
