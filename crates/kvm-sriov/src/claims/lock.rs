//! One action at a time for each VM.
//!
//! A lock is flock(2) on a file of its own. Each call opens the file anew, so two threads of one process exclude each
//! other just as two processes do. The files are closed on exec. A child that is forked without exec shares the lock
//! while its parent's action works; the parent unlocks the file for both.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs2::FileExt;

use super::holder::{Holder, now, program_for};
use super::{ClaimError, Process, Token, entries, safe};
use crate::base::{Action, DomainName};
use crate::os;

/// The prefix of the names of the files that VMs' locks are on.
const LOCK: &str = "vm-";

/// The prefix of the names of the files that ask an action to end.
const CANCEL: &str = "cancel-";

/// The lock of a VM. An action holds it until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct VmLock {
    file: File,
    cancel: PathBuf,
    token: Token,
}

impl VmLock {
    /// Whether this action was asked to end, because OpenNebula cancels its VM.
    pub fn cancelled(&self) -> bool {
        let Ok(Some((bytes, _))) = safe::read(&self.cancel) else { return false };
        // A version before 0.2 names the process alone.
        let of_process = Token::new(self.token.process(), None);
        [self.token, of_process].iter().any(|token| bytes == cancel_text(*token).as_bytes())
    }

    /// The token of the action that holds this lock. Claims name it as their holder. It lives as long as the lock.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Takes the lock of a VM, if the VM was locked before; `None` when it was not.
    pub(super) fn take_known(locks: &Path, vm: &DomainName, action: Action) -> Result<Option<Self>, ClaimError> {
        lock_path(locks, vm).exists().then(|| Self::take(locks, vm, action, Duration::ZERO)).transpose()
    }

    /// Takes the lock of a VM for an action. Waits at most `timeout` for another action.
    pub(super) fn take(locks: &Path, vm: &DomainName, action: Action, timeout: Duration) -> Result<Self, ClaimError> {
        let (path, cancel) = (lock_path(locks, vm), cancel_path(locks, vm));
        let Some(mut file) = acquire(&path, timeout)? else {
            let token = Token::new(Process::new(0, 0), None);
            let unknown = || Holder { action: "an action".into(), token, since: now(), program: None };
            let holder = holder(locks, vm)?.unwrap_or_else(unknown);
            return Err(ClaimError::Busy { vm: vm.clone(), holder });
        };
        // The request was for an earlier holder: nobody knows this one yet.
        safe::remove_file(&cancel)?;
        let token = Token::next();
        let text = Holder { action: action.to_string(), token, since: now(), program: program_for(action) }.to_text();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(ClaimError::file("write", path))?;
        Ok(Self { file, cancel, token })
    }
}

impl Drop for VmLock {
    /// Unlocks the file. Closing it would not unlock it while a child that another thread forked has it open too.
    fn drop(&mut self) {
        let is_forked = self.token.process().pid() != os::pid();
        if let (false, Err(error)) = (is_forked, FileExt::unlock(&self.file)) {
            log::debug!("the lock of a VM is released when its file is closed: {error}");
        }
    }
}

/// The action that holds the lock of a VM; `None` when no action does.
pub(super) fn holder(locks: &Path, vm: &DomainName) -> Result<Option<Holder>, ClaimError> {
    let path = lock_path(locks, vm);
    let Some(file) = safe::open(&path).map_err(ClaimError::file("open", &path))? else { return Ok(None) };
    // A shared lock, so that two processes that only read do not take each other for a holder.
    if FileExt::try_lock_shared(&file).is_ok() {
        return Ok(None);
    }
    let read = safe::read(&path).map_err(ClaimError::file("read", &path))?;
    Ok(read.and_then(|(bytes, _)| Holder::parse(&String::from_utf8_lossy(&bytes))))
}

/// Whether the action with this token may still work on a VM.
///
/// An action of an older version is only known by its process. Any other action holds the VM's lock as long as it
/// works. An action whose lock can't be read, or whose lock file was deleted, counts as working while its process runs.
pub(super) fn may_work(locks: &Path, vm: &DomainName, token: Token) -> bool {
    let is_its = |holder: &Holder| {
        let same_number = holder.token.number().is_none() || holder.token.number() == token.number();
        holder.token.process() == token.process() && same_number
    };
    token.process().is_alive()
        && (token.number().is_none()
            || !lock_path(locks, vm).exists()
            || holder(locks, vm).map_or(true, |holder| holder.as_ref().is_some_and(is_its)))
}

/// Asks the action with this token to end.
pub(super) fn request_cancel(locks: &Path, vm: &DomainName, token: Token) -> Result<(), ClaimError> {
    let path = cancel_path(locks, vm);
    safe::Unnamed::write(&path, cancel_text(token).as_bytes())?.name(&path, true)
}

fn cancel_text(token: Token) -> String {
    let process = token.process();
    match token.number() {
        Some(number) => format!("{} {} {number}\n", process.pid(), process.started()),
        None => format!("{} {}\n", process.pid(), process.started()),
    }
}

/// Locks the file at `path`, and creates it if it does not exist. `None` when another action held it all the time.
pub(super) fn acquire(path: &Path, timeout: Duration) -> Result<Option<File>, ClaimError> {
    let failed = || ClaimError::file("lock", path);
    let end = os::now() + timeout;
    loop {
        let file = safe::open_lock(path).map_err(failed())?;
        os::step("lock", "take");
        let locked = match FileExt::try_lock_exclusive(&file) {
            Ok(()) => Some(file),
            Err(error) if error.kind() == fs2::lock_contended_error().kind() => {
                os::lock_file(file, end).map_err(failed())?
            }
            Err(error) => return Err(failed()(error)),
        };
        match locked {
            // The last holder may have removed the file. Then others lock a new file with this name.
            Some(file) if !safe::is_at(&file, path).map_err(failed())? => {}
            other => return Ok(other),
        }
    }
}

/// Removes the files of the locks of VMs that are not here any more. A lock that is held stays.
///
/// A file is removed with its lock held. An action that waits for this lock then gets the lock of a file without a
/// name, notices that, and locks the file that has the name now.
pub(super) fn sweep(locks: &Path, here: &[&DomainName]) -> Result<(), ClaimError> {
    let here: BTreeSet<String> = here.iter().map(|vm| file_name(vm)).collect();
    let mut gone = BTreeSet::new();
    for name in entries::names(locks)? {
        entries::discard_unfinished(locks, &name);
        let vm = name.strip_prefix(LOCK).or_else(|| name.strip_prefix(CANCEL));
        gone.extend(vm.filter(|vm| !here.contains(*vm)).map(str::to_owned));
    }
    for vm in gone {
        let path = locks.join(format!("{LOCK}{vm}"));
        if let Some(_lock) = acquire(&path, Duration::ZERO)? {
            safe::remove_file(&locks.join(format!("{CANCEL}{vm}")))?;
            safe::remove_file(&path)?;
        }
    }
    Ok(())
}

fn lock_path(locks: &Path, vm: &DomainName) -> PathBuf {
    locks.join(format!("{LOCK}{}", file_name(vm)))
}

fn cancel_path(locks: &Path, vm: &DomainName) -> PathBuf {
    locks.join(format!("{CANCEL}{}", file_name(vm)))
}

/// A domain's name as part of a file name. Different names give different file names, whatever characters they have and
/// however long they are.
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
    // FNV-1a is the same in every build, unlike std's hasher.
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
    use std::thread;
    use std::time::Instant;

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
    fn a_cancel_request_reaches_its_holder_alone() {
        let dir = tempfile::tempdir().unwrap();
        let vm: DomainName = "one-42".parse().unwrap();
        let request = |token| request_cancel(dir.path(), &vm, token).unwrap();
        request(Token::new(Process::this(), None));
        let lock = VmLock::take(dir.path(), &vm, Action::Deploy, Duration::ZERO).unwrap();
        assert!(!lock.cancelled(), "a request from before the lock was taken");
        request(Token::new(Process::new(std::process::id(), 1), None));
        assert!(!lock.cancelled(), "a request for another process");
        request(Token::next());
        assert!(!lock.cancelled(), "a request for another action of this process");
        request(lock.token());
        assert!(lock.cancelled());
        request(Token::new(Process::this(), None));
        assert!(lock.cancelled(), "a request of an older version");
    }

    #[test]
    fn two_actions_of_one_process_exclude_each_other_for_one_vm() {
        let dir = tempfile::tempdir().unwrap();
        let vm: DomainName = "one-42".parse().unwrap();
        let lock = VmLock::take(dir.path(), &vm, Action::Save, Duration::ZERO).unwrap();
        let (first, begin) = (lock.token(), Instant::now());
        let second = thread::scope(|scope| {
            let other =
                scope.spawn(|| VmLock::take(dir.path(), &vm, Action::DetachNic, Duration::from_secs(60)).unwrap());
            let busy = VmLock::take(dir.path(), &vm, Action::AttachNic, Duration::from_millis(50)).unwrap_err();
            assert!(matches!(busy, ClaimError::Busy { holder, .. } if holder.token == first));
            drop(lock);
            other.join().unwrap()
        });
        assert!(begin.elapsed() >= Duration::from_millis(50));
        assert_ne!(second.token(), first);
        let held = holder(dir.path(), &vm).unwrap().unwrap();
        assert_eq!((held.token, held.program), (second.token(), None), "a test is no program of the driver");
    }

    #[test]
    fn a_forked_child_keeps_no_lock_of_an_action_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let vm: DomainName = "one-42".parse().unwrap();
        let lock = VmLock::take(dir.path(), &vm, Action::Save, Duration::ZERO).unwrap();
        // As a child has it, from its fork until its exec.
        let _inherited = lock.file.try_clone().unwrap();
        drop(lock);
        VmLock::take(dir.path(), &vm, Action::AttachNic, Duration::ZERO).unwrap();
    }

    #[test]
    fn an_action_works_as_long_as_it_holds_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let vm: DomainName = "one-42".parse().unwrap();
        let works = |token| may_work(dir.path(), &vm, token);
        let lock = VmLock::take(dir.path(), &vm, Action::Save, Duration::ZERO).unwrap();
        let first = lock.token();
        assert!(works(first));
        drop(lock);
        assert!(!works(first), "its process goes on, but the action has ended");
        assert!(works(Token::new(Process::this(), None)), "an older version is known by its process alone");
        let lock = VmLock::take(dir.path(), &vm, Action::Save, Duration::ZERO).unwrap();
        assert!(!works(first), "another action of this process holds the lock");
        assert!(
            !works(Token::new(Process::new(std::process::id(), 1), lock.token().number())),
            "a process that is gone"
        );
        std::fs::remove_file(lock_path(dir.path(), &vm)).unwrap();
        assert!(works(lock.token()), "without the file nobody knows");
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
        // Those that gave up get the lock one after the other, and release it.
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
            request_cancel(dir.path(), vm, Token::next()).unwrap();
        }
        acquire(&dir.path().join("claims"), Duration::ZERO).unwrap();
        sweep(dir.path(), &[&here]).unwrap();
        let mut names = entries::names(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["cancel-one-1", "claims", "vm-one-1", "vm-one-2"]);
    }
}
