//! One line of the protocol: a word, then `name=value` with a blank before each.

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use crate::base::ParseError;

/// A line: a word, and named values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) word: String,
    values: Vec<(String, String)>,
}

impl Message {
    pub(super) fn new(word: &str) -> Self {
        Self { word: word.to_owned(), values: Vec::new() }
    }

    pub(super) fn with(mut self, name: &str, value: impl Display) -> Self {
        self.values.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn with_some(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Our paths are UTF-8: each was read from an argument or from XML.
    pub(super) fn with_path(self, name: &str, path: &Path) -> Self {
        self.with(name, path.display())
    }

    pub(super) fn parse(line: &str) -> Result<Self, ParseError> {
        let mut parts = line.split(' ').filter(|part| !part.is_empty());
        let word = parts.next().ok_or_else(|| ParseError::new("a word", line))?.to_owned();
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').ok_or_else(|| ParseError::new("name=value", part))?;
            Ok((name.to_owned(), decode(value)?))
        };
        Ok(Self { word, values: parts.map(pair).collect::<Result<_, ParseError>>()? })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The value with this name, or `None` when the line has none.
    pub(super) fn some<T>(&self, name: &'static str) -> Result<Option<T>, ParseError>
    where
        T: FromStr,
    {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ParseError::new(name, text))
    }

    /// The value with this name, which the line must have.
    pub(super) fn value<T>(&self, name: &'static str) -> Result<T, ParseError>
    where
        T: FromStr,
    {
        self.some(name)?.ok_or_else(|| ParseError::new(name, &self.word))
    }
}

impl Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.word)?;
        self.values.iter().try_for_each(|(name, value)| write!(f, " {name}={}", Encoded(value)))
    }
}

/// A value as it is written in a line: every byte but letters, digits and `/ . _ - :` as `%xx`.
struct Encoded<'a>(&'a str);

impl Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b':' => {
                write!(f, "{}", char::from(byte))
            }
            _ => write!(f, "%{byte:02x}"),
        })
    }
}

fn decode(text: &str) -> Result<String, ParseError> {
    let wrong = || ParseError::new("a value with %xx for its odd bytes, in UTF-8", text);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit =
            |digit: Option<u8>| char::from(digit.unwrap_or(b'?')).to_digit(16).and_then(|n| u8::try_from(n).ok());
        let (high, low) = (digit(rest.next()).ok_or_else(wrong)?, digit(rest.next()).ok_or_else(wrong)?);
        bytes.push((high << 4) | low);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}
