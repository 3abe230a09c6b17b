//! Reading and writing of the driver's element, and of what a later version added to it.

use std::fmt::{self, Display};

use roxmltree::Node;

use super::Wanted;
use crate::xml::write::Escaped;

/// Attributes and elements that a later version with the same major number added. They are kept and written back
/// unchanged.
///
/// The driver's attributes have no namespace, and its elements have the driver's. Everything else in the element is
/// dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeptContent {
    pub(super) attributes: Vec<(String, String)>,
    pub(super) content: Vec<Content>,
}

/// An element to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) attributes: Vec<(String, String)>,
    pub(super) content: Vec<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Element(Element),
    Text(String),
}

impl Element {
    pub(super) fn new(name: &str, attributes: Vec<(&str, Option<String>)>) -> Self {
        let present = attributes.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Self { name: name.to_owned(), attributes: present.collect(), content: Vec::new() }
    }

    pub(super) fn with(mut self, content: Vec<Content>) -> Self {
        self.content.extend(content);
        self
    }

    pub(super) fn with_kept(mut self, kept: &KeptContent) -> Self {
        self.attributes.extend_from_slice(&kept.attributes);
        self.with(kept.content.clone())
    }
}

impl KeptContent {
    pub(super) fn read(node: Node<'_, '_>, known_attributes: &[&str], known_elements: &[&str]) -> Self {
        let attributes = node
            .attributes()
            .filter(|attribute| attribute.namespace().is_none() && !known_attributes.contains(&attribute.name()))
            .map(|attribute| (attribute.name().to_owned(), attribute.value().to_owned()));
        let content = node.children().filter_map(|child| match child.text() {
            // libvirt puts each element on a line of its own: blanks between elements have no meaning.
            Some(text) if child.is_text() => (!text.trim().is_empty()).then(|| Content::Text(text.to_owned())),
            _ if has_our_namespace(child) && !known_elements.contains(&child.tag_name().name()) => {
                let Self { attributes, content } = Self::read(child, &[], &[]);
                Some(Content::Element(Element { name: child.tag_name().name().to_owned(), attributes, content }))
            }
            _ => None,
        });
        Self { attributes: attributes.collect(), content: content.collect() }
    }
}

/// Whether an element has the driver's namespace or none. libvirt's call for metadata returns it without.
fn has_our_namespace(node: Node<'_, '_>) -> bool {
    node.is_element() && node.tag_name().namespace().is_none_or(|namespace| namespace == Wanted::NAMESPACE)
}

/// Whether this is the element of the driver with this name.
pub(super) fn is_our_element(node: Node<'_, '_>, name: &str) -> bool {
    has_our_namespace(node) && node.tag_name().name() == name
}

/// An element, and the prefix of its name and of all names in it.
pub(super) struct Prefixed<'a>(pub(super) &'a Element, pub(super) &'a str);

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
