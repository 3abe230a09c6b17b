//! A socket between a client and libvirtd that counts the client's calls.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

/// libvirt's protocol for a domain, a network and all else that its API has.
///
/// # Source
/// libvirt `src/remote/remote_protocol.x`, `REMOTE_PROGRAM`; `src/rpc/virnetprotocol.x`: a message begins with its
/// length, program, version, procedure, type, serial number and status, of four bytes each.
const PROGRAM: u32 = 0x2000_8086;

/// The procedures with which every client opens and closes its connection: open, close, supports-feature,
/// authentication list, URI, and the callback for the end of the connection.
const HANDSHAKE: [u32; 8] = [1, 2, 60, 66, 67, 110, 360, 361];

/// What a client did since the last [`Proxy::begin`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    begin: Instant,
    /// The number of calls that libvirtd answered.
    pub(crate) calls: usize,
    /// When the first call arrived that is not part of opening the connection.
    pub(crate) first: Option<Instant>,
}

/// The socket. Its thread ends with the process.
pub(crate) struct Proxy {
    dir: TempDir,
    seen: Arc<Mutex<Seen>>,
}

impl Proxy {
    /// Listens in front of libvirtd's socket.
    pub(crate) fn before(socket: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        // The driver's programs do not run as root.
        for place in [dir.path().to_owned(), dir.path().join("sock")] {
            fs::set_permissions(place, Permissions::from_mode(0o777)).unwrap();
        }
        let seen = Arc::new(Mutex::new(Seen { begin: Instant::now(), calls: 0, first: None }));
        let (to, counted) = (PathBuf::from(socket), Arc::clone(&seen));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&to).unwrap());
                let (answers, back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let counted = Arc::clone(&counted);
                thread::spawn(move || {
                    // Either side may close first.
                    drop(forward_calls(client, &server, &counted));
                    drop(server.shutdown(Shutdown::Both));
                });
                thread::spawn(move || {
                    drop(io::copy(&mut &answers, &mut &back));
                    drop(back.shutdown(Shutdown::Both));
                });
            }
        });
        Self { dir, seen }
    }

    /// The path of the socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Forgets what was seen.
    pub(crate) fn begin(&self) {
        *self.seen.lock().unwrap() = Seen { begin: Instant::now(), calls: 0, first: None };
    }

    /// What was seen.
    pub(crate) fn seen(&self) -> Seen {
        *self.seen.lock().unwrap()
    }
}

impl Seen {
    /// Milliseconds until the first call of the client's own.
    pub(crate) fn first_ms(&self) -> Option<f64> {
        Some(1000.0 * self.first?.duration_since(self.begin).as_secs_f64())
    }
}

/// Forwards whole messages.
fn forward_calls(mut client: UnixStream, mut server: &UnixStream, seen: &Mutex<Seen>) -> io::Result<()> {
    loop {
        let mut message = vec![0; 4];
        client.read_exact(&mut message)?;
        let length = u32::from_be_bytes(message[..4].try_into().unwrap());
        message.resize(length as usize, 0);
        client.read_exact(&mut message[4..])?;
        let word = |n: usize| u32::from_be_bytes(message[4 * n..4 * n + 4].try_into().unwrap());
        let (program, procedure, kind) = (word(1), word(3), word(4));
        // Type 0 is a call. Keepalive messages are another program.
        if program & !0xff == PROGRAM & !0xff && kind == 0 {
            let mut seen = seen.lock().unwrap();
            seen.calls += 1;
            if program != PROGRAM || !HANDSHAKE.contains(&procedure) {
                seen.first.get_or_insert_with(Instant::now);
            }
        }
        server.write_all(&message)?;
    }
}
