//! What the driver asks of the operating system besides files: the time, waiting, threads, and its own process.
//!
//! A simulation takes the place of the operating system on one thread ([`simulate`]). Then no time passes unless the
//! simulation lets it, every wait and every [`step`] gives it the chance to let another program go on, and a program
//! can end at any of them. The project's explorer runs actions, agents and probes of several hosts so, in every order.
//! On a thread without a simulation each function is a plain call of the standard library.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use fs2::FileExt;

/// A place in a program where the state of the world may change, or has just changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// What kind of place it is: `call`, `return`, `file`, `lock`, `line`, `sleep`, `woken`.
    pub kind: &'static str,
    /// Which one, such as the name of a call to libvirtd.
    pub name: &'static str,
}

/// To whom a new thread belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// To the process that starts it. It ends with the process.
    Process,
    /// To the world around: a guest, or libvirtd. Only a test double starts such threads.
    World,
}

/// A simulated operating system. All calls come from the thread that it was installed on.
pub trait Os {
    /// The time.
    fn now(&self) -> Instant;
    /// The time of day.
    fn time_of_day(&self) -> SystemTime;
    /// The program that runs has come to this step.
    fn step(&self, step: Step);
    /// Lets others go on until something may have changed, at most until `end`.
    fn pause(&self, end: Option<Instant>);
    /// Starts a thread.
    ///
    /// # Errors
    /// The host gives no thread.
    fn spawn(&self, name: &'static str, side: Side, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;
    /// The number and the start time of the process that runs.
    fn process(&self) -> (u32, u64);
    /// Whether the process with this number and this start time runs on the same host.
    fn is_alive(&self, pid: u32, started: u64) -> bool;
    /// The id of the boot of the host that the process runs on.
    fn boot_id(&self) -> String;
    /// Starts a program of the driver, which goes on by itself.
    ///
    /// # Errors
    /// It did not start.
    fn start_program(&self, program: &Path, arg: Option<&str>) -> io::Result<()>;
}

thread_local! {
    static SIMULATED: RefCell<Option<Rc<dyn Os>>> = const { RefCell::new(None) };
}

/// Puts a simulation in the place of the operating system, on this thread; `None` ends it.
pub fn simulate(os: Option<Rc<dyn Os>>) {
    SIMULATED.with(|simulated| *simulated.borrow_mut() = os);
}

/// The simulation of this thread.
pub fn simulated() -> Option<Rc<dyn Os>> {
    // A thread that ends has none.
    SIMULATED.try_with(|simulated| simulated.borrow().clone()).ok().flatten()
}

/// The time.
pub fn now() -> Instant {
    simulated().map_or_else(Instant::now, |os| os.now())
}

/// The time of day.
pub(crate) fn time_of_day() -> SystemTime {
    simulated().map_or_else(SystemTime::now, |os| os.time_of_day())
}

/// Sleeps.
pub fn sleep(time: Duration) {
    match simulated() {
        None => thread::sleep(time),
        Some(os) => drop(wait_until(&*os, Some(os.now() + time), || false)),
    }
}

/// Comes to a step. Does nothing without a simulation.
pub fn step(kind: &'static str, name: &'static str) {
    if let Some(os) = simulated() {
        os.step(Step { kind, name });
    }
}

/// The number of this process.
pub(crate) fn pid() -> u32 {
    simulated().map_or_else(std::process::id, |os| os.process().0)
}

/// The time since an earlier moment.
pub(crate) fn since(earlier: Instant) -> Duration {
    now().saturating_duration_since(earlier)
}

/// Starts a thread. Its panics do not reach this one: `work` must make its end known by itself.
///
/// # Errors
/// The host gives no thread. The work was not begun.
pub fn spawn(name: &'static str, side: Side, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    match simulated() {
        None => thread::Builder::new().name(name.into()).spawn(work).map(drop),
        Some(os) => os.spawn(name, side, Box::new(work)),
    }
}

/// Waits in a simulation until `is_so`, at most until `end`. Returns whether it is so. `is_so` must not change anything.
pub fn wait_until(os: &dyn Os, end: Option<Instant>, mut is_so: impl FnMut() -> bool) -> bool {
    if is_so() {
        return true;
    }
    loop {
        if end.is_some_and(|end| os.now() >= end) {
            return false;
        }
        os.pause(end);
        if is_so() {
            os.step(Step { kind: "woken", name: "" });
            return true;
        }
    }
}

/// What a channel gives, with a wait that a simulation can see.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    inner: mpsc::Receiver<T>,
    /// What a simulation has found there, and nobody has received yet.
    found: RefCell<Option<Result<T, TryRecvError>>>,
}

impl<T> From<mpsc::Receiver<T>> for Receiver<T> {
    fn from(inner: mpsc::Receiver<T>) -> Self {
        Self { inner, found: RefCell::new(None) }
    }
}

/// A channel with a [`Receiver`].
pub(crate) fn channel<T>() -> (mpsc::Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    (sender, receiver.into())
}

impl<T> Receiver<T> {
    /// The next one; waits at most `limit`.
    ///
    /// # Errors
    /// None came, or all senders are gone.
    pub(crate) fn recv_timeout(&self, limit: Duration) -> Result<T, RecvTimeoutError> {
        let Some(os) = simulated() else { return self.inner.recv_timeout(limit) };
        let is_there = || {
            let mut found = self.found.borrow_mut();
            if matches!(*found, None | Some(Err(TryRecvError::Empty))) {
                *found = Some(self.inner.try_recv());
            }
            !matches!(*found, Some(Err(TryRecvError::Empty)))
        };
        if !wait_until(&*os, Some(os.now() + limit), is_there) {
            return Err(RecvTimeoutError::Timeout);
        }
        let found = self.found.borrow_mut().take();
        found.unwrap_or(Err(TryRecvError::Disconnected)).map_err(|_| RecvTimeoutError::Disconnected)
    }
}

/// Waits until the file is locked, or until `end`; `None` when another one had it all the time.
///
/// # Errors
/// The file system can't lock files, or the host gives no thread.
pub(crate) fn lock_file(file: File, end: Instant) -> io::Result<Option<File>> {
    let left = end.saturating_duration_since(now());
    if left.is_zero() {
        return Ok(None);
    }
    if let Some(os) = simulated() {
        // A look at the lock takes it for a moment. Nobody else runs meanwhile.
        let is_free = || FileExt::try_lock_exclusive(&file).and_then(|()| FileExt::unlock(&file)).is_ok();
        while wait_until(&*os, Some(end), is_free) {
            if FileExt::try_lock_exclusive(&file).is_ok() {
                return Ok(Some(file));
            }
        }
        return Ok(None);
    }
    // The kernel waits for a lock without a time limit, so a thread waits. If it gets the lock after `end`, it releases
    // the lock at once.
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("lock".into()).spawn(move || {
        let locked = loop {
            match FileExt::lock_exclusive(&file) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map(|()| file),
            }
        };
        // After `end` nobody receives the file. Then it is closed here, which unlocks it.
        drop(sender.send(locked));
    })?;
    match receiver.recv_timeout(left) {
        Ok(locked) => locked.map(Some),
        Err(_) => Ok(None),
    }
}
