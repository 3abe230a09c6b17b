//! `kvm-sriov`: shows, checks and repairs the VFs of a host.

mod check;
mod explain;
mod list;
mod reconcile;
mod resolve;
mod view;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, CommandFactory, Parser, Subcommand};
use kvm_sriov::reconcile::Consistency;
use kvm_sriov::{Cause, DeployId, DomainName, NotTheDriversUser, become_drivers_user, hold_signals};

const EXIT_CODES: &str = "Exit codes: 0 as it should be, 1 something is wrong or left to be done, 2 wrong usage, \
    3 a VM is in doubt: a person must say where it lives (kvm-sriov resolve).";

/// Shows, checks and repairs the SR-IOV virtual functions that OpenNebula's VMs use on this host.
///
/// Run as root, it works as the user the driver belongs to, so that both share one state. Only root and that user can run it.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    /// The directory of the driver's programs.
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/tmp/one/vmm/kvm-sriov")]
    driver: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists every VF of every root, and which VM has it.
    List {
        /// Prints JSON: an array of objects with root, index, address, state, vm, operation and in_doubt.
        #[arg(long)]
        json: bool,
    },
    /// Checks that this host is ready: kvmrc, bridge, maps, VFs, libvirtd, state directory, rights on vfio devices.
    Check {
        /// Prints JSON: an array of objects with check, result (ok, warn, fail) and text.
        #[arg(long)]
        json: bool,
    },
    /// Makes what VMs want, what they have and what is claimed equal again, after a crash or a guest that answered late.
    ///
    /// A VM that an action or libvirt works on is left alone. What can't be done in time is left for the next time; only a VM
    /// that is being started from the image of its save is waited for.
    Reconcile {
        /// Ends after this time, also when libvirtd does not answer. The last third of it is for what has been begun.
        #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(3..))]
        timeout: u32,
        /// Only says what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Prints JSON: an object with vms, claims, problems and verdict (right, left, in-doubt).
        #[arg(long)]
        json: bool,
    },
    /// Says of one VM what it wants, has and claims, which operation is open, and what reconcile would do and why.
    Explain {
        /// The VM: its number in OpenNebula, its domain's name (one-42) or UUID.
        #[arg(value_parser = vm)]
        vm: DeployId,
        /// Prints JSON: an object with the VM's state, nics, claims, and what is left with its reason.
        #[arg(long)]
        json: bool,
    },
    /// Decides where a VM lives that is in doubt; without a word, shows what is known of both sides.
    ///
    /// Asks the destination of a move through ssh, as this user. If the VM runs there, that decides; anything else is a person's
    /// word. Look first: a VM whose CPUs run on two hosts destroys its disks.
    #[command(group = ArgGroup::new("word").args(["here", "there"]))]
    Resolve {
        /// The VM: its number in OpenNebula, its domain's name (one-42) or UUID.
        #[arg(value_parser = vm)]
        vm: DeployId,
        /// It lives here, and has never run elsewhere: it is let run, with its VFs.
        #[arg(long)]
        here: bool,
        /// With --here: also when the other host can't be asked. It may run there.
        #[arg(long, requires = "here", conflicts_with = "there")]
        force: bool,
        /// It lives elsewhere, or nowhere: what is here of it is destroyed, and its VFs are freed.
        #[arg(long)]
        there: bool,
        /// Prints JSON: an object with the VM's state, what was done, what is left, and what the other host says.
        #[arg(long)]
        json: bool,
    },
    /// Prints a completion script for a shell.
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, in roff.
    Man,
}

/// What ends the program early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The host could not be looked at.
    #[error(transparent)]
    Host(#[from] Cause),
    /// The command can't work as the driver's user.
    #[error(transparent)]
    User(#[from] NotTheDriversUser),
    /// The output could not be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::new().filter_level(log::LevelFilter::Warn).parse_default_env().format_target(false).init();
    match run(&arguments) {
        Ok(code) => code,
        // `kvm-sriov list | head -1` is no error.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            log::debug!("{failure:?}");
            // Without a stderr there is nobody to tell; the exit code says it.
            match writeln!(io::stderr(), "kvm-sriov: {failure}") {
                Ok(()) | Err(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// The VM that a person names. OpenNebula's users know a VM by its number, nobody knows libvirt's.
fn vm(text: &str) -> Result<DeployId, String> {
    match text.parse().map_err(|error: kvm_sriov::ParseError| error.to_string())? {
        DeployId::Id(number) => Ok(DeployId::Name(DomainName::of_vm(number))),
        id => Ok(id),
    }
}

/// What a verdict is as an exit code.
fn exit_code(verdict: Consistency) -> ExitCode {
    match verdict {
        Consistency::Consistent => ExitCode::SUCCESS,
        Consistency::Unfinished => ExitCode::from(1),
        Consistency::InDoubt => ExitCode::from(3),
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let driver = &arguments.driver;
    // What `check` finds wrong with the driver is one of its findings.
    if !matches!(arguments.command, Command::Completion { .. } | Command::Man | Command::Check { .. }) {
        become_drivers_user(driver)?;
    }
    if matches!(arguments.command, Command::Reconcile { .. } | Command::Resolve { .. }) {
        hold_signals();
    }
    match &arguments.command {
        Command::List { json } => list::list(driver, *json, &mut out),
        Command::Check { json } => check::check(driver, *json, colours, &mut out),
        Command::Reconcile { timeout, dry_run, json } => {
            let timeout = Duration::from_secs((*timeout).into());
            reconcile::reconcile(driver, timeout, *dry_run, *json, colours, &mut out)
        }
        Command::Explain { vm, json } => explain::explain(driver, vm, *json, colours, &mut out),
        Command::Resolve { vm, here, force, there, json } => {
            let word = match (here, there) {
                (true, _) => Some(resolve::Word::Here { force: *force }),
                (_, true) => Some(resolve::Word::There),
                _ => None,
            };
            resolve::resolve(driver, vm, word, *json, colours, &mut out)
        }
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Arguments::command(), "kvm-sriov", &mut out);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => {
            clap_mangen::Man::new(Arguments::command()).render(&mut out)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
