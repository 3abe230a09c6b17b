//! Who holds the lock of a VM.

use std::fmt;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use super::{Process, Token, process};
use crate::base::Action;
use crate::os;

/// The program that this process is, when it is a program of the driver that works on one VM and on nothing else. This
/// is process-wide state: it is set once, at the start of the program, and never in a program that embeds this library.
static PROGRAM: OnceLock<Program> = OnceLock::new();

/// A program of the driver.
struct Program {
    /// The action that the program carries out.
    action: Action,
    /// The name of the program's file.
    file: String,
}

/// Declares this process to be a program of the driver that carries out this action and does nothing else. Then
/// `cancel` of the VM may kill it.
pub(crate) fn this_is_program(action: Action) {
    let file = std::env::current_exe().ok().and_then(|exe| Some(exe.file_name()?.to_str()?.to_owned()));
    if let Some(file) = file.filter(|file| !file.contains(char::is_whitespace)) {
        // A process is one program, so the first call counts.
        PROGRAM.get_or_init(|| Program { action, file });
    }
}

/// The name of this program's file, when the program does nothing but the work that it takes a lock for.
pub(super) fn program_for(action: Action) -> Option<String> {
    let program = PROGRAM.get()?;
    // The agent works on one VM too, but takes the lock for an action with another name.
    (program.action == action || program.action == Action::Agent).then(|| program.file.clone())
}

/// The action that holds a VM's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The name of the action, such as `save`.
    pub action: String,
    /// The action in its process.
    pub token: Token,
    /// When the action took the lock, in seconds since 1970.
    pub since: u64,
    /// The file name of the program, when the process is a program of the driver that works on this VM and on nothing
    /// else. `None` for a probe, for `kvm-sriov reconcile` and for a program that embeds this library.
    pub program: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, for {} s", self.action, self.token.process(), now().saturating_sub(self.since))
    }
}

impl Holder {
    /// Kills the process (SIGKILL) if it is a program of the driver that works on this VM alone and still runs. Such a
    /// program would finish its action if it was only asked to end. Any other process is not touched: its action reads
    /// the request of [`ClaimStore::request_cancel`](super::ClaimStore::request_cancel) and ends by itself.
    ///
    /// * returns whether the process was killed
    pub fn end(&self) -> bool {
        let process = self.token.process();
        let is_ours = self.program.as_deref().is_some_and(|program| process.runs(program));
        if is_ours {
            process.kill();
        }
        is_ours
    }

    /// The text in the file of the lock. Versions before 0.2 read all words but the last.
    pub(super) fn to_text(&self) -> String {
        let Self { action, token, since, program } = self;
        let (process, boot, program) = (token.process(), process::boot_id(), program.as_deref().unwrap_or("-"));
        let number = token.number().map_or_else(|| "-".to_owned(), |number| number.to_string());
        format!("{action} {} {} {since} {boot} {program} {number}\n", process.pid(), process.started())
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let action = words.next()?.to_owned();
        let process = Process::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let since = words.next()?.parse().ok()?;
        let (boot, program) = (words.next(), words.next().filter(|name| *name != "-"));
        let number = words.next().and_then(|number| number.parse().ok());
        // In another boot of the host the same process number may be that of another program.
        let program = program.filter(|_| boot == Some(process::boot_id().as_str())).map(str::to_owned);
        Some(Self { action, token: Token::new(process, number), since, program })
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    os::time_of_day().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let this = Holder { action: "save".into(), token: Token::next(), since: 2, program: Some("save".into()) };
        assert_eq!(Holder::parse(&this.to_text()), Some(this.clone()));
        assert!(!this.end(), "this process is no program save");
    }

    #[test]
    fn a_holder_of_an_older_version_has_no_number() {
        let boot = process::boot_id();
        let token = |text: &str| Holder::parse(text).unwrap().token;
        let (old, new) = (format!("save 4711 1 2 {boot} save\n"), format!("save 4711 1 2 {boot} save 7\n"));
        assert_eq!(token(&old), Token::new(Process::new(4711, 1), None));
        assert_eq!(token(&new), Token::new(Process::new(4711, 1), Some(7)));
    }
}
