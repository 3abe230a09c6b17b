//! Commands that run in a guest: the requests to the guest's agent, and the record that OpenNebula's monitoring reads
//! on the host.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use fs2::FileExt;
use serde_json::{Value, json};

use crate::base::{DomainName, POLL, printable};
use crate::error::Cause;
use crate::host::Host;
use crate::libvirt::{DomainRef, LibvirtError};
use crate::os;

/// libvirt's error number for an agent that does not answer or is not connected.
///
/// # Source
/// libvirt `VIR_ERR_AGENT_UNRESPONSIVE`.
const UNRESPONSIVE: u32 = 86;

/// The record of a VM's command: `<dir>/one-<id>` holds its process id in the guest until OpenNebula's monitoring has
/// read its result.
pub(crate) struct CommandRecord<'a> {
    host: &'a Host,
    /// The VM.
    pub(crate) vm: DomainName,
    _lock: File,
}

impl<'a> CommandRecord<'a> {
    /// Takes the lock of the records. OpenNebula's monitoring takes the same lock while it reads them.
    ///
    /// # Errors
    /// Another process has held the lock for SRIOV_LOCK_TIMEOUT, or OpenNebula's directory is not there. Nothing was
    /// changed.
    pub(crate) fn lock(host: &'a Host, vm: DomainName) -> Result<Self, Cause> {
        let path = host.run_dir().join(".exec-lock");
        let end = os::now() + host.settings().lock_timeout;
        let file = File::options().create(true).append(true).open(&path).map_err(Cause::file("open", &path))?;
        while let Err(error) = file.try_lock_exclusive() {
            if error.kind() != io::ErrorKind::WouldBlock || os::now() >= end {
                return Err(Cause::file("lock", &path)(error));
            }
            os::sleep(POLL);
        }
        Ok(Self { host, vm, _lock: file })
    }

    fn path(&self) -> PathBuf {
        self.host.run_dir().join(self.vm.as_str())
    }

    /// The recorded process id; `None` when there is none.
    pub(crate) fn read(&self) -> Result<Option<u64>, Cause> {
        let path = self.path();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Cause::file("read", path)(error)),
        }
    }

    /// Records a process id. Readers never see a partial record.
    pub(crate) fn write(&self, command: u64) -> Result<(), Cause> {
        let path = self.path();
        let file = tempfile::NamedTempFile::new_in(self.host.run_dir()).map_err(Cause::file("write", &path))?;
        fs::write(file.path(), command.to_string()).map_err(Cause::file("write", &path))?;
        file.persist(&path).map_err(|error| Cause::file("write", &path)(error.error))?;
        Ok(())
    }

    /// Removes the record.
    pub(crate) fn remove(&self) -> Result<(), Cause> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Cause::file("remove", path)(error)),
            _ => Ok(()),
        }
    }
}

/// Has the agent start a program. Returns its process id in the guest.
///
/// * `input` - its standard input, in base64
///
/// # Source
/// QEMU's `qga/qapi-schema.json`: `guest-exec`.
pub(crate) fn start(host: &Host, domain: &DomainRef, words: &[String], input: Option<&str>) -> Result<u64, Cause> {
    let (path, arguments) = words.split_first().map_or((None, words), |(first, rest)| (Some(first), rest));
    let mut command = json!({
        "execute": "guest-exec",
        "arguments": {"path": path, "arg": arguments, "capture-output": true}
    });
    if let (Some(input), Some(arguments)) = (input, command.get_mut("arguments").and_then(Value::as_object_mut)) {
        arguments.insert("input-data".into(), input.into());
    }
    let answer = ask(host, domain, &command)?;
    process_in(&answer).ok_or_else(|| odd(domain, &answer))
}

/// Has the agent kill a program that it started. The program may take a moment to end.
pub(crate) fn kill(host: &Host, domain: &DomainRef, command: u64) -> Result<(), Cause> {
    let words = ["kill", "-9", &command.to_string()].map(str::to_owned);
    start(host, domain, &words, None).map(drop)
}

/// Whether a program that the agent started is still running.
///
/// # Source
/// QEMU's `qga/qapi-schema.json`: `guest-exec-status`.
pub(crate) fn runs(host: &Host, domain: &DomainRef, command: u64) -> Result<bool, Cause> {
    let asked = json!({"execute": "guest-exec-status", "arguments": {"pid": command}});
    match ask(host, domain, &asked) {
        Ok(answer) => has_ended(&answer).map(|ended| !ended).ok_or_else(|| odd(domain, &answer)),
        // An agent that does not know the process was started later, after a reboot of the guest.
        Err(Cause::Libvirt(error)) if error.text().contains("does not exist") => Ok(false),
        Err(cause) => Err(cause),
    }
}

fn ask(host: &Host, domain: &DomainRef, command: &Value) -> Result<Value, Cause> {
    let text = host.hypervisor().ask_agent(domain, &command.to_string())?;
    returned(&text).ok_or_else(|| odd(domain, &Value::String(text)))
}

/// What the agent returns, in its answer; `None` for any other text.
pub(crate) fn returned(answer: &str) -> Option<Value> {
    serde_json::from_str::<Value>(answer).ok()?.get("return").cloned()
}

/// The process id that the answer to `guest-exec` names.
pub(crate) fn process_in(answer: &Value) -> Option<u64> {
    answer.get("pid").and_then(Value::as_u64)
}

/// Whether the process has ended, as the answer to `guest-exec-status` says.
pub(crate) fn has_ended(answer: &Value) -> Option<bool> {
    answer.get("exited").and_then(Value::as_bool)
}

fn odd(domain: &DomainRef, answer: &Value) -> Cause {
    Cause::GuestAgent { vm: domain.name.clone(), text: printable(&answer.to_string()) }
}

/// Whether the agent may have done what it was asked for although the call failed.
pub(crate) fn leaves_doubt(cause: &Cause) -> bool {
    let may_have = |error: &LibvirtError| error.code() == UNRESPONSIVE && !error.text().contains("not connected");
    cause.leaves_doubt()
        || matches!(cause, Cause::Libvirt(error) if may_have(error))
        || matches!(cause, Cause::GuestAgent { .. })
}
