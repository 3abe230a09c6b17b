//! OpenNebula's deployment file, and its translation for libvirt.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::nic::{FILTER, LIMITS};
use super::{VmData, VmNic};
use crate::base::{DomainName, DomainUuid, MacAddress, PciAddress, Position, RootName};
use crate::xml::domain::{
    choose_guest_addresses, devices, guest_address, hard_limit, hostdev, kibibytes, mac_of, uuid_of,
};
use crate::xml::parse::parse;
use crate::xml::read::{attribute, child, child_attribute, children, content, decimal, root};
use crate::xml::splice::{Splice, apply};
use crate::xml::write::{ElementLine, Escaped, append, element, lay_out, margin, step};
use crate::xml::{Wanted, WantedNic, XmlError, dummy_alias_of};

/// The domain XML of a VM to be started, as OpenNebula wrote it.
///
/// ```
/// use kvm_sriov::xml::Deployment;
/// let deployment = Deployment::parse("<domain><name>one-42</name><devices><interface type='bridge'>\
///     <source bridge='sriov_ib0'/><mac address='02:00:c0:a8:01:05'/></interface></devices></domain>")?;
/// assert_eq!(deployment.sriov_nics().next().unwrap().root.as_str(), "ib0");
/// # Ok::<(), kvm_sriov::xml::XmlError>(())
/// ```
///
/// # Source
/// OpenNebula's `LibVirtDriverKVM.cc`: there are several blocks of devices with the text of the user's RAW attribute
/// between them, and the values of attributes are not escaped.
#[derive(Debug, Clone)]
pub struct Deployment {
    text: String,
    name: DomainName,
    uuid: Option<DomainUuid>,
    memory_kib: u64,
    limit_kib: Option<u64>,
    nvram: Option<Nvram>,
    disks: Vec<DiskFile>,
    /// Sorted by position.
    nics: Vec<SriovInterface>,
    /// The MACs of all interfaces, with and without a VF.
    macs: Vec<MacAddress>,
    domain: Range<usize>,
    last_devices: Option<Range<usize>>,
    metadata: Option<Range<usize>>,
    /// Elements of the driver's namespace that the metadata have already.
    driver_elements: Vec<Range<usize>>,
}

/// An SR-IOV NIC of a domain to be started, with its VF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedNic {
    /// The NIC, in the form of the domain's metadata.
    pub wanted: WantedNic,
    /// The address of its VF on the host.
    pub vf: PciAddress,
    /// The MAC of its dummy; `None` for a NIC without one.
    pub dummy_mac: Option<MacAddress>,
}

/// The file of the UEFI variables of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvram {
    /// The path of the file, which may not exist yet.
    pub path: PathBuf,
    /// QEMU's name of its format; `raw` if the deployment file names none.
    pub format: String,
}

/// A disk in a file, and the place of the value of its `file` attribute in the text.
#[derive(Debug, Clone)]
struct DiskFile {
    path: PathBuf,
    value: Range<usize>,
}

/// An interface on a bridge `sriov_<root>`: its NIC, its place in the text, and the parts that its dummy takes over.
#[derive(Debug, Clone)]
struct SriovInterface {
    wanted: WantedNic,
    /// The device on the host, such as `one-42-1`.
    target: Option<String>,
    range: Range<usize>,
    model: Option<Range<usize>>,
    /// Other elements that are copied into the dummy byte for byte.
    copied: Vec<Range<usize>>,
    /// What only an interface on a bridge can do.
    needs_bridge: Option<&'static str>,
}

impl Deployment {
    /// Reads a deployment file.
    ///
    /// # Errors
    /// The text is not XML (a raw `<` or `&` in a value, for example) or not a domain with a name; an SR-IOV NIC has a
    /// wrong root name or MAC; or there are more than 16 of them.
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        let document = parse(text)?;
        let domain = root(&document, "domain")?;
        let name =
            child(domain, "name").ok_or_else(|| XmlError::at(domain, "expected <name> in <domain>, found none"))?;
        let mut nics: Vec<SriovInterface> = Vec::new();
        for interface in devices(domain).filter(|device| device.has_tag_name("interface")) {
            nics.extend(SriovInterface::read(interface, nics.len(), &document)?);
        }
        choose_guest_addresses(domain, nics.iter_mut().map(|nic| &mut nic.wanted.guest));
        Ok(Self {
            name: content(name).parse().map_err(|error| XmlError::at(name, error))?,
            uuid: uuid_of(domain)?,
            memory_kib: child(domain, "memory").and_then(kibibytes).unwrap_or(0),
            limit_kib: hard_limit(domain),
            nvram: child(domain, "os").and_then(|os| child(os, "nvram")).and_then(nvram),
            disks: devices(domain).filter_map(|device| DiskFile::read(device, text)).collect(),
            nics,
            macs: devices(domain)
                .filter(|device| device.has_tag_name("interface"))
                .filter_map(|interface| mac_of(interface).ok())
                .collect(),
            domain: domain.range(),
            last_devices: children(domain, "devices").last().map(|node| node.range()),
            metadata: child(domain, "metadata").map(|node| node.range()),
            driver_elements: Wanted::elements(domain).map(|node| node.range()).collect(),
            text: text.to_owned(),
        })
    }

    /// The domain's name.
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    /// The domain's UUID; OpenNebula before 6.0 wrote none.
    pub fn uuid(&self) -> Option<&DomainUuid> {
        self.uuid.as_ref()
    }

    /// The guest's memory in KiB; 0 if it can't be read, because libvirt decides whether it is valid.
    pub fn memory_kib(&self) -> u64 {
        self.memory_kib
    }

    /// The memory limit of its QEMU on the host, in KiB, if there is one.
    pub fn limit_kib(&self) -> Option<u64> {
        self.limit_kib
    }

    /// The SR-IOV NICs, sorted by position. Their VLANs and NIC_IDs are not in this file: [`Deployment::described`]
    /// adds them.
    ///
    /// The guest addresses ascend with the positions. A NIC that names an address itself keeps it. If the addresses
    /// can't be put in order, the other NICs have none: libvirt chooses, and the caller must check the order when the
    /// domain runs.
    pub fn sriov_nics(&self) -> impl Iterator<Item = &WantedNic> {
        self.nics.iter().map(|nic| &nic.wanted)
    }

    /// The SR-IOV NICs, with the VLANs and NIC_IDs of OpenNebula's description if there is one.
    pub fn described(&self, data: Option<&VmData>) -> Vec<WantedNic> {
        let mut unused: Vec<(&VmNic, RootName)> = data.into_iter().flat_map(VmData::sriov_nics).collect();
        // Several NICs may have the same MAC and root. Each description is used once: for the NIC with the same device
        // on the host, or else for the first one.
        let mut describe = |nic: &SriovInterface| {
            let fits =
                |(described, root): &(&VmNic, RootName)| described.mac == nic.wanted.mac && *root == nic.wanted.root;
            let is_exact = |it: &(&VmNic, RootName)| fits(it) && it.0.target == nic.target;
            let index = unused.iter().position(is_exact).or_else(|| unused.iter().position(fits))?;
            Some(unused.remove(index).0)
        };
        let complete = |nic: &SriovInterface| {
            let described = describe(nic);
            WantedNic {
                vlan: described.and_then(|described| described.vlan),
                nic_id: described.and_then(|described| described.id),
                ..nic.wanted.clone()
            }
        };
        self.nics.iter().map(complete).collect()
    }

    /// What an SR-IOV NIC asks for that only an interface on a bridge can do, for a message; `None` if nothing.
    pub fn needs_bridge(&self, position: Position) -> Option<&'static str> {
        self.nics.iter().find(|nic| nic.wanted.position == position).and_then(|nic| nic.needs_bridge)
    }

    /// The MACs of all NICs, also of those without a VF.
    pub fn macs(&self) -> &[MacAddress] {
        &self.macs
    }

    /// The file of the UEFI variables, if the VM has one.
    pub fn nvram(&self) -> Option<Nvram> {
        self.nvram.clone()
    }

    /// The files of disks that OpenNebula created: `<vm directory>/disk.<number>`, without CD-ROMs.
    pub fn disk_files(&self) -> Vec<PathBuf> {
        let is_of_opennebula = |disk: &&DiskFile| {
            let number = disk.path.file_name().and_then(|name| name.to_str()?.strip_prefix("disk."));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        };
        self.disks.iter().filter(is_of_opennebula).map(|disk| disk.path.clone()).collect()
    }

    /// The domain XML for libvirt: each SR-IOV NIC is replaced by the device of its VF, the dummies are added at the end
    /// of the last block of devices, the driver's metadata are added, and the given disks get other files. Everything
    /// else stays byte for byte.
    ///
    /// The dummy gets the model, driver, target, filter and bandwidth of the NIC. The NIC's virtual port is dropped,
    /// because the bridge of the dummies is one of the kernel. The NIC's script is dropped, because it was written for
    /// another bridge.
    ///
    /// * `disks` - pairs of an old and a new path
    /// * `nics` - one for each of [`Deployment::sriov_nics`], in the same order
    /// * `dummy_bridge` - the bridge of the dummies
    ///
    /// # Errors
    /// There are too few or too many `nics` (a bridge `sriov_` must never reach libvirt), a path is not UTF-8, or a part
    /// of a NIC means nothing in its dummy: it has a prefix of a namespace that only the NIC declares.
    pub fn rewrite(
        &self,
        disks: &[(PathBuf, PathBuf)],
        nics: &[PlannedNic],
        dummy_bridge: &str,
    ) -> Result<String, XmlError> {
        if nics.len() != self.nics.len() {
            let problem = format!("expected a VF for each of {} SR-IOV NICs, found {}", self.nics.len(), nics.len());
            return Err(XmlError::in_text(&self.text, self.domain.start, problem));
        }
        let mut splices = self.disk_splices(disks)?;
        if !nics.is_empty() {
            let mut dummies = Vec::new();
            for (interface, nic) in self.nics.iter().zip(nics) {
                let margin = margin(&self.text, interface.range.start);
                let text = lay_out(&hostdev(&nic.wanted, nic.vf), margin, step(&self.text));
                splices.push(Splice { range: interface.range.clone(), text });
                dummies.extend(nic.dummy_mac.map(|mac| self.dummy(interface, nic, mac, dummy_bridge)));
            }
            let last_devices = self.last_devices.as_ref().filter(|_| !dummies.is_empty());
            splices.extend(last_devices.map(|block| append(&self.text, block, &dummies)));
            let nics = nics.iter().map(|nic| nic.wanted.clone()).collect();
            splices.extend(self.metadata_splices(&Wanted { nics, ..Wanted::default() }.to_xml()));
        }
        let rewritten = apply(&self.text, splices)?;
        parse(&rewritten)?;
        Ok(rewritten)
    }

    fn disk_splices(&self, disks: &[(PathBuf, PathBuf)]) -> Result<Vec<Splice>, XmlError> {
        let mut splices = Vec::new();
        for disk in &self.disks {
            if let Some((_, new)) = disks.iter().find(|(old, _)| *old == disk.path) {
                let new = new.to_str().ok_or_else(|| {
                    let problem = format!("expected a file with a name in UTF-8, found {}", new.display());
                    XmlError::in_text(&self.text, disk.value.start, problem)
                })?;
                splices.push(Splice { range: disk.value.clone(), text: Escaped(new).to_string() });
            }
        }
        Ok(splices)
    }

    fn metadata_splices(&self, element: &str) -> Vec<Splice> {
        let line = |depth, text: &str| ElementLine { depth, text: text.to_owned() };
        match (self.driver_elements.split_first(), &self.metadata) {
            (Some((first, rest)), _) => {
                let removed = rest.iter().map(|range| Splice { range: range.clone(), text: String::new() });
                let replaced = Splice { range: first.clone(), text: element.to_owned() };
                std::iter::once(replaced).chain(removed).collect()
            }
            (None, Some(metadata)) => vec![append(&self.text, metadata, &[vec![line(0, element)]])],
            (None, None) => {
                let made = vec![line(0, "<metadata>"), line(1, element), line(0, "</metadata>")];
                vec![append(&self.text, &self.domain, &[made])]
            }
        }
    }

    /// The dummy of a NIC, from the text of the deployment file. A NIC that is attached later has the one of
    /// [`dummy_interface_of`](crate::xml::dummy_interface_of).
    fn dummy(&self, interface: &SriovInterface, nic: &PlannedNic, mac: MacAddress, bridge: &str) -> Vec<ElementLine> {
        let copy = |range: &Range<usize>| self.text.get(range.clone()).unwrap_or_default().to_owned();
        let mut inner = vec![format!("<source bridge='{}'/>", Escaped(bridge)), format!("<mac address='{mac}'/>")];
        inner.extend(interface.target.iter().map(|target| format!("<target dev='{}'/>", Escaped(target))));
        inner.push(interface.model.as_ref().map_or_else(|| "<model type='virtio'/>".to_owned(), copy));
        inner.extend(interface.copied.iter().map(copy));
        inner.push(format!("<alias name='{}'/>", dummy_alias_of(nic.wanted.position)));
        element("<interface type='bridge'>", inner, "</interface>")
    }
}

impl SriovInterface {
    /// Reads an interface; `None` for one on another bridge.
    ///
    /// * `before` - how many interfaces on bridges `sriov_` precede it
    fn read(interface: Node<'_, '_>, before: usize, document: &Document<'_>) -> Result<Option<Self>, XmlError> {
        let bridge = child(interface, "source").and_then(|source| source.attribute_node("bridge"));
        let Some((bridge, root)) = bridge.and_then(|bridge| Some((bridge, RootName::from_bridge(bridge.value())?)))
        else {
            return Ok(None);
        };
        let mac = mac_of(interface)?;
        let at_bridge = document.text_pos_at(bridge.range().start);
        let root = root.map_err(|error| XmlError::new(at_bridge, format_args!("after sriov_: {error}")))?;
        let position = Position::new(before).map_err(|error| XmlError::at(interface, error))?;
        let boot_order = match child(interface, "boot") {
            Some(boot) => attribute(boot, "order", decimal)?,
            None => None,
        };
        let guest = guest_address(interface)?;
        let range = |name| child(interface, name).map(|node| node.range());
        Ok(Some(Self {
            wanted: WantedNic { guest, boot_order, ..WantedNic::new(mac, root, position) },
            target: child_attribute(interface, "target", "dev"),
            range: interface.range(),
            model: range("model"),
            copied: ["driver", "filterref", "bandwidth"].into_iter().filter_map(range).collect(),
            needs_bridge: [("filterref", FILTER), ("bandwidth", LIMITS)]
                .into_iter()
                .find_map(|(name, what)| child(interface, name).map(|_| what)),
        }))
    }
}

impl DiskFile {
    /// Reads a disk; `None` for a CD-ROM and for a disk that is not in a file.
    fn read(device: Node<'_, '_>, text: &str) -> Option<Self> {
        let is_file = device.has_tag_name("disk")
            && device.attribute("type") == Some("file")
            && device.attribute("device").unwrap_or("disk") == "disk";
        let file = child(device, "source").filter(|_| is_file)?.attribute_node("file")?;
        // The value lies between the first quote and the end: the name has no quotes.
        let range = file.range();
        let open = text.get(range.clone())?.find(['\'', '"'])?;
        let start = range.start.checked_add(open)?.checked_add(1)?;
        Some(Self { path: PathBuf::from(file.value()), value: start..range.end.checked_sub(1)? })
    }
}

fn nvram(node: Node<'_, '_>) -> Option<Nvram> {
    let path = content(node).trim().to_owned();
    let format = node.attribute("format").unwrap_or("raw").to_owned();
    (!path.is_empty()).then(|| Nvram { path: Path::new(&path).to_owned(), format })
}
