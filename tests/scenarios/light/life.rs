//! The whole life of a VM, called as each version of OpenNebula does.

use kvm_sriov_tests::caller::{Answer, Version, encoded};
use kvm_sriov_tests::vm::{SHARED, Vm};

use super::{SOON, Site, data, guest};

/// The versions whose calls are run, one of each form.
pub(super) const LIVES: [Version; 4] = [Version::V4_0, Version::V5_12, Version::V6_10, Version::V7];

pub(super) fn a_life_called_by_7(site: Site) {
    Life::new(site, Version::V7, 10).live();
}

pub(super) fn a_life_called_by_6_10(site: Site) {
    Life::new(site, Version::V6_10, 11).live();
}

pub(super) fn a_life_called_by_5_12(site: Site) {
    Life::new(site, Version::V5_12, 12).live();
}

pub(super) fn a_life_called_by_4_0(site: Site) {
    Life::new(site, Version::V4_0, 13).live();
}

/// A VM with a disk and a CD, and its caller.
struct Life {
    site: Site,
    version: Version,
    vm: Vm,
}

impl Life {
    fn new(site: Site, version: Version, id: u32) -> Self {
        Self { site, version, vm: guest(id).disk_of("qcow2").cache("none").nic("br0") }
    }

    /// OpenNebula's name of the VM.
    fn id(&self) -> String {
        if self.version <= Version::V5_12 { self.vm.name() } else { self.vm.uuid() }
    }

    #[track_caller]
    fn call(&self, action: &str, args: &[&str], stdin: &str) -> Answer {
        self.site.call(self.version, &self.vm, action, args, stdin)
    }

    /// Runs an action, which must print nothing.
    #[track_caller]
    fn done(&self, action: &str, args: &[&str], stdin: &str) {
        assert_eq!(self.call(action, args, stdin).ok(), "", "{action}");
    }

    fn live(mut self) {
        self.begins();
        self.nics_and_cds();
        self.disks();
        self.snapshots();
        self.grows();
        self.boots_again();
        self.rests();
        self.moves();
        self.ends();
    }

    fn deployment(&self) -> String {
        let vm = &self.vm;
        let cd = cd(&file(vm, 1));
        vm.deployment()
            .replacen("\t\t<controller type='scsi'", &format!("{cd}\t\t<controller type='scsi'"), 1)
            .replacen("<vcpu><![CDATA[1]]></vcpu>", "<vcpu current='1'>2</vcpu>", 1)
    }

    #[track_caller]
    fn deploy(&self) {
        let (file, host) = (self.vm.deployment_file(), self.site.host.name());
        let said = self.call("deploy", &[&file, &host], &self.deployment()).ok();
        assert_eq!(said, format!("{}\n", self.id()));
    }

    fn begins(&self) {
        let Self { site, version, vm } = self;
        site.host
            .oneadmin(&format!(
                "mkdir -p {0} && cd {0} && qemu-img create -q -f qcow2 disk.0 16M && truncate -s 16M disk.2 && \
                 for cd in 1 3; do echo cd-$cd >disk.$cd && truncate -s 1M disk.$cd; done",
                vm.dir()
            ))
            .ok();
        self.deploy();
        site.boots(vm, 1);
        site.sees(vm, "vda", Some("16"));
        site.sees(vm, "sr0", Some("cd-1"));
        let again = self.call("deploy", &[&vm.deployment_file(), &site.host.name()], &self.deployment());
        assert!(
            again.code == 255 && again.message.contains("is already active; a domain of this name or UUID runs"),
            "{again:?}"
        );
        if *version <= Version::V5_10 {
            let said = self.call("poll", &[&self.id(), &site.host.name()], "").ok();
            assert!(said.starts_with("STATE=a CPU=") && said.lines().count() == 1, "{said}");
        }
    }

    fn nics_and_cds(&mut self) {
        let (site, id) = (self.site, self.id());
        let vm = self.vm.clone().nic("br0");
        let target = format!("{}-1", vm.name());
        let told = vm.action_data(&site.host.name()).attach(1).xml();
        self.done("attach_nic", &[&id, &vm.mac(1), "br0", "virtio", "bridge", &target], &told);
        site.host.wait("the guest to have two NICs", SOON, |host| host.guest_nics(&vm).len() == 2);
        assert!(site.host.guest_nics(&vm).iter().any(|nic| nic.mac == vm.mac(1)));
        if self.version >= Version(5, 0) {
            self.done("prereconfigure", &[&id, "hda"], &told);
            site.sees(&vm, "sr0", Some("none"));
            self.done("reconfigure", &[&id, "hda", &file(&vm, 3)], &told);
            site.sees(&vm, "sr0", Some("cd-3"));
        }
        for _ in 0..2 {
            self.done("detach_nic", &[&id, &vm.mac(1)], &told);
        }
        site.host.wait("the guest to have one NIC", SOON, |host| host.guest_nics(&vm).len() == 1);
    }

    fn disks(&self) {
        let (site, vm, id) = (self.site, &self.vm, self.id());
        let path = file(vm, 2);
        let told = data(
            site.host,
            vm,
            "<DISK><ATTACH>YES</ATTACH><DISK_ID>2</DISK_ID><TYPE>FILE</TYPE><DRIVER>raw</DRIVER><TARGET>vdb</TARGET></DISK>",
        );
        self.done("attach_disk", &[&id, &path, "vdb", "1", &encoded(&told, 0)], &told);
        site.sees(vm, "vdb", Some("16"));
        assert!(site.host.live_xml(vm).contains("cache='directsync'"), "OpenNebula's kvmrc was not read");
        if self.version >= Version(5, 4) {
            self.done("resize_disk", &[&id, "2", "32", &encoded(&told, 0), &site.host.name()], &told);
            site.sees(vm, "vdb", Some("32"));
        }
        if self.version >= Version(7, 2) {
            self.done(
                "exec",
                &[&vm.id.to_string(), &site.host.name(), "sh -c 'echo a guest wrote it >/dev/vdb'"],
                &told,
            );
            site.host.wait("the guest to have written it", SOON, |host| {
                host.oneadmin(&format!("head -n 1 {path} | tr -d '\\0'")).out == "a guest wrote it\n"
            });
            self.done("exec_cancel", &[], &told);
        }
        self.done("detach_disk", &[&id, &path, "vdb", "1"], &told);
        site.sees(vm, "vdb", None);
        let again = self.call("detach_disk", &[&id, &path, "vdb", "1"], &told);
        assert!(again.code == 1 && again.message.contains("has no disk vdb"), "{again:?}");
    }

    fn snapshots(&self) {
        let (site, vm, id) = (self.site, &self.vm, self.id());
        let told = vm.action_data(&site.host.name()).xml();
        assert_eq!(self.call("snapshot_create", &[&id, "0"], &told).ok(), "snap-0\n");
        assert_eq!(site.host.state(vm), "running");
        self.done("snapshot_revert", &[&id, "snap-0"], &told);
        assert_eq!(site.host.state(vm), "running");
        site.host.wait_tick(vm);
        self.done("snapshot_delete", &[&id, "snap-0"], &told);
        let again = self.call("snapshot_revert", &[&id, "snap-0"], &told);
        assert!(again.code != 0 && again.message.contains("could not revert to snapshot snap-0"), "{again:?}");
    }

    fn grows(&self) {
        let (site, vm, id) = (self.site, &self.vm, self.id());
        if self.version < Version(6, 0) {
            return;
        }
        let told = data(
            site.host,
            vm,
            "<VCPU>2</VCPU><MEMORY>128</MEMORY><MEMORY_RESIZE_MODE>BALLOONING</MEMORY_RESIZE_MODE>\
             <RESIZE><VCPU>1</VCPU><MEMORY>160</MEMORY></RESIZE>",
        );
        self.done("resize", &[&id], &told);
        site.sees(vm, "cpus", Some("2"));
    }

    fn boots_again(&self) {
        let (site, vm) = (self.site, &self.vm);
        let args = [self.id(), site.host.name()];
        // A revert started a new console.
        let before = site.host.console(vm).boots();
        for (number, action) in ["reboot", "reset"].iter().enumerate() {
            self.done(action, &args.each_ref().map(String::as_str), &vm.action_data(&site.host.name()).xml());
            site.boots(vm, before + number + 1);
        }
    }

    fn rests(&self) {
        let (site, vm, id) = (self.site, &self.vm, self.id());
        let boot = site.host.wait_tick(vm).boot;
        let told = vm.action_data(&site.host.name()).xml();
        self.done("save", &[&id, &vm.checkpoint(), &site.host.name()], &told);
        site.is_gone(vm);
        self.done("restore", &[&vm.checkpoint(), &site.host.name(), &id], &told);
        assert_eq!(site.host.wait_tick(vm).boot, boot);
        assert_ne!(site.host.oneadmin(&format!("test -e {}", vm.checkpoint())).code, 0, "its checkpoint is there");
        let again = self.call("restore", &[&vm.checkpoint(), &site.host.name(), &id], &told);
        assert!(again.code == 1 && again.message.starts_with("restore: "), "{again:?}");
    }

    fn moves(&mut self) {
        let boot = self.site.host.wait_tick(&self.vm).boot;
        for _ in 0..2 {
            let (site, vm, id) = (self.site, &self.vm, self.id());
            let told = vm.action_data(&site.host.name()).to(&site.other.name(), SHARED).xml();
            self.done("migrate", &[&id, &site.other.name(), &site.host.name()], &told);
            site.is_gone(vm);
            self.site = site.turned();
            assert_eq!(self.site.host.wait_tick(vm).boot, boot, "its memory is not what it was");
        }
    }

    fn ends(&self) {
        let (site, vm) = (self.site, &self.vm);
        let args = [self.id(), site.host.name()];
        let args = args.each_ref().map(String::as_str);
        let told = vm.action_data(&site.host.name()).xml();
        self.done("shutdown", &args, &told);
        site.is_gone(vm);
        assert!(site.host.console(vm).heard_power_button());
        let again = self.call("shutdown", &args, &told);
        assert_eq!(again.code, i32::from(self.version < Version(5, 12)), "{again:?}");
        self.deploy();
        for _ in 0..2 {
            self.done("cancel", &args, &told);
            site.is_gone(vm);
        }
        site.host.oneadmin(&format!("rm -r {}", vm.dir())).ok();
    }
}

/// An image in the directory of a VM.
pub(super) fn file(vm: &Vm, number: u32) -> String {
    format!("{}/disk.{number}", vm.dir())
}

/// A CD drive of a pc, as in a deployment file.
pub(super) fn cd(image: &str) -> String {
    format!(
        "\t\t<disk type='file' device='cdrom'>\n\t\t\t<source file='{image}'/>\n\t\t\t<target dev='hda' bus='ide'/>\n\
         \t\t\t<readonly/>\n\t\t\t<driver name='qemu' type='raw' cache='none'/>\n\t\t</disk>\n"
    )
}
