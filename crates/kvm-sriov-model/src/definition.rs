//! A domain's definition: the XML that it was started from, completed as libvirt does.

use kvm_sriov::libvirt::LibvirtError;
use kvm_sriov::{DomainName, DomainUuid, PciAddress};

use super::element::Element;
use super::refusal;
use super::slots::Machine;

/// A domain's definition, split into the parts that calls change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) name: DomainName,
    pub(super) uuid: DomainUuid,
    /// `<domain>` without name, UUID and the two elements below.
    rest: Element,
    metadata: Element,
    devices: Vec<Element>,
}

impl Definition {
    /// Reads a domain's XML with any number of `<devices>` blocks. `uuid` is for one that names none.
    pub(super) fn parse(text: &str, uuid: &DomainUuid) -> Result<Self, LibvirtError> {
        let mut rest = Element::parse(text).map_err(|error| refusal::xml(format!("(domain_definition): {error}")))?;
        if rest.name() != "domain" {
            return Err(refusal::xml(format!("unexpected root element <{}>, expecting <domain>", rest.name())));
        }
        let text_of = |element: Vec<Element>| element.first().map(Element::text);
        let name = text_of(rest.take(|child| child.name() == "name"))
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| refusal::xml("missing domain name information"))?;
        let uuid = match text_of(rest.take(|child| child.name() == "uuid")) {
            Some(text) => text.parse().map_err(|_| refusal::internal(format!("malformed uuid element {text}")))?,
            None => uuid.clone(),
        };
        let metadata = rest.take(|child| child.name() == "metadata").into_iter().next();
        let devices = rest.take(|child| child.name() == "devices");
        let devices = devices.iter().flat_map(Element::children).cloned().collect();
        Ok(Self { name, uuid, rest, metadata: metadata.unwrap_or_else(|| Element::new("metadata", &[])), devices })
    }

    /// The XML that libvirt shows.
    pub(super) fn to_xml(&self, id: Option<u32>) -> String {
        self.to_element(id).to_string()
    }

    /// The element `<domain>` that libvirt shows.
    pub(super) fn to_element(&self, id: Option<u32>) -> Element {
        let mut domain = self.rest.clone();
        if let Some(id) = id {
            domain.set("id", &id.to_string());
        }
        if self.metadata.children().next().is_some() {
            domain.push_front(self.metadata.clone());
        }
        domain.push_front(Element::new("uuid", &[]).with_text(self.uuid.as_str()));
        domain.push_front(Element::new("name", &[]).with_text(self.name.as_str()));
        domain.push(self.devices.iter().cloned().fold(Element::new("devices", &[]), Element::with));
        domain
    }

    /// Adds what libvirt adds to a domain that starts: default devices, aliases, guest addresses.
    pub(super) fn complete(&mut self) -> Result<(), LibvirtError> {
        let has = |name: &str, kind: Option<&str>| {
            let is_it =
                |device: &Element| device.name() == name && (kind.is_none() || device.attribute("type") == kind);
            self.devices.iter().any(is_it)
        };
        let mut added = Vec::new();
        for (lacks, name, attribute) in [
            (!has("controller", Some("usb")), "controller", ("type", "usb")),
            (
                has("channel", None) && !has("controller", Some("virtio-serial")),
                "controller",
                ("type", "virtio-serial"),
            ),
            (has("graphics", None) && !has("video", None), "video", ("model", "cirrus")),
            (!has("memballoon", None), "memballoon", ("model", "virtio")),
        ] {
            if lacks {
                added.push(Element::new(name, &[attribute]));
            }
        }
        self.devices.extend(added);
        let balloon = self.memory_kib("currentMemory");
        self.set_memory_kib("memory", self.memory_kib("memory"));
        self.set_memory_kib("currentMemory", balloon);
        for at in 0..self.devices.len() {
            self.name_device(at)?;
        }
        self.machine().place_all(&mut self.devices)
    }

    fn machine(&self) -> Machine {
        Machine::of(self.rest.child("os").and_then(|os| os.child("type")).and_then(|kind| kind.attribute("machine")))
    }

    /// Whether the guest has ACPI. Without ACPI no request reaches it.
    pub(super) fn has_acpi(&self) -> bool {
        self.rest.child("features").is_some_and(|features| features.child("acpi").is_some())
    }

    /// Keeps a user's alias, and numbers every other device.
    ///
    /// # Source
    /// libvirt's `qemu_alias.c`: a user's alias begins with `ua-`; any other alias is ignored.
    fn name_device(&mut self, at: usize) -> Result<(), LibvirtError> {
        let (before, rest) = self.devices.split_at(at);
        let device = &rest[0];
        if device.name() == "emulator" {
            return Ok(());
        }
        let alias = match device.alias().filter(|alias| alias.starts_with("ua-")) {
            Some(alias) if before.iter().chain(&rest[1..]).any(|other| other.alias() == Some(alias)) => {
                return Err(refusal::unsupported(format!("non unique alias detected: {alias}")));
            }
            Some(alias) => alias.to_owned(),
            None => {
                let stem = match device.name() {
                    "interface" if device.host_address().is_none() => "net",
                    "interface" => "hostdev",
                    name => name,
                };
                let number = |other: &Element| other.alias()?.strip_prefix(stem)?.parse::<usize>().ok();
                format!("{stem}{}", before.iter().filter_map(number).max().map_or(0, |last| last + 1))
            }
        };
        self.devices[at].name_device(&alias);
        Ok(())
    }

    /// Adds a device, with an alias and an address. Returns the alias.
    pub(super) fn plug(&mut self, mut device: Element) -> Result<String, LibvirtError> {
        if device.name() == "interface" && device.mac().is_none() {
            device.push(Element::new("mac", &[("address", "52:54:00:00:00:01")]));
        }
        if device.name() == "disk" {
            self.can_take_disk(&mut device)?;
        }
        self.machine().place(&self.devices, &mut device)?;
        let more = dimm_kib(&device);
        self.devices.push(device);
        let at = self.devices.len() - 1;
        let named = self.name_device(at);
        if named.is_err() {
            self.devices.pop();
        } else if more > 0 {
            self.grow(|kib| kib + more);
        }
        named.map(|()| self.devices[at].alias().unwrap_or_default().to_owned())
    }

    /// Refuses a disk whose target is in use. Gives it the bus of its target's name.
    ///
    /// # Source
    /// libvirt's `virDiskNameToBusDeviceIndex`, `qemuDomainAttachDeviceDiskLiveInternal`.
    fn can_take_disk(&self, disk: &mut Element) -> Result<(), LibvirtError> {
        let target = disk.child("target").and_then(|target| target.attribute("dev")).unwrap_or_default().to_owned();
        if self.disk(&target).is_some() {
            return Err(refusal::xml(format!("target '{target}' duplicated for disk sources")));
        }
        let bus = match target.get(..2) {
            Some("vd") => "virtio",
            Some("sd") => "scsi",
            _ => return Err(refusal::invalid("disk bus 'ide' cannot be hotplugged.")),
        };
        disk.take(|child| child.name() == "target");
        disk.push(Element::new("target", &[("dev", &target), ("bus", bus)]));
        Ok(())
    }

    /// Removes a device.
    pub(super) fn unplug(&mut self, alias: &str) {
        let less = self.device(alias).map_or(0, dimm_kib);
        self.devices.retain(|device| device.alias() != Some(alias));
        if less > 0 {
            self.grow(|kib| kib - less);
        }
    }

    /// Changes the guest's memory.
    fn grow(&mut self, change: impl Fn(u64) -> u64) {
        let (all, balloon) = (self.memory_kib("memory"), self.memory_kib("currentMemory"));
        self.set_memory_kib("memory", change(all));
        self.set_memory_kib("currentMemory", change(balloon));
    }

    /// `<memory>` or `<currentMemory>`, in KiB. Without `<currentMemory>` the guest has all of its memory.
    pub(super) fn memory_kib(&self, name: &str) -> u64 {
        let found = self.rest.child(name).or_else(|| self.rest.child("memory"));
        found.and_then(|memory| memory.text().trim().parse().ok()).unwrap_or(0)
    }

    pub(super) fn set_memory_kib(&mut self, name: &str, kib: u64) {
        self.rest.take(|child| child.name() == name);
        self.rest.push(Element::new(name, &[("unit", "KiB")]).with_text(&kib.to_string()));
    }

    /// The maximum number of virtual CPUs.
    pub(super) fn most_vcpus(&self) -> u32 {
        self.rest.child("vcpu").and_then(|vcpu| vcpu.text().trim().parse().ok()).unwrap_or(1)
    }

    /// The current number of virtual CPUs.
    pub(super) fn vcpus(&self) -> u32 {
        let current = self.rest.child("vcpu").and_then(|vcpu| vcpu.attribute("current"));
        current.and_then(|current| current.parse().ok()).unwrap_or(self.most_vcpus())
    }

    pub(super) fn set_vcpus(&mut self, number: u32) {
        let most = self.most_vcpus().to_string();
        self.rest.take(|child| child.name() == "vcpu");
        self.rest.push(Element::new("vcpu", &[("current", &number.to_string())]).with_text(&most));
    }

    /// Refuses a DIMM for which the domain has no room.
    ///
    /// # Source
    /// libvirt's `qemuDomainDefValidateMemoryHotplug`.
    pub(super) fn can_take_dimm(&self, device: &Element) -> Result<(), LibvirtError> {
        let most = self.rest.child("maxMemory");
        let Some(most) = most else {
            return Err(refusal::unsupported(
                "cannot use/hotplug a memory device when domain 'maxMemory' is not defined",
            ));
        };
        let most: u64 = most.text().trim().parse().unwrap_or(0);
        if self.memory_kib("memory") + dimm_kib(device) > most {
            return Err(refusal::unsupported("memory device total size exceeds hotplug space"));
        }
        Ok(())
    }

    /// Its devices.
    pub(super) fn devices(&self) -> &[Element] {
        &self.devices
    }

    /// The device with this alias.
    pub(super) fn device(&self, alias: &str) -> Option<&Element> {
        self.devices.iter().find(|device| device.alias() == Some(alias))
    }

    /// The disk with this target.
    pub(super) fn disk(&self, target: &str) -> Option<&Element> {
        self.devices.iter().find(|device| device.is_disk(target))
    }

    /// The disk goes over to another image.
    pub(super) fn pivot(&mut self, target: &str, image: &Element) {
        for disk in self.devices.iter_mut().filter(|device| device.is_disk(target)) {
            disk.take(|child| matches!(child.name(), "source" | "backingStore"));
            for child in image.children().filter(|child| matches!(child.name(), "source" | "backingStore")) {
                disk.push(child.clone());
            }
            if let Some(kind) = image.attribute("type") {
                disk.set("type", kind);
            }
        }
    }

    /// Shows, as libvirt does, that the disk is being copied into this image.
    pub(super) fn mirror(&mut self, target: &str, image: &Element) {
        for disk in self.devices.iter_mut().filter(|device| device.is_disk(target)) {
            let mirror =
                Element::new("mirror", &[("type", image.attribute("type").unwrap_or("file")), ("job", "copy")]);
            let sources = image.children().filter(|child| child.name() == "source").cloned();
            disk.push(sources.fold(mirror, Element::with));
        }
    }

    /// The host's PCI devices in this domain.
    pub(super) fn host_addresses(&self) -> impl Iterator<Item = PciAddress> {
        self.devices.iter().filter_map(Element::host_address)
    }

    /// The metadata of this namespace, as libvirt's call returns them: without prefix and namespace.
    ///
    /// # Source
    /// `virXMLExtractNamespaceXML` in libvirt's `src/util/virxml.c`.
    pub(super) fn metadata(&self, uri: &str) -> Option<String> {
        let element = self.metadata.children().find(|child| child.namespace() == Some(uri));
        element.map(|element| element.clone().without_namespace().to_string())
    }

    /// Sets or removes the metadata of this namespace, as libvirt's call does: every element gets the prefix, which
    /// must not be declared in the metadata yet.
    ///
    /// # Source
    /// `virDomainDefSetMetadata` in libvirt's `src/conf/domain_conf.c`, `virXMLInjectNamespace` in `src/util/virxml.c`.
    pub(super) fn set_metadata(&mut self, text: Option<&str>, prefix: &str, uri: &str) -> Result<(), LibvirtError> {
        let new = text.map(Element::parse).transpose();
        let new = new.map_err(|error| refusal::xml(format!("(metadata_xml): {error}")))?;
        if new.as_ref().is_some_and(|element| element.attribute(&format!("xmlns:{prefix}")).is_some()) {
            return Err(refusal::internal("failed to create a new XML namespace"));
        }
        self.metadata.take(|child| child.namespace() == Some(uri));
        if let Some(element) = new {
            self.metadata.push(element.in_namespace(prefix, uri));
        }
        Ok(())
    }
}

/// The size of a DIMM in KiB; 0 for any other device.
pub(super) fn dimm_kib(device: &Element) -> u64 {
    let size = device.child("target").and_then(|target| target.child("size"));
    let Some(size) = size.filter(|_| device.name() == "memory") else { return 0 };
    let number: u64 = size.text().trim().parse().unwrap_or(0);
    if size.attribute("unit") == Some("MiB") { number * 1024 } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_sriov::xml::LiveDomain;

    /// A domain as OpenNebula describes it: two blocks of devices, CDATA, a virtio disk, these NICs, and root ports on
    /// a q35.
    fn description(machine: &str, nics: usize) -> String {
        let nic = |n| {
            format!("<interface type='bridge'><source bridge='br0'/><mac address='02:00:0a:00:2a:0{n}'/></interface>")
        };
        let port = |n| format!("<controller type='pci' index='{n}' model='pcie-root-port'/>");
        let nics: String = (0..nics).map(nic).collect();
        let ports: String = if machine == "q35" { (1..=16).map(port).collect() } else { String::new() };
        format!(
            "<domain type='kvm'><name>one-42</name><memory>65536</memory><os><type machine='{machine}'>hvm</type></os>
            <devices><disk type='file' device='disk'><source file='/0/42/disk.0'/><target dev='vda' bus='virtio'/></disk>
            <controller type='scsi' index='0' model='virtio-scsi'/>{nics}
            <graphics type='vnc' listen='127.0.0.1' port='5942'/>{ports}</devices><features><acpi/></features>
            <devices><channel type='unix'><source mode='bind'/><target type='virtio' name='x'/></channel></devices>
            <metadata><one:vm xmlns:one='http://opennebula.org/xmlns/libvirt/1.0'>
            <one:system_datastore><![CDATA[/var/lib/one//datastores/0/42]]></one:system_datastore></one:vm></metadata></domain>"
        )
    }

    fn started(machine: &str, nics: usize) -> (Definition, LiveDomain) {
        let uuid = "00000000-0000-0000-0000-000000000000".parse().unwrap();
        let mut definition = Definition::parse(&description(machine, nics), &uuid).unwrap();
        definition.complete().unwrap();
        let live = LiveDomain::parse(&definition.to_xml(Some(1))).unwrap();
        (definition, live)
    }

    #[test]
    fn a_domain_that_starts_is_completed() {
        for (machine, addresses) in
            [("pc", ["0000:00:03.0", "0000:00:04.0"]), ("q35", ["0000:01:00.0", "0000:02:00.0"])]
        {
            let (definition, live) = started(machine, 2);
            assert_eq!((live.name.as_str(), live.has_acpi), ("one-42", true));
            let nics: Vec<_> = live.interfaces.iter().map(|nic| nic.guest.unwrap().to_string()).collect();
            assert_eq!(nics, addresses);
            let aliases: Vec<_> = live.interfaces.iter().filter_map(|nic| nic.alias.as_deref()).collect();
            assert_eq!(aliases, ["net0", "net1"]);
            assert!(live.vm_dir.is_some(), "OpenNebula's metadata are lost");
            let at = |name| definition.devices().iter().find(|device| device.name() == name).unwrap().guest_address();
            assert!(at("memballoon").is_some() && at("disk").is_some() && at("graphics").is_none());
        }
    }

    #[test]
    fn a_slot_is_given_once() {
        let (mut definition, _) = started("pc", 1);
        let nic = |at: &str| Element::parse(&format!("<interface type='bridge'>{at}</interface>")).unwrap();
        assert_eq!(definition.plug(nic("")).unwrap(), "net1");
        let taken = definition.plug(nic("<address type='pci' slot='0x03'/>")).unwrap_err();
        assert_eq!(taken.text(), "XML error: Attempted double use of PCI Address 0000:00:03.0");
        assert_eq!(definition.plug(nic("<alias name='ua-x'/><address type='pci' slot='0x1f'/>")).unwrap(), "ua-x");
        assert_eq!(definition.plug(nic("<alias name='ua-x'/>")).unwrap_err().code(), 67);
        definition.unplug("net0");
        definition.plug(nic("<address type='pci' slot='0x03'/>")).unwrap();
    }
}
