//! The lines of a stream whose other end may send anything.

use std::io::{BufRead, BufReader, Read};

/// Reads lines, none longer than a limit, so that a line without an end takes no endless memory.
pub(super) struct Lines<R> {
    input: BufReader<R>,
    limit: u64,
}

/// A line, without its end.
pub(super) struct Line {
    pub(super) text: String,
    /// Whether the line has its end. Otherwise it is longer than the limit, or the stream ended within it.
    pub(super) is_whole: bool,
}

impl<R: Read> Lines<R> {
    /// * `limit` - the longest line, in bytes
    pub(super) fn new(input: R, limit: u64) -> Self {
        Self { input: BufReader::new(input), limit }
    }
}

impl<R: Read> Iterator for Lines<R> {
    type Item = Line;

    /// The next line; a line that is too long comes in parts. What is not UTF-8 is replaced. `None` at the end of the
    /// stream, and when it can't be read.
    fn next(&mut self) -> Option<Line> {
        let mut bytes = Vec::new();
        match self.input.by_ref().take(self.limit).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(Line {
                text: String::from_utf8_lossy(&bytes).trim_end().to_owned(),
                is_whole: bytes.last() == Some(&b'\n'),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn lines_have_a_limit_and_need_not_be_utf_8() {
        let read = |input: &'static [u8]| -> Vec<(String, bool)> {
            Lines::new(input, 4).map(|line| (line.text, line.is_whole)).collect()
        };
        let whole = |text: &str| (text.to_owned(), true);
        assert_eq!(read(b"a\n\nb\r\n"), [whole("a"), whole(""), whole("b")]);
        assert_eq!(read(b"\xff\xfe\nx"), [whole("\u{fffd}\u{fffd}"), ("x".into(), false)]);
        assert_eq!(read(b"abcdef\n"), [("abcd".into(), false), whole("ef")]);
        let endless = Lines::new(io::repeat(b'x'), 1 << 20).take(3);
        assert!(endless.into_iter().all(|line| line.text.len() == 1 << 20 && !line.is_whole));
    }
}
