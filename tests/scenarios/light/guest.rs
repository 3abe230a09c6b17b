//! The guest's CPUs, memory, commands and snapshots.

use kvm_sriov_tests::vm::Vm;

use super::{SOON, Site, data, guest};

pub(super) fn cpus_and_memory_are_resized(site: Site) {
    let vm = guest(30);
    site.boot(&vm, |text| {
        let cell = "\t<cpu><numa><cell id='0' cpus='0-2' memory='163840'/></numa></cpu>\n\t<devices>";
        text.replacen("<vcpu><![CDATA[1]]></vcpu>", "<vcpu current='1'>3</vcpu>", 1)
            .replacen("\t<os>", "\t<maxMemory slots='4'>1048576</maxMemory>\n\t<os>", 1)
            .replacen("\t<devices>", cell, 1)
    });
    site.sees(&vm, "cpus", Some("1"));
    let before = memory(site, &vm);
    let resize = |vcpus: u32, mib: u32, mode: &str| {
        let template = format!(
            "<VCPU>{vcpus}</VCPU><MEMORY>{mib}</MEMORY><MEMORY_RESIZE_MODE>{mode}</MEMORY_RESIZE_MODE>\
             <RESIZE><VCPU>1</VCPU><MEMORY>1</MEMORY></RESIZE>"
        );
        data(site.host, &vm, &template)
    };
    let id = vm.uuid();
    let text = "could not resize VCPU to 4 on one-30: it can have from 1 to 3";
    site.fails(&vm, "resize", &[&id], &resize(4, 160, "BALLOONING"), text);
    for _ in 0..2 {
        assert_eq!(site.run(&vm, "resize", &[&id], &resize(3, 288, "HOTPLUG")), "");
    }
    site.sees(&vm, "cpus", Some("3"));
    has_about(site, &vm, before + 128);
    // An emulated QEMU does not remove a CPU that the guest has released, so no CPU is removed here.
    assert_eq!(site.run(&vm, "resize", &[&id], &resize(3, 224, "BALLOONING")), "");
    has_about(site, &vm, before + 64);
    site.cancel(&vm);
}

/// The guest's memory in MiB.
fn memory(site: Site, vm: &Vm) -> u32 {
    site.host.console(vm).sees()["mib"].parse().unwrap()
}

/// Waits until the guest has this many MiB. Its kernel reserves a part that grows with them.
#[track_caller]
fn has_about(site: Site, vm: &Vm, mib: u32) {
    site.host.wait(&format!("the guest to have {mib} MiB"), SOON, |_| memory(site, vm).abs_diff(mib) <= 6);
}

pub(super) fn commands_run_in_the_guest(site: Site) {
    let vm = guest(31).disk();
    let disk = format!("{}/disk.0", vm.dir());
    site.host.oneadmin(&format!("mkdir -p {} && truncate -s 1M {disk}", vm.dir())).ok();
    site.boot(&vm, |text| text);
    let told = vm.action_data(&site.host.name()).xml();
    let exec =
        |words: &str, input: &str| site.run(&vm, "exec", &[&vm.id.to_string(), &site.host.name(), words, input], &told);
    let wrote = |text: &str| {
        site.host.wait(&format!("the guest to have written {text}"), SOON, |host| {
            host.oneadmin(&format!("head -n 1 {disk} | tr -d '\\0'")).out == format!("{text}\n")
        });
    };
    assert_eq!(exec("dd of=/dev/vda conv=notrunc", "aXRzIGlucHV0Cg=="), "");
    wrote("its input");
    // The command is split into words as a shell does it, but no shell runs it.
    assert_eq!(exec(r#"sh -c "echo 'two  blanks;' \\\$HOME >/dev/vda""#, ""), "");
    wrote("two  blanks; $HOME");
    // A command that does not end is cancelled, and its children end.
    let number = || site.host.oneadmin("cat /run/one/one-31").out;
    assert_eq!(exec("sh -c 'while :; do date +%s%N >/dev/vda; sleep 1; done'", ""), "");
    assert!(!number().is_empty());
    assert_eq!(site.run(&vm, "exec_cancel", &[], &told), "");
    assert_eq!(site.run(&vm, "exec_cancel", &[], &told), "");
    assert_eq!(exec("sh -c 'echo over >/dev/vda'", ""), "");
    wrote("over");
    let text = "no_such_command";
    site.fails(&vm, "exec", &[&vm.id.to_string(), &site.host.name(), text], &told, text);
    site.cancel(&vm);
    site.fails(&vm, "exec", &[&vm.id.to_string(), &site.host.name(), "true"], &told, "there is no domain one-31");
    site.host.oneadmin(&format!("rm -r {}", vm.dir())).ok();
}

pub(super) fn snapshots_bring_back_what_was(site: Site) {
    let vm = guest(32).disk_of("qcow2").nic("br0");
    site.host.oneadmin(&format!("mkdir -p {0} && qemu-img create -q -f qcow2 {0}/disk.0 8M", vm.dir())).ok();
    site.boot(&vm, |text| text);
    let (id, told) = (vm.uuid(), vm.action_data(&site.host.name()).xml());
    let boot = site.host.wait_tick(&vm).boot;
    for number in ["0", "1"] {
        assert_eq!(site.run(&vm, "snapshot_create", &[&id, number], &told), format!("snap-{number}\n"));
    }
    // The guest may repeat the first sign of life after the revert. The third one is new in any case.
    let [_, _, later] = [(); 3].map(|()| site.host.wait_tick(&vm));
    assert_eq!(site.run(&vm, "snapshot_revert", &[&id, "snap-0"], &told), "");
    assert_eq!(site.host.state(&vm), "running");
    site.host.wait("the guest to be what it was", SOON, |host| {
        host.console(&vm).ticks().last().is_some_and(|tick| tick.boot == boot && tick.uptime < later.uptime)
    });
    for (name, left) in [("snap-0", "snap-1\n\n"), ("snap-1", "\n")] {
        for _ in 0..2 {
            assert_eq!(site.run(&vm, "snapshot_delete", &[&id, name], &told), "");
        }
        let names = format!("virsh -q -c qemu:///system snapshot-list --name {}", vm.name());
        assert_eq!(site.host.oneadmin(&names).ok().trim(), left.trim());
    }
    site.fails(&vm, "snapshot_revert", &[&id, "snap-0"], &told, "could not revert to snapshot snap-0");
    site.cancel(&vm);
    site.host.oneadmin(&format!("rm -r {}", vm.dir())).ok();
}
