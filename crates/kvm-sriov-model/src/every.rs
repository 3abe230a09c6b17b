//! An action with a fault at each of its calls in turn.

use std::collections::VecDeque;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use kvm_sriov::libvirt::LibvirtErrorKind;
use kvm_sriov::{ActionError, HostState};

use super::Course;
use super::check::Stage;
use super::faults::Fault;
use super::host::Ended;

/// The faults that are tried at every call.
const FAULTS: [Fault; 9] = [
    Fault::Fails(LibvirtErrorKind::Other),
    Fault::FailsAfter(LibvirtErrorKind::Other),
    Fault::Fails(LibvirtErrorKind::Disconnected),
    Fault::FailsAfter(LibvirtErrorKind::Disconnected),
    Fault::Fails(LibvirtErrorKind::NoAnswer),
    Fault::FailsAfter(LibvirtErrorKind::NoAnswer),
    Fault::Dies,
    Fault::DiesAfter,
    Fault::Restart,
];

/// How many faults are tried at once in all tests of a process. Each of them mostly waits.
const AT_ONCE: usize = 16;

/// How many faults are being tried.
static NOW: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The right to try a fault.
struct Turn;

impl Turn {
    fn wait() -> Self {
        let now = NOW.0.lock().unwrap_or_else(PoisonError::into_inner);
        *NOW.1.wait_while(now, |now| *now >= AT_ONCE).unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *NOW.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        NOW.1.notify_one();
    }
}

/// The most calls that an action may make. An action that makes more does not end.
pub const MOST_CALLS: usize = 100;

/// The calls during which a process may die.
const LONG: [&str; 2] = ["save", "migrate"];

/// An action, the hosts before it, and what must be true after it.
pub struct Scenario<S: 'static> {
    /// Makes the hosts as they are before the action.
    pub given: fn() -> S,
    /// The action.
    pub action: fn(&S) -> Result<(), ActionError>,
    /// Checks what is true after the action succeeded.
    pub done: fn(&S),
    /// The repairs after the death of its process, or after an error that says that something is left: the action
    /// again, [`reconcile`](super::host::ModelHost::reconcile), a cancel. Each alone must repair everything, and checks
    /// what is true then.
    pub repairs: &'static [fn(&S)],
}

impl<S: Stage> Scenario<S> {
    /// Runs the action once without a fault, then with each fault at each call.
    ///
    /// An error must be true: when it says that nothing was changed, or that the domain runs on, the state is as
    /// before. A success despite a fault must be complete.
    ///
    /// # Panics
    /// With every fault after which something was wrong.
    pub fn with_every_fault(&self) {
        assert!(!self.repairs.is_empty(), "nothing shows that a death can be repaired");
        let calls = self.without_faults();
        let long = (1..).zip(&calls).filter(|(_, call)| LONG.contains(call));
        let during = |(n, call)| [false, true].map(|is_done| (n, Fault::DiesDuring { call, is_done }));
        let during: Vec<_> = long.map(|(n, call)| (n, *call)).flat_map(during).collect();
        let each = FAULTS.into_iter().flat_map(|fault| (1..=calls.len()).map(move |n| (n, fault)));
        let wrong = self.try_all(each.chain(during).collect());
        // A fault may lead to more calls than there are without one.
        let further = |fault| self.until_it_is_not_reached(calls.len() + 1, fault);
        let wrong: Vec<String> = wrong.into_iter().chain(FAULTS.into_iter().flat_map(further)).collect();
        assert!(wrong.is_empty(), "went wrong, see above:\n{}", wrong.join("\n"));
    }

    /// Runs the action, while this VM ends just before call 1, then again before call 2, and so on.
    ///
    /// * `repair` - the repair; afterwards nothing of the VM may be left
    pub fn with_every_end_of(&self, vm: &'static str, repair: fn(&S)) {
        for n in 1..=MOST_CALLS {
            let stage = (self.given)();
            let host = stage.hosts()[0];
            let model = host.model().clone();
            host.faults().disarm();
            host.faults().before(n, move || model.end_domain(vm));
            let ended = host.run(|| (self.action)(&stage));
            let calls = host.faults().calls();
            if calls.len() < n {
                return;
            }
            eprintln!("{vm} ended before call {n} of {calls:?}: {}", said(&ended));
            stage.check_safe();
            host.end_process();
            repair(&stage);
            stage.check();
        }
        panic!("no end after {MOST_CALLS} calls");
    }

    /// Tries several faults at once. Returns what went wrong.
    fn try_all(&self, faults: VecDeque<(usize, Fault)>) -> Vec<String> {
        let faults = Mutex::new(faults);
        let next = || faults.lock().unwrap().pop_front();
        let work = || {
            let tried = iter::from_fn(next).filter_map(|(n, fault)| self.try_fault(n, fault).err());
            tried.collect::<Vec<String>>()
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        })
    }

    /// Tries this fault at call `n`, at the next call, and so on until no call is reached. Returns what went wrong.
    fn until_it_is_not_reached(&self, n: usize, fault: Fault) -> Vec<String> {
        let mut wrong = Vec::new();
        for n in n..=MOST_CALLS {
            match self.try_fault(n, fault) {
                Ok(true) => {}
                Ok(false) => return wrong,
                Err(what) => wrong.push(what),
            }
        }
        wrong.push(format!("{fault:?}: no end after {MOST_CALLS} calls"));
        wrong
    }

    fn try_fault(&self, n: usize, fault: Fault) -> Result<bool, String> {
        let what = Mutex::new(String::new());
        let _turn = Turn::wait();
        let tried = catch_unwind(AssertUnwindSafe(|| self.with_fault(n, fault, &what)));
        tried.map_err(|_| format!("{fault:?} at call {n}: {}", what.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Runs the action without a fault. Returns the names of its calls.
    pub fn without_faults(&self) -> Vec<&'static str> {
        let stage = (self.given)();
        stage.hosts()[0].faults().disarm();
        (self.action)(&stage).unwrap();
        let calls = stage.hosts()[0].faults().calls();
        (self.done)(&stage);
        stage.check();
        calls
    }

    /// Runs the action with this fault at call `n`. Returns whether it makes that many calls.
    fn with_fault(&self, n: usize, fault: Fault, what: &Mutex<String>) -> bool {
        let mut fired = false;
        for (number, repair) in self.repairs.iter().enumerate() {
            let stage = (self.given)();
            let host = stage.hosts()[0];
            let before = stage.portrait();
            host.faults().arm(n, fault);
            match fault {
                Fault::DiesDuring { .. } => host.model().set_course(Course::Hangs),
                Fault::Restart => {
                    let model = host.model().clone();
                    host.faults().before(n, move || model.restart_daemon());
                }
                _ => {}
            }
            let ended = host.run(|| (self.action)(&stage));
            let (calls, hit) = (host.faults().calls(), host.faults().fired());
            host.faults().disarm();
            *what.lock().unwrap() = format!("calls {calls:?}, {}, repair {number}", said(&ended));
            match ended {
                Ended::Killed => {
                    fired = true;
                    if matches!(fault, Fault::DiesDuring { is_done: true, .. }) {
                        host.model().release_copies();
                        host.model().wait_for_jobs();
                    }
                    // A repair before the guest has answered would have to be repeated.
                    host.model().wait_for_guests();
                    stage.check_safe();
                    repair(&stage);
                    stage.check();
                }
                Ended::With(Ok(())) => {
                    fired = hit;
                    (self.done)(&stage);
                    stage.check();
                    // There is nothing to repair.
                    break;
                }
                Ended::With(Err(error)) => {
                    assert!(hit, "it failed without a fault: {error}");
                    fired = true;
                    if self.reports(&stage, &before, &error) {
                        host.end_process();
                        repair(&stage);
                        stage.check();
                    } else {
                        break;
                    }
                }
            }
        }
        fired
    }

    /// Checks that the error is true. Returns whether it says that something is left.
    fn reports(&self, stage: &S, before: &[String], error: &ActionError) -> bool {
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        stage.check_safe();
        match error.state() {
            HostState::Left(_) | HostState::InDoubt(_) | HostState::MayEnd => true,
            HostState::Done => {
                (self.done)(stage);
                stage.check();
                false
            }
            _ => {
                let changed = difference(before, &stage.portrait());
                assert!(changed.is_empty(), "{text}\n{}", changed.join("\n"));
                stage.check();
                false
            }
        }
    }
}

fn said(ended: &Ended<Result<(), ActionError>>) -> String {
    match ended {
        Ended::Killed => "killed".into(),
        Ended::With(Ok(())) => "success".into(),
        Ended::With(Err(error)) => error.to_string(),
    }
}

/// The removed and the added lines.
fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let only = |mark: &str, these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).map(|line| format!("{mark} {line}")).collect()
    };
    [only("-", before, after), only("+", after, before)].concat()
}
