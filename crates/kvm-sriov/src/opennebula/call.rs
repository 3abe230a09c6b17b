//! The wire: how OpenNebula calls a driver's program and reads its answer.
//!
//! A program gets its arguments, then OpenNebula's `<vm id> <host>`; the XML on standard input; it answers with an exit
//! code, at most one line on standard output, and a standard error of which every line that does not start with
//! `ERROR:`, `INFO:`, `WARN:` or `DEBUG:` becomes the message a user sees. So a failure is exactly one such line.
//!
//! # Source
//! OpenNebula's `one_vmm_exec.rb`, `DriverExecHelper.rb` and `scripts_common.sh`; docs/reference/wire.md.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::actions::{Input, NicArgs};
use crate::base::base64;
use crate::base::signals;
use crate::base::span::{Kind, Span};
use crate::base::{Action, DomainName};
use crate::claims;
use crate::config::OneVersion;
use crate::error::{ActionError, Cause, HostState};
use crate::host::Hook;
use crate::host::Host;
use crate::host::become_owner_of;
use crate::host::detached;
use crate::libvirt::DomainRef;
use crate::xml::VmData;

/// The longest standard input that is read, in bytes. OpenNebula's largest messages are below 100 KiB.
const STDIN_LIMIT: u64 = 8 * 1024 * 1024;

/// Log lines of one action on standard error; from 6.2 to 6.10 all of them end up in the user's error message.
const LOG_LINES: usize = 20;

/// One call of a driver program: its arguments and where it lies.
#[derive(Debug, Clone)]
pub struct Call {
    action: Action,
    args: Vec<String>,
    driver_dir: PathBuf,
    caller: OneVersion,
}

impl Call {
    fn new(action: Action, args: Vec<OsString>, driver_dir: PathBuf) -> Result<Self, ActionError> {
        let args = args.into_iter().map(OsString::into_string).collect::<Result<_, _>>().map_err(|arg| {
            let problem = format!("expected UTF-8, found \"{}\"", arg.to_string_lossy().escape_debug());
            ActionError::untouched(action, Cause::Argument { name: "argument", problem })
        })?;
        let caller = OneVersion::detect(&driver_dir);
        Ok(Self { action, args, driver_dir, caller })
    }

    /// The action.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The directory the program lies in.
    pub fn driver_dir(&self) -> &Path {
        &self.driver_dir
    }

    /// What calls.
    pub fn caller(&self) -> &OneVersion {
        &self.caller
    }

    /// The argument with this number (from 0), parsed.
    ///
    /// # Errors
    /// Nothing was touched; says which argument is missing or what was expected of it.
    pub fn arg<T>(&self, number: usize, name: &'static str) -> Result<T, ActionError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.args.get(number).map_or("", String::as_str);
        let wrong = |problem: String| ActionError::untouched(self.action, Cause::Argument { name, problem });
        if text.is_empty() {
            return Err(wrong("expected a value, found none".into()));
        }
        text.parse().map_err(|error: T::Err| wrong(error.to_string()))
    }

    /// The argument with this number, parsed; `None` when it is empty, `-`, or OpenNebula's version does not give it.
    ///
    /// # Errors
    /// Nothing was touched; says what was expected of it.
    pub fn optional_arg<T>(&self, number: usize, name: &'static str) -> Result<Option<T>, ActionError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let given = self.caller.own(&self.args).get(number).filter(|text| !matches!(text.as_str(), "" | "-"));
        given.map(|_| self.arg(number, name)).transpose()
    }

    /// The name of the VM whose number in OpenNebula is this argument.
    ///
    /// # Errors
    /// Nothing was touched; it is missing, or is no number.
    pub fn vm_name(&self, number: usize) -> Result<DomainName, ActionError> {
        Ok(DomainName::of_vm(self.arg(number, "VM id")?))
    }

    /// The argument with this number as it stands there, of an action to which OpenNebula appends nothing; `None` when it is not
    /// given.
    pub fn text(&self, number: usize) -> Option<&str> {
        self.args.get(number).map(String::as_str)
    }

    /// The argument with this number, which is a text in base64.
    ///
    /// # Errors
    /// Nothing was touched; it is missing, or is not base64 of text.
    pub fn encoded_arg(&self, number: usize, name: &'static str) -> Result<String, ActionError> {
        let encoded: String = self.arg(number, name)?;
        let text = base64(&encoded).and_then(|bytes| String::from_utf8(bytes).ok());
        text.ok_or_else(|| {
            let problem = "expected base64 of UTF-8, found something else".into();
            ActionError::untouched(self.action, Cause::Argument { name, problem })
        })
    }

    /// The NIC that the arguments of `attach_nic` describe.
    ///
    /// # Errors
    /// Nothing was touched; the MAC is missing or is none.
    pub fn nic(&self) -> Result<NicArgs, ActionError> {
        Ok(NicArgs {
            mac: self.arg(1, "MAC")?,
            bridge: self.optional_arg(2, "bridge")?,
            model: self.optional_arg(3, "model")?,
            vn_mad: self.optional_arg(4, "network driver")?,
            target: self.optional_arg(5, "target")?,
        })
    }

    /// OpenNebula's number of the VM: the first of the two arguments it appends; `None` when called by hand without it.
    pub fn vm_id(&self) -> Option<u32> {
        self.args.iter().rev().nth(1).and_then(|id| id.parse().ok())
    }

    /// Standard input as text.
    ///
    /// # Errors
    /// Nothing was touched; it could not be read, is longer than 8 MiB, or is not UTF-8.
    pub fn stdin(&self) -> Result<String, ActionError> {
        let mut bytes = Vec::new();
        let failed = |why: String| ActionError::untouched(self.action, Cause::Stdin { why });
        io::stdin().lock().take(STDIN_LIMIT + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
        if bytes.len() as u64 > STDIN_LIMIT {
            return Err(failed(format!("it is longer than {STDIN_LIMIT} bytes")));
        }
        String::from_utf8(bytes).map_err(|e| failed(format!("it is not UTF-8 ({e})")))
    }

    /// OpenNebula's description of the VM on the standard input of an action that runs on the front-end, where it is sent as
    /// base64; `None` from versions before 5.0, which send none.
    ///
    /// # Errors
    /// Nothing was touched; it could not be read, or is not base64 of text.
    pub fn encoded_stdin(&self) -> Result<Option<String>, ActionError> {
        if !self.caller.reads_local_stdin() {
            return Ok(None);
        }
        let failed = |why: &str| ActionError::untouched(self.action, Cause::Stdin { why: why.into() });
        let bytes = base64(&self.stdin()?).ok_or_else(|| failed("it is not base64"))?;
        let text = String::from_utf8(bytes).map_err(|_| failed("what it encodes is not UTF-8"))?;
        Ok(Some(text).filter(|text| !text.trim().is_empty()))
    }

    /// OpenNebula's description of the VM on standard input; `None` from versions that send none to this
    /// action: see [`OneVersion::reads_stdin`].
    ///
    /// # Errors
    /// Nothing was touched; it could not be read, or is no such description (because it was cut short, for example).
    pub fn data(&self) -> Result<Option<Input>, ActionError> {
        if !self.caller.reads_stdin(self.action) {
            return Ok(None);
        }
        let text = self.stdin()?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let vm = VmData::parse(&text).map_err(|source| {
            ActionError::untouched(self.action, Cause::Xml { what: "the XML on standard input".into(), source })
        })?;
        let hook = Hook::find(&self.driver_dir, self.action, &self.args, &text, vm.tm_mad());
        Ok(Some(Input { vm, hook, text }))
    }

    /// The VM of a step of a network driver, in base64: on standard input or, up to 5.8, in the first argument.
    ///
    /// # Errors
    /// Nothing was touched; there is none, or it is not base64 of such a description.
    pub fn network_data(&self) -> Result<VmData, ActionError> {
        let text = if self.caller.has_networks_on_stdin() {
            let encoded = self.stdin()?;
            base64(&encoded)
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| self.untouched(Cause::Stdin { why: "it is not base64 of UTF-8".into() }))?
        } else {
            self.encoded_arg(0, "VM")?
        };
        VmData::parse(&text).map_err(|source| self.untouched(Cause::Xml { what: "the XML of the VM".into(), source }))
    }

    /// As [`Call::data`], for an action that does nothing without it.
    ///
    /// # Errors
    /// Nothing was touched; as [`Call::data`], or there is none.
    pub fn needed_data(&self) -> Result<Input, ActionError> {
        let none = || ActionError::untouched(self.action, Cause::Stdin { why: "there is none".into() });
        self.data()?.ok_or_else(none)
    }

    /// The host this program runs on, for an action that starts or plugs something.
    ///
    /// # Errors
    /// Nothing was touched; kvmrc can't be read, or libvirtd does not answer.
    pub fn host(&self) -> Result<Host, ActionError> {
        Host::open(&self.driver_dir).map_err(|cause| ActionError::untouched(self.action, cause))
    }

    /// The host this program runs on, for an action that ends or frees something: an error in kvmrc does not stop it.
    ///
    /// # Errors
    /// Nothing was touched; libvirtd does not answer.
    pub fn host_lenient(&self) -> Result<Host, ActionError> {
        Host::open_lenient(&self.driver_dir).map_err(|cause| ActionError::untouched(self.action, cause))
    }

    /// A failure that left the domain as it runs.
    pub fn failed(&self, cause: Cause) -> ActionError {
        ActionError::new(self.action, cause, HostState::RunsOn)
    }

    /// A failure before anything was touched.
    pub fn untouched(&self, cause: Cause) -> ActionError {
        ActionError::untouched(self.action, cause)
    }

    /// What `deploy` answers with for a domain: its UUID or, before 6.0, its name.
    pub fn deploy_id(&self, domain: &DomainRef) -> String {
        if self.caller.deploys_by_uuid() { domain.uuid.to_string() } else { domain.name.to_string() }
    }
}

/// Runs one action and answers as the caller's version expects. What a shim's `main` is.
///
/// Run as root, the process first becomes the owner of the program's directory, so that root and OpenNebula's user
/// share one state. Told to end (SIGTERM, SIGHUP) it goes on until it has finished, or has undone what it began.
pub fn run(action: Action, body: impl FnOnce(&Call) -> Result<Option<String>, ActionError>) -> ExitCode {
    signals::hold();
    claims::this_is_program(action);
    answer(action, body)
}

/// As [`run`], for a program that an action started and that goes on when the action has ended. It ends when it is told to.
pub fn run_detached(action: Action, body: impl FnOnce(&Call) -> Result<Option<String>, ActionError>) -> ExitCode {
    detached::detach();
    answer(action, body)
}

fn answer(action: Action, body: impl FnOnce(&Call) -> Result<Option<String>, ActionError>) -> ExitCode {
    log_to_stderr(action);
    let _span = Span::begin(Kind::Action, action.as_str());
    let driver_dir = driver_of(&std::env::current_exe().unwrap_or_default());
    let outcome = become_owner_of(&driver_dir)
        .map_err(|cause| ActionError::untouched(action, cause))
        .and_then(|()| Call::new(action, std::env::args_os().skip(1).collect(), driver_dir.clone()))
        .and_then(|call| body(&call));
    match outcome {
        Ok(answer) => answer.map_or(ExitCode::SUCCESS, |line| print_answer(action, &line)),
        Err(error) => {
            let text = OneVersion::detect(&driver_dir).failure(&error.to_string());
            // With a closed stderr there is nobody left to tell; the exit code still says it.
            match io::stderr().write_all(text.as_bytes()) {
                Ok(()) | Err(_) => ExitCode::from(error.exit_code()),
            }
        }
    }
}

/// Where the driver lies in OpenNebula's remotes, of which other parts hold the probe and the companion network driver.
const DRIVER: &str = "vmm/kvm-sriov";

/// The driver's directory: the one that the program lies in or, when that holds no VMM driver, the driver of the same remotes.
pub(crate) fn driver_of(program: &Path) -> PathBuf {
    let own = program.parent().unwrap_or(Path::new(""));
    let is_vmm = own.parent().and_then(Path::file_name).is_some_and(|dir| dir == "vmm");
    let beside = || program.ancestors().map(|dir| dir.join(DRIVER)).find(|driver| driver.is_dir());
    Some(own).filter(|_| is_vmm).map(Path::to_owned).or_else(beside).unwrap_or_else(|| own.to_owned())
}

/// A closed standard output is not this action's failure: what it did is done, and the caller is gone.
fn print_answer(action: Action, line: &str) -> ExitCode {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!(
                "cannot write the answer of {action}: {error}; {action} itself succeeded (state: {:?})",
                HostState::Done
            );
            ExitCode::FAILURE
        }
    }
}

/// Writes log lines on standard error in the form that OpenNebula filters: one line each, the severity first.
struct StderrLog {
    action: Action,
    written: AtomicUsize,
}

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::LevelFilter::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) || self.written.fetch_add(1, Ordering::Relaxed) >= LOG_LINES {
            return;
        }
        let text = record.args().to_string().replace('\n', " ");
        let line = format!("{}: {}: {text}\n", record.level(), self.action);
        // With a closed standard error nobody reads log lines.
        match io::stderr().write_all(line.as_bytes()) {
            Ok(()) | Err(_) => {}
        }
    }

    fn flush(&self) {}
}

/// Sends this program's log lines to standard error.
pub(crate) fn log_to_stderr(action: Action) {
    static LOG: OnceLock<StderrLog> = OnceLock::new();
    let log = LOG.get_or_init(|| StderrLog { action, written: AtomicUsize::new(0) });
    // A process that has a logger already keeps it, and its level.
    if log::set_logger(log).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_driver_is_found_from_everything_that_it_brings() {
        let remotes = tempfile::tempdir().unwrap();
        let (driver, second) = (remotes.path().join(DRIVER), remotes.path().join("vmm/second"));
        let pre = remotes.path().join("vnm/sriov/pre");
        assert_eq!(driver_of(&pre), remotes.path().join("vnm/sriov"));
        fs::create_dir_all(&driver).unwrap();
        fs::create_dir_all(&second).unwrap();
        let probe = remotes.path().join("im/kvm-probes.d/vm/monitor/sriov_probe");
        for program in [pre, probe, remotes.path().join("im/kvm-probes.d/sriov_probe"), driver.join("deploy")] {
            assert_eq!(driver_of(&program), driver, "{}", program.display());
        }
        assert_eq!(driver_of(&second.join("deploy")), second);
    }

    #[test]
    fn what_a_version_does_not_give_is_not_taken_from_its_own_arguments() {
        let call = |args: &[&str]| {
            let args = args.iter().map(OsString::from).collect();
            Call::new(Action::AttachNic, args, PathBuf::new()).unwrap()
        };
        let old = call(&["one-42", "02:00:0a:00:2a:01", "br0", "-", "42", "node1"]);
        let text = |call: &Call, number| call.optional_arg::<String>(number, "x").unwrap();
        assert_eq!((text(&old, 2), text(&old, 3), text(&old, 4)), (Some("br0".into()), None, None));
        let new = call(&["one-42", "02:00:0a:00:2a:01", "", "e1000", "bridge", "one-42-1", "42", "node1"]);
        assert_eq!(
            (text(&new, 2), text(&new, 3), text(&new, 5)),
            (None, Some("e1000".into()), Some("one-42-1".into()))
        );
        assert!(new.optional_arg::<u32>(3, "x").is_err());
    }
}
