//! Parses a text into a tree, within limits. The text comes from outside, and the parser has no limits of its own.

use std::fmt::Display;
use std::thread;

use roxmltree::{Document, ParsingOptions};

use super::XmlError;

/// The size limit of a text, in bytes. OpenNebula's largest texts are below 100 KiB.
const SIZE_LIMIT: usize = 8 * 1024 * 1024;

/// The limit on `<` in a text: the parser reserves memory for each one before it parses.
const MARKUP_LIMIT: usize = 200_000;

/// The limit on nested elements. libvirt nests the images below a disk in each other, and allows 200 of them.
const DEPTH_LIMIT: usize = 256;

/// Texts nested deeper than this are parsed on a stack of their own. The parser calls itself for every level and takes
/// up to 16 KiB each time, without optimisation; a Rust thread has 2 MiB.
const DEPTH_ON_STACK: usize = 64;

/// That stack, in bytes.
const DEEP_STACK: usize = 16 * 1024 * 1024;

/// The limit on attributes of one element: the parser compares each one with all others.
const ATTRIBUTE_LIMIT: usize = 1_000;

/// Parses a text within the limits. A DTD is refused, so a text can't declare, include or expand anything.
pub(in crate::xml) fn parse(text: &str) -> Result<Document<'_>, XmlError> {
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

/// Checks the limits and returns the depth of the nesting. In a malformed text it may stop early. The parser stops at
/// the same place, so it never gets deeper than what was counted here.
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
                let problem = format!("expected at most {ATTRIBUTE_LIMIT} attributes in an element, found more");
                return Err(XmlError::in_text(text, start, problem));
            }
            if !tag.is_empty {
                depth = depth.saturating_add(1);
            }
            if depth > DEPTH_LIMIT {
                let problem = format!("expected at most {DEPTH_LIMIT} nested elements, found more");
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

/// The parts of a start tag that the limits concern.
struct StartTag {
    /// The length of the tag in bytes; `None` if the tag has no end.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(error: Result<Document<'_>, XmlError>) -> String {
        error.unwrap_err().to_string()
    }

    #[test]
    fn a_million_nested_elements_are_an_error_and_not_a_crash() {
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
    fn tags_in_comments_and_values_are_not_counted_as_nesting() {
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
}
