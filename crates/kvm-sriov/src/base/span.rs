//! Where the time of an action goes: to the guest, to libvirt, to the copy, to ssh, and what is left is ours.
//!
//! A program that finds SRIOV_SPANS in its environment appends a line `<kind> <begin> <end> <name>` to that file for each span, in
//! microseconds since the program began. docs/reference/measurements.md is made from them.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

/// The file that spans are written to, if any.
static FILE: OnceLock<Option<File>> = OnceLock::new();

/// When this process began, as far as spans are concerned.
static ZERO: OnceLock<Instant> = OnceLock::new();

/// What the time is spent on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// The guest was waited for.
    Guest,
    /// One device was on its way out of a guest, from the request to the event that it is gone.
    Device,
    /// A call to libvirt.
    Call,
    /// Memory went into a file, out of one, or to another host.
    Copy,
    /// Another host was reached.
    Ssh,
    /// An agent there was waited for; what it did it writes down itself, as `Request`.
    Asked,
    /// An agent answered a request.
    Request,
    /// All of an action.
    Action,
}

/// A stretch of time, from when it is made until it is dropped.
pub(crate) struct Span {
    kind: Kind,
    name: Cow<'static, str>,
    begin: Instant,
}

impl Span {
    /// Begins now.
    pub(crate) fn begin(kind: Kind, name: impl Into<Cow<'static, str>>) -> Self {
        let begin = Instant::now();
        ZERO.get_or_init(|| begin);
        Self { kind, name: name.into(), begin }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let file = FILE.get_or_init(|| {
            let path = std::env::var_os("SRIOV_SPANS")?;
            OpenOptions::new().append(true).create(true).open(path).ok()
        });
        let Some(mut file) = file.as_ref() else { return };
        let kind = match self.kind {
            Kind::Guest => "guest",
            Kind::Device => "device",
            Kind::Call => "call",
            Kind::Copy => "copy",
            Kind::Ssh => "ssh",
            Kind::Asked => "asked",
            Kind::Request => "request",
            Kind::Action => "action",
        };
        let since = |at: Instant| ZERO.get().map_or(0, |zero| at.duration_since(*zero).as_micros());
        let line = format!("{kind} {} {} {}\n", since(self.begin), since(Instant::now()), self.name);
        // A measurement that is lost fails nothing.
        if let Err(error) = file.write_all(line.as_bytes()) {
            log::debug!("SRIOV_SPANS: {error}");
        }
    }
}
