//! Reads elements and attributes of a parsed text.

use std::str::FromStr;

use roxmltree::{Document, Node};

use super::XmlError;
use crate::base::ParseError;

/// The root element. It must have this name and no namespace.
pub(in crate::xml) fn root<'a, 'i>(document: &'a Document<'i>, name: &str) -> Result<Node<'a, 'i>, XmlError> {
    let root = document.root_element();
    if is_plain(root, name) {
        return Ok(root);
    }
    Err(XmlError::at(root, format_args!("expected <{name}>, found <{}>", root.tag_name().name())))
}

/// Whether this is an element with this name and no namespace, like all elements of libvirt and OpenNebula themselves.
pub(in crate::xml) fn is_plain(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

pub(in crate::xml) fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| is_plain(*child, name))
}

/// The first child with this name. libvirt takes the first one as well.
pub(in crate::xml) fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// The whole text of an element, also when comments divide it.
pub(in crate::xml) fn content(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// Reads an attribute with `read`; `None` if the element does not have it.
pub(in crate::xml) fn attribute<T>(
    node: Node<'_, '_>,
    name: &'static str,
    read: impl FnOnce(&str) -> Result<T, ParseError>,
) -> Result<Option<T>, XmlError> {
    let Some(attribute) = node.attribute_node(name) else { return Ok(None) };
    // Computed only for an error: the parser counts the lines from the beginning of the text.
    let position = || node.document().text_pos_at(attribute.range().start);
    read(attribute.value()).map(Some).map_err(|error| XmlError::new(position(), format_args!("{name}: {error}")))
}

/// Reads a mandatory attribute.
pub(in crate::xml) fn required<T>(
    node: Node<'_, '_>,
    name: &'static str,
    read: impl FnOnce(&str) -> Result<T, ParseError>,
) -> Result<T, XmlError> {
    attribute(node, name, read)?.ok_or_else(|| {
        XmlError::at(node, format_args!("expected an attribute {name} in <{}>, found none", node.tag_name().name()))
    })
}

/// The value of an attribute of the first child with this name.
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
