//! What differs between two XML documents. It compares trees and, of what is the same in both, the bytes; so it shares
//! no code with the edits that it judges.

use roxmltree::{Document, Node};

/// A difference. Blanks between elements are none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Only the first document has this part: an element, a comment, a text.
    Removed {
        /// The names of the elements around it.
        at: String,
        /// The part, as it is written.
        text: String,
    },
    /// Only the second document has this part.
    Added {
        /// The names of the elements around it.
        at: String,
        /// The part, as it is written.
        text: String,
    },
    /// An attribute, or the text of an element that has nothing else, has another value.
    Value {
        /// The names of the elements around it, and the name of the attribute after an `@`.
        at: String,
        /// The value in the first document; `None` if the attribute is missing.
        from: Option<String>,
        /// The value in the second document.
        to: Option<String>,
    },
}

/// All differences between two documents.
///
/// * `whole` - the local names of elements that are taken as a whole: if one differs, it is removed and added
///
/// # Errors
/// One of the texts is not XML.
pub fn changes(before: &str, after: &str, whole: &[&str]) -> Result<Vec<Change>, roxmltree::Error> {
    let (first, second) = (Document::parse(before)?, Document::parse(after)?);
    let mut comparison = Comparison { whole, found: Vec::new() };
    let (one, other) = (first.root_element(), second.root_element());
    let outside =
        |text: &str, node: Node<'_, '_>| (text[..node.range().start].to_owned(), text[node.range().end..].to_owned());
    let (around, around_after) = (outside(before, one), outside(after, other));
    if around != around_after {
        let value = |around: (String, String)| Some(around.0 + &around.1);
        comparison.found.push(Change::Value { at: String::new(), from: value(around), to: value(around_after) });
    }
    if expanded(one) == expanded(other) {
        comparison.elements(one, other, expanded(one));
    } else {
        comparison.lists("", &[one], &[other]);
    }
    Ok(comparison.found)
}

/// The name of a node with its namespace. A node that is no element has a sign for its kind.
fn expanded(node: Node<'_, '_>) -> String {
    let name = node.tag_name();
    match name.namespace() {
        _ if node.is_comment() => "!".into(),
        _ if node.is_pi() => "?".into(),
        _ if node.is_text() => "#".into(),
        Some(namespace) => format!("{{{namespace}}}{}", name.name()),
        None => name.name().to_owned(),
    }
}

fn written<'i>(node: Node<'_, 'i>) -> &'i str {
    &node.document().input_text()[node.range()]
}

/// Whether two nodes are the same: in their bytes, and in the meaning of the prefixes in them.
fn is_same(one: Node<'_, '_>, other: Node<'_, '_>) -> bool {
    let names = |node: Node<'_, '_>| -> Vec<String> {
        let named = node.descendants().map(|node| {
            let attributes =
                node.attributes().map(|attribute| format!("{:?}", (attribute.namespace(), attribute.name())));
            expanded(node) + &attributes.collect::<String>()
        });
        named.collect()
    };
    written(one) == written(other) && names(one) == names(other)
}

/// The nodes in an element, without blanks.
fn parts<'a, 'i>(node: Node<'a, 'i>) -> Vec<Node<'a, 'i>> {
    let is_blank = |node: &Node<'_, '_>| node.is_text() && node.text().unwrap_or_default().trim().is_empty();
    node.children().filter(|node| !is_blank(node)).collect()
}

/// Pairs in the same order in both lists, with the largest sum of worths. What is worth nothing is no pair.
fn paired<T: Copy>(one: &[T], other: &[T], worth: impl Fn(T, T) -> usize) -> Vec<(usize, usize)> {
    let worths: Vec<Vec<usize>> = one.iter().map(|a| other.iter().map(|b| worth(*a, *b)).collect()).collect();
    let mut best = vec![vec![0_usize; other.len() + 1]; one.len() + 1];
    for i in (0..one.len()).rev() {
        for j in (0..other.len()).rev() {
            best[i][j] = (worths[i][j] + best[i + 1][j + 1]).max(best[i + 1][j]).max(best[i][j + 1]);
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < one.len() && j < other.len() {
        if worths[i][j] > 0 && best[i][j] == worths[i][j] + best[i + 1][j + 1] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if best[i + 1][j] >= best[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

struct Comparison<'w> {
    whole: &'w [&'w str],
    found: Vec<Change>,
}

impl Comparison<'_> {
    /// Two elements with the same name.
    fn elements(&mut self, one: Node<'_, '_>, other: Node<'_, '_>, at: String) {
        if is_same(one, other) {
            return;
        }
        let attributes = |node: Node<'_, '_>| -> Vec<(String, String)> {
            let named = node.attributes().map(|attribute| {
                let namespace = attribute.namespace().map(|namespace| format!("{{{namespace}}}")).unwrap_or_default();
                (format!("{at}@{namespace}{}", attribute.name()), attribute.value().to_owned())
            });
            named.collect()
        };
        let (before, after) = (attributes(one), attributes(other));
        let value =
            |list: &[(String, String)], name: &str| list.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        for (name, _) in before.iter().chain(after.iter().filter(|(name, _)| value(&before, name).is_none())) {
            let (from, to) = (value(&before, name), value(&after, name));
            if from != to {
                self.found.push(Change::Value { at: name.clone(), from, to });
            }
        }
        // Blanks count only where they are the whole content of both.
        if [one, other].iter().all(|node| node.children().all(|part| part.is_text())) {
            let content = |node: Node<'_, '_>| node.children().filter_map(|part| part.text()).collect::<String>();
            let (from, to) = (content(one), content(other));
            if from != to {
                self.found.push(Change::Value { at, from: Some(from), to: Some(to) });
            }
            return;
        }
        let (before, after) = (parts(one), parts(other));
        self.lists(&at, &before, &after);
    }

    /// The parts of two elements.
    fn lists(&mut self, at: &str, before: &[Node<'_, '_>], after: &[Node<'_, '_>]) {
        let pairs = paired(before, after, |one, other| {
            let is_pair =
                one.is_element() && expanded(one) == expanded(other) && !self.whole.contains(&one.tag_name().name());
            if is_same(one, other) { 3 } else { 2 * usize::from(is_pair) }
        });
        for node in before.iter().enumerate().filter(|(i, _)| pairs.iter().all(|(one, _)| one != i)) {
            self.found.push(Change::Removed { at: at.to_owned(), text: written(*node.1).to_owned() });
        }
        for node in after.iter().enumerate().filter(|(j, _)| pairs.iter().all(|(_, other)| other != j)) {
            self.found.push(Change::Added { at: at.to_owned(), text: written(*node.1).to_owned() });
        }
        for (i, j) in pairs.into_iter().filter(|(i, _)| before[*i].is_element()) {
            self.elements(before[i], after[j], format!("{at}/{}", expanded(before[i])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(before: &str, after: &str) -> Vec<String> {
        let changes = changes(before, after, &["w"]).unwrap();
        changes
            .iter()
            .map(|change| match change {
                Change::Removed { at, text } => format!("-{at} {text}"),
                Change::Added { at, text } => format!("+{at} {text}"),
                Change::Value { at, from, to } => format!("{at} {from:?} {to:?}"),
            })
            .collect()
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        assert!(said("<a><b/> <c/></a>", "<a><b/>\n<c/></a>").is_empty());
        assert_eq!(said("<a><b/><c/></a>", "<a><b/><d/></a>"), ["-a <c/>", "+a <d/>"]);
        assert_eq!(
            said("<a><b x='1'/></a>", "<a><b x='2' y='3'/></a>"),
            ["a/b@x Some(\"1\") Some(\"2\")", "a/b@y None Some(\"3\")"]
        );
        assert_eq!(said("<a><b>1</b></a>", "<a><b>2</b></a>"), ["a/b Some(\"1\") Some(\"2\")"]);
        assert_eq!(said("<a><b> </b></a>", "<a><b></b></a>"), ["a/b Some(\" \") Some(\"\")"]);
        assert_eq!(said("<a><w>1</w></a>", "<a><w>2</w></a>"), ["-a <w>1</w>", "+a <w>2</w>"]);
        assert_eq!(said("<a><!--x--><b/></a>", "<a><b/></a>"), ["-a <!--x-->"]);
        assert_eq!(said("<a/><!--x-->", "<a/>"), [" Some(\"<!--x-->\") Some(\"\")"]);
    }

    #[test]
    fn a_prefix_that_means_something_else_is_a_difference() {
        let found = said("<a xmlns:q='1'><q:b/></a>", "<a xmlns:q='2'><q:b/></a>");
        assert_eq!(found, ["-a <q:b/>", "+a <q:b/>"]);
    }

    #[test]
    fn equal_elements_do_not_hide_that_one_is_missing() {
        assert_eq!(said("<a><b/><b/><c/></a>", "<a><b/><c/></a>"), ["-a <b/>"]);
        assert_eq!(
            said("<a><d><b/></d><d/><d/></a>", "<a><d><e/></d><d/><d><f/></d></a>"),
            ["-a/d <b/>", "+a/d <e/>", "+a/d <f/>"]
        );
        assert_eq!(said("<a><d><b/></d><d><c/></d></a>", "<a><d><b/></d><d><c/><e/></d></a>"), ["+a/d <e/>"]);
    }
}
