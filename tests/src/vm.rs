//! A VM as OpenNebula describes it: its deployment file (tabs, single quotes, CDATA, several devices blocks), and the
//! standard input of an action.

use std::fmt::Write;

use kvm_sriov::opennebula::NicArgs;

/// A datastore that both hosts share.
pub const SHARED: u32 = 0;

/// Another datastore that both hosts share.
pub const SHARED_TOO: u32 = 1;

/// A datastore of which each host has its own.
pub const PRIVATE: u32 = 100;

/// The root ports that OpenNebula gives a q35 (Q35_ROOT_PORTS).
const ROOT_PORTS: u32 = 16;

/// RAW data of a template that give a q35 hot-plug by its ports and not by ACPI.
const NATIVE_HOTPLUG: &str = "\t<qemu:commandline><qemu:arg value='-global'/>\
    <qemu:arg value='ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off'/></qemu:commandline>\n";

/// A VM to deploy.
#[derive(Clone)]
pub struct Vm {
    /// OpenNebula's number.
    pub id: u32,
    machine: &'static str,
    native_hotplug: bool,
    emulated: bool,
    nics: Vec<Nic>,
    guest: bool,
    words: String,
    context: bool,
    memory: Option<u32>,
    disk: Option<&'static str>,
    cache: &'static str,
    datastore: u32,
    title: String,
    metadata: String,
}

#[derive(Clone)]
struct Nic {
    bridge: String,
    /// The number in its MAC and in its addresses.
    address: usize,
    vlan: Option<u16>,
}

impl Vm {
    /// A VM of machine type pc without an operating system: no guest answers.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            machine: "pc",
            native_hotplug: false,
            emulated: false,
            nics: Vec::new(),
            guest: false,
            words: String::new(),
            context: false,
            memory: None,
            disk: None,
            cache: "writeback",
            datastore: SHARED,
            title: format!("web-{id}"),
            metadata: String::new(),
        }
    }

    /// Sets the machine type. A q35 gets root ports as OpenNebula writes them.
    #[must_use]
    pub fn machine(self, machine: &'static str) -> Self {
        Self { machine, ..self }
    }

    /// Makes it a q35 whose root ports ask the guest to release a device (pciehp), and not ACPI.
    #[must_use]
    pub fn native_hotplug(self) -> Self {
        Self { native_hotplug: true, ..self }
    }

    /// For a host without KVM.
    #[must_use]
    pub fn emulated(self) -> Self {
        Self { emulated: true, ..self }
    }

    /// Sets the memory in MiB. The default is 256 with the lab's guest, otherwise 64.
    #[must_use]
    pub fn memory(self, mib: u32) -> Self {
        Self { memory: Some(mib), ..self }
    }

    /// With the lab's guest, which pings these addresses: the first through its first VF, the second through its
    /// second, and so on.
    #[must_use]
    pub fn with_peers(self, peers: &[String]) -> Self {
        self.with_guest().words(&format!("peer={}", peers.join(",")))
    }

    /// With a context: OpenNebula's context scripts and their renderer configure the guest's VFs.
    #[must_use]
    pub fn with_context(self) -> Self {
        Self { context: true, ..self.with_guest() }
    }

    /// Adds words to the command line of the guest's kernel.
    #[must_use]
    pub fn words(mut self, words: &str) -> Self {
        self.words.push(' ');
        self.words.push_str(words);
        self
    }

    /// Puts it into another datastore than [`SHARED`].
    #[must_use]
    pub fn datastore(self, datastore: u32) -> Self {
        Self { datastore, ..self }
    }

    /// With the lab's guest, which shows its NICs on its console.
    #[must_use]
    pub fn with_guest(self) -> Self {
        Self { guest: true, ..self }
    }

    /// Whether it has the lab's guest.
    pub fn has_guest(&self) -> bool {
        self.guest
    }

    /// With a disk, `disk.0` in its directory.
    #[must_use]
    pub fn disk(self) -> Self {
        self.disk_of("raw")
    }

    /// With a disk of this format, `disk.0` in its directory.
    #[must_use]
    pub fn disk_of(self, format: &'static str) -> Self {
        Self { disk: Some(format), ..self }
    }

    /// Sets the cache mode of the disk. The default is writeback.
    #[must_use]
    pub fn cache(self, cache: &'static str) -> Self {
        Self { cache, ..self }
    }

    /// Adds a NIC. Its MAC contains the IP address `10.0.<id>.<number>`.
    #[must_use]
    pub fn nic(self, bridge: &str) -> Self {
        let address = self.nics.len();
        self.nic_with_mac_of(address, bridge)
    }

    /// Adds a NIC with the MAC and the addresses of the NIC with this number, as when OpenNebula gives the same lease
    /// in two networks.
    #[must_use]
    pub fn nic_with_mac_of(mut self, number: usize, bridge: &str) -> Self {
        self.nics.push(Nic { bridge: bridge.into(), address: number, vlan: None });
        self
    }

    /// Adds a NIC of a network with this VLAN.
    #[must_use]
    pub fn nic_in_vlan(self, bridge: &str, vlan: u16) -> Self {
        let mut vm = self.nic(bridge);
        vm.nics.last_mut().unwrap().vlan = Some(vlan);
        vm
    }

    /// The number in the MAC and the addresses of a NIC.
    fn address(&self, number: usize) -> usize {
        self.nics.get(number).map_or(number, |nic| nic.address)
    }

    /// The number of its NICs.
    pub fn nics(&self) -> usize {
        self.nics.len()
    }

    /// Sets the title and adds a line of metadata.
    #[must_use]
    pub fn called(self, title: &str, metadata: &str) -> Self {
        Self { title: title.into(), metadata: metadata.into(), ..self }
    }

    /// The domain's name.
    pub fn name(&self) -> String {
        format!("one-{}", self.id)
    }

    /// The domain's UUID.
    pub fn uuid(&self) -> String {
        format!("7f1c2a52-64d6-4c0c-9b0e-0000000{:05}", self.id)
    }

    /// The MAC of the NIC with this number.
    pub fn mac(&self, number: usize) -> String {
        format!("02:00:0a:00:{:02x}:{:02x}", self.id, self.address(number))
    }

    /// The IPv4 address that the lab's guest gives the VF of the NIC with this number.
    pub fn ip(&self, number: usize) -> String {
        format!("10.0.{}.{}", self.id, self.address(number))
    }

    /// The IPv6 address of the NIC with this number in the context.
    pub fn ip6(&self, number: usize) -> String {
        format!("fd00::{:x}:{:x}", self.id, self.address(number))
    }

    /// The bridge of the NIC with this number.
    pub fn bridge(&self, number: usize) -> &str {
        &self.nics[number].bridge
    }

    /// The MAC of the dummy at this position among the VFs, for the NIC with this number.
    pub fn dummy_mac(&self, position: usize, number: usize) -> String {
        format!("aa:{position:02x}:0a:00:{:02x}:{:02x}", self.id, self.address(number))
    }

    /// Its directory on a host.
    pub fn dir(&self) -> String {
        format!("{}/{}", base_path(self.datastore), self.id)
    }

    /// The path of its deployment file.
    pub fn deployment_file(&self) -> String {
        format!("{}/deployment.0", self.dir())
    }

    /// The path of its checkpoint.
    pub fn checkpoint(&self) -> String {
        format!("{}/checkpoint", self.dir())
    }

    /// The file with its console on a host.
    pub fn console(&self) -> String {
        format!("/tmp/{}.console", self.name())
    }

    /// The deployment file.
    pub fn deployment(&self) -> String {
        let mut nics = String::new();
        for (number, nic) in self.nics.iter().enumerate() {
            write!(
                nics,
                "\t\t<interface type='bridge'>\n\t\t\t<source bridge='{}'/>\n\t\t\t<mac address='{}'/>\n\
                 \t\t\t<target dev='one-{}-{number}'/>\n\t\t\t<model type='virtio'/>\n\t\t</interface>\n",
                nic.bridge,
                self.mac(number),
                self.id
            )
            .unwrap();
        }
        let Self { id, machine, title, metadata, .. } = self;
        let (boot, console, cpu) = if self.guest {
            (
                format!(
                    "\t\t<kernel><![CDATA[/lab/vmlinux]]></kernel>\n\
                     \t\t<initrd><![CDATA[/lab/guest.cpio.gz]]></initrd>\n\
                     \t\t<cmdline><![CDATA[console=ttyS0 mitigations=off quiet{}]]></cmdline>\n",
                    self.words.clone() + &self.context_words()
                ),
                format!("\t\t<serial type='file'><source path='{}'/></serial>\n", self.console()),
                if self.emulated { "" } else { "\t<cpu mode='host-passthrough'/>\n" },
            )
        } else {
            (String::new(), String::new(), "")
        };
        let disk = if let Some(format) = self.disk {
            format!(
                "\t\t<disk type='file' device='disk'>\n\t\t\t<source file='{}/disk.0'/>\n\
                 \t\t\t<target dev='vda' bus='virtio'/>\n\t\t\t<driver name='qemu' type='{format}' cache='{}'/>\n\
                 \t\t</disk>\n",
                self.dir(),
                self.cache
            )
        } else {
            String::new()
        };
        let ports: String = if *machine == "q35" {
            let root = "\t\t<controller index='0' type='pci' model='pcie-root'/>\n".to_owned();
            (1..=ROOT_PORTS).fold(root, |xml, index| {
                xml + &format!("\t\t<controller type='pci' index='{index}' model='pcie-root-port'/>\n")
            }) + &format!("\t\t<controller type='pci' index='{}' model='pcie-to-pci-bridge'/>\n", ROOT_PORTS + 1)
        } else {
            String::new()
        };
        format!(
            "<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
	<name>one-{id}</name>
	<title>{title}</title>
	<uuid>{uuid}</uuid>
	<vcpu><![CDATA[1]]></vcpu>
	<cputune>
		<shares>1024</shares>
	</cputune>
	<memory>{memory}</memory>
	<os>
		<type arch='x86_64' machine='{machine}'>hvm</type>
{boot}	</os>
{cpu}	<devices>
		<emulator><![CDATA[/usr/bin/qemu-kvm-one]]></emulator>
{disk}		<controller type='scsi' index='0' model='virtio-scsi'/>
{nics}		<graphics type='vnc' listen='127.0.0.1' port='{port}'/>
{console}{ports}	</devices>
	<features>
		<acpi/>
	</features>
	<devices>
		<channel type='unix'>
			<source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/>
		</channel>
	</devices>
{raw}	<metadata>
		<one:vm xmlns:one=\"http://opennebula.org/xmlns/libvirt/1.0\">
			<one:system_datastore><![CDATA[{dir}]]></one:system_datastore>
			<one:name><![CDATA[{title}]]></one:name>{metadata}
			<one:opennebula_version>7.4.0</one:opennebula_version>
			<one:pci_devices></one:pci_devices>
		</one:vm>
	</metadata>
</domain>
",
            kind = if self.emulated { "qemu" } else { "kvm" },
            uuid = self.uuid(),
            memory = self.memory.unwrap_or(if self.guest { 256 } else { 64 }) * 1024,
            raw = if self.native_hotplug { NATIVE_HOTPLUG } else { "" },
            port = 5900 + id,
            dir = self.dir(),
        )
    }

    /// The context of all NICs. The lab's guest reads it from its kernel's command line and not from a CD.
    fn context_words(&self) -> String {
        let numbers = if self.context { 0..self.nics.len() } else { 0..0 };
        let word = |n: usize| format!(" nic={n},{},{},{}", self.mac(n), self.ip(n), self.ip6(n));
        numbers.map(word).collect()
    }

    /// The arguments of attach_nic for the NIC with this number on a bridge.
    pub fn nic_arguments(&self, number: usize, bridge: &str) -> NicArgs {
        NicArgs {
            mac: self.mac(number).parse().unwrap(),
            bridge: Some(bridge.into()),
            model: Some("virtio".into()),
            vn_mad: Some("bridge".into()),
            target: Some(format!("one-{}-{number}", self.id)),
        }
    }

    /// The standard input of an action for this VM on a host.
    pub fn action_data(&self, host: &str) -> ActionData<'_> {
        ActionData { vm: self, host: host.into(), migration: None, attach: None, features: String::new() }
    }
}

/// The directory of a datastore as OpenNebula writes it.
fn base_path(datastore: u32) -> String {
    format!("/var/lib/one//datastores/{datastore}")
}

/// An element as OpenNebula writes it for an action: `<NAME/>` when it is empty.
fn element(name: &str, text: &str) -> String {
    if text.is_empty() { format!("<{name}/>") } else { format!("<{name}>{text}</{name}>") }
}

/// The standard input of an action, as OpenNebula writes it since 5.0.
pub struct ActionData<'a> {
    vm: &'a Vm,
    host: String,
    migration: Option<(String, u32)>,
    attach: Option<usize>,
    features: String,
}

impl ActionData<'_> {
    /// For a live migration to a host, into a datastore there.
    #[must_use]
    pub fn to(self, host: &str, datastore: u32) -> Self {
        Self { migration: Some((host.into(), datastore)), ..self }
    }

    /// For attach_nic or detach_nic of the NIC with this number.
    #[must_use]
    pub fn attach(self, nic: usize) -> Self {
        Self { attach: Some(nic), ..self }
    }

    /// Adds a value to FEATURES, such as MIGRATE_AUTO_CONVERGE.
    #[must_use]
    pub fn feature(mut self, name: &str, value: &str) -> Self {
        write!(self.features, "<{name}><![CDATA[{value}]]></{name}>").unwrap();
        self
    }

    /// The text.
    pub fn xml(&self) -> String {
        let Self { vm, host, migration, attach, features } = self;
        let Vm { id, title, datastore, .. } = vm;
        let mut nics = String::new();
        for (number, nic) in vm.nics.iter().enumerate() {
            let vlan = nic.vlan.map_or_else(String::new, |vlan| format!("<VLAN_ID><![CDATA[{vlan}]]></VLAN_ID>"));
            let attach = if *attach == Some(number) { "<ATTACH><![CDATA[YES]]></ATTACH>" } else { "" };
            write!(
                nics,
                "<NIC><AR_ID><![CDATA[0]]></AR_ID>{attach}<BRIDGE><![CDATA[{}]]></BRIDGE>\
                 <BRIDGE_TYPE><![CDATA[linux]]></BRIDGE_TYPE><CLUSTER_ID><![CDATA[0]]></CLUSTER_ID>\
                 <IP><![CDATA[{}]]></IP><MAC><![CDATA[{}]]></MAC><MODEL><![CDATA[virtio]]></MODEL>\
                 <NAME><![CDATA[NIC{number}]]></NAME><NETWORK><![CDATA[net]]></NETWORK><NETWORK_ID><![CDATA[0]]></NETWORK_ID>\
                 <NIC_ID><![CDATA[{number}]]></NIC_ID><SECURITY_GROUPS><![CDATA[0]]></SECURITY_GROUPS>\
                 <TARGET><![CDATA[one-{id}-{number}]]></TARGET>{vlan}<VN_MAD><![CDATA[bridge]]></VN_MAD></NIC>",
                nic.bridge,
                vm.ip(number),
                vm.mac(number)
            )
            .unwrap();
        }
        let uuid = vm.uuid();
        let (to, target) = match migration {
            Some((to, datastore)) => (to.clone(), format!("{}/{id}", base_path(*datastore))),
            None => (String::new(), String::new()),
        };
        let saves = migration.is_none() && attach.is_none();
        let checkpoint = if saves { vm.checkpoint() } else { String::new() };
        let (tm_mad, shared) = if *datastore == PRIVATE { ("ssh", "NO") } else { ("shared", "YES") };
        format!(
            "<VMM_DRIVER_ACTION_DATA><HOST>{host}</HOST>{}<DEPLOY_ID>{uuid}</DEPLOY_ID><LOCAL_DEPLOYMENT_FILE/>\
             <REMOTE_DEPLOYMENT_FILE/>{}<TM_COMMAND/><TM_COMMAND_ROLLBACK/>\
             {}<VM><ID>{id}</ID><UID>0</UID><NAME>{title}</NAME><STATE>3</STATE>\
             <DEPLOY_ID>{uuid}</DEPLOY_ID><TEMPLATE><CPU><![CDATA[1]]></CPU><FEATURES><ACPI><![CDATA[YES]]></ACPI>{features}\
             </FEATURES>{nics}<OS><ARCH><![CDATA[x86_64]]></ARCH><MACHINE><![CDATA[{machine}]]></MACHINE></OS>\
             <VCPU><![CDATA[1]]></VCPU><VMID><![CDATA[{id}]]></VMID></TEMPLATE><USER_TEMPLATE/>\
             <HISTORY_RECORDS><HISTORY><OID>{id}</OID><SEQ>1</SEQ><HOSTNAME>{host}</HOSTNAME>\
             <TM_MAD><![CDATA[{tm_mad}]]></TM_MAD><DS_ID>{datastore}</DS_ID></HISTORY></HISTORY_RECORDS></VM>\
             <DATASTORE><ID>{datastore}</ID><NAME>system</NAME><TM_MAD><![CDATA[{tm_mad}]]></TM_MAD>\
             <BASE_PATH><![CDATA[{base}]]></BASE_PATH><TEMPLATE><SHARED><![CDATA[{shared}]]></SHARED>\
             <TM_MAD><![CDATA[{tm_mad}]]></TM_MAD><TYPE><![CDATA[SYSTEM_DS]]></TYPE></TEMPLATE></DATASTORE>\
             </VMM_DRIVER_ACTION_DATA>",
            element("MIGR_HOST", &to),
            element("CHECKPOINT_FILE", &checkpoint),
            element("DISK_TARGET_PATH", &target),
            machine = vm.machine,
            base = base_path(*datastore),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kvm_sriov::xml::VmData;

    use super::*;

    #[test]
    fn what_an_action_is_told_is_understood() {
        let vm = Vm::new(42).datastore(PRIVATE).nic("br0").nic("sriov_pf0");
        let stdin = vm.action_data("host1").to("host2", SHARED).attach(1).feature("MIGRATE_COMPRESSED", "YES").xml();
        let data = VmData::parse(&stdin).unwrap();
        let vm_move = data.vm_move();
        assert_eq!(vm_move.source_dir.as_deref(), Some(Path::new("/var/lib/one//datastores/100/42")));
        assert_eq!(vm_move.target_dir.as_deref(), Some(Path::new("/var/lib/one//datastores/0/42")));
        assert!(!vm_move.is_shared && vm_move.is_compressed);
        assert_eq!(data.tm_mad(), Some("ssh"));
        let [plain, vf] = data.nics() else { panic!("{:?}", data.nics()) };
        assert_eq!((plain.attach, plain.mac.to_string()), (false, vm.mac(0)));
        assert_eq!((vf.attach, vf.target.as_deref(), vf.ip.as_deref()), (true, Some("one-42-1"), Some("10.0.42.1")));
        let stdin = vm.action_data("host1").xml();
        assert_eq!(VmData::parse(&stdin).unwrap().vm_move().target_dir, None);
        assert!(stdin.contains("<CHECKPOINT_FILE>/var/lib/one//datastores/100/42/checkpoint</CHECKPOINT_FILE>"));
    }
}
