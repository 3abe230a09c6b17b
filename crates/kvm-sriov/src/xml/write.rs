//! Writes elements: escapes values, and indents like the text around.

use std::fmt::{self, Display};
use std::ops::Range;

use super::splice::Splice;

/// Escapes a text for an attribute or for the content of an element, for either kind of quotes.
pub(in crate::xml) struct Escaped<'a>(pub(in crate::xml) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&apos;"),
            // A parser would change these to blanks or newlines.
            '\t' | '\n' | '\r' => write!(f, "&#{};", u32::from(c)),
            c => write!(f, "{c}"),
        })
    }
}

/// A line of an element, and its depth in the element.
#[derive(Debug)]
pub(in crate::xml) struct ElementLine {
    pub(in crate::xml) depth: usize,
    pub(in crate::xml) text: String,
}

pub(in crate::xml) fn element(open: &str, inner: Vec<String>, close: &str) -> Vec<ElementLine> {
    let outer = |text: &str| ElementLine { depth: 0, text: text.to_owned() };
    let inner = inner.into_iter().map(|text| ElementLine { depth: 1, text });
    std::iter::once(outer(open)).chain(inner).chain([outer(close)]).collect()
}

/// The indentation before a position, if nothing else precedes it on its line.
pub(in crate::xml) fn margin(text: &str, at: usize) -> Option<&str> {
    let before = text.get(..at)?.rsplit('\n').next()?;
    before.chars().all(|c| c == ' ' || c == '\t').then_some(before)
}

/// One step of indentation: OpenNebula's tab, or libvirt's two blanks.
pub(in crate::xml) fn step(text: &str) -> &'static str {
    if text.contains("\n  ") && !text.contains("\n\t") { "  " } else { "\t" }
}

/// Joins the lines with this indentation; without one, all on one line.
pub(in crate::xml) fn lay_out(lines: &[ElementLine], margin: Option<&str>, step: &str) -> String {
    let Some(margin) = margin else { return lines.iter().map(|line| line.text.as_str()).collect() };
    let rows: Vec<_> = lines.iter().map(|line| format!("{}{}", step.repeat(line.depth), line.text)).collect();
    rows.join(&format!("\n{margin}"))
}

/// Inserts children before the end tag of the element in this range. `<a/>` gets an end tag.
pub(in crate::xml) fn append(text: &str, element: &Range<usize>, children: &[Vec<ElementLine>]) -> Splice {
    let source = text.get(element.clone()).unwrap_or_default();
    let step = step(text);
    let inner = |margin: Option<&str>| -> String {
        let deeper = margin.map(|margin| format!("{margin}{step}"));
        let child = |lines: &Vec<ElementLine>| match margin {
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
    use super::*;
    use crate::xml::parse::parse;
    use crate::xml::read::content;
    use proptest::prelude::*;

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
    }
}
