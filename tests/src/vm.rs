//! Deployment files in the form OpenNebula writes them: tabs, single quotes, CDATA, several devices blocks.

use std::fmt::Write;

/// A VM to deploy.
#[derive(Clone)]
pub struct Vm {
    /// OpenNebula's number.
    pub id: u32,
    machine: &'static str,
    nics: Vec<Nic>,
    guest: bool,
    disk: bool,
    title: String,
    metadata: String,
}

#[derive(Clone)]
struct Nic {
    bridge: String,
    mac: String,
}

impl Vm {
    /// A VM of machine type pc without an operating system: QEMU runs, nothing answers.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            machine: "pc",
            nics: Vec::new(),
            guest: false,
            disk: false,
            title: format!("web-{id}"),
            metadata: String::new(),
        }
    }

    /// With another machine type. q35 gets root ports as OpenNebula writes them.
    #[must_use]
    pub fn machine(self, machine: &'static str) -> Self {
        Self { machine, ..self }
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
        Self { disk: true, ..self }
    }

    /// With a further NIC. Its MAC holds the IP address `10.0.<id>.<number>`.
    #[must_use]
    pub fn nic(mut self, bridge: &str) -> Self {
        let number = self.nics.len();
        self.nics.push(Nic { bridge: bridge.into(), mac: self.mac(number) });
        self
    }

    /// With another title and a line of metadata.
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
        format!("02:00:0a:00:{:02x}:{number:02x}", self.id)
    }

    /// The MAC of the dummy at this position among the VFs, which stands for the NIC with this number.
    pub fn dummy_mac(&self, position: usize, number: usize) -> String {
        format!("aa:{position:02x}:0a:00:{:02x}:{number:02x}", self.id)
    }

    /// Its directory on a host.
    pub fn dir(&self) -> String {
        format!("/var/lib/one//datastores/0/{}", self.id)
    }

    /// Where OpenNebula wants its deployment file.
    pub fn deployment_file(&self) -> String {
        format!("{}/deployment.0", self.dir())
    }

    /// Its console's file on a host.
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
                nic.bridge, nic.mac, self.id
            )
            .unwrap();
        }
        let Self { id, machine, title, metadata, .. } = self;
        let (boot, console, acpi) = if self.guest {
            (
                "\t\t<kernel><![CDATA[/lab/vmlinuz]]></kernel>\n\t\t<initrd><![CDATA[/lab/guest.cpio.gz]]></initrd>\n\
                 \t\t<cmdline><![CDATA[console=ttyS0 mitigations=off quiet]]></cmdline>\n",
                format!("\t\t<serial type='file'><source path='{}'/></serial>\n", self.console()),
                "\t<cpu mode='host-passthrough'/>\n",
            )
        } else {
            ("", String::new(), "")
        };
        let disk = if self.disk {
            format!(
                "\t\t<disk type='file' device='disk'>\n\t\t\t<source file='{}/disk.0'/>\n\
                 \t\t\t<target dev='vda' bus='virtio'/>\n\t\t\t<driver name='qemu' type='raw' cache='writeback'/>\n\
                 \t\t</disk>\n",
                self.dir()
            )
        } else {
            String::new()
        };
        let ports: String = if *machine == "q35" {
            let root = "\t\t<controller index='0' type='pci' model='pcie-root'/>\n".to_owned();
            (1..=16).fold(root, |xml, index| {
                xml + &format!("\t\t<controller type='pci' index='{index}' model='pcie-root-port'/>\n")
            }) + "\t\t<controller type='pci' index='17' model='pcie-to-pci-bridge'/>\n"
        } else {
            String::new()
        };
        format!(
            "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
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
{acpi}	<devices>
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
	<metadata>
		<one:vm xmlns:one=\"http://opennebula.org/xmlns/libvirt/1.0\">
			<one:system_datastore><![CDATA[{dir}]]></one:system_datastore>
			<one:name><![CDATA[{title}]]></one:name>{metadata}
			<one:opennebula_version>7.4.0</one:opennebula_version>
			<one:pci_devices></one:pci_devices>
		</one:vm>
	</metadata>
</domain>
",
            uuid = self.uuid(),
            memory = if self.guest { 256 * 1024 } else { 64 * 1024 },
            port = 5900 + id,
            dir = self.dir(),
        )
    }
}
