//! The thread that runs libvirt's event loop while a connection needs it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

use virt::event::{event_register_default_impl, event_run_default_impl};

use super::error::LibvirtError;
use super::ffi;
use crate::base::lock;

/// The event loop of this process. libvirt has one loop for all connections. This is process-wide state: the first
/// connection starts the thread, and the end of the last one stops it.
static LOOP: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    users: usize,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Keeps the event loop running. The loop ends when the last of these is dropped.
pub(super) struct LoopUser(());

impl LoopUser {
    /// Starts the event loop if it does not run yet. Call this before the connection is opened.
    ///
    /// # Source
    /// libvirt `virEventRegisterDefaultImpl`: must be called once, before the first connection is opened.
    pub(super) fn start() -> Result<Self, LibvirtError> {
        static REGISTERED: OnceLock<Result<(), LibvirtError>> = OnceLock::new();
        let mut running = lock(&LOOP);
        if let Some(running) = running.as_mut() {
            running.users += 1;
            return Ok(Self(()));
        }
        REGISTERED.get_or_init(|| event_register_default_impl().map_err(Into::into)).clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("libvirt-events".into())
            .spawn(move || {
                while !seen.load(Ordering::Acquire) {
                    run();
                }
                free_what_is_left();
            })
            .map_err(|error| LibvirtError::other(format!("cannot start the event loop's thread: {error}")))?;
        *running = Some(Running { users: 1, stop, thread });
        Ok(Self(()))
    }
}

impl Drop for LoopUser {
    fn drop(&mut self) {
        let mut running = lock(&LOOP);
        let last = match running.as_mut() {
            Some(running) => {
                running.users -= 1;
                running.users == 0
            }
            None => false,
        };
        let Some(ending) = running.take_if(|_| last) else { return };
        ending.stop.store(true, Ordering::Release);
        // The loop waits for events. This wakes it.
        match ffi::mark_loop() {
            Ok(_) => {
                if ending.thread.join().is_err() {
                    log::warn!("libvirt's event loop ended by a panic");
                }
            }
            Err(error) => log::warn!("libvirt's event loop can't be woken, so it runs on: {}", error.message()),
        }
    }
}

/// Runs the loop until it has freed everything that the last connection left. Handles and timers hold references to the
/// objects that they serve. Freeing one may drop the last reference to an object that has handles and timers itself
/// (socket, client, keepalive), so this takes several rounds.
///
/// # Source
/// libvirt `virEventGLibHandleRemove`, `virNetClientDispose`.
fn free_what_is_left() {
    for _ in 0..4 {
        match ffi::mark_loop() {
            Ok(freed) => {
                while !freed.load(Ordering::Acquire) {
                    run();
                }
            }
            Err(error) => log::debug!("the end of a connection may have left something: {}", error.message()),
        }
    }
}

/// One round: waits for an event, handles it, and frees removed handles and timers.
fn run() {
    if let Err(error) = event_run_default_impl() {
        log::warn!("libvirt's event loop: {}", error.message());
    }
}
