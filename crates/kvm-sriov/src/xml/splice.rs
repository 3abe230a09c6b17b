//! Edits a text at byte positions that the parser reported. Every byte outside the edits stays as it is.

use std::ops::Range;

use super::XmlError;
use crate::base::ascending;

/// An edit: the range of the text, and its new content. An empty range inserts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::xml) struct Splice {
    pub(in crate::xml) range: Range<usize>,
    pub(in crate::xml) text: String,
}

/// Applies all edits at once. Their ranges refer to the original text. Insertions at the same place keep their order.
///
/// # Errors
/// Two edits overlap, or a range is not inside the text.
pub(in crate::xml) fn apply(text: &str, splices: Vec<Splice>) -> Result<String, XmlError> {
    let place = |splice: &Splice| (splice.range.start, splice.range.end);
    let splices = ascending(splices, |a, b| place(a).cmp(&place(b)));
    let mut result = String::with_capacity(text.len());
    let mut done = 0;
    for splice in splices {
        let kept = text.get(done..splice.range.start);
        let replaced = text.get(splice.range.clone());
        let (Some(kept), Some(_)) = (kept, replaced) else {
            return Err(XmlError::in_text(text, splice.range.start, "expected separate edits, found two that overlap"));
        };
        result.push_str(kept);
        result.push_str(&splice.text);
        done = splice.range.end;
    }
    result.push_str(text.get(done..).unwrap_or_default());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn splice(range: Range<usize>, text: &str) -> Splice {
        Splice { range, text: text.to_owned() }
    }

    #[test]
    fn edits_refer_to_the_original() {
        let edits = vec![splice(4..4, "x"), splice(0..1, "AA"), splice(4..4, "y"), splice(2..3, "")];
        assert_eq!(apply("abcdef", edits).unwrap(), "AAbdxyef");
        assert_eq!(apply("abc", Vec::new()).unwrap(), "abc");
    }

    #[test]
    fn edits_that_overlap_or_leave_the_text_are_refused() {
        #[expect(clippy::reversed_empty_ranges, reason = "the test needs a reversed range")]
        let backwards = splice(3..2, "");
        for edits in [
            vec![splice(0..3, ""), splice(2..4, "")],
            vec![splice(0..9, "")],
            vec![splice(9..9, "")],
            vec![backwards],
            vec![splice(1..1, "")],
        ] {
            assert!(apply("é123", edits.clone()).is_err(), "{edits:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_outside_the_edits_stay(
            pieces in prop::collection::vec(("[a-zé<]{0,5}", prop::option::of("[A-Z]{0,4}")), 0..12)
        ) {
            // Every second piece is replaced, so the expected result can be built without the code under test.
            let mut text = String::new();
            let mut expected = String::new();
            let mut edits = Vec::new();
            for (old, new) in &pieces {
                let start = text.len();
                text.push_str(old);
                expected.push_str(new.as_ref().unwrap_or(old));
                if let Some(new) = new {
                    edits.push(splice(start..text.len(), new));
                }
            }
            prop_assert_eq!(apply(&text, edits).unwrap(), expected);
        }
    }
}
