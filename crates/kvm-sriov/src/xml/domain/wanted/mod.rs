//! The VFs that a domain should have, kept in the domain itself: the element `domain` of the driver's namespace under
//! `<metadata>`.

mod element;
mod nic;
mod operation;
#[cfg(test)]
mod tests;

use roxmltree::Node;

use crate::base::ParseError;
use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, decimal, required};
pub use element::KeptContent;
use element::{Content, Element, Prefixed, is_our_element};
pub use nic::{AdoptedDevices, WantedNic};
pub use operation::{Operation, OperationKind};

/// The VFs that a domain should have, and the operation in progress on it.
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
    /// One per SR-IOV NIC. No two have the same position.
    pub nics: Vec<WantedNic>,
    /// The operation in progress, or one that was interrupted.
    pub operation: Option<Operation>,
    /// The minor number of the version. A number above the driver's own is kept, because the newer version that wrote
    /// it may read it again.
    pub minor: u32,
    /// Content of a later version.
    pub kept: KeptContent,
}

const MAJOR: u32 = 1;
const VERSION: &str = "a version such as 1.0";

impl Wanted {
    /// The namespace of the element. The number in it never changes; the version is an attribute.
    pub const NAMESPACE: &'static str = "urn:kvm-sriov:domain:1";

    /// The prefix of the namespace in the driver's output.
    pub const PREFIX: &'static str = "sriov";

    /// Whether a NIC needs a dummy interface.
    pub fn has_dummies(&self) -> bool {
        self.nics.iter().any(WantedNic::has_dummy)
    }

    /// Reads the element: with this prefix, with another one, or without (libvirt's call for metadata removes it).
    ///
    /// # Errors
    /// The text is not this element, a newer major version wrote it, or a value is wrong.
    pub fn parse(element: &str) -> Result<Self, XmlError> {
        let document = parse(element)?;
        Self::read(document.root_element())
    }

    /// Reads the element in the metadata of a domain, if it is there.
    pub(in crate::xml) fn of(domain: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        Self::elements(domain).next().map(Self::read).transpose()
    }

    /// The elements of the driver's namespace in the metadata of a domain.
    pub(in crate::xml) fn elements<'a, 'i>(domain: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
        let inside = child(domain, "metadata").into_iter().flat_map(|metadata| metadata.children());
        inside.filter(|node| node.tag_name().namespace() == Some(Self::NAMESPACE))
    }

    fn read(element: Node<'_, '_>) -> Result<Self, XmlError> {
        if !is_our_element(element, "domain") {
            let problem = format!(
                "expected <{}:domain> of {}, found <{}>",
                Self::PREFIX,
                Self::NAMESPACE,
                element.tag_name().name()
            );
            return Err(XmlError::at(element, problem));
        }
        let (major, minor) = required(element, "version", version)?;
        if major != MAJOR {
            let problem = format!(
                "expected metadata of version {MAJOR}, found {major}.{minor}: it was written by a newer kvm-sriov, \
                 which this host needs too"
            );
            return Err(XmlError::at(element, problem));
        }
        let mut nics: Vec<WantedNic> = Vec::new();
        for node in element.children().filter(|node| is_our_element(*node, "nic")) {
            let nic = WantedNic::read(node)?;
            if nics.iter().any(|other| other.position == nic.position) {
                return Err(XmlError::at(
                    node,
                    format_args!("expected different positions, found {} twice", nic.position),
                ));
            }
            nics.push(nic);
        }
        let mut operations = element.children().filter(|node| is_our_element(*node, "operation"));
        let operation = operations.next().map(Operation::read).transpose()?;
        if let Some(second) = operations.next() {
            return Err(XmlError::at(second, "expected one operation, found two"));
        }
        Ok(Self { nics, operation, minor, kept: KeptContent::read(element, &["version"], &["nic", "operation"]) })
    }

    /// The element with the prefix, on one line: the form for a domain's `<metadata>`.
    pub fn to_xml(&self) -> String {
        let mut element = self.element();
        element.attributes.insert(0, (format!("xmlns:{}", Self::PREFIX), Self::NAMESPACE.to_owned()));
        Prefixed(&element, "sriov:").to_string()
    }

    /// The element without prefix and namespace. libvirt's call that sets metadata adds both, and refuses an element
    /// that has the prefix already.
    ///
    /// # Source
    /// `virXMLInjectNamespace` in libvirt's `src/util/virxml.c`, and an experiment.
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

fn version(text: &str) -> Result<(u32, u32), ParseError> {
    let (major, minor) = text.split_once('.').ok_or_else(|| ParseError::new(VERSION, text))?;
    match (decimal(major), decimal(minor)) {
        (Ok(major), Ok(minor)) => Ok((major, minor)),
        _ => Err(ParseError::new(VERSION, text)),
    }
}
