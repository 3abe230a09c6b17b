//! The command `kvm-sriov`: shows, checks and repairs the VFs of a host.

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
use kvm_sriov::{Cause, DomainId, DomainName, NotTheDriversUser, become_drivers_user, hold_signals};

const EXIT_CODES: &str = "Exit codes: 0 nothing to repair, 1 a failure or something left to repair, 2 wrong usage, \
    3 a VM is in doubt: a person must say on which host it lives (kvm-sriov resolve).";

/// Shows, checks and repairs the SR-IOV virtual functions (VFs) that OpenNebula's VMs use on this host.
///
/// Only root and the user that owns the driver can run it. As root it becomes that user, so that all files have one
/// owner.
#[derive(Parser)]
#[command(name = "kvm-sriov", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The directory of the driver's programs on this host.
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/tmp/one/vmm/kvm-sriov")]
    driver: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the VFs of every root, and the VM that uses each.
    List {
        /// Prints JSON: an array of objects with root, index, address, state, vm, operation and in_doubt.
        #[arg(long)]
        json: bool,
    },
    /// Checks that this host is ready: kvmrc, bridge, VF maps, VFs, libvirtd, state directory, rights on vfio devices.
    Check {
        /// Prints JSON: an array of objects with check, result (ok, warn, fail) and text.
        #[arg(long)]
        json: bool,
    },
    /// Repairs what a crash or a late guest left: makes the VFs that VMs should have, have and claim equal again.
    ///
    /// Skips a VM that an action or libvirt is working on. What can't be done in time is left for the next run. Only
    /// the start of a VM from the image of its save is waited for without that limit.
    Reconcile {
        /// Ends after this time, even when libvirtd does not answer. The last third of it is kept for repairs that have
        /// begun.
        #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(3..))]
        timeout: u32,
        /// Only prints what would be done, and why.
        #[arg(long)]
        dry_run: bool,
        /// Prints JSON: an object with vms, claims, problems and verdict (right, left, in-doubt).
        #[arg(long)]
        json: bool,
    },
    /// Explains one VM: the VFs it should have, has and claims, its open operation, and what reconcile would do and
    /// why.
    Explain {
        /// The VM: its id in OpenNebula (42), its domain's name (one-42), or its domain's UUID.
        #[arg(value_parser = vm)]
        vm: DomainId,
        /// Prints JSON: an object with the VM's state, nics, claims, and the repairs that are left with their reasons.
        #[arg(long)]
        json: bool,
    },
    /// Decides on which host a VM in doubt lives. Without --here or --there, shows what is known of both hosts.
    ///
    /// Asks the other host of the migration through ssh, as the driver's user. If the VM runs there, that decides.
    /// Otherwise a person must decide. Check both hosts first: a VM that runs on two hosts destroys its disks.
    #[command(group = ArgGroup::new("decision").args(["here", "there"]))]
    Resolve {
        /// The VM: its id in OpenNebula (42), its domain's name (one-42), or its domain's UUID.
        #[arg(value_parser = vm)]
        vm: DomainId,
        /// The VM lives here and has not run elsewhere since it was paused here: resumes it with its VFs.
        #[arg(long)]
        here: bool,
        /// With --here: even when the other host can't be asked, where the VM may be running.
        #[arg(long, requires = "here", conflicts_with = "there")]
        force: bool,
        /// The VM lives elsewhere, or is to end: destroys its domain here and frees its VFs.
        #[arg(long)]
        there: bool,
        /// Prints JSON: an object with the VM's state, the repairs that were done and are left, and the other host's
        /// answer.
        #[arg(long)]
        json: bool,
    },
    /// Prints a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, in roff.
    Man,
}

/// Why the command fails.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The host can't be read or repaired.
    #[error(transparent)]
    Host(#[from] Cause),
    /// The command can't work as the driver's user.
    #[error(transparent)]
    User(#[from] NotTheDriversUser),
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl From<serde_json::Error> for CommandError {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .parse_default_env()
        .format(|out, record| writeln!(out, "[{:<5}] {}", record.level(), view::plain(record.args())))
        .init();
    match run(&arguments) {
        Ok(code) => code,
        // `kvm-sriov list | head -1` is no error.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            log::debug!("{error:?}");
            // With a closed standard error only the exit code is left to tell.
            match writeln!(io::stderr(), "kvm-sriov: {}", view::plain(&error)) {
                Ok(()) | Err(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// The VM that a person names. A number is OpenNebula's id of the VM, not libvirt's id of the domain.
fn vm(text: &str) -> Result<DomainId, String> {
    match text.parse().map_err(|error: kvm_sriov::ParseError| error.to_string())? {
        DomainId::Id(number) => Ok(DomainId::Name(DomainName::of_vm(number))),
        id => Ok(id),
    }
}

/// The exit code for a VM or a host.
fn exit_code(verdict: Consistency) -> ExitCode {
    match verdict {
        Consistency::Consistent => ExitCode::SUCCESS,
        Consistency::Unfinished => ExitCode::from(1),
        Consistency::InDoubt => ExitCode::from(3),
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    let mut out = io::stdout().lock();
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let driver = &arguments.driver;
    // `check` reports a problem with the driver's user as a finding.
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
            let decision = match (here, there) {
                (true, _) => Some(resolve::Decision::Here { force: *force }),
                (_, true) => Some(resolve::Decision::There),
                _ => None,
            };
            resolve::resolve(driver, vm, decision, *json, colours, &mut out)
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
