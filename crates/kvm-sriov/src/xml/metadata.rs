//! What a VM should have, kept in the domain itself: the element `domain` of our namespace under `<metadata>`.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

use roxmltree::Node;

use super::{Escaped, Place, VmNic, XmlError, attribute, decimal, parse, position, required};
use crate::base::ParseError;
use crate::base::ascending;
use crate::base::{MacAddress, NicKey, PciAddress, Position, RootName, WantedVf};

/// The VFs a domain should have, and the operation that is under way on it.
///
/// ```
/// use kvm_sriov::xml::Wanted;
/// let text = "<sriov:domain xmlns:sriov='urn:kvm-sriov:domain:1' version='1.0'>\
///     <sriov:nic mac='02:00:c0:a8:01:05' root='ib0' mode='hostdev' position='0' vlan='100'/></sriov:domain>";
/// let wanted = Wanted::parse(text)?;
/// assert_eq!(wanted.nics[0].vlan, Some(100));
/// assert_eq!(Wanted::parse(&wanted.to_xml())?, wanted);
/// # Ok::<(), kvm_sriov::xml::XmlError>(())
/// ```
///
/// # Source
/// docs/decisions/0003-metadata-in-the-domain.md.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// One for each SR-IOV NIC, each with a position of its own.
    pub nics: Vec<WantedNic>,
    /// The operation that is under way, or that ended without being finished.
    pub operation: Option<Operation>,
    /// The second number of the version. A higher one than ours is kept: whoever wrote it may read it again.
    pub minor: u32,
    /// What a later version put here.
    pub kept: Kept,
}

/// An SR-IOV NIC that a domain should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedNic {
    /// OpenNebula's MAC of the NIC.
    pub mac: MacAddress,
    /// The root its VF comes from.
    pub root: RootName,
    /// How the VF gets into the guest.
    pub mode: Mode,
    /// Its place among the SR-IOV NICs of the VM.
    pub position: Position,
    /// The address in the guest, when it was chosen by us.
    pub guest: Option<PciAddress>,
    /// The place in the boot order, from 1.
    pub boot_order: Option<u32>,
    /// The VLAN (or the number of the partition key), when the network has one.
    pub vlan: Option<u16>,
    /// OpenNebula's NIC_ID, when it is known.
    pub nic_id: Option<u32>,
    /// The dummy's XML, from the moment the guest was asked to release it: what it takes to plug it in again.
    pub dummy: Option<String>,
    /// What it had without an alias of ours, when its domain was adopted.
    pub adopted: Adopted,
    /// What a later version put here.
    pub kept: Kept,
}

/// The devices of a NIC in a domain that the stock driver or the driver of 2013 started: their aliases are libvirt's, which
/// gives them again to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Adopted {
    /// The VF, by its address on the host; `None` once it has left.
    pub vf: Option<PciAddress>,
    /// The dummy, by its MAC; `None` once it has left.
    pub dummy: Option<MacAddress>,
}

/// How a VF gets into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// A PCI host device, with a dummy interface that carries its IP address.
    Hostdev,
    /// An interface of type hostdev with OpenNebula's MAC.
    Ethernet,
    /// An interface on a libvirt network that hands out VFs.
    Network,
    /// A PCI host device whose GUID and partition keys are set.
    Infiniband,
}

/// An operation on a domain that has not been finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Which one.
    pub kind: OperationKind,
    /// What a later version put here.
    pub kept: Kept,
}

/// Which operation it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperationKind {
    /// The VFs are out or on their way, and the domain goes into a file.
    Save,
    /// The domain came from a file, paused, and its VFs are not all in.
    Restore {
        /// The file. While it has this name no CPU of the domain has run.
        checkpoint: PathBuf,
    },
    /// The domain is moving.
    Migrate {
        /// The destination, as OpenNebula names it.
        to: String,
        /// Names this one move, on both hosts.
        id: String,
        /// The source, as OpenNebula names it, if it did.
        from: Option<String>,
        /// Whether the CPUs stood when the move began: then nobody but its user lets the VM run.
        stands: bool,
    },
    /// The guest was asked to release VFs and has not done so in time. It may do so later; then they are plugged back.
    PendingUnplug {
        /// The NICs whose VFs these are.
        positions: Vec<Position>,
    },
    /// One of a later version: not ours to finish.
    Other(String),
}

/// Attributes and elements of a later version with the same first number: opaque, and written back.
///
/// All attributes of ours are without a namespace and all elements in our own; whatever else stands there is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    attributes: Vec<(String, String)>,
    content: Vec<Content>,
}

const MAJOR: u32 = 1;
const VERSION: &str = "a version such as 1.0";

impl Wanted {
    /// The namespace of the element. The number in it never changes: the version is an attribute.
    pub const NAMESPACE: &'static str = "urn:kvm-sriov:domain:1";

    /// The prefix that the element is written with.
    pub const PREFIX: &'static str = "sriov";

    /// Reads the element: with our prefix, another, or without (as libvirt's call for metadata answers).
    ///
    /// # Errors
    /// It is not our element, was written by a newer major version, or a value does not fit.
    pub fn parse(element: &str) -> Result<Self, XmlError> {
        let document = parse(element)?;
        Self::read(document.root_element())
    }

    pub(super) fn read(element: Node<'_, '_>) -> Result<Self, XmlError> {
        if !is_ours(element, "domain") {
            let problem = format_args!(
                "expected <{}:domain> of {}, found <{}>",
                Self::PREFIX,
                Self::NAMESPACE,
                element.tag_name().name()
            );
            return Err(XmlError::at(element, problem));
        }
        let (major, minor) = required(element, "version", version)?;
        if major != MAJOR {
            let problem = format_args!(
                "expected metadata of version {MAJOR}, found {major}.{minor}: it was written by a newer kvm-sriov, \
                 which this host needs too"
            );
            return Err(XmlError::at(element, problem));
        }
        let mut nics: Vec<WantedNic> = Vec::new();
        for node in element.children().filter(|node| is_ours(*node, "nic")) {
            let nic = WantedNic::read(node)?;
            if nics.iter().any(|other| other.position == nic.position) {
                return Err(XmlError::at(node, format_args!("position {} is there twice", nic.position)));
            }
            nics.push(nic);
        }
        let mut operations = element.children().filter(|node| is_ours(*node, "operation"));
        let operation = operations.next().map(Operation::read).transpose()?;
        if let Some(second) = operations.next() {
            return Err(XmlError::at(second, "expected one operation, found two"));
        }
        Ok(Self { nics, operation, minor, kept: Kept::read(element, &["version"], &["nic", "operation"]) })
    }

    /// The element with our prefix, on one line: as it stands in a domain's `<metadata>`.
    pub fn to_xml(&self) -> String {
        let mut element = self.element();
        element.attributes.insert(0, (format!("xmlns:{}", Self::PREFIX), Self::NAMESPACE.to_owned()));
        Prefixed(&element, "sriov:").to_string()
    }

    /// The element without prefix and namespace: libvirt's call that sets metadata adds both, and refuses an element
    /// that has the prefix already.
    ///
    /// # Source
    /// `virXMLInjectNamespace` in libvirt's `src/util/virxml.c`, and tried.
    pub fn to_unqualified_xml(&self) -> String {
        Prefixed(&self.element(), "").to_string()
    }

    fn element(&self) -> Element {
        let parts = self.nics.iter().map(WantedNic::element).chain(self.operation.iter().map(Operation::element));
        Element::new("domain", vec![("version", Some(format!("{MAJOR}.{}", self.minor)))])
            .with(parts.map(Content::Element).collect())
            .with_kept(&self.kept)
    }
}

impl WantedNic {
    /// A NIC with a PCI host device, and nothing else known of it.
    pub(crate) fn new(mac: MacAddress, root: RootName, position: Position) -> Self {
        Self {
            mac,
            root,
            mode: Mode::Hostdev,
            position,
            guest: None,
            boot_order: None,
            vlan: None,
            nic_id: None,
            dummy: None,
            adopted: Adopted::default(),
            kept: Kept::default(),
        }
    }

    /// The NIC that OpenNebula describes, at this place in the VM.
    pub(crate) fn described(nic: &VmNic, root: RootName, place: &Place) -> Self {
        Self {
            guest: place.guest,
            boot_order: nic.boot_order,
            vlan: nic.vlan,
            nic_id: nic.id,
            ..Self::new(nic.mac, root, place.position)
        }
    }

    /// The VF that this NIC needs.
    pub fn vf(&self) -> WantedVf {
        WantedVf { root: self.root.clone(), nic: self.key() }
    }

    /// Whether it is this NIC of OpenNebula's: by NIC_ID and MAC, or by root and MAC where one has no NIC_ID. In both cases
    /// another NIC may have the same MAC; where NIC_IDs are unknown, the same root, too.
    pub(crate) fn is(&self, nic: &VmNic) -> bool {
        let same_root = || match nic.root() {
            Some(root) => root.is_ok_and(|root| root == self.root),
            None => nic.bridge.is_none(),
        };
        self.mac == nic.mac
            && match (self.nic_id, nic.id) {
                (Some(mine), Some(its)) => mine == its,
                _ => same_root(),
            }
    }

    /// What tells it from the VM's other NICs.
    pub fn key(&self) -> NicKey {
        NicKey { position: self.position, mac: self.mac }
    }

    /// NICs in the order of their positions.
    pub(crate) fn in_order(nics: Vec<Self>) -> Vec<Self> {
        ascending(nics, |a, b| a.position.cmp(&b.position))
    }

    const ATTRIBUTES: [&'static str; 11] =
        ["mac", "root", "mode", "position", "guest", "boot", "vlan", "nic", "dummy", "adopted-vf", "adopted-dummy"];

    fn read(node: Node<'_, '_>) -> Result<Self, XmlError> {
        Ok(Self {
            mac: required(node, "mac", str::parse)?,
            root: required(node, "root", str::parse)?,
            mode: required(node, "mode", str::parse)?,
            position: required(node, "position", position)?,
            guest: attribute(node, "guest", str::parse)?,
            boot_order: attribute(node, "boot", decimal)?,
            vlan: attribute(node, "vlan", decimal)?,
            nic_id: attribute(node, "nic", decimal)?,
            dummy: attribute(node, "dummy", |xml| Ok(xml.to_owned()))?,
            adopted: Adopted {
                vf: attribute(node, "adopted-vf", str::parse)?,
                dummy: attribute(node, "adopted-dummy", str::parse)?,
            },
            kept: Kept::read(node, &Self::ATTRIBUTES, &[]),
        })
    }

    fn element(&self) -> Element {
        let attributes = vec![
            ("mac", Some(self.mac.to_string())),
            ("root", Some(self.root.to_string())),
            ("mode", Some(self.mode.to_string())),
            ("position", Some(self.position.to_string())),
            ("guest", self.guest.map(|guest| guest.to_string())),
            ("boot", self.boot_order.map(|order| order.to_string())),
            ("vlan", self.vlan.map(|vlan| vlan.to_string())),
            ("nic", self.nic_id.map(|id| id.to_string())),
            ("dummy", self.dummy.clone()),
            ("adopted-vf", self.adopted.vf.map(|vf| vf.to_string())),
            ("adopted-dummy", self.adopted.dummy.map(|mac| mac.to_string())),
        ];
        Element::new("nic", attributes).with_kept(&self.kept)
    }
}

impl Operation {
    fn read(node: Node<'_, '_>) -> Result<Self, XmlError> {
        let text = |value: &str| Ok(value.to_owned());
        let kind = match required(node, "kind", text)?.as_str() {
            "save" => OperationKind::Save,
            "restore" => OperationKind::Restore { checkpoint: required(node, "checkpoint", text)?.into() },
            "migrate" => OperationKind::Migrate {
                to: required(node, "to", text)?,
                id: required(node, "id", text)?,
                from: attribute(node, "from", text)?,
                stands: attribute(node, "stands", yes)?.is_some(),
            },
            "pending-unplug" => {
                let positions = required(node, "positions", |list| list.split(' ').map(position).collect())?;
                OperationKind::PendingUnplug { positions }
            }
            other => OperationKind::Other(other.to_owned()),
        };
        let known: &[&str] = match kind {
            OperationKind::Migrate { .. } => &["kind", "to", "id", "from", "stands"],
            OperationKind::Restore { .. } => &["kind", "checkpoint"],
            OperationKind::PendingUnplug { .. } => &["kind", "positions"],
            OperationKind::Save | OperationKind::Other(_) => &["kind"],
        };
        Ok(Self { kind, kept: Kept::read(node, known, &[]) })
    }

    fn element(&self) -> Element {
        let mut attributes = vec![("kind", Some(self.kind.to_string()))];
        match &self.kind {
            OperationKind::Migrate { to, id, from, stands } => {
                attributes.extend([("to", Some(to.clone())), ("id", Some(id.clone())), ("from", from.clone())]);
                attributes.push(("stands", stands.then(|| "yes".to_owned())));
            }
            // The path came from a text: an argument, or this attribute.
            OperationKind::Restore { checkpoint } => {
                attributes.push(("checkpoint", Some(checkpoint.to_string_lossy().into_owned())));
            }
            OperationKind::PendingUnplug { positions } => {
                let positions: Vec<String> = positions.iter().map(ToString::to_string).collect();
                attributes.push(("positions", Some(positions.join(" "))));
            }
            OperationKind::Save | OperationKind::Other(_) => {}
        }
        Element::new("operation", attributes).with_kept(&self.kept)
    }
}

impl From<OperationKind> for Operation {
    fn from(kind: OperationKind) -> Self {
        Self { kind, kept: Kept::default() }
    }
}

/// The name, as the metadata have it.
impl Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Save => "save",
            Self::Restore { .. } => "restore",
            Self::Migrate { .. } => "migrate",
            Self::PendingUnplug { .. } => "pending-unplug",
            Self::Other(name) => name,
        })
    }
}

impl Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hostdev => "hostdev",
            Self::Ethernet => "ethernet",
            Self::Network => "network",
            Self::Infiniband => "infiniband",
        })
    }
}

impl FromStr for Mode {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "hostdev" => Ok(Self::Hostdev),
            "ethernet" => Ok(Self::Ethernet),
            "network" => Ok(Self::Network),
            "infiniband" => Ok(Self::Infiniband),
            _ => Err(ParseError::new("hostdev, ethernet, network or infiniband", text)),
        }
    }
}

/// An element of ours as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    content: Vec<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Element(Element),
    Text(String),
}

impl Element {
    fn new(name: &str, attributes: Vec<(&str, Option<String>)>) -> Self {
        let present = attributes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Self { name: name.to_owned(), attributes: present.collect(), content: Vec::new() }
    }

    fn with(mut self, content: Vec<Content>) -> Self {
        self.content.extend(content);
        self
    }

    fn with_kept(mut self, kept: &Kept) -> Self {
        self.attributes.extend_from_slice(&kept.attributes);
        self.with(kept.content.clone())
    }
}

impl Kept {
    fn read(node: Node<'_, '_>, known_attributes: &[&str], known_elements: &[&str]) -> Self {
        let attributes = node
            .attributes()
            .filter(|attribute| attribute.namespace().is_none() && !known_attributes.contains(&attribute.name()))
            .map(|attribute| (attribute.name().to_owned(), attribute.value().to_owned()));
        let content = node.children().filter_map(|child| match child.text() {
            // libvirt puts elements on lines of their own: blanks between them say nothing.
            Some(text) if child.is_text() => (!text.trim().is_empty()).then(|| Content::Text(text.to_owned())),
            _ if is_of_ours(child) && !known_elements.contains(&child.tag_name().name()) => {
                let Self { attributes, content } = Self::read(child, &[], &[]);
                Some(Content::Element(Element { name: child.tag_name().name().to_owned(), attributes, content }))
            }
            _ => None,
        });
        Self { attributes: attributes.collect(), content: content.collect() }
    }
}

/// An element of our namespace, or of none: that is how libvirt's call for metadata gives it back.
fn is_of_ours(node: Node<'_, '_>) -> bool {
    node.is_element() && node.tag_name().namespace().is_none_or(|namespace| namespace == Wanted::NAMESPACE)
}

fn is_ours(node: Node<'_, '_>, name: &str) -> bool {
    is_of_ours(node) && node.tag_name().name() == name
}

/// The one value of an attribute that is only there when something is so.
fn yes(text: &str) -> Result<(), ParseError> {
    if text == "yes" { Ok(()) } else { Err(ParseError::new("yes", text)) }
}

fn version(text: &str) -> Result<(u32, u32), ParseError> {
    let (major, minor) = text.split_once('.').ok_or_else(|| ParseError::new(VERSION, text))?;
    match (decimal(major), decimal(minor)) {
        (Ok(major), Ok(minor)) => Ok((major, minor)),
        _ => Err(ParseError::new(VERSION, text)),
    }
}

/// An element and the prefix that it and all in it are written with.
struct Prefixed<'a>(&'a Element, &'a str);

impl Display for Prefixed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Element { name, attributes, content }, prefix) = self;
        write!(f, "<{prefix}{name}")?;
        for (name, value) in attributes {
            write!(f, " {name}='{}'", Escaped(value))?;
        }
        if content.is_empty() {
            return f.write_str("/>");
        }
        f.write_str(">")?;
        for part in content {
            match part {
                Content::Element(element) => Prefixed(element, prefix).fmt(f)?,
                Content::Text(text) => Escaped(text).fmt(f)?,
            }
        }
        write!(f, "</{prefix}{name}>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept() -> impl Strategy<Value = Kept> {
        let attributes = || prop::collection::btree_map("x[a-z]{0,5}", "[ -~\t\né]{0,6}", 0..3);
        let element = move |content: Vec<Content>| {
            ("y[a-z]{0,5}", attributes()).prop_map(move |(name, attributes)| Element {
                name,
                attributes: attributes.into_iter().collect(),
                content: content.clone(),
            })
        };
        let leaf = element(Vec::new()).prop_map(Content::Element);
        let content = leaf.prop_recursive(3, 8, 3, move |inner| {
            (prop::option::of("[!-~é]{1,5}"), prop::collection::vec(inner, 0..3)).prop_flat_map(move |(text, inner)| {
                let content = text.map(Content::Text).into_iter().chain(inner).collect();
                element(content).prop_map(Content::Element)
            })
        });
        (attributes(), prop::collection::vec(content, 0..3))
            .prop_map(|(attributes, content)| Kept { attributes: attributes.into_iter().collect(), content })
    }

    fn address() -> impl Strategy<Value = PciAddress> {
        (any::<u32>(), any::<u8>(), 0_u8..32, 0_u8..8).prop_map(|(d, b, s, f)| PciAddress::new(d, b, s, f).unwrap())
    }

    fn nics() -> impl Strategy<Value = Vec<WantedNic>> {
        let mode = prop_oneof![Just(Mode::Hostdev), Just(Mode::Ethernet), Just(Mode::Network), Just(Mode::Infiniband)];
        let nic = (
            "[0-9a-f]{2}(:[0-9a-f]{2}){5}",
            "[a-z_][a-z0-9.-]{0,8}",
            mode,
            prop::option::of(address()),
            any::<Option<u32>>(),
            any::<Option<u16>>(),
            any::<Option<u32>>(),
            prop::option::of("[ -~\n]{0,9}"),
            (prop::option::of(address()), prop::option::of("[0-9a-f]{2}(:[0-9a-f]{2}){5}")),
            kept(),
        );
        prop::collection::vec(nic, 0..5).prop_map(|nics| {
            let number = nics.into_iter().enumerate();
            number
                .map(|(i, (mac, root, mode, guest, boot_order, vlan, nic_id, dummy, adopted, kept))| WantedNic {
                    mac: mac.parse().unwrap(),
                    root: root.parse().unwrap_or_else(|_| "ib0".parse().unwrap()),
                    mode,
                    position: Position::new(i * 3).unwrap(),
                    guest,
                    boot_order,
                    vlan,
                    nic_id,
                    dummy,
                    adopted: Adopted { vf: adopted.0, dummy: adopted.1.map(|mac| mac.parse().unwrap()) },
                    kept,
                })
                .collect()
        })
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let kind = prop_oneof![
            Just(OperationKind::Save),
            "[ -~é]{1,9}".prop_map(|path| OperationKind::Restore { checkpoint: path.into() }),
            prop::collection::vec((0_usize..16).prop_map(|n| Position::new(n).unwrap()), 1..4)
                .prop_map(|positions| OperationKind::PendingUnplug { positions }),
            ("[ -~é]{0,9}", "[ -~]{0,9}", prop::option::of("[ -~]{0,9}"), any::<bool>())
                .prop_map(|(to, id, from, stands)| OperationKind::Migrate { to, id, from, stands }),
            "z[ -~]{0,9}".prop_map(OperationKind::Other),
        ];
        (kind, kept()).prop_map(|(kind, kept)| Operation { kind, kept })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(nics in nics(), operation in prop::option::of(operation()), minor: u32, kept in kept()) {
            let wanted = Wanted { nics, operation, minor, kept };
            prop_assert_eq!(&Wanted::parse(&wanted.to_xml()).unwrap(), &wanted);
            prop_assert_eq!(&Wanted::parse(&wanted.to_unqualified_xml()).unwrap(), &wanted);
        }
    }

    const TEXT: &str = "<sriov:domain xmlns:sriov='urn:kvm-sriov:domain:1' version='1.3' new='a&apos;b'>\
        <sriov:nic mac='02:00:c0:a8:01:05' root='ib0' mode='hostdev' position='10' guest='0000:00:10.0' boot='1' \
        vlan='100' nic='2' qos='3'/>\
        <sriov:operation kind='migrate' to='hostB' id='7' by='me'><sriov:more>x</sriov:more></sriov:operation>\
        <sriov:later a='1'><sriov:inner/></sriov:later></sriov:domain>";

    #[test]
    fn a_later_minor_version_is_kept() {
        let wanted = Wanted::parse(TEXT).unwrap();
        assert_eq!(wanted.to_xml(), TEXT);
        assert_eq!(wanted.nics[0].position.number(), 10);
        let OperationKind::Migrate { to, .. } = &wanted.operation.as_ref().unwrap().kind else { panic!() };
        assert_eq!(to, "hostB");
        let bare = wanted.to_unqualified_xml();
        assert!(!bare.contains("sriov:domain") && !bare.contains("xmlns"), "{bare}");
        assert_eq!(Wanted::parse(&bare).unwrap(), wanted);
        let as_default = bare.replacen("<domain", "<domain xmlns='urn:kvm-sriov:domain:1'", 1);
        assert_eq!(Wanted::parse(&as_default).unwrap(), wanted);
        // As libvirt 9.0 answers virDomainGetMetadata.
        let answered =
            bare.replacen("<domain", "<domain xmlns:sriov=\"urn:kvm-sriov:domain:1\"", 1).replace("><", ">\n  <");
        assert_eq!(Wanted::parse(&answered).unwrap(), wanted);
    }

    #[test]
    fn what_is_not_ours_or_not_readable_is_refused() {
        for (from, to, expected) in [
            (
                "version='1.3'",
                "version='2.0'",
                "1:1: expected metadata of version 1, found 2.0: it was written by a newer",
            ),
            ("version='1.3'", "version='1'", "1:52: version: expected a version such as 1.0, found \"1\""),
            ("version='1.3'", "", "1:1: expected an attribute version in <domain>, found none"),
            ("domain:1'", "domain:2'", "1:1: expected <sriov:domain> of urn:kvm-sriov:domain:1, found <domain>"),
            ("mode='hostdev'", "mode='x'", "mode: expected hostdev, ethernet"),
            ("position='10'", "position='16'", "position: expected at most 16"),
            ("vlan='100'", "vlan='-1'", "vlan: expected a number that fits"),
            ("to='hostB'", "", "expected an attribute to in <operation>, found none"),
            (" mac='", " mac='x", "mac: expected a MAC address"),
        ] {
            let error = Wanted::parse(&TEXT.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let nic = "<nic mac='02:00:c0:a8:01:05' root='ib0' mode='hostdev' position='1'/>";
        let twice = format!("<domain version='1.0'>{nic}{nic}</domain>");
        assert!(Wanted::parse(&twice).unwrap_err().to_string().contains("position 1 is there twice"));
    }
}
