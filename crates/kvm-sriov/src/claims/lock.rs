//! One action at a time for a VM.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fs2::FileExt;

use super::{ClaimError, Process, entries, process, safe};
use crate::base::{Action, DomainName};

/// How the file of a VM's lock begins.
const LOCK: &str = "vm-";

/// How the file of the wish begins that an action ends.
const WISH: &str = "cancel-";

/// The program that this process is, when it is one of the driver's that works on one VM and on nothing else.
static PROGRAM: OnceLock<Program> = OnceLock::new();

/// A program of the driver.
struct Program {
    /// What it calls itself, such as `save`.
    action: Action,
    /// Its file's name.
    file: String,
}

/// This process is a program of the driver, which does this and nothing else: who cancels its VM may end it.
pub(crate) fn this_is_program(action: Action) {
    let file = std::env::current_exe().ok().and_then(|exe| Some(exe.file_name()?.to_str()?.to_owned()));
    if let Some(file) = file.filter(|file| !file.contains(char::is_whitespace)) {
        // A process is one program: the first word stands.
        PROGRAM.get_or_init(|| Program { action, file });
    }
}

/// The file's name of this program, if the lock that it takes for `action` is for its one work.
fn program_for(action: Action) -> Option<String> {
    let program = PROGRAM.get()?;
    // The agent works on one VM, too, and its work has another name.
    (program.action == action || program.action == Action::Agent).then(|| program.file.clone())
}

/// Who holds a VM's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its action, such as `save`.
    pub action: String,
    /// Its process.
    pub process: Process,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The file's name of the driver's program that it is, if it is one that works on this VM and on nothing else. A probe,
    /// `kvm-sriov reconcile` and a program that embeds this library are none.
    pub program: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, for {} s", self.action, self.process, now().saturating_sub(self.since))
    }
}

impl Holder {
    /// Ends it (SIGKILL), if it is one of the driver's programs that works on this VM alone and still runs: an action goes on when it is
    /// only asked to end. Anything else is left to see the wish. Whether it was told.
    pub fn end(&self) -> bool {
        let is_ours = self.program.as_deref().is_some_and(|program| self.process.runs(program));
        if is_ours {
            self.process.kill();
        }
        is_ours
    }

    fn to_text(&self) -> String {
        let Self { action, process, since, program } = self;
        let (boot, program) = (process::boot_id(), program.as_deref().unwrap_or("-"));
        format!("{action} {} {} {since} {boot} {program}\n", process.pid(), process.started())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let action = words.next()?.to_owned();
        let process = Process::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let since = words.next()?.parse().ok()?;
        // Of another boot the process is another one.
        let program = words.next().filter(|boot| *boot == process::boot_id()).and_then(|_| words.next());
        Some(Self { action, process, since, program: program.filter(|name| *name != "-").map(str::to_owned) })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The lock of a VM, held until it is dropped, or until the process ends however it ends.
#[derive(Debug)]
pub struct VmLock {
    _file: File,
    wish: PathBuf,
}

impl VmLock {
    /// Whether somebody wishes that this action ends: OpenNebula cancels its VM.
    pub fn cancelled(&self) -> bool {
        matches!(safe::read(&self.wish), Ok(Some((bytes, _))) if bytes == wish_for(Process::this()).as_bytes())
    }

    /// Takes the lock of a VM that has one; `None` when it has none.
    pub(super) fn take_known(locks: &Path, vm: &DomainName, action: Action) -> Result<Option<Self>, ClaimError> {
        lock_path(locks, vm).exists().then(|| Self::take(locks, vm, action, Duration::ZERO)).transpose()
    }

    /// Takes the lock in `file` for an action, waiting at most `timeout`.
    pub(super) fn take(locks: &Path, vm: &DomainName, action: Action, timeout: Duration) -> Result<Self, ClaimError> {
        let (path, wish) = (lock_path(locks, vm), wish_path(locks, vm));
        let Some(mut file) = acquire(&path, timeout)? else {
            let unknown =
                || Holder { action: "an action".into(), process: Process::new(0, 0), since: now(), program: None };
            let holder = holder(locks, vm)?.unwrap_or_else(unknown);
            return Err(ClaimError::Busy { vm: vm.clone(), holder });
        };
        // A wish for an earlier holder is of no account, and nobody can have one for us yet.
        safe::remove_file(&wish)?;
        let program = program_for(action);
        let text = Holder { action: action.to_string(), process: Process::this(), since: now(), program }.to_text();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(ClaimError::file("write", path))?;
        Ok(Self { _file: file, wish })
    }
}

/// The turn at something that is done at most once in a while, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _file: File,
}

impl Turn {
    /// Takes the turn whose lock is `file`; `None` when another process has it, or had it less than `every` ago.
    pub(super) fn take(path: &Path, every: Duration) -> Result<Option<Self>, ClaimError> {
        let Some(mut file) = acquire(path, Duration::ZERO)? else { return Ok(None) };
        let mut text = String::new();
        // What can't be read is no time, and a time to come is that of a clock that was put back.
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

/// Who holds the lock of a VM; `None` when nobody does.
pub(super) fn holder(locks: &Path, vm: &DomainName) -> Result<Option<Holder>, ClaimError> {
    let path = lock_path(locks, vm);
    let Some(file) = safe::open(&path).map_err(ClaimError::file("open", &path))? else { return Ok(None) };
    // A shared lock, so that those who only look do not see each other.
    if FileExt::try_lock_shared(&file).is_ok() {
        return Ok(None);
    }
    let read = safe::read(&path).map_err(ClaimError::file("read", &path))?;
    Ok(read.and_then(|(bytes, _)| Holder::parse(&String::from_utf8_lossy(&bytes))))
}

/// Records the wish that this process ends its action.
pub(super) fn wish(locks: &Path, vm: &DomainName, process: Process) -> Result<(), ClaimError> {
    let path = wish_path(locks, vm);
    safe::Unnamed::write(&path, wish_for(process).as_bytes())?.name(&path, true)
}

fn wish_for(process: Process) -> String {
    format!("{} {}\n", process.pid(), process.started())
}

/// Locks the file at `path`, which is made when it is not there; `None` when it was held all the time.
pub(super) fn acquire(path: &Path, timeout: Duration) -> Result<Option<File>, ClaimError> {
    let failed = || ClaimError::file("lock", path);
    let end = Instant::now() + timeout;
    loop {
        let file = safe::open_lock(path).map_err(failed())?;
        let locked = match FileExt::try_lock_exclusive(&file) {
            Ok(()) => Some(file),
            Err(error) if error.kind() == fs2::lock_contended_error().kind() => wait(file, end).map_err(failed())?,
            Err(error) => return Err(failed()(error)),
        };
        match locked {
            // Who had it may have removed the file; then others lock another one of that name.
            Some(file) if !safe::is_at(&file, path).map_err(failed())? => {}
            other => return Ok(other),
        }
    }
}

/// Waits until the file is locked, or until `end`. The kernel's wait for a lock has no end of its own, so it is on a thread: one that is
/// waited for no longer lets go of the lock at once when it gets it.
fn wait(file: File, end: Instant) -> io::Result<Option<File>> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("lock".into()).spawn(move || {
        let locked = loop {
            match FileExt::lock_exclusive(&file) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map(|()| file),
            }
        };
        // What nobody takes is closed, and unlocked with that.
        drop(sender.send(locked));
    })?;
    match receiver.recv_timeout(left) {
        Ok(locked) => locked.map(Some),
        Err(_) => Ok(None),
    }
}

/// Removes the files that locks of VMs left that are not here any more. A lock that somebody has stays.
///
/// With the lock in hand nobody else has it. Who waits for it then gets the lock of a file without a name, sees that, and takes the one of
/// the file that has the name.
pub(super) fn sweep(locks: &Path, here: &[&DomainName]) -> Result<(), ClaimError> {
    let here: BTreeSet<String> = here.iter().map(|vm| file_name(vm)).collect();
    let mut gone = BTreeSet::new();
    for name in entries::names(locks)? {
        entries::discard_unfinished(locks, &name);
        let vm = name.strip_prefix(LOCK).or_else(|| name.strip_prefix(WISH));
        gone.extend(vm.filter(|vm| !here.contains(*vm)).map(str::to_owned));
    }
    for vm in gone {
        let path = locks.join(format!("{LOCK}{vm}"));
        if let Some(_lock) = acquire(&path, Duration::ZERO)? {
            safe::remove_file(&locks.join(format!("{WISH}{vm}")))?;
            safe::remove_file(&path)?;
        }
    }
    Ok(())
}

fn lock_path(locks: &Path, vm: &DomainName) -> PathBuf {
    locks.join(format!("{LOCK}{}", file_name(vm)))
}

fn wish_path(locks: &Path, vm: &DomainName) -> PathBuf {
    locks.join(format!("{WISH}{}", file_name(vm)))
}

/// A domain's name as part of a file's name: one name, one file, however odd or long the name is.
fn file_name(vm: &DomainName) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let escaped: String = vm
        .as_str()
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect();
    if escaped.len() <= 200 {
        return escaped;
    }
    // FNV-1a: the same in every build, unlike std's hasher.
    let hash = vm
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let begin: String = escaped.chars().take(180).collect();
    format!("{begin}%{hash:016x}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]

    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[test]
    fn every_name_has_a_file_of_its_own() {
        let long = |last: &str| "ü".repeat(90) + last;
        let names = ["one-1", "a b", "a%20b", ".x", "ä", &long("1"), &long("2")].map(str::to_owned);
        let files: BTreeSet<String> = names.iter().map(|name| file_name(&name.parse().unwrap())).collect();
        assert_eq!(files.len(), names.len());
        assert!(files.iter().all(|file| file.len() <= 200 && !file.contains('/')), "{files:?}");
    }

    #[test]
    fn a_busy_vm_says_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let vm: DomainName = "one-42".parse().unwrap();
        assert_eq!(holder(dir.path(), &vm).unwrap(), None);
        assert!(VmLock::take_known(dir.path(), &vm, Action::Poll).unwrap().is_none(), "it has none");
        let lock = VmLock::take(dir.path(), &vm, Action::Save, Duration::ZERO).unwrap();
        let error = VmLock::take(dir.path(), &vm, Action::AttachNic, Duration::from_millis(60)).unwrap_err();
        let text = error.to_string();
        let pid = std::process::id();
        assert!(text.starts_with(&format!("one-42 is busy: save, pid {pid}, for ")) && text.ends_with(" s"), "{text}");
        let other: DomainName = "one-43".parse().unwrap();
        VmLock::take(dir.path(), &other, Action::Deploy, Duration::ZERO).unwrap();
        drop(lock);
        assert_eq!(holder(dir.path(), &vm).unwrap(), None);
        VmLock::take(dir.path(), &vm, Action::AttachNic, Duration::ZERO).unwrap();
        assert!(VmLock::take_known(dir.path(), &vm, Action::Save).unwrap().is_some());
    }

    #[test]
    fn only_a_program_of_this_boot_is_known_as_one() {
        let program = |text: &str| Holder::parse(text).unwrap().program;
        let boot = process::boot_id();
        assert_eq!(program(&format!("save 4711 1 2 {boot} save\n")).as_deref(), Some("save"));
        for text in
            ["reconcile 4711 1 2\n".to_owned(), format!("reconcile 4711 1 2 {boot} -\n"), "save 1 2 3 x save\n".into()]
        {
            assert_eq!(program(&text), None, "{text}");
        }
        let this = Holder { action: "save".into(), process: Process::this(), since: 2, program: Some("save".into()) };
        assert_eq!(Holder::parse(&this.to_text()), Some(this.clone()));
        assert!(!this.end(), "this process is no program save");
    }

    #[test]
    fn a_wish_reaches_its_holder_alone() {
        let dir = tempfile::tempdir().unwrap();
        let vm: DomainName = "one-42".parse().unwrap();
        wish(dir.path(), &vm, Process::this()).unwrap();
        let lock = VmLock::take(dir.path(), &vm, Action::Deploy, Duration::ZERO).unwrap();
        assert!(!lock.cancelled(), "a wish from before the lock was taken");
        wish(dir.path(), &vm, Process::new(std::process::id(), 1)).unwrap();
        assert!(!lock.cancelled(), "a wish for another process");
        wish(dir.path(), &vm, Process::this()).unwrap();
        assert!(lock.cancelled());
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_anew() {
        let dir = tempfile::tempdir().unwrap();
        let vm: DomainName = "one-42".parse().unwrap();
        let _lock = VmLock::take(dir.path(), &vm, Action::Save, Duration::ZERO).unwrap();
        std::fs::remove_file(lock_path(dir.path(), &vm)).unwrap();
        VmLock::take(dir.path(), &vm, Action::Cancel, Duration::ZERO).unwrap();
    }

    #[test]
    fn who_waited_too_long_keeps_nobody_else_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claims");
        let held = acquire(&path, Duration::ZERO).unwrap().unwrap();
        for _ in 0..8 {
            assert!(acquire(&path, Duration::from_millis(5)).unwrap().is_none());
        }
        drop(held);
        // Those that gave up get the lock one after the other, and let go of it.
        assert!(acquire(&path, Duration::from_secs(30)).unwrap().is_some());
    }

    #[test]
    fn a_lock_is_one_vms_alone_while_its_file_is_removed_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let (locks, vm): (_, DomainName) = (dir.path(), "one-42".parse().unwrap());
        let (inside, ended, taken) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let lock = VmLock::take(locks, &vm, Action::Deploy, Duration::from_secs(60)).unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst), "two had the lock");
                        thread::yield_now();
                        inside.store(false, Ordering::SeqCst);
                        drop(lock);
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
            scope.spawn(|| {
                while ended.load(Ordering::SeqCst) < 6 {
                    sweep(locks, &[]).unwrap();
                }
            });
        });
        assert_eq!(taken.into_inner(), 1200);
        sweep(locks, &[]).unwrap();
        assert_eq!(std::fs::read_dir(locks).unwrap().count(), 0);
    }

    #[test]
    fn what_is_in_use_or_of_a_vm_that_is_here_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [here, busy, gone] = ["one-1", "one-2", "one-3"].map(|name| name.parse::<DomainName>().unwrap());
        let _lock = VmLock::take(dir.path(), &busy, Action::Deploy, Duration::ZERO).unwrap();
        for vm in [&here, &gone] {
            VmLock::take(dir.path(), vm, Action::Save, Duration::ZERO).unwrap();
            wish(dir.path(), vm, Process::this()).unwrap();
        }
        acquire(&dir.path().join("claims"), Duration::ZERO).unwrap();
        sweep(dir.path(), &[&here]).unwrap();
        let mut names = entries::names(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["cancel-one-1", "claims", "vm-one-1", "vm-one-2"]);
    }

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
