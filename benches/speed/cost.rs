//! The costs of programs that run in turn.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

type Make<'a> = Box<dyn Fn(&str) -> Command + 'a>;
type Around<'a> = Box<dyn Fn() + 'a>;

/// A program to measure, and what must happen before and after each run.
pub(crate) struct Program<'a> {
    pub(crate) name: String,
    make: Make<'a>,
    stdin: String,
    before: Around<'a>,
    after: Around<'a>,
}

/// Wall and CPU time of each run, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    pub(crate) wall: Vec<f64>,
    pub(crate) cpu: Vec<f64>,
}

impl<'a> Program<'a> {
    /// * `make` - the command on the libvirtd with this URI
    pub(crate) fn new(name: impl Into<String>, make: impl Fn(&str) -> Command + 'a) -> Self {
        Self {
            name: name.into(),
            make: Box::new(make),
            stdin: String::new(),
            before: Box::new(|| {}),
            after: Box::new(|| {}),
        }
    }

    pub(crate) fn called(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    pub(crate) fn stdin(self, stdin: impl Into<String>) -> Self {
        Self { stdin: stdin.into(), ..self }
    }

    pub(crate) fn before(self, before: impl Fn() + 'a) -> Self {
        Self { before: Box::new(before), ..self }
    }

    pub(crate) fn after(self, after: impl Fn() + 'a) -> Self {
        Self { after: Box::new(after), ..self }
    }

    /// Runs it once. Returns wall and CPU time in milliseconds; `None` when it fails.
    pub(crate) fn run(&self, uri: &str) -> Option<(f64, f64)> {
        (self.before)();
        let mut command = (self.make)(uri);
        let taken = run(&mut command, &self.stdin);
        (self.after)();
        taken
    }

    /// The most memory that one of its processes has, in MiB.
    pub(crate) fn memory(&self, uri: &str) -> f64 {
        (self.before)();
        let command = (self.make)(uri);
        let mut watched = Command::new(env::current_exe().unwrap());
        watched.arg("--peak").arg(command.get_program()).args(command.get_args());
        let mut child = watched.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(self.stdin.as_bytes()).unwrap();
        let said = child.wait_with_output().unwrap().stderr;
        (self.after)();
        let last = String::from_utf8(said).unwrap().lines().last().unwrap().to_owned();
        last.parse::<f64>().unwrap() / 1024.0
    }

    /// How many programs it starts, itself included.
    pub(crate) fn processes(&self, uri: &str) -> usize {
        (self.before)();
        let log = tempfile::NamedTempFile::new().unwrap();
        let command = (self.make)(uri);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", "trace=execve", "-e", "status=successful", "-o"]).arg(log.path());
        run(traced.arg(command.get_program()).args(command.get_args()), &self.stdin);
        (self.after)();
        fs::read_to_string(log.path()).unwrap().lines().filter(|line| line.contains("execve(")).count()
    }
}

/// Runs a command and says on standard error how much memory its processes had at most, in KiB.
pub(crate) fn peak(command: &[String]) {
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    eprintln!("{}", getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss());
}

fn run(command: &mut Command, stdin: &str) -> Option<(f64, f64)> {
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        let ms = |time: nix::sys::time::TimeVal| 1000.0 * time.tv_sec() as f64 + time.tv_usec() as f64 / 1000.0;
        ms(usage.user_time()) + ms(usage.system_time())
    };
    let (before, begin) = (cpu(), Instant::now());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // A program need not read its input.
    drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
    let mut said = String::new();
    let mut errors = child.stderr.take().unwrap();
    let status = child.wait().unwrap();
    let wall = 1000.0 * begin.elapsed().as_secs_f64();
    errors.read_to_string(&mut said).unwrap();
    if !status.success() {
        eprintln!("{command:?}: {status}: {said}");
        return None;
    }
    Some((wall, cpu() - before))
}

/// Runs all programs in turn, this many times after one run that does not count. `None` for a program that fails.
pub(crate) fn alternate(programs: &[Program<'_>], uri: &str, rounds: usize) -> Vec<Option<Cost>> {
    let mut costs: Vec<Option<Cost>> =
        programs.iter().map(|program| program.run(uri).map(|_| Cost::default())).collect();
    for _ in 0..rounds {
        for (program, cost) in programs.iter().zip(&mut costs).filter(|(_, cost)| cost.is_some()) {
            let taken = program.run(uri);
            *cost = cost.take().zip(taken).map(|(mut cost, (wall, cpu))| {
                cost.wall.push(wall);
                cost.cpu.push(cpu);
                cost
            });
        }
    }
    costs
}

/// The value in the middle.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
