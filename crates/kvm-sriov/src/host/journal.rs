//! One line in the host's journal for every claim, release and repair.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::base::{Action, DomainName, PciAddress, RootName, printable};

/// syslog's number for facility daemon, severity informational.
const PRIORITY: u8 = 3 * 8 + 6;

/// How long a line may wait for room in the journal. A journal that takes longer hangs, and no later line waits for it.
const ROOM: Duration = Duration::from_millis(500);

/// Writes to the host's syslog socket. With systemd, that is the journal's socket.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    socket: Option<PathBuf>,
    is_stuck: Arc<AtomicBool>,
}

impl Default for Journal {
    fn default() -> Self {
        Self::at("/dev/log".into())
    }
}

impl Journal {
    /// A journal with another socket.
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { socket: Some(socket), is_stuck: Arc::default() }
    }

    /// No journal: every line is dropped.
    pub(crate) fn none() -> Self {
        Self { socket: None, is_stuck: Arc::default() }
    }

    /// Writes `kvm-sriov[pid]: vm= root= vf= action= result=`. On a host without a journal, only the line is lost.
    pub(crate) fn vf(&self, action: Action, vm: &DomainName, root: &RootName, vf: PciAddress, result: &str) {
        self.write(format_args!("vm={vm} root={root} vf={vf} action={action} result={result}"));
    }

    /// Writes the same line for the whole VM: root and VF are `-`.
    pub(crate) fn vm(&self, action: Action, vm: &DomainName, result: &str) {
        self.write(format_args!("vm={vm} root=- vf=- action={action} result={result}"));
    }

    fn write(&self, text: fmt::Arguments<'_>) {
        let Some(path) = &self.socket else { return };
        let line = format!("<{PRIORITY}>kvm-sriov[{}]: {}", std::process::id(), printable(&text.to_string()));
        if let Err(error) = self.send(path, &line) {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.is_stuck.store(true, Ordering::Relaxed);
            }
            log::debug!("no journal at {}: {error}", path.display());
        }
    }

    fn send(&self, path: &Path, line: &str) -> io::Result<usize> {
        let socket = UnixDatagram::unbound()?;
        if self.is_stuck.load(Ordering::Relaxed) {
            socket.set_nonblocking(true)?;
        } else {
            socket.set_write_timeout(Some(ROOM))?;
        }
        socket.send_to(line.as_bytes(), path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_stands_still_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let (journal, vm) = (Journal::at(path), "one-42".parse().unwrap());
        let begin = std::time::Instant::now();
        // More lines than net.unix.max_dgram_qlen and the socket's memory hold on any host.
        for _ in 0..20_000 {
            journal.vm(Action::Deploy, &vm, "x");
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        drop(receiver);
    }

    #[test]
    fn a_line_names_vm_root_vf_action_and_result() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let receiver = UnixDatagram::bind(&path).unwrap();
        Journal::at(path).vf(
            Action::Deploy,
            &"one-42".parse().unwrap(),
            &"ib0".parse().unwrap(),
            "0000:07:00.3".parse().unwrap(),
            "claimed",
        );
        let mut buffer = [0; 256];
        let length = receiver.recv(&mut buffer).unwrap();
        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let pid = std::process::id();
        assert_eq!(
            line,
            format!("<30>kvm-sriov[{pid}]: vm=one-42 root=ib0 vf=0000:07:00.3 action=deploy result=claimed")
        );
    }
}
