//! Reads elements and attributes of a tree.

use std::str::FromStr;

use roxmltree::{Document, Node};

use super::XmlError;
use crate::base::ParseError;

/// The root element, which must have this name and no namespace.
pub(in crate::xml) fn root<'a, 'i>(document: &'a Document<'i>, name: &str) -> Result<Node<'a, 'i>, XmlError> {
    let root = document.root_element();
    if is_plain(root, name) {
        return Ok(root);
    }
    Err(XmlError::at(root, format_args!("expected <{name}>, found <{}>", root.tag_name().name())))
}

/// Whether this is an element with this name and no namespace, as all of libvirt's and OpenNebula's own are.
pub(in crate::xml) fn is_plain(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

pub(in crate::xml) fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| is_plain(*child, name))
}

/// The first child with this name: the one that libvirt takes, too.
pub(in crate::xml) fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// The text of an element: all of it, also when a comment parts it.
pub(in crate::xml) fn content(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// An attribute read by `read`; `None` when it is not there.
pub(in crate::xml) fn attribute<T>(
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
pub(in crate::xml) fn required<T>(
    node: Node<'_, '_>,
    name: &'static str,
    read: impl FnOnce(&str) -> Result<T, ParseError>,
) -> Result<T, XmlError> {
    attribute(node, name, read)?.ok_or_else(|| {
        XmlError::at(node, format_args!("expected an attribute {name} in <{}>, found none", node.tag_name().name()))
    })
}

/// The value of the attribute of the first child with this name, as it is.
pub(in crate::xml) fn child_attribute(
    node: Node<'_, '_>,
    name: &'static str,
    attribute: &'static str,
) -> Option<String> {
    child(node, name)?.attribute(attribute).map(str::to_owned)
}

pub(in crate::xml) fn decimal<T: FromStr>(text: &str) -> Result<T, ParseError> {
    let wrong = || ParseError::new("a number that fits", text);
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}
