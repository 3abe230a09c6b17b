//! Measures how an action spends its time: on the guest, on libvirt, on copying, on ssh. The rest is the driver's own.
//!
//! If the environment has SRIOV_SPANS, a program appends a line `<kind> <begin> <end> <name>` to that file for each
//! span, in microseconds since the program began. docs/reference/measurements.md is made from these lines.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

/// The file for the spans, if there is one.
static FILE: OnceLock<Option<File>> = OnceLock::new();

/// The start of the first span: time 0 of all spans of this process.
static ZERO: OnceLock<Instant> = OnceLock::new();

/// What the driver spends the time on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Waiting for the guest.
    Guest,
    /// Unplugging one device, from the request to its removal event.
    Device,
    /// A call to libvirt.
    Call,
    /// Copying the guest's memory into a file, from a file or to another host; or copying files of disks.
    Copy,
    /// Connecting to another host.
    Ssh,
    /// Waiting for the agent on another host. The agent writes what it did itself, as `Request`.
    Asked,
    /// An agent's work on a request.
    Request,
    /// A whole action.
    Action,
}

/// A stretch of time: it begins when the span is created and ends when the span is dropped.
pub(crate) struct Span {
    kind: Kind,
    name: Cow<'static, str>,
    begin: Instant,
}

impl Span {
    /// Begins a span now.
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
        // A lost measurement must not make the action fail.
        if let Err(error) = file.write_all(line.as_bytes()) {
            log::debug!("SRIOV_SPANS: {error}");
        }
    }
}
