//! `vm`: the live tests, or the demo, on every kernel line, each in a VM of its own.

mod files;
mod report;
mod trial;

use std::{
    collections::VecDeque,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::ValueEnum;

pub(crate) use self::{
    files::Run,
    report::{print_failures, print_table},
    trial::{DOUBTFUL, Outcome, verdict_failure},
};
use self::{
    files::{directory, sweep},
    trial::test_one,
};
use crate::{
    build::{self, Profile},
    kernel::{self, LINES, Line},
    machine::{self, Programs},
    packages::{self, Installation, Need},
    process, ss,
    workspace::Workspace,
};

/// Run the live kernel tests in VMs, one per kernel line
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel lines, of 5.10, 6.1, 6.12, 6.18 and 7.x; all when none is given.
    kernels: Vec<String>,
    /// Which hook type of the hook ladder conntracer uses.
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
    /// Keep each VM's initramfs beside its log.
    #[arg(long)]
    keep: bool,
    /// Run the demo instead of the tests, one kernel after the other, on this terminal.
    #[arg(long)]
    demo: bool,
    /// VMs at a time; each keeps one of the host's CPUs busy.
    #[arg(long, default_value_t = default_jobs())]
    jobs: usize,
    /// Seconds after which a VM is killed and counted as failed.
    #[arg(long, default_value_t = 2400)]
    timeout: u64,
    /// Only run tests whose name contains one of these.
    #[arg(last = true)]
    filters: Vec<String>,
}

/// The hook modes of conntracer that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Hooks {
    Auto,
    Kprobe,
    Tracepoint,
    /// Each of the three in turn.
    All,
}

impl Hooks {
    pub(crate) fn modes(self) -> &'static [&'static str] {
        match self {
            Self::Auto => &["auto"],
            Self::Kprobe => &["kprobe"],
            Self::Tracepoint => &["tracepoint"],
            Self::All => &["auto", "kprobe", "tracepoint"],
        }
    }
}

/// What the VMs are to do.
pub(crate) struct Plan<'a> {
    pub(crate) lines: Vec<&'static Line>,
    pub(crate) hooks: Hooks,
    pub(crate) filters: &'a [String],
    /// The same for the lines between the oldest and the newest, where they are to run less.
    pub(crate) filters_between: Option<&'a [String]>,
    pub(crate) jobs: usize,
    pub(crate) timeout: Duration,
    pub(crate) keep: bool,
}

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> Result<ExitCode> {
    let lines = if arguments.kernels.is_empty() {
        LINES.iter().collect()
    } else {
        arguments
            .kernels
            .iter()
            .map(|name| kernel::line(name))
            .collect::<Result<Vec<_>>>()?
    };
    let plan = Plan {
        lines,
        hooks: arguments.hooks,
        filters: &arguments.filters,
        filters_between: None,
        jobs: arguments.jobs.max(1),
        timeout: Duration::from_secs(arguments.timeout),
        keep: arguments.keep,
    };
    if arguments.demo {
        return demo(workspace, installation, &plan);
    }
    let outcomes = test(workspace, installation, &plan)?;
    print_failures(&outcomes)?;
    print_table(&outcomes);
    let failed = outcomes.iter().any(|outcome| outcome.failure.is_some());
    Ok(ExitCode::from(u8::from(failed)))
}

/// Whether a line is neither the oldest nor the newest.
fn is_between(line: &str) -> bool {
    ![LINES.first(), LINES.last()]
        .into_iter()
        .flatten()
        .any(|end| end.name == line)
}

/// VMs at a time: each keeps one of the host's CPUs busy.
pub(crate) fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, |cpus| cpus.get().min(8))
}

/// Installs the emulator where it is missing.
pub(crate) fn ensure_emulator(installation: Installation) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "VMs run x86_64 kernels only; this host is {}",
            std::env::consts::ARCH
        );
    }
    if process::which(machine::EMULATOR).is_some() {
        return Ok(());
    }
    packages::ensure(
        &[Need {
            package: machine::EMULATOR_PACKAGE,
            reason: "runs the test kernels",
        }],
        installation,
    )
}

/// Runs the live tests as `plan` says; results in the plan's order.
pub(crate) fn test(
    workspace: &Workspace,
    installation: Installation,
    plan: &Plan<'_>,
) -> Result<Vec<Outcome>> {
    ensure_emulator(installation)?;
    sweep(&directory(workspace))?;
    let kernels = kernel::ensure(workspace, installation, &plan.lines)?;
    let programs = programs(workspace, installation)?;
    let filter = filter_argument(plan.filters)?;
    let filter_between = match plan.filters_between {
        Some(filters) => filter_argument(filters)?,
        None => filter.clone(),
    };

    let mut queue = Vec::new();
    for hooks in plan.hooks.modes() {
        for kernel in &kernels {
            let filter = if is_between(kernel.line) {
                &filter_between
            } else {
                &filter
            };
            queue.push((queue.len(), kernel, *hooks, filter));
        }
    }
    // What runs longest first, so that no VM is left alone at the end.
    queue.sort_by_key(|(_, kernel, ..)| is_between(kernel.line));
    let queue = VecDeque::from(queue);
    let total = queue.len();
    let queue = Mutex::new(queue);
    let results = Mutex::new(Vec::with_capacity(total));
    thread::scope(|scope| {
        for _ in 0..plan.jobs.min(total) {
            scope.spawn(|| {
                loop {
                    // Neither lock is held while a VM runs, so a panic poisons nothing half-made.
                    let next = lock(&queue).pop_front();
                    let Some((index, kernel, hooks, filter)) = next else {
                        break;
                    };
                    let outcome = test_one(workspace, plan, kernel, &programs, hooks, filter);
                    lock(&results).push((index, outcome));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Runs the demo on each kernel of `plan`, its console on this terminal.
pub(crate) fn demo(
    workspace: &Workspace,
    installation: Installation,
    plan: &Plan<'_>,
) -> Result<ExitCode> {
    ensure_emulator(installation)?;
    sweep(&directory(workspace))?;
    let kernels = kernel::ensure(workspace, installation, &plan.lines)?;
    let programs = programs(workspace, installation)?;
    let mut code = ExitCode::SUCCESS;
    for kernel in &kernels {
        for hooks in plan.hooks.modes() {
            eprintln!("booting Linux {} (hooks: {hooks})", kernel.release);
            let run = Run::prepare(workspace, kernel, &programs, &format!("demo-{hooks}"))?;
            let verdict = machine::boot(
                kernel,
                &run.initramfs,
                &format!("conntracer.run=demo conntracer.hooks={hooks}"),
                plan.timeout,
                |line| {
                    if !line.starts_with("init: ") {
                        println!("{line}");
                    }
                    Ok(())
                },
            )?;
            if plan.keep {
                run.keep(&format!("demo-{hooks}"))?;
            }
            if let Some(reason) = verdict_failure(&verdict) {
                eprintln!("error: Linux {}: {reason}", kernel.release);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn programs(workspace: &Workspace, installation: Installation) -> Result<Programs> {
    let test_binary = |name| build::test_binary(workspace, installation, name, Profile::Dev);
    let mut programs = Programs {
        init: test_binary("conntracer-vm-init")?,
        bin: vec![
            (
                "conntracer",
                build::conntracer(workspace, installation, Profile::Release)?,
            ),
            (
                "kernel-tests",
                build::test_target(workspace, installation, "kernel")?,
            ),
            ("conntracer-live", test_binary("conntracer-live")?),
            ("conntracer-demo", test_binary("conntracer-demo")?),
            ("conntracer-workload", test_binary("conntracer-workload")?),
        ],
        libraries: Vec::new(),
    };
    let ss = ss::ensure(installation).and_then(|ss| Ok((ss::libraries(&ss)?, ss)));
    match ss {
        Ok((libraries, ss)) => {
            programs.bin.push(("ss", ss));
            programs.libraries = libraries;
        }
        Err(error) => eprintln!("the test with ss is skipped: {error:#}"),
    }
    Ok(programs)
}

/// The init's filter parameter. The kernel's command line has no quoting that the init would undo.
fn filter_argument(filters: &[String]) -> Result<String> {
    if let Some(filter) = filters
        .iter()
        .find(|filter| filter.contains(|c: char| c.is_whitespace() || c == '"' || c == ','))
    {
        bail!("{filter:?} cannot travel on a kernel command line: it has a space, quote or comma");
    }
    Ok(if filters.is_empty() {
        String::new()
    } else {
        format!("conntracer.filter={}", filters.join(","))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_words_travel_on_the_command_line() {
        let argument = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
            filter_argument(&filters)
        };
        assert_eq!(
            argument(&["syn_drop", "storm"]).unwrap(),
            "conntracer.filter=syn_drop,storm"
        );
        assert_eq!(argument(&[]).unwrap(), "");
        assert!(argument(&["a b"]).is_err());
    }
}
