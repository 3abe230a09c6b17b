//! Turns: work that is done at most once in a while on a host.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use super::ClaimError;
use super::holder::now;
use super::lock::acquire;

/// The turn to do such work. Nobody else gets it until this is dropped, and until some time has passed.
#[derive(Debug)]
pub(crate) struct Turn {
    _file: File,
}

impl Turn {
    /// Takes the turn whose file is at `path`; `None` when another process has it, or took it less than `every` ago.
    pub(super) fn take(path: &Path, every: Duration) -> Result<Option<Self>, ClaimError> {
        let Some(mut file) = acquire(path, Duration::ZERO)? else { return Ok(None) };
        let mut text = String::new();
        // Text that is no time does not count, nor does a time in the future: the clock was set back.
        let last = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u64>().ok());
        if last.and_then(|last| now().checked_sub(last)).is_some_and(|ago| ago < every.as_secs()) {
            return Ok(None);
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", now()))
            .map_err(ClaimError::file("write", path))?;
        Ok(Some(Self { _file: file }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]

    use super::*;

    #[test]
    fn a_turn_comes_once_in_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("poll");
        let take = || Turn::take(&path, Duration::from_secs(30)).unwrap();
        let turn = take();
        assert!(turn.is_some() && take().is_none(), "it is held");
        drop(turn);
        assert!(take().is_none(), "it was taken a moment ago");
        for (last, is_due) in [(now() - 31, true), (now() - 10, false), (now() + 1000, true)] {
            std::fs::write(&path, format!("{last}\n")).unwrap();
            assert_eq!(take().is_some(), is_due, "{last}");
        }
        std::fs::write(&path, "soon").unwrap();
        assert!(take().is_some());
    }
}
