//! The XML of libvirt and OpenNebula: read with limits, edited by splices, never written anew.
//!
//! A domain is OpenNebula's and libvirt's; only a few places in it are ours. [`Deployment`] is what OpenNebula wants
//! started, [`LiveDomain`] what libvirt shows of a running domain, [`VmData`] OpenNebula's own description of the VM,
//! [`Wanted`] the element that we keep in the domain.
//!
//! # Source
//! docs/reference/wire.md for what arrives; libvirt's formatdomain for the domain;
//! docs/decisions/0003-metadata-in-the-domain.md for our element.

mod deployment;
mod disk;
mod guest_bus;
mod image;
mod interface;
mod live;
mod metadata;
mod sizes;
mod snapshot;
mod splice;
mod vm;
mod vm_disk;

use std::fmt::{self, Display};
use std::str::FromStr;
use std::thread;

use roxmltree::{Document, Error, Node, ParsingOptions, TextPos};

use crate::base::{DomainUuid, Position};
use crate::base::{ParseError, PciAddress};

pub use deployment::{Deployment, Nvram, PlannedNic, hostdev_of};
pub use disk::{Disk, Medium, Mention, mentions, with_system_datastore};
pub use guest_bus::{FreeAddresses, Place};
pub use image::image_for;
pub use interface::{NicDefaults, dummy_interface_of, interface_of, nic_alias, pci_of};
pub(crate) use live::ONE;
pub use live::{LiveDomain, LiveHostdev, LiveInterface};
pub use metadata::{Adopted, Kept, Mode, Operation, OperationKind, Wanted, WantedNic};
pub use sizes::{Dimm, HugePages, Resize, Sizes};
pub use snapshot::{snapshot_of, wanted_in_snapshot};
pub use vm::{Bandwidth, PciDevice, Travel, VmData, VmNic, VmPci, datastore_values, tpm_state};
pub use vm_disk::{DiskPlace, VmDisk};

/// The longest text that is read, in bytes. OpenNebula's largest are below 100 KiB.
const SIZE_LIMIT: usize = 8 * 1024 * 1024;

/// The most `<` a text may hold: the parser takes memory for each before it looks.
const MARKUP_LIMIT: usize = 200_000;

/// The deepest nesting. libvirt shows each file under a disk inside of the one above it, and allows 200 of them.
const DEPTH_LIMIT: usize = 256;

/// The deepest nesting that is read on the caller's stack. The parser calls itself for every level and takes up to
/// 16 KiB each time, without optimisation; a thread of Rust has 2 MiB.
const DEPTH_ON_STACK: usize = 64;

/// The stack for what is nested deeper, in bytes.
const DEEP_STACK: usize = 16 * 1024 * 1024;

/// The most attributes of one element: the parser compares each with all others.
const ATTRIBUTE_LIMIT: usize = 1_000;

/// Why a text could not be read or changed, and where. Prints as one line: `line:column: expected ..., found ...`.
///
/// Nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {problem}")]
pub struct XmlError {
    line: u32,
    column: u32,
    problem: String,
}

impl XmlError {
    /// The line, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The column in characters, from 1.
    pub fn column(&self) -> u32 {
        self.column
    }

    fn new(position: TextPos, problem: impl Display) -> Self {
        Self { line: position.row, column: position.col, problem: OneLine(problem).to_string() }
    }

    fn at(node: Node<'_, '_>, problem: impl Display) -> Self {
        Self::new(node.document().text_pos_at(node.range().start), problem)
    }

    fn in_text(text: &str, offset: usize, problem: impl Display) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let position = TextPos::new(
            count(before.matches('\n').count()).saturating_add(1),
            count(line.chars().count()).saturating_add(1),
        );
        Self::new(position, problem)
    }

    fn from_parser(text: &str, error: &Error) -> Self {
        let end = |problem| Self::in_text(text, text.len(), problem);
        let hint = "a < or & in a value must be written as &lt; or &amp;";
        match error {
            Error::UnexpectedEndOfStream => end("expected more, found the end (is the text cut off?)"),
            Error::UnclosedRootNode => end("expected the end tag of the first element, found the end"),
            Error::NoRootNode => end("expected an element, found none"),
            Error::MalformedEntityReference(at) => {
                Self::new(*at, format_args!("expected an entity such as &amp;, found a bare & ({hint})"))
            }
            Error::UnknownEntityReference(name, at) => {
                Self::new(*at, format_args!("expected one of XML's five entities, found &{name}; ({hint})"))
            }
            Error::InvalidChar(expected, found @ b'<', at) => Self::new(
                *at,
                format_args!("expected {}, found {} ({hint})", char::from(*expected), char::from(*found)),
            ),
            other => {
                let position = other.pos();
                // The parser's own text ends with the position that stands in front here.
                Self::new(position, other.to_string().replace(&format!(" at {position}"), ""))
            }
        }
    }
}

/// Text from outside must not break a line of the log or of OpenNebula's answer in two.
struct OneLine<T>(T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .to_string()
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

/// What the alias of each of our host devices begins with.
const ALIAS: &str = "ua-sriov-";

/// What the alias of each of our dummies begins with.
const DUMMY_ALIAS: &str = "ua-sriov-dummy-";

/// The alias of the host device at this position: `ua-sriov-<position, decimal>`.
///
/// # Source
/// libvirt keeps a user's alias only with the prefix `ua-` (formatdomain, `<alias>`).
pub fn alias_of(position: Position) -> String {
    format!("{ALIAS}{position}")
}

/// The alias of the dummy interface at this position: `ua-sriov-dummy-<position, decimal>`.
pub fn dummy_alias_of(position: Position) -> String {
    format!("{DUMMY_ALIAS}{position}")
}

/// Reads a text within the limits. A DTD is refused, so nothing can be declared, included or expanded.
fn parse(text: &str) -> Result<Document<'_>, XmlError> {
    let read = || {
        let options = ParsingOptions { allow_dtd: false, nodes_limit: u32::MAX, entity_resolver: None };
        Document::parse_with_options(text, options).map_err(|error| XmlError::from_parser(text, &error))
    };
    if check_limits(text)? <= DEPTH_ON_STACK {
        return read();
    }
    let no_stack =
        |why: &dyn Display| XmlError::in_text(text, 0, format_args!("cannot get the stack to read it: {why}"));
    thread::scope(|scope| {
        let reader = thread::Builder::new().stack_size(DEEP_STACK).spawn_scoped(scope, read);
        let reader = reader.map_err(|error| no_stack(&error))?;
        reader.join().map_err(|_| no_stack(&"the thread ended early"))?
    })
}

/// Checks the limits and returns the deepest nesting. Looks at the markup only as far as it must. Where the text is malformed it may stop early: the parser
/// then stops at the same place, so it never gets deeper than what was counted here.
fn check_limits(text: &str) -> Result<usize, XmlError> {
    if text.len() > SIZE_LIMIT {
        return Err(XmlError::in_text(
            text,
            0,
            format_args!("expected at most {SIZE_LIMIT} bytes, found {}", text.len()),
        ));
    }
    let markup = text.bytes().filter(|b| *b == b'<').count();
    if markup > MARKUP_LIMIT {
        return Err(XmlError::in_text(text, 0, format_args!("expected at most {MARKUP_LIMIT} tags, found {markup}")));
    }
    let mut depth = 0_usize;
    let mut deepest = 0;
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| rest.find('<')) {
        let start = at.saturating_add(found);
        let rest = text.get(start..).unwrap_or_default();
        let length = if rest.starts_with("<!--") {
            length_to(rest, 4, "-->")
        } else if rest.starts_with("<![CDATA[") {
            length_to(rest, 9, "]]>")
        } else if rest.starts_with("<?") {
            length_to(rest, 2, "?>")
        } else if rest.starts_with("<!DOCTYPE") {
            return Err(XmlError::in_text(
                text,
                start,
                "expected an element, found a DTD (<!DOCTYPE>), which is refused",
            ));
        } else if rest.starts_with("</") {
            depth = depth.saturating_sub(1);
            length_to(rest, 2, ">")
        } else {
            let tag = StartTag::read(rest);
            if tag.attributes > ATTRIBUTE_LIMIT {
                let problem = format_args!("expected at most {ATTRIBUTE_LIMIT} attributes in an element, found more");
                return Err(XmlError::in_text(text, start, problem));
            }
            if !tag.is_empty {
                depth = depth.saturating_add(1);
            }
            if depth > DEPTH_LIMIT {
                let problem = format_args!("expected at most {DEPTH_LIMIT} nested elements, found more");
                return Err(XmlError::in_text(text, start, problem));
            }
            deepest = deepest.max(depth);
            tag.length
        };
        match length {
            Some(length) => at = start.saturating_add(length),
            None => break,
        }
    }
    Ok(deepest)
}

fn length_to(rest: &str, from: usize, end: &str) -> Option<usize> {
    Some(rest.get(from..)?.find(end)?.saturating_add(from).saturating_add(end.len()))
}

/// A start tag, as far as the limits need it.
struct StartTag {
    /// `None` when it never ends.
    length: Option<usize>,
    is_empty: bool,
    attributes: usize,
}

impl StartTag {
    fn read(rest: &str) -> Self {
        let mut tag = Self { length: None, is_empty: false, attributes: 0 };
        let mut quote = None;
        for (i, byte) in rest.bytes().enumerate() {
            match (quote, byte) {
                (Some(open), _) if open == byte => quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => {
                    quote = Some(byte);
                    tag.attributes = tag.attributes.saturating_add(1);
                }
                (None, b'>') => {
                    tag.length = Some(i.saturating_add(1));
                    break;
                }
                (None, _) => tag.is_empty = byte == b'/',
            }
        }
        tag
    }
}

/// How much memory the host gives the domain's QEMU at the most, in KiB; `None` without a limit.
fn hard_limit(domain: Node<'_, '_>) -> Option<u64> {
    child(child(domain, "memtune")?, "hard_limit").and_then(kibibytes)
}

/// libvirt's sizes: KiB unless a unit is named, powers of 1024 for `K` and `KiB`, of 1000 for `KB`.
fn kibibytes(memory: Node<'_, '_>) -> Option<u64> {
    in_kib(content(memory).trim(), memory.attribute("unit").unwrap_or("KiB"))
}

fn in_kib(number: &str, unit: &str) -> Option<u64> {
    let number: u64 = number.parse().ok()?;
    let (power, base) = match unit.to_ascii_lowercase().as_str() {
        "b" | "bytes" => (0, 1024),
        "k" | "kib" => (1, 1024),
        "m" | "mib" => (2, 1024),
        "g" | "gib" => (3, 1024),
        "t" | "tib" => (4, 1024),
        "kb" => (1, 1000),
        "mb" => (2, 1000),
        "gb" => (3, 1000),
        "tb" => (4, 1000),
        _ => return None,
    };
    u64::pow(base, power).checked_mul(number).map(|bytes| bytes / 1024)
}

/// The root element, which must have this name and no namespace.
fn root<'a, 'i>(document: &'a Document<'i>, name: &str) -> Result<Node<'a, 'i>, XmlError> {
    let root = document.root_element();
    if is_plain(root, name) {
        return Ok(root);
    }
    Err(XmlError::at(root, format_args!("expected <{name}>, found <{}>", root.tag_name().name())))
}

/// Whether this is an element with this name and no namespace, as all of libvirt's and OpenNebula's own are.
fn is_plain(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| is_plain(*child, name))
}

/// The first child with this name: the one that libvirt takes, too.
fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// The devices of a domain: OpenNebula writes several blocks of them.
fn devices<'a, 'i>(domain: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let devices = children(domain, "devices").flat_map(|block| block.children());
    devices.filter(|device| device.is_element() && device.tag_name().namespace().is_none())
}

/// The text of an element: all of it, also when a comment parts it.
fn content(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// An attribute read by `read`; `None` when it is not there.
fn attribute<T>(
    node: Node<'_, '_>,
    name: &'static str,
    read: impl FnOnce(&str) -> Result<T, ParseError>,
) -> Result<Option<T>, XmlError> {
    let Some(attribute) = node.attribute_node(name) else { return Ok(None) };
    // The parser counts lines from the beginning: only for an error.
    let position = || node.document().text_pos_at(attribute.range().start);
    read(attribute.value()).map(Some).map_err(|error| XmlError::new(position(), format_args!("{name}: {error}")))
}

/// An attribute that must be there.
fn required<T>(
    node: Node<'_, '_>,
    name: &'static str,
    read: impl FnOnce(&str) -> Result<T, ParseError>,
) -> Result<T, XmlError> {
    attribute(node, name, read)?.ok_or_else(|| {
        XmlError::at(node, format_args!("expected an attribute {name} in <{}>, found none", node.tag_name().name()))
    })
}

/// The MAC address of an `<interface>`.
fn mac_of(interface: Node<'_, '_>) -> Result<crate::base::MacAddress, XmlError> {
    let mac = child(interface, "mac")
        .ok_or_else(|| XmlError::at(interface, "expected <mac address=...> in <interface>, found none"))?;
    required(mac, "address", str::parse)
}

/// The value of the attribute of the first child with this name, as it is.
fn child_attribute(node: Node<'_, '_>, name: &'static str, attribute: &'static str) -> Option<String> {
    child(node, name)?.attribute(attribute).map(str::to_owned)
}

fn decimal<T: FromStr>(text: &str) -> Result<T, ParseError> {
    let wrong = || ParseError::new("a number that fits", text);
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

fn position(text: &str) -> Result<Position, ParseError> {
    decimal(text).and_then(Position::new)
}

/// A domain's UUID, with or without hyphens, as libvirt takes it.
fn uuid_of(domain: Node<'_, '_>) -> Result<Option<DomainUuid>, XmlError> {
    let Some(node) = child(domain, "uuid") else { return Ok(None) };
    let text = content(node);
    let mut hyphened = String::new();
    for (i, digit) in text.chars().filter(|c| *c != '-' && !c.is_whitespace()).enumerate() {
        if matches!(i, 8 | 12 | 16 | 20) {
            hyphened.push('-');
        }
        hyphened.push(digit);
    }
    hyphened.parse().map(Some).map_err(|_| XmlError::at(node, ParseError::new("a UUID", &text)))
}

/// The address in libvirt's `<address domain= bus= slot= function=>`. A missing field is 0; the base of each is C's:
/// `0x10` is hexadecimal, `010` octal and `10` decimal, which OpenNebula uses for bus numbers.
///
/// # Source
/// `virPCIDeviceAddressParseXML` in libvirt's `src/conf/device_conf.c`.
fn pci_address(node: Node<'_, '_>) -> Result<PciAddress, XmlError> {
    let field = |name| Ok::<u32, XmlError>(attribute(node, name, c_number)?.unwrap_or(0));
    let small = |name| {
        let number = field(name)?;
        u8::try_from(number)
            .map_err(|_| XmlError::at(node, format_args!("{name}: expected at most 0xff, found {number:#x}")))
    };
    PciAddress::new(field("domain")?, small("bus")?, small("slot")?, small("function")?)
        .map_err(|error| XmlError::at(node, error))
}

fn c_number(text: &str) -> Result<u32, ParseError> {
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    Some(digits)
        .filter(|digits| !digits.starts_with(['+', '-']))
        .and_then(|digits| u32::from_str_radix(digits, base).ok())
        .ok_or_else(|| ParseError::new("a number such as 0x1f", text))
}

/// The guest address of a device, if one is written. An address of all zeros asks libvirt to choose.
fn guest_address(device: Node<'_, '_>) -> Result<Option<PciAddress>, XmlError> {
    let Some(node) = children(device, "address").find(|address| address.attribute("type") == Some("pci")) else {
        return Ok(None);
    };
    let address = pci_address(node)?;
    Ok(Some(address).filter(|a| (a.domain(), a.bus(), a.slot()) != (0, 0, 0)))
}

/// A text as it stands in an attribute or between tags, whatever the quotes around it.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&apos;"),
            // A parser would turn these into blanks or newlines.
            '\t' | '\n' | '\r' => write!(f, "&#{};", u32::from(c)),
            c => write!(f, "{c}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const SIMPLE: &str = include_str!("../../tests/fixtures/deployment-simple.xml");
    pub(super) const RICH: &str = include_str!("../../tests/fixtures/deployment-rich.xml");
    pub(super) const OLD: &str = include_str!("../../tests/fixtures/deployment-4.0.xml");
    pub(super) const WIRE: &str = include_str!("../../tests/fixtures/deployment-7.x.xml");
    pub(super) const LIVE: &str = include_str!("../../tests/fixtures/live.xml");
    pub(super) const VM: &str = include_str!("../../tests/fixtures/vm.xml");
    pub(super) const ACTION: &str = include_str!("../../tests/fixtures/action-7.x.xml");

    /// A domain with this in it.
    pub(super) fn domain(inside: &str) -> String {
        format!("<domain>\n<name>one-1</name>\n{inside}</domain>")
    }

    /// A NIC on this bridge.
    pub(super) fn nic(bridge: &str, rest: &str) -> String {
        format!(
            "<interface type='bridge'><source bridge='{bridge}'/><mac address='02:00:00:00:00:01'/>{rest}</interface>"
        )
    }

    /// The guest addresses that a deployment gives its VFs.
    pub(super) fn guests(text: &str) -> Vec<String> {
        let deployment = Deployment::parse(text).unwrap();
        let address = |nic: &WantedNic| nic.guest.map_or("-".to_owned(), |address| address.to_string());
        deployment.sriov_nics().map(address).collect()
    }

    fn text_of(error: Result<Document<'_>, XmlError>) -> String {
        error.unwrap_err().to_string()
    }

    #[test]
    fn a_million_nested_elements_are_an_error_and_no_crash() {
        let deep = "<a>".repeat(1_000_000);
        assert_eq!(text_of(parse(&deep)), "1:1: expected at most 200000 tags, found 1000000");
        let deep = "<a>".repeat(100_000);
        assert_eq!(text_of(parse(&deep)), "1:769: expected at most 256 nested elements, found more");
        let fits = "<a>".repeat(DEPTH_LIMIT) + &"</a>".repeat(DEPTH_LIMIT);
        assert!(parse(&fits).is_ok());
        let on_stack = "<a>".repeat(DEPTH_ON_STACK) + &"</a>".repeat(DEPTH_ON_STACK);
        assert!(parse(&on_stack).is_ok());
        let wide = format!("<a>{}</a>", "<b/>".repeat(100_000));
        assert!(parse(&wide).is_ok());
    }

    #[test]
    fn what_hides_tags_is_not_counted_and_does_not_hide_depth() {
        let hidden = format!("<!--{0}--><?p {0}?><r a='>>'><![CDATA[{0}]]></r>", "<a>".repeat(300));
        assert!(parse(&hidden).is_ok(), "{:?}", parse(&hidden).err());
        let after = format!("<r><!-- ' --><?p \"?><x y='/'>{}", "<a b='\">'>".repeat(300));
        assert!(text_of(parse(&after)).contains("nested"));
    }

    #[test]
    fn large_texts_and_many_attributes_are_refused() {
        assert!(text_of(parse(&" ".repeat(SIZE_LIMIT + 1))).starts_with("1:1: expected at most 8388608 bytes"));
        let wide: String = (0..=ATTRIBUTE_LIMIT).map(|n| format!(" a{n}=''")).collect();
        assert!(text_of(parse(&format!("<a{wide}/>"))).contains("attributes"));
    }

    #[test]
    fn errors_name_the_place() {
        for (text, expected) in [
            ("<!DOCTYPE d [<!ENTITY a 'b'>]><d/>", "1:1: expected an element, found a DTD"),
            ("<?xml version='1.0'?>\n<!DOCTYPE d><d/>", "2:1: expected an element, found a DTD"),
            ("<d>\n<a b='x & y'/></d>", "2:9: expected an entity such as &amp;, found a bare &"),
            ("<d>\n <a b='x <y'/></d>", "2:10: expected ', found < (a < or &"),
            ("<d>&nbsp;</d>", "1:4: expected one of XML's five entities, found &nbsp;"),
            ("<d>\n</e>", "2:1: expected 'd' tag, not 'e'"),
            ("<d><e>", "1:7: expected the end tag"),
            ("<d a=\"", "1:7: expected more, found the end"),
            ("", "1:1: expected an element, found none"),
            ("<d x\n/>", "2:1: expected '=' not '/'"),
            ("<d a=\nb/>", "2:1: expected a quote not 'b'"),
        ] {
            let error = text_of(parse(text));
            assert!(error.starts_with(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn addresses_are_read_as_libvirt_reads_them() {
        for (text, expected) in [
            ("<a domain='0x0000' bus='0x81' slot='0x02' function='0x3'/>", "0000:81:02.3"),
            ("<a type='pci' bus='10' slot='0000' function='0'/>", "0000:0a:00.0"),
            ("<a bus='010'/>", "0000:08:00.0"),
        ] {
            let document = parse(text).unwrap();
            assert_eq!(pci_address(document.root_element()).unwrap().to_string(), expected);
        }
        for wrong in ["<a bus='0x100'/>", "<a slot='32'/>", "<a bus='-1'/>", "<a bus=''/>", "<a bus='0x+1'/>"] {
            let document = parse(wrong).unwrap();
            assert!(pci_address(document.root_element()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_read_back(text in "[ -~\t\n\ré]*") {
            let xml = format!("<a b='{0}' c=\"{0}\">{0}</a>", Escaped(&text));
            let document = parse(&xml).unwrap();
            let node = document.root_element();
            prop_assert_eq!(node.attribute("b"), Some(text.as_str()));
            prop_assert_eq!(node.attribute("c"), Some(text.as_str()));
            prop_assert_eq!(content(node), text);
        }

        #[test]
        fn damaged_texts_never_panic(
            which in 0_usize..7, at: prop::sample::Index, to: prop::sample::Index,
            insert in "(<|>|/>|'|\"|&|<!--|-->|<!\\[CDATA\\[|\\]\\]>|<devices>|</devices>|<interface><source bridge='sriov_a'/>|\\PC|é)*"
        ) {
            let original = [SIMPLE, RICH, OLD, WIRE, LIVE, VM, ACTION][which];
            let mut text: Vec<char> = original.chars().collect();
            let (at, to) = (at.index(text.len()), to.index(text.len()));
            // Mostly small damage, or hardly a text would get past the parser.
            let end = to.max(at).min(at + to % 8);
            text.splice(at..end, insert.chars());
            let text: String = text.into_iter().collect();
            for text in [text.as_str(), &original[..original.char_indices().nth(at).map_or(0, |(i, _)| i)]] {
                if let Ok(deployment) = Deployment::parse(text) {
                    prop_assert!(deployment.sriov_nics().zip(0..).all(|(nic, number)| nic.position.number() == number));
                    if deployment.sriov_nics().next().is_none() {
                        prop_assert_eq!(deployment.rewrite(&[], &[], "br").unwrap(), text);
                    }
                }
                for error in [
                    Deployment::parse(text).err(), LiveDomain::parse(text).err(), VmData::parse(text).err(),
                    Wanted::parse(text).err(),
                ].into_iter().flatten() {
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
        }
    }
}
