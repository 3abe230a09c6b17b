//! `kvm-sriov`: shows and checks the VFs of a host.

mod check;
mod list;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use kvm_sriov::{Cause, become_owner_of};

/// Shows and checks the SR-IOV virtual functions that OpenNebula's VMs use on this host.
///
/// Run as root, it works as the user the driver belongs to, so that both share one state.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 as it should be, 1 something is wrong, 2 wrong usage.")]
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
        /// Prints JSON: an array of objects with root, index, address, state and vm.
        #[arg(long)]
        json: bool,
    },
    /// Checks that this host is ready: kvmrc, bridge, maps, VFs, libvirtd, state directory, rights on vfio devices.
    Check {
        /// Prints JSON: an array of objects with check, result (ok, warn, fail) and text.
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

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    match &arguments.command {
        Command::List { json } => {
            become_owner_of(&arguments.driver)?;
            list::list(&arguments.driver, *json, &mut out)
        }
        Command::Check { json } => {
            become_owner_of(&arguments.driver)?;
            let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            check::check(&arguments.driver, *json, colours, &mut out)
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
