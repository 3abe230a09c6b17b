//! XML as libvirt keeps it: a tree, which is printed for every caller.

use std::fmt::{self, Display};

use roxmltree::{Document, Namespace, Node};

/// An element with its names as they were written, including prefixes and declarations of namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    name: String,
    namespace: Option<String>,
    attributes: Vec<(String, String)>,
    content: Vec<Content>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Element(Element),
    Text(String),
}

impl Element {
    /// Reads a document. As libvirt does, it drops comments and blanks between elements.
    pub(crate) fn parse(text: &str) -> Result<Self, roxmltree::Error> {
        Ok(Self::read(Document::parse(text)?.root_element()))
    }

    fn read(node: Node<'_, '_>) -> Self {
        let text = node.document().input_text();
        let tag = text[node.range()].trim_start_matches('<');
        let ends = |c: char| c.is_whitespace() || c == '/' || c == '>';
        let inherited: Vec<_> = node.parent_element().map(|parent| parent.namespaces().collect()).unwrap_or_default();
        let own = |namespace: &&Namespace<'_>| namespace.name() != Some("xml") && !inherited.contains(namespace);
        let declared = node.namespaces().filter(own).map(|namespace| {
            let name = namespace.name().map_or_else(|| "xmlns".to_owned(), |prefix| format!("xmlns:{prefix}"));
            (name, namespace.uri().to_owned())
        });
        let written =
            node.attributes().map(|attribute| (text[attribute.range_qname()].to_owned(), attribute.value().to_owned()));
        let content = node.children().filter_map(|child| match child.text() {
            _ if child.is_element() => Some(Content::Element(Self::read(child))),
            Some(text) if child.is_text() && !text.trim().is_empty() => Some(Content::Text(text.to_owned())),
            _ => None,
        });
        Self {
            name: tag.split(ends).next().unwrap_or_default().to_owned(),
            namespace: node.tag_name().namespace().map(str::to_owned),
            attributes: declared.chain(written).collect(),
            content: content.collect(),
        }
    }

    /// An element without content.
    pub(crate) fn new(name: &str, attributes: &[(&str, &str)]) -> Self {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { name: name.to_owned(), namespace: None, attributes, content: Vec::new() }
    }

    /// Adds a child at the end.
    #[must_use]
    pub(crate) fn with(mut self, child: Self) -> Self {
        self.push(child);
        self
    }

    /// Adds a text at the end.
    #[must_use]
    pub(crate) fn with_text(mut self, text: &str) -> Self {
        self.content.push(Content::Text(text.to_owned()));
        self
    }

    /// Its name, with the prefix that was written.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The value of an attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sets an attribute.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.attributes.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Its child elements.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Self> {
        self.content.iter().filter_map(|content| match content {
            Content::Element(element) => Some(element),
            Content::Text(_) => None,
        })
    }

    /// Its first child element with this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children().find(|child| child.name == name)
    }

    /// Its own text.
    pub(crate) fn text(&self) -> String {
        let texts = self.content.iter().filter_map(|content| match content {
            Content::Text(text) => Some(text.as_str()),
            Content::Element(_) => None,
        });
        texts.collect()
    }

    /// Adds a child element at the end.
    pub(crate) fn push(&mut self, child: Self) {
        self.content.push(Content::Element(child));
    }

    /// Adds a child element before all others.
    pub(crate) fn push_front(&mut self, child: Self) {
        self.content.insert(0, Content::Element(child));
    }

    /// Removes the child elements for which this is true, and returns them.
    pub(crate) fn take(&mut self, which: impl Fn(&Self) -> bool) -> Vec<Self> {
        let (taken, kept) =
            self.content.drain(..).partition(|content| matches!(content, Content::Element(element) if which(element)));
        self.content = kept;
        let elements = |content| match content {
            Content::Element(element) => Some(element),
            Content::Text(_) => None,
        };
        Vec::into_iter(taken).filter_map(elements).collect()
    }

    /// Gives it and its descendants this prefix and namespace, and declares the namespace.
    #[must_use]
    pub(crate) fn in_namespace(mut self, prefix: &str, uri: &str) -> Self {
        self.rename(&format!("{prefix}:"), Some(uri));
        self.attributes.insert(0, (format!("xmlns:{prefix}"), uri.to_owned()));
        self
    }

    /// Removes prefix and namespace from it and its descendants.
    #[must_use]
    pub(crate) fn without_namespace(mut self) -> Self {
        self.rename("", None);
        self.attributes.retain(|(name, _)| name != "xmlns" && !name.starts_with("xmlns:"));
        self
    }

    fn rename(&mut self, prefix: &str, uri: Option<&str>) {
        let local = self.name.rsplit(':').next().unwrap_or_default();
        self.name = format!("{prefix}{local}");
        self.namespace = uri.map(str::to_owned);
        for content in &mut self.content {
            if let Content::Element(element) = content {
                element.rename(prefix, uri);
            }
        }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}='{}'", Escaped(value))?;
        }
        if self.content.is_empty() {
            return f.write_str("/>");
        }
        f.write_str(">")?;
        let lines = self.content.iter().all(|content| matches!(content, Content::Element(_)));
        let line = |f: &mut fmt::Formatter<'_>, depth| if lines { write!(f, "\n{:1$}", "", depth * 2) } else { Ok(()) };
        for content in &self.content {
            match content {
                Content::Element(element) => {
                    line(f, depth + 1)?;
                    element.print(f, depth + 1)?;
                }
                Content::Text(text) => Escaped(text).fmt(f)?,
            }
        }
        line(f, depth)?;
        write!(f, "</{}>", self.name)
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 0)
    }
}

struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '\'' => f.write_str("&apos;"),
            '\t' | '\n' | '\r' => write!(f, "&#{};", u32::from(c)),
            c => write!(f, "{c}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_namespaces_survive_printing() {
        let text = "<a xmlns:q='urn:q' b='1 &amp; 2'><q:c q:d='&apos;'/><e xmlns='urn:e'>x &lt; <![CDATA[<y>]]></e> <!-- --></a>";
        let element = Element::parse(text).unwrap();
        assert_eq!(Element::parse(&element.to_string()).unwrap(), element);
        assert_eq!(element.children().map(Element::name).collect::<Vec<_>>(), ["q:c", "e"]);
        assert_eq!(element.children().map(Element::namespace).collect::<Vec<_>>(), [Some("urn:q"), Some("urn:e")]);
        assert_eq!(element.child("e").unwrap().text(), "x < <y>");
        assert_eq!(element.attribute("b"), Some("1 & 2"));
    }

    #[test]
    fn a_namespace_is_put_on_and_taken_off() {
        let plain = Element::parse("<d v='1'><n/></d>").unwrap();
        let named = plain.clone().in_namespace("s", "urn:s");
        assert_eq!(named.to_string(), "<s:d xmlns:s='urn:s' v='1'>\n  <s:n/>\n</s:d>");
        assert_eq!(Element::parse(&named.to_string()).unwrap(), named);
        assert_eq!(named.without_namespace(), plain);
    }
}
