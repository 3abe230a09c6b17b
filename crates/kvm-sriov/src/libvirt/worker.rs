//! The threads that make the calls to libvirt.

use std::any::Any;
use std::sync::Mutex;
#[cfg(test)]
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::{io, thread};

use super::error::LibvirtError;
use crate::base::lock;

/// A call.
pub(super) type Work = Box<dyn FnOnce() + Send>;

/// A call, and an object that is dropped when the call has ended.
struct Task {
    work: Work,
    ending: Box<dyn Any + Send>,
}

/// How many threads wait for their next call at most: as many as a pass over a host makes calls at once. Others end.
const SPARES: usize = 8;

/// The threads that have made their call and wait for the next one. They are kept so that a call does not wait for a
/// thread to start, and so that an action can still be undone when the host can't start another thread: an action makes
/// one call after the other. This is process-wide state.
static SPARE: Mutex<Vec<Sender<Task>>> = Mutex::new(Vec::new());

/// Makes a call on another thread: a spare one, or a new one. Does not wait for the call.
///
/// * `ending` - is dropped when the call has ended, even by a panic
///
/// # Errors
/// The host can't start a thread. The call was not made.
pub(super) fn work(name: &'static str, work: Work, ending: impl Any + Send) -> Result<(), LibvirtError> {
    let mut task = Task { work, ending: Box::new(ending) };
    // In a loop, because a thread may have ended: then the task comes back.
    while let Some(spare) = next_spare() {
        match spare.send(task) {
            Ok(()) => return Ok(()),
            Err(unsent) => task = unsent.0,
        }
    }
    start(task).map_err(|error| LibvirtError::no_thread(name, &error))
}

/// The thread that became spare last: its memory is still in the processor's caches.
fn next_spare() -> Option<Sender<Task>> {
    lock(&SPARE).pop()
}

fn start(task: Task) -> io::Result<()> {
    #[cfg(test)]
    if tests::NONE_LEFT.load(Ordering::SeqCst) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    thread::Builder::new().name("libvirt-calls".into()).spawn(move || run(task)).map(drop)
}

fn run(mut task: Task) {
    loop {
        let Task { work, ending } = task;
        work();
        let (sender, receiver) = mpsc::channel();
        {
            let mut spare = lock(&SPARE);
            if spare.len() >= SPARES {
                return;
            }
            spare.push(sender);
        }
        // Last: dropping this wakes the caller, whose next call may come at once. The spare thread must be in its place
        // by then.
        drop(ending);
        match receiver.recv() {
            Ok(next) => task = next,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    use super::*;
    use crate::libvirt::connection::Connection;
    use crate::libvirt::{DomainCalls, Libvirt, LibvirtErrorKind};

    /// Simulates a host that can't start another thread.
    pub(super) static NONE_LEFT: AtomicBool = AtomicBool::new(false);

    #[test]
    fn who_has_made_a_call_can_make_the_next() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--test-threads=1", "libvirt::worker::tests::without_threads"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    #[ignore = "part of who_has_made_a_call_can_make_the_next"]
    fn without_threads() {
        let libvirt = Libvirt::open("test:///default", Duration::from_secs(60)).unwrap();
        NONE_LEFT.store(true, Ordering::SeqCst);
        for _ in 0..100 {
            assert_eq!(libvirt.domains().unwrap().len(), 1);
        }
        // As many callers at once as have called at once before.
        for none_left in [false, true, true] {
            NONE_LEFT.store(none_left, Ordering::SeqCst);
            let all = Arc::new(Barrier::new(SPARES));
            thread::scope(|scope| {
                for _ in 0..SPARES {
                    let (libvirt, all) = (&libvirt, Arc::clone(&all));
                    scope.spawn(move || {
                        let together = move |_: &Connection| {
                            all.wait();
                            Ok(())
                        };
                        libvirt.call("virTogether", together).unwrap();
                    });
                }
            });
            assert_eq!(lock(&SPARE).len(), SPARES);
        }
        lock(&SPARE).clear();
        let error = libvirt.domains().unwrap_err();
        assert_eq!(error.kind(), LibvirtErrorKind::NoThread, "{error}");
        NONE_LEFT.store(false, Ordering::SeqCst);
        assert_eq!(libvirt.domains().unwrap().len(), 1);
    }
}
