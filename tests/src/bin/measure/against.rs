//! Actions against virsh, on hosts with QEMU. Both run in turn on the same VM.

use std::fmt::Write;
use std::time::Duration;

use kvm_sriov_tests::remotes::Remotes;
use kvm_sriov_tests::rig_host::{GUEST_BOOT, KVMRC, RigHost, SOON};
use kvm_sriov_tests::vm::{SHARED, Vm};

use crate::shares::{self, SPANS};

/// virsh as OpenNebula's user calls it.
const VIRSH: &str = "virsh -q -c qemu:///system";

/// The driver on a host.
const DRIVER: &str = "/var/tmp/one/vmm/kvm-sriov";

/// The files that a run writes on a host: an action's standard input, and what virsh attaches.
const STDIN: &str = "/tmp/measure.stdin";
const NIC: &str = "/tmp/measure.nic";

/// A guest on the light hosts boots within 9 s, with a load of ten times the processors.
const LIGHT_BOOT: Duration = Duration::from_secs(60);

/// The VM to measure, and the host where it runs.
struct Measured {
    vm: Vm,
    host: RigHost,
}

/// Who does an action.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Virsh,
    Ours,
}

impl Who {
    /// Both, the other one first in every other round.
    fn in_turn(round: usize) -> [Self; 2] {
        if round % 2 == 0 { [Self::Virsh, Self::Ours] } else { [Self::Ours, Self::Virsh] }
    }
}

/// How long one run took, in milliseconds.
#[derive(Clone, Copy)]
struct Taken {
    all: f64,
    /// The part that is neither libvirt's answer nor the guest's nor the start of ssh. `None` for virsh.
    own: Option<f64>,
}

/// The milliseconds of each program for one action.
#[derive(Default)]
struct Times {
    action: &'static str,
    virsh: Vec<f64>,
    ours: Vec<f64>,
    own: Vec<f64>,
}

impl Times {
    fn of(action: &'static str) -> Self {
        Self { action, ..Self::default() }
    }

    fn add(&mut self, taken: Taken) {
        let all = if taken.own.is_none() { &mut self.virsh } else { &mut self.ours };
        all.push(taken.all);
        self.own.extend(taken.own);
    }

    /// A row of the table: medians, their ratio, and the number of runs.
    fn row(mut self, first: &str) {
        let [virsh, ours, own] = [&mut self.virsh, &mut self.ours, &mut self.own].map(|times| median(times));
        let runs = self.virsh.len().min(self.ours.len());
        println!("| {first}{} | {virsh:.0} | {ours:.0} | {:.2} | {own:.0} | {runs} |", self.action, ours / virsh);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (count, middle) if count % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        (_, middle) => values[middle],
    }
}

impl Measured {
    /// Runs commands of a shell on the VM's host, which must succeed. Returns their milliseconds there, without the way
    /// to the host.
    fn timed(&self, forwards: bool, commands: &str) -> f64 {
        let script = format!(
            "begin=$(date +%s%N); said=$( {{ set -e; {commands}; }} 2>&1 ); code=$?; end=$(date +%s%N); \
             echo $((end - begin)); [ $code -eq 0 ] || {{ echo \"$said\" >&2; exit 1; }}"
        );
        let said = if forwards { self.host.oneadmin_forwarding(&script) } else { self.host.oneadmin(&script) };
        said.ok().trim().parse::<f64>().unwrap() / 1e6
    }

    /// As [`Measured::timed`], for calls of virsh.
    fn by_virsh(&self, forwards: bool, commands: &str) -> Taken {
        Taken { all: self.timed(forwards, commands), own: None }
    }

    /// A call of virsh. What the driver gets on its standard input is written first, as for the driver, so that both
    /// begin in the same state of the host.
    fn virsh(&self, words: &str, stdin: &str) -> Taken {
        self.host.write(STDIN, stdin);
        self.by_virsh(false, &format!("{VIRSH} {words}"))
    }

    /// An action of the driver, with this standard input.
    fn ours(&self, action: &str, words: &str, stdin: &str) -> Taken {
        self.host.write(STDIN, stdin);
        let (vm, host) = (self.vm.id, self.host.name());
        let command = format!("SRIOV_SPANS={SPANS} {DRIVER}/{action} {words} {vm} {host} <{STDIN}");
        let all = self.timed(action == "migrate", &command);
        Taken { all, own: Some(shares::own(&shares::spans(self.host))) }
    }

    fn data(&self) -> String {
        self.vm.action_data(&self.host.name()).xml()
    }

    fn uuid(&self) -> String {
        self.vm.uuid()
    }

    fn save(&self, who: Who) -> Taken {
        let (uuid, file) = (self.uuid(), self.vm.checkpoint());
        match who {
            Who::Virsh => self.by_virsh(false, &format!("{}{VIRSH} save {uuid} {file}", self.unplug())),
            Who::Ours => self.ours("save", &format!("{uuid} {file} {}", self.host.name()), &self.data()),
        }
    }

    /// * `devices` - the VFs that virsh attaches afterwards
    fn restore(&self, who: Who, devices: &[String]) -> Taken {
        let (uuid, file) = (self.uuid(), self.vm.checkpoint());
        match who {
            Who::Virsh => {
                // The driver removes the checkpoint too.
                self.by_virsh(false, &format!("{VIRSH} restore {file}{}; rm {file}", self.plug(devices)))
            }
            Who::Ours => self.ours("restore", &format!("{file} {} {uuid}", self.host.name()), &self.data()),
        }
    }

    /// Moves the VM to `to`.
    fn migrate(&mut self, who: Who, to: RigHost, devices: &[String]) -> Taken {
        let uuid = self.uuid();
        let destination = format!("qemu+ssh://{}/system", to.name());
        let taken = match who {
            Who::Virsh => {
                // What the migration leaves to be done at the destination, virsh does through a connection to it.
                let plug = self.plug(devices).replace("qemu:///system", &destination);
                let unplug = self.unplug();
                self.by_virsh(true, &format!("{unplug}{VIRSH} migrate --live --unsafe {uuid} {destination}{plug}"))
            }
            Who::Ours => {
                let data = self.vm.action_data(&self.host.name()).to(&to.name(), SHARED).xml();
                self.ours("migrate", &format!("{uuid} {} {}", to.name(), self.host.name()), &data)
            }
        };
        self.host = to;
        taken
    }

    /// The VFs of the running VM as virsh attaches them: libvirt's own elements.
    fn devices(&self) -> Vec<String> {
        let xml = self.host.live_xml(&self.vm);
        let document = roxmltree::Document::parse(&xml).unwrap();
        let hostdevs = document.descendants().filter(|node| node.has_tag_name("hostdev"));
        hostdevs.map(|node| xml[node.range()].to_owned()).collect()
    }

    /// Commands that unplug all VFs as fast as virsh can: one virsh requests all of them.
    fn unplug(&self) -> String {
        let (uuid, mut requests) = (self.uuid(), String::new());
        for device in self.devices() {
            let alias = device.split("<alias name='").nth(1).unwrap().split('\'').next().unwrap();
            write!(requests, "detach-device-alias {uuid} {alias} --live; ").unwrap();
        }
        if requests.is_empty() {
            return requests;
        }
        format!("{VIRSH} '{requests}'; while {VIRSH} dumpxml {uuid} | grep -q '<hostdev'; do sleep 0.1; done; ")
    }

    /// Commands with which one virsh plugs these VFs, from files that this writes on the VM's host.
    fn plug(&self, devices: &[String]) -> String {
        let (uuid, mut requests) = (self.uuid(), String::new());
        for (number, device) in devices.iter().enumerate() {
            self.host.write(&format!("{NIC}{number}"), device);
            write!(requests, "attach-device {uuid} {NIC}{number} --live; ").unwrap();
        }
        if requests.is_empty() { requests } else { format!("; {VIRSH} '{requests}'") }
    }

    fn has_nic(&self, mac: &str) -> bool {
        self.host.live_xml(&self.vm).contains(mac)
    }
}

/// The actions of a VM without VFs on the light hosts, each against one call of virsh.
pub(crate) fn light(rounds: usize) {
    let [one, two] = RigHost::start_light();
    for host in [one, two] {
        host.install(&Remotes::default());
        // libvirt 9.0 treats only network file systems such as NFS as shared.
        host.write(KVMRC, "MIGRATE_OPTIONS=\"--unsafe\"\n");
    }
    let vm = Vm::new(81).emulated().with_guest().memory(160).nic("br0").nic("br0");
    // It starts without its second NIC, which is attached.
    let deployed = Vm::new(81).emulated().with_guest().memory(160).nic("br0");
    one.deploy(&deployed).ok();
    one.wait("the guest to boot", LIGHT_BOOT, |host| host.console(&vm).boots() == 1 && host.guest_nics(&vm).len() == 1);
    let mut measured = Measured { vm, host: one };
    println!("| action | virsh (ms) | ours (ms) | of virsh | outside libvirt (ms) | runs |\n|---|---|---|---|---|---|");
    nics(&measured, rounds);
    resize(&measured, rounds);
    let [mut save, mut restore, mut migrate] = ["save", "restore", "migrate"].map(Times::of);
    // The VM that is moved has one NIC.
    measured.vm = deployed;
    for round in 0..=rounds {
        for who in Who::in_turn(round) {
            let saved = measured.save(who);
            let restored = measured.restore(who, &[]);
            let moved = [two, one].map(|to| measured.migrate(who, to, &[]));
            // The first round does not count.
            if round > 0 {
                save.add(saved);
                restore.add(restored);
                for time in moved {
                    migrate.add(time);
                }
            }
        }
    }
    for times in [save, restore, migrate] {
        times.row("");
    }
    one.cancel(&measured.vm).ok();
    RigHost::stop_light();
}

/// attach_nic and detach_nic of a NIC on a bridge.
fn nics(measured: &Measured, rounds: usize) {
    let Measured { vm, host } = measured;
    let (uuid, mac) = (vm.uuid(), vm.mac(1));
    let nic = format!(
        "<interface type='bridge'><source bridge='br0'/><mac address='{mac}'/><target dev='one-{}-1'/>\
         <model type='virtio'/></interface>",
        vm.id
    );
    host.write(NIC, &nic);
    let data = vm.action_data(&host.name()).attach(1).xml();
    let [mut attach, mut detach] = ["attach_nic", "detach_nic"].map(Times::of);
    for round in 0..=rounds {
        for who in Who::in_turn(round) {
            let attached = match who {
                Who::Virsh => measured.virsh(&format!("attach-device {uuid} {NIC} --live"), &data),
                Who::Ours => {
                    measured.ours("attach_nic", &format!("{uuid} {mac} br0 virtio bridge one-{}-1", vm.id), &data)
                }
            };
            host.wait("the guest to have the NIC", SOON, |host| host.guest_nics(vm).len() == 2);
            let detached = match who {
                Who::Virsh => measured.virsh(&format!("detach-interface {uuid} bridge --mac {mac} --live"), &data),
                Who::Ours => measured.ours("detach_nic", &format!("{uuid} {mac}"), &data),
            };
            host.wait("the NIC to be gone", SOON, |host| !measured.has_nic(&mac) && host.guest_nics(vm).len() == 1);
            if round > 0 {
                attach.add(attached);
                detach.add(detached);
            }
        }
    }
    attach.row("");
    detach.row("");
}

/// resize of the memory, by the balloon.
fn resize(measured: &Measured, rounds: usize) {
    let uuid = measured.uuid();
    let mut times = Times::of("resize");
    for round in 0..=rounds {
        for (number, who) in Who::in_turn(round).into_iter().enumerate() {
            // Each call changes something.
            let mib = [128, 144][number];
            let words = format!(
                "<VCPU>1</VCPU><MEMORY>{mib}</MEMORY><MEMORY_RESIZE_MODE>BALLOONING</MEMORY_RESIZE_MODE>\
                 <RESIZE><MEMORY>160</MEMORY></RESIZE>"
            );
            let data = measured.data().replacen("<VCPU><![CDATA[1]]></VCPU>", &words, 1);
            let taken = match who {
                Who::Virsh => measured.virsh(&format!("setmem {uuid} {mib}M --live"), &data),
                Who::Ours => measured.ours("resize", &uuid, &data),
            };
            let kib = format!("<currentMemory unit='KiB'>{}</currentMemory>", mib * 1024);
            let has = |host: RigHost| host.live_xml(&measured.vm).contains(&kib);
            measured.host.wait(&format!("the guest to give back all but {mib} MiB"), SOON, has);
            if round > 0 {
                times.add(taken);
            }
        }
    }
    times.row("");
}

/// save, restore and migrate of a VM with VFs in the lab, each against the calls of virsh that do the same.
///
/// * `vfs` - how many VFs the VM has: a table for each
pub(crate) fn lab(rounds: usize, vfs: &[usize]) {
    let [one, two] = RigHost::start_both();
    for host in [one, two] {
        host.clean();
        host.install(&Remotes::default());
        host.set_up();
    }
    println!(
        "| VFs | action | virsh (ms) | ours (ms) | of virsh | outside libvirt (ms) | runs |\n|---|---|---|---|---|---|---|"
    );
    for (&vfs, id) in vfs.iter().zip(85..) {
        let roots = ["sriov_pf0", "sriov_pf1"];
        let vm = roots.iter().cycle().take(vfs).fold(Vm::new(id).machine("q35").with_guest(), |vm, root| vm.nic(root));
        one.deploy(&vm).ok();
        let mut measured = Measured { vm, host: one };
        let ready = |measured: &Measured| {
            let Measured { vm, host } = measured;
            host.wait("the guest's NICs", GUEST_BOOT, |host| host.guest_nics(vm).len() == 2 * vfs);
            host.wait_tick(vm);
        };
        ready(&measured);
        let [mut save, mut restore, mut migrate] = ["save", "restore", "migrate"].map(Times::of);
        for round in 0..rounds {
            for who in Who::in_turn(round) {
                let devices = measured.devices();
                assert_eq!(devices.len(), vfs);
                save.add(measured.save(who));
                restore.add(measured.restore(who, &devices));
                ready(&measured);
                for to in [two, one] {
                    let devices = measured.devices();
                    migrate.add(measured.migrate(who, to, &devices));
                    ready(&measured);
                }
            }
        }
        for times in [save, restore, migrate] {
            times.row(&format!("{vfs} | "));
        }
        one.cancel(&measured.vm).ok();
    }
}
