//! Values in OpenNebula's description of a VM.

use roxmltree::Node;

use crate::xml::read::{child, content, decimal};

/// The text of an element; `None` if it is missing or empty.
pub(super) fn text_of(node: Node<'_, '_>, name: &'static str) -> Option<String> {
    value(node, name).map(|(text, _)| text)
}

/// The number in an element; `None` if it is missing or not a number.
pub(super) fn number(node: Node<'_, '_>, name: &'static str) -> Option<u32> {
    text_of(node, name).and_then(|text| decimal(&text).ok())
}

/// The text of an element, and the element; `None` if it is missing or empty, which is OpenNebula's way to write "not
/// set".
pub(super) fn value<'a, 'i>(nic: Node<'a, 'i>, name: &'static str) -> Option<(String, Node<'a, 'i>)> {
    let node = child(nic, name)?;
    let text = content(node).trim().to_owned();
    (!text.is_empty()).then_some((text, node))
}
