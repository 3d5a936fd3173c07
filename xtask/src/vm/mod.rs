//! `vm`: the live tests, or the demo, on every kernel line, each in a VM of its own. What a whole run of the tests boots
//! is `matrix`'s.

mod files;
mod matrix;
mod plan;
mod report;
mod trial;

use std::{
    cmp::Reverse,
    collections::VecDeque,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

pub(crate) use self::{
    files::Run,
    matrix::{ordinary, unshared},
    plan::{Hooks, Plan, Setup},
    report::print_failures,
    trial::{Outcome, verdict_failure},
};
use self::{
    files::{directory, sweep},
    plan::Transport,
    trial::test_one,
};
use crate::{
    build::{self, Profile},
    kernel::{self, Kernel, LINES, Line},
    machine::{self, Programs},
    packages::{self, Installation, Need},
    process, ss, table,
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
    /// How records leave the kernel.
    #[arg(long, value_enum, default_value_t = Transport::Ringbuf)]
    transport: Transport,
    /// Give each test a conntracer of its own: a failure that goes away is one of sharing.
    #[arg(long)]
    unshared: bool,
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
    let setups = arguments.hooks.modes().iter().flat_map(|hooks| {
        lines.iter().map(move |line| Setup {
            transport: arguments.transport,
            is_unshared: arguments.unshared,
            filters: arguments.filters.clone(),
            ..Setup::of(line, hooks)
        })
    });
    let plan = Plan {
        setups: setups.collect(),
        jobs: arguments.jobs.max(1),
        timeout: Duration::from_secs(arguments.timeout),
        keep: arguments.keep,
    };
    if arguments.demo {
        return demo(workspace, installation, &plan);
    }
    let parts = Parts::get(workspace, installation, &plan)?;
    let outcomes = test(workspace, &plan, &parts)?;
    print_failures(&outcomes)?;
    let rows: Vec<_> = outcomes.into_iter().map(|outcome| outcome.row).collect();
    Ok(ExitCode::from(u8::from(table::print(&rows).failed > 0)))
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

/// What VMs are made of.
pub(crate) struct Parts {
    kernels: Vec<Kernel>,
    programs: Programs,
}

impl Parts {
    /// Fetches and builds what the VMs of a plan need: a kernel once, while the programs are compiled.
    pub(crate) fn get(
        workspace: &Workspace,
        installation: Installation,
        plan: &Plan,
    ) -> Result<Self> {
        sweep(&directory(workspace))?;
        let is_asked = |line: &&Line| plan.setups.iter().any(|setup| setup.line == *line);
        let lines: Vec<_> = LINES.iter().filter(is_asked).collect();
        thread::scope(|scope| {
            let kernels = scope.spawn(|| {
                ensure_emulator(installation)?;
                kernel::ensure(workspace, installation, &lines)
            });
            let programs = programs(workspace, installation);
            let kernels = kernels
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            Ok(Self {
                kernels: kernels?,
                programs: programs?,
            })
        })
    }

    /// The VMs of a plan, each with its kernel.
    fn booted<'a>(&self, plan: &'a Plan) -> Result<Vec<(&Kernel, &'a Setup)>> {
        let with_kernel = |setup: &'a Setup| {
            let mut kernels = self.kernels.iter();
            let kernel = kernels.find(|kernel| kernel.line == setup.line.name);
            Ok((kernel.context("no kernel came of its line")?, setup))
        };
        plan.setups.iter().map(with_kernel).collect()
    }
}

/// Runs the live tests as `plan` says; results in the plan's order.
pub(crate) fn test(workspace: &Workspace, plan: &Plan, parts: &Parts) -> Result<Vec<Outcome>> {
    let booted = parts.booted(plan)?;
    let mut queue: Vec<_> = booted.iter().enumerate().collect();
    // What runs longest first, so that no VM is left alone at the end: all tests before some, and newer kernels, which have
    // more to verify, before older ones.
    queue.sort_by_key(|(index, (_, setup))| {
        (
            !setup.is_unshared,
            !setup.filters.is_empty(),
            Reverse(*index),
        )
    });
    let total = queue.len();
    let queue = Mutex::new(VecDeque::from(queue));
    let results = Mutex::new(Vec::with_capacity(total));
    thread::scope(|scope| {
        for _ in 0..plan.jobs.min(total) {
            scope.spawn(|| {
                loop {
                    // Neither lock is held while a VM runs, so a panic poisons nothing half-made.
                    let next = lock(&queue).pop_front();
                    let Some((index, (kernel, setup))) = next else {
                        break;
                    };
                    let outcome = test_one(workspace, plan, kernel, &parts.programs, setup);
                    lock(&results).push((index, outcome));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Runs the demo in each VM of `plan`, its console on this terminal.
pub(crate) fn demo(
    workspace: &Workspace,
    installation: Installation,
    plan: &Plan,
) -> Result<ExitCode> {
    let parts = Parts::get(workspace, installation, plan)?;
    let mut code = ExitCode::SUCCESS;
    for (kernel, Setup { hooks, .. }) in parts.booted(plan)? {
        eprintln!("booting Linux {} (hooks: {hooks})", kernel.release);
        let run = Run::prepare(workspace, kernel, &parts.programs, &format!("demo-{hooks}"))?;
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
    Ok(code)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn programs(workspace: &Workspace, installation: Installation) -> Result<Programs> {
    let test_binary = |name| build::test_binary(workspace, installation, name, Profile::Dev);
    // By another profile, and so in another directory: neither waits for the other, and an optimised binary takes one
    // thread for long.
    let (conntracer, tests) = thread::scope(|scope| {
        let conntracer =
            scope.spawn(|| build::conntracer(workspace, installation, Profile::Release));
        let tests = (|| {
            Ok::<_, anyhow::Error>((
                test_binary("conntracer-vm-init")?,
                vec![
                    (
                        "kernel-tests",
                        build::test_target(workspace, installation, "kernel")?,
                    ),
                    ("conntracer-live", test_binary("conntracer-live")?),
                    ("conntracer-demo", test_binary("conntracer-demo")?),
                    ("conntracer-workload", test_binary("conntracer-workload")?),
                ],
            ))
        })();
        let conntracer = conntracer
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        (conntracer, tests)
    });
    let (init, mut bin) = tests?;
    bin.push(("conntracer", conntracer?));
    let mut programs = Programs {
        init,
        bin,
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
