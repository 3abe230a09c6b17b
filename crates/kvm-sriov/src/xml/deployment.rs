//! The deployment file that OpenNebula writes, and what it becomes for libvirt.

use std::ops::Range;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::guest_bus::choose_guest_addresses;
use super::splice::{Splice, apply};
use super::{
    Escaped, VmData, VmNic, Wanted, WantedNic, XmlError, alias_of, attribute, child, child_attribute, children,
    content, decimal, devices, dummy_alias_of, guest_address, hard_limit, kibibytes, mac_of, parse, root, uuid_of,
};
use crate::base::{DomainName, DomainUuid, MacAddress, PciAddress, Position, RootName};

/// The domain XML of a VM that is to be started, as OpenNebula wrote it.
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
/// OpenNebula's `LibVirtDriverKVM.cc`: several blocks of devices, text of the user's RAW attribute in between, values
/// of attributes not escaped.
#[derive(Debug, Clone)]
pub struct Deployment {
    text: String,
    name: DomainName,
    uuid: Option<DomainUuid>,
    memory_kib: u64,
    limit_kib: Option<u64>,
    nvram: Option<Nvram>,
    disks: Vec<Disk>,
    /// In the order of their positions.
    nics: Vec<SriovInterface>,
    /// The MACs of all interfaces that have one, with and without a VF.
    macs: Vec<MacAddress>,
    domain: Range<usize>,
    last_devices: Option<Range<usize>>,
    metadata: Option<Range<usize>>,
    /// Elements of our namespace that are in the metadata already.
    ours: Vec<Range<usize>>,
}

/// What one SR-IOV NIC of a domain becomes when the domain is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedNic {
    /// The NIC, as it is written into the domain's metadata.
    pub wanted: WantedNic,
    /// The address of its VF on the host.
    pub vf: PciAddress,
    /// The MAC of the dummy that carries the NIC's IP address into the guest.
    pub dummy_mac: MacAddress,
}

/// The file that holds the UEFI variables of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvram {
    /// Where it should be.
    pub path: PathBuf,
    /// QEMU's name of its format; `raw` when none is written.
    pub format: String,
}

/// A disk in a file, and where the value of its `file` attribute stands.
#[derive(Debug, Clone)]
struct Disk {
    path: PathBuf,
    value: Range<usize>,
}

/// An interface on a bridge `sriov_<root>`: its NIC, its place in the text, and what its dummy takes over.
#[derive(Debug, Clone)]
struct SriovInterface {
    wanted: WantedNic,
    /// The device on the host, such as `one-42-1`.
    target: Option<String>,
    range: Range<usize>,
    model: Option<Range<usize>>,
    /// Other elements that are copied into the dummy byte for byte.
    copied: Vec<Range<usize>>,
}

impl Deployment {
    /// Reads a deployment file.
    ///
    /// # Errors
    /// It is not XML (a raw `<` or `&` in a value, for example), no domain with a name, or an SR-IOV NIC has no root
    /// name or MAC that is one, or there are more than 16 of them.
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
        let metadata = child(domain, "metadata");
        let ours = metadata.iter().flat_map(|node| node.children());
        let ours = ours.filter(|node| node.tag_name().namespace() == Some(Wanted::NAMESPACE));
        Ok(Self {
            name: content(name).parse().map_err(|error| XmlError::at(name, error))?,
            uuid: uuid_of(domain)?,
            memory_kib: child(domain, "memory").and_then(kibibytes).unwrap_or(0),
            limit_kib: hard_limit(domain),
            nvram: child(domain, "os").and_then(|os| child(os, "nvram")).and_then(nvram),
            disks: devices(domain).filter_map(|device| disk(device, text)).collect(),
            nics,
            macs: devices(domain)
                .filter(|device| device.has_tag_name("interface"))
                .filter_map(|interface| mac_of(interface).ok())
                .collect(),
            domain: domain.range(),
            last_devices: children(domain, "devices").last().map(|node| node.range()),
            metadata: metadata.map(|node| node.range()),
            ours: ours.map(|node| node.range()).collect(),
            text: text.to_owned(),
        })
    }

    /// The domain's name.
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    /// The domain's UUID; before 6.0 OpenNebula wrote none.
    pub fn uuid(&self) -> Option<&DomainUuid> {
        self.uuid.as_ref()
    }

    /// The guest's memory in KiB, for messages: 0 when it can't be read, as libvirt has the last word on it.
    pub fn memory_kib(&self) -> u64 {
        self.memory_kib
    }

    /// How much memory the host gives its QEMU at the most, in KiB, where that is limited.
    pub fn limit_kib(&self) -> Option<u64> {
        self.limit_kib
    }

    /// The NICs that become VFs, in the order of their positions. Their VLANs and NIC_IDs are not in this file:
    /// [`Deployment::described`] adds them.
    ///
    /// The guest addresses ascend with the positions. An address that a NIC itself names is kept. If the other addresses
    /// can't be put in order around it, these NICs have none: libvirt chooses, and the order must be checked when the
    /// domain runs.
    pub fn sriov_nics(&self) -> impl Iterator<Item = &WantedNic> {
        self.nics.iter().map(|nic| &nic.wanted)
    }

    /// The NICs that become VFs, with the VLANs and NIC_IDs of OpenNebula's description where there is one.
    pub fn described(&self, data: Option<&VmData>) -> Vec<WantedNic> {
        let mut described: Vec<_> = data.into_iter().flat_map(VmData::sriov_nics).collect();
        // Several NICs may have one MAC. Each description is used once: for the NIC with its device on the host, or else
        // for the first one.
        let mut describe = |nic: &SriovInterface| {
            let is_it =
                |(described, root): &&(&VmNic, RootName)| described.mac == nic.wanted.mac && *root == nic.wanted.root;
            let is_target = |(described, _): &(&VmNic, RootName)| described.target == nic.target;
            let at = described.iter().position(|it| is_it(&it) && is_target(it));
            let at = at.or_else(|| described.iter().position(|it| is_it(&it)))?;
            Some(described.remove(at).0)
        };
        let complete = |nic: &SriovInterface| {
            let described = describe(nic);
            WantedNic {
                vlan: described.and_then(|it| it.vlan),
                nic_id: described.and_then(|it| it.id),
                ..nic.wanted.clone()
            }
        };
        self.nics.iter().map(complete).collect()
    }

    /// The MACs of all its NICs, also of those that get no VF.
    pub fn macs(&self) -> &[MacAddress] {
        &self.macs
    }

    /// The file of the UEFI variables, when the VM has one.
    pub fn nvram(&self) -> Option<Nvram> {
        self.nvram.clone()
    }

    /// The files of disks that OpenNebula made: `<vm directory>/disk.<number>`, no CD-ROMs.
    pub fn disk_files(&self) -> Vec<PathBuf> {
        let made_by_one = |disk: &&Disk| {
            let number = disk.path.file_name().and_then(|name| name.to_str()?.strip_prefix("disk."));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        };
        self.disks.iter().filter(made_by_one).map(|disk| disk.path.clone()).collect()
    }

    /// The domain XML for libvirt: every SR-IOV NIC is a host device in its place, the dummies are at the end of the
    /// last block of devices, our metadata are in, and the given disks have other files. All else is byte for byte.
    ///
    /// The dummy gets model, driver, target, filter and bandwidth of the NIC; its virtual port is dropped, because the
    /// dummies' bridge is the kernel's, and so is its script, which was written for another bridge.
    ///
    /// * `disks` - pairs of the path as it is written and the path it is to be
    /// * `nics` - one for each of [`Deployment::sriov_nics`], same order
    /// * `dummy_bridge` - the bridge of the dummies
    ///
    /// # Errors
    /// The number of `nics` is wrong (none of the bridges `sriov_` must reach libvirt), or a path is not UTF-8.
    pub fn rewrite(
        &self,
        disks: &[(PathBuf, PathBuf)],
        nics: &[PlannedNic],
        dummy_bridge: &str,
    ) -> Result<String, XmlError> {
        if nics.len() != self.nics.len() {
            let problem =
                format_args!("expected a VF for each of {} SR-IOV NICs, found {}", self.nics.len(), nics.len());
            return Err(XmlError::in_text(&self.text, self.domain.start, problem));
        }
        let mut splices = self.disk_splices(disks)?;
        if !nics.is_empty() {
            let mut dummies = Vec::new();
            for (interface, nic) in self.nics.iter().zip(nics) {
                let margin = margin(&self.text, interface.range.start);
                let text = lay_out(&hostdev(&nic.wanted, nic.vf), margin, step(&self.text));
                splices.push(Splice { range: interface.range.clone(), text });
                dummies.push(self.dummy(interface, nic, dummy_bridge));
            }
            splices.extend(self.last_devices.as_ref().map(|block| append(&self.text, block, &dummies)));
            let nics = nics.iter().map(|nic| nic.wanted.clone()).collect();
            splices.extend(self.metadata_splices(&Wanted { nics, ..Wanted::default() }.to_xml()));
        }
        apply(&self.text, splices)
    }

    fn disk_splices(&self, disks: &[(PathBuf, PathBuf)]) -> Result<Vec<Splice>, XmlError> {
        let mut splices = Vec::new();
        for disk in &self.disks {
            if let Some((_, new)) = disks.iter().find(|(old, _)| *old == disk.path) {
                let new = new.to_str().ok_or_else(|| {
                    let problem = format_args!("expected a file with a name in UTF-8, found {}", new.display());
                    XmlError::in_text(&self.text, disk.value.start, problem)
                })?;
                splices.push(Splice { range: disk.value.clone(), text: Escaped(new).to_string() });
            }
        }
        Ok(splices)
    }

    fn metadata_splices(&self, element: &str) -> Vec<Splice> {
        let line = |depth, text: &str| Line { depth, text: text.to_owned() };
        match (self.ours.split_first(), &self.metadata) {
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

    fn dummy(&self, interface: &SriovInterface, nic: &PlannedNic, bridge: &str) -> Vec<Line> {
        let copy = |range: &Range<usize>| self.text.get(range.clone()).unwrap_or_default().to_owned();
        let mut inner =
            vec![format!("<source bridge='{}'/>", Escaped(bridge)), format!("<mac address='{}'/>", nic.dummy_mac)];
        inner.extend(interface.target.iter().map(|target| format!("<target dev='{}'/>", Escaped(target))));
        inner.push(interface.model.as_ref().map_or_else(|| "<model type='virtio'/>".to_owned(), copy));
        inner.extend(interface.copied.iter().map(copy));
        inner.push(format!("<alias name='{}'/>", dummy_alias_of(nic.wanted.position)));
        element("<interface type='bridge'>", inner, "</interface>")
    }
}

impl SriovInterface {
    /// Reads an interface that `before` others with a bridge `sriov_<root>` precede; `None` for another bridge.
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
        }))
    }
}

fn disk(device: Node<'_, '_>, text: &str) -> Option<Disk> {
    let is_file = device.has_tag_name("disk")
        && device.attribute("type") == Some("file")
        && device.attribute("device").unwrap_or("disk") == "disk";
    let file = child(device, "source").filter(|_| is_file)?.attribute_node("file")?;
    // From quote to quote: no name holds one.
    let range = file.range();
    let open = text.get(range.clone())?.find(['\'', '"'])?;
    let start = range.start.checked_add(open)?.checked_add(1)?;
    Some(Disk { path: PathBuf::from(file.value()), value: start..range.end.checked_sub(1)? })
}

fn nvram(node: Node<'_, '_>) -> Option<Nvram> {
    let path = content(node).trim().to_owned();
    let format = node.attribute("format").unwrap_or("raw").to_owned();
    (!path.is_empty()).then(|| Nvram { path: Path::new(&path).to_owned(), format })
}

/// The host device that gives this NIC its VF.
fn hostdev(nic: &WantedNic, vf: PciAddress) -> Vec<Line> {
    let mut inner = vec![format!("<source><address {}/></source>", vf.to_attributes())];
    inner.extend(nic.boot_order.map(|order| format!("<boot order='{order}'/>")));
    inner.push(format!("<alias name='{}'/>", alias_of(nic.position)));
    inner.extend(nic.guest.map(|guest| format!("<address type='pci' {}/>", guest.to_attributes())));
    element("<hostdev mode='subsystem' type='pci' managed='yes'>", inner, "</hostdev>")
}

/// The XML of the host device that gives this NIC the VF at `vf`, for a running domain.
pub fn hostdev_of(nic: &WantedNic, vf: PciAddress) -> String {
    lay_out(&hostdev(nic, vf), None, "")
}

/// A line of an element and how deep it is in there.
#[derive(Debug)]
struct Line {
    depth: usize,
    text: String,
}

fn element(open: &str, inner: Vec<String>, close: &str) -> Vec<Line> {
    let outer = |text: &str| Line { depth: 0, text: text.to_owned() };
    let inner = inner.into_iter().map(|text| Line { depth: 1, text });
    std::iter::once(outer(open)).chain(inner).chain([outer(close)]).collect()
}

/// The blanks before a place, when nothing else is before it on its line.
fn margin(text: &str, at: usize) -> Option<&str> {
    let before = text.get(..at)?.rsplit('\n').next()?;
    before.chars().all(|c| c == ' ' || c == '\t').then_some(before)
}

/// One step of indentation: OpenNebula's tab, or libvirt's two blanks.
fn step(text: &str) -> &'static str {
    if text.contains("\n  ") && !text.contains("\n\t") { "  " } else { "\t" }
}

/// The lines as they stand behind a margin; all on one line where there is none.
fn lay_out(lines: &[Line], margin: Option<&str>, step: &str) -> String {
    let Some(margin) = margin else { return lines.iter().map(|line| line.text.as_str()).collect() };
    let rows: Vec<_> = lines.iter().map(|line| format!("{}{}", step.repeat(line.depth), line.text)).collect();
    rows.join(&format!("\n{margin}"))
}

/// Puts children at the end of the element in this range, before its end tag; `<a/>` gets one.
fn append(text: &str, element: &Range<usize>, children: &[Vec<Line>]) -> Splice {
    let source = text.get(element.clone()).unwrap_or_default();
    let step = step(text);
    let inner = |margin: Option<&str>| -> String {
        let deeper = margin.map(|margin| format!("{margin}{step}"));
        let child = |lines: &Vec<Line>| match margin {
            Some(margin) => format!("{step}{}\n{margin}", lay_out(lines, deeper.as_deref(), step)),
            None => lay_out(lines, None, step),
        };
        children.iter().map(child).collect()
    };
    if let Some(open) = source.strip_suffix("/>") {
        let margin = margin(text, element.start);
        let name: String = open.chars().skip(1).take_while(|c| !c.is_whitespace()).collect();
        let line_end = margin.map(|margin| format!("\n{margin}")).unwrap_or_default();
        let start = element.end.saturating_sub(2);
        return Splice { range: start..element.end, text: format!(">{line_end}{}</{name}>", inner(margin)) };
    }
    let end_tag = element.start.saturating_add(source.rfind("</").unwrap_or(source.len()));
    Splice { range: end_tag..end_tag, text: inner(margin(text, end_tag)) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{OLD, RICH, SIMPLE, WIRE, domain, guests, nic};
    use super::*;
    use crate::xml::LiveDomain;

    fn plan(deployment: &Deployment) -> Vec<PlannedNic> {
        let nics = deployment.sriov_nics().enumerate();
        nics.map(|(i, nic)| PlannedNic {
            vf: PciAddress::new(0, 7, 0, u8::try_from(i).unwrap() + 1).unwrap(),
            dummy_mac: nic.mac.dummy("aa".parse().unwrap(), nic.position).unwrap(),
            wanted: WantedNic { vlan: (i == 0).then_some(100), nic_id: Some(u32::try_from(i).unwrap()), ..nic.clone() },
        })
        .collect()
    }

    fn rewritten(text: &str) -> String {
        let deployment = Deployment::parse(text).unwrap();
        deployment.rewrite(&[], &plan(&deployment), "dummybr").unwrap()
    }

    #[test]
    fn the_simple_domain_becomes_exactly_this() {
        assert_eq!(rewritten(SIMPLE), include_str!("../../tests/fixtures/deployment-simple.expected.xml"));
    }

    #[test]
    fn the_rich_domain_becomes_exactly_this() {
        assert_eq!(rewritten(RICH), include_str!("../../tests/fixtures/deployment-rich.expected.xml"));
    }

    #[test]
    fn the_old_domain_becomes_exactly_this() {
        assert_eq!(rewritten(OLD), include_str!("../../tests/fixtures/deployment-4.0.expected.xml"));
    }

    #[test]
    fn a_domain_without_sriov_goes_through_byte_for_byte() {
        let deployment = Deployment::parse(WIRE).unwrap();
        assert_eq!(deployment.sriov_nics().next(), None);
        assert_eq!(deployment.rewrite(&[], &[], "").unwrap(), WIRE);
    }

    #[test]
    fn what_is_asked_for_is_in_the_result() {
        for text in [SIMPLE, RICH] {
            let deployment = Deployment::parse(text).unwrap();
            let planned = plan(&deployment);
            let result = deployment.rewrite(&[], &planned, "dummy'br&1").unwrap();
            let live = LiveDomain::parse(&result).unwrap();
            for planned in &planned {
                let nic = &planned.wanted;
                let alias = alias_of(nic.position);
                let hostdev = live.hostdevs.iter().find(|hostdev| hostdev.alias.as_deref() == Some(&alias)).unwrap();
                assert_eq!((hostdev.vf, hostdev.guest), (planned.vf, nic.guest));
                let alias = dummy_alias_of(nic.position);
                let dummy = live.interfaces.iter().find(|dummy| dummy.alias.as_deref() == Some(&alias)).unwrap();
                assert_eq!((dummy.mac, dummy.bridge.as_deref()), (planned.dummy_mac, Some("dummy'br&1")));
                let interface = deployment.nics.iter().find(|it| it.wanted.position == nic.position).unwrap();
                assert_eq!(dummy.target, interface.target);
            }
            let wanted = live.wanted.unwrap().unwrap();
            assert_eq!(wanted.nics.len(), planned.len());
            assert_eq!(wanted.nics[0].vlan, Some(100));
            assert_eq!(Deployment::parse(&result).unwrap().sriov_nics().next(), None);
        }
    }

    #[test]
    fn the_facts_of_a_domain_are_read() {
        let rich = Deployment::parse(RICH).unwrap();
        assert_eq!((rich.name().as_str(), rich.memory_kib()), ("one-77", 8_388_608));
        assert_eq!(rich.uuid().unwrap().as_str(), "0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77");
        let path = PathBuf::from("/var/lib/one//datastores/0/77/hpc-77_VARS.fd");
        assert_eq!(rich.nvram(), Some(Nvram { path, format: "raw".into() }));
        assert_eq!(rich.disk_files(), [PathBuf::from("/var/lib/one//datastores/0/77/disk.10")]);
        let roots: Vec<_> = rich.sriov_nics().map(|nic| nic.root.as_str()).collect();
        assert_eq!(roots, ["ib0", "eth.1"]);
        assert_eq!(rich.nics[1].target.as_deref(), Some("a&b"));
        let old = Deployment::parse(OLD).unwrap();
        assert_eq!((old.uuid(), old.nvram()), (None, None));
        let simple = Deployment::parse(SIMPLE).unwrap();
        assert_eq!(simple.nics[0].wanted.boot_order, Some(1));
        let with_unit = Deployment::parse(&domain("<memory unit='GiB'>2</memory>")).unwrap();
        assert_eq!(with_unit.memory_kib(), 2 * 1024 * 1024);
        let bare = Deployment::parse(&domain("<uuid>7F1C2A5264d64c0c9b0e2f7a4c1d9e10</uuid>")).unwrap();
        assert_eq!(bare.uuid().unwrap().as_str(), "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10");
    }

    #[test]
    fn disks_get_other_files_and_nothing_else_changes() {
        let disk = PathBuf::from("/var/lib/one//datastores/0/2/disk.0");
        let new = PathBuf::from("/mnt/it's <a> & \"b\"");
        let deployment = Deployment::parse(WIRE).unwrap();
        assert_eq!(deployment.disk_files(), std::slice::from_ref(&disk));
        let result = deployment.rewrite(&[(disk, new.clone())], &[], "").unwrap();
        let escaped = "/mnt/it&apos;s &lt;a&gt; &amp; &quot;b&quot;";
        assert_eq!(result, WIRE.replacen("/var/lib/one//datastores/0/2/disk.0", escaped, 1));
        assert_eq!(Deployment::parse(&result).unwrap().disks[0].path, new);
        let wide = domain(&format!(
            "<devices><disk type='file'><source file{}=\n\"/a/disk.7\"/></disk></devices>",
            " ".repeat(999)
        ));
        let wide = Deployment::parse(&wide).unwrap();
        let result = wide.rewrite(&[("/a/disk.7".into(), "/b".into())], &[], "").unwrap();
        assert!(result.contains("=\n\"/b\"/>"), "{result}");
    }

    #[test]
    fn only_the_bridge_of_an_interface_of_the_domain_counts() {
        for inside in [
            "<title>sriov_ib0</title>".to_owned(),
            format!("<devices>{}</devices>", nic("br0", "<target dev='sriov_ib0'/>")),
            format!("<devices><x>{}</x></devices>", nic("sriov_ib0", "")),
            nic("sriov_ib0", ""),
            format!("<metadata><devices>{}</devices></metadata>", nic("sriov_ib0", "")),
            format!("<devices xmlns='urn:x'>{}</devices>", nic("sriov_ib0", "")),
            "<devices><interface type='network'><source network='sriov_ib0'/></interface></devices>".to_owned(),
        ] {
            let text = domain(&inside);
            let deployment = Deployment::parse(&text).unwrap();
            assert_eq!(deployment.sriov_nics().next(), None, "{text}");
            assert_eq!(deployment.rewrite(&[], &[], "").unwrap(), text);
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let in_devices = |inside: &str| domain(&format!("<devices>\n{inside}</devices>"));
        for (text, expected) in [
            (in_devices(&nic("sriov_", "")), "4:34: after sriov_: expected a root name"),
            (in_devices(&nic("sriov_ib0", "").replace("02:00", "2:0")), "4:59: address: expected a MAC address"),
            (in_devices("<interface><source bridge='sriov_a'/></interface>"), "4:1: expected <mac address=...>"),
            (in_devices(&nic("sriov_a", "<boot order='x'/>")), "order: expected a number that fits"),
            (in_devices(&nic("sriov_a", "").repeat(17)), "expected at most 16 SR-IOV NICs in a VM, found \"17\""),
            (in_devices(&nic("a&b", "")), "4:43: expected an entity"),
            ("<domain/>".to_owned(), "1:1: expected <name> in <domain>"),
            ("<d:domain xmlns:d='x'/>".to_owned(), "1:1: expected <domain>, found <domain>"),
            ("<VM/>".to_owned(), "1:1: expected <domain>, found <VM>"),
            (domain("<uuid>x</uuid>"), "3:1: expected a UUID, found \"x\""),
        ] {
            let error = Deployment::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let deployment = Deployment::parse(SIMPLE).unwrap();
        let error = deployment.rewrite(&[], &[], "br").unwrap_err();
        assert_eq!(error.to_string(), "1:1: expected a VF for each of 1 SR-IOV NICs, found 0");
    }

    #[test]
    fn an_address_of_the_nic_itself_is_kept() {
        let asks = |slot: &str| nic("sriov_a", &format!("<address type='pci' domain='0' bus='0' slot='{slot}'/>"));
        let devices = |nics: String| domain(&format!("<devices>{nics}</devices>"));
        let plain = nic("sriov_a", "");
        assert_eq!(guests(&devices(asks("0x12") + &plain)), ["0000:00:12.0", "0000:00:13.0"]);
        assert_eq!(guests(&devices(plain.clone() + &asks("0x12"))), ["0000:00:10.0", "0000:00:12.0"]);
        assert_eq!(guests(&devices(plain + &asks("0x05"))), ["-", "0000:00:05.0"]);
        let result = rewritten(&devices(asks("0x12")));
        assert!(
            result.contains("<address type='pci' domain='0x0000' bus='0x00' slot='0x12' function='0x0'/></hostdev>")
        );
    }

    #[test]
    fn empty_elements_and_our_own_metadata_are_handled() {
        let in_line =
            domain(&format!("<devices>{}</devices><devices/><metadata/>", nic("sriov_a", "<alias name='x'/>")));
        let result = rewritten(&in_line);
        assert!(result.contains("</devices><devices><interface type='bridge'><source bridge='dummybr'/>"), "{result}");
        assert!(result.contains("</interface></devices><metadata><sriov:domain "), "{result}");
        assert!(!result.contains("'x'"), "{result}");
        let own_line = domain(&format!("\t<devices>{}</devices>\n\t<devices />\n", nic("sriov_a", "")));
        let result = rewritten(&own_line);
        assert!(result.contains("\n\t<devices >\n\t\t<interface type='bridge'>\n\t\t\t<source"), "{result}");
        assert!(result.contains("\n\t\t</interface>\n\t</devices>\n\t<metadata>\n\t\t<sriov:domain"), "{result}");
        assert!(result.ends_with("</sriov:domain>\n\t</metadata>\n</domain>"), "{result}");
        let again =
            result.replace("</devices>\n\t<devices >", &format!("{}</devices>\n\t<devices>", nic("sriov_b", "")));
        let result = rewritten(&again);
        assert_eq!(result.matches("<sriov:domain").count(), 1);
        assert!(result.contains("root='b'") && !result.contains("root='a'"), "{result}");
    }
}
