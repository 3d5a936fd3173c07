//! What tracing costs, counted in VMs whose clock goes by instructions: the same on every host and from run to run,
//! whatever else the host does, on every kernel and in every hook mode. The loads and how they are counted are
//! `conntracer-workload`'s.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    cost::{self, Counted as Figures, Key, Tracked},
    rounds::Rounds,
};
use crate::{
    build::{self, Profile},
    excerpt::print_failure,
    kernel::{self, Kernel, Line},
    machine::{self, Clock, Log, Programs},
    packages::Installation,
    vm::{self, Hooks, Run},
    workspace::Workspace,
};

/// The kernel lines that are tracked: the oldest, the newest, and one between.
const TRACKED: [&str; 3] = ["5.10", "6.12", "7.x"];

/// A VM takes a minute, or several where the host's CPUs are busy.
const TIMEOUT: Duration = Duration::from_mins(20);

/// How instructions are counted.
#[derive(clap::Args)]
pub(super) struct Counted {
    /// Count instructions in VMs instead, on these kernel lines, and hold them against tracer-ebpf/cost.txt; of
    /// 5.10, 6.12 and 7.x when none is given.
    #[arg(
        long,
        num_args = 0..,
        value_name = "KERNEL",
        conflicts_with_all = ["rounds", "connections", "of_run"]
    )]
    pub(super) vm: Option<Vec<String>>,
    /// Which rung of the hook ladder conntracer uses there.
    #[arg(long, value_enum, default_value_t = Hooks::All, requires = "vm")]
    hooks: Hooks,
    /// Write the figures to tracer-ebpf/cost.txt, from what they are now.
    #[arg(long, requires = "vm")]
    write: bool,
}

pub(super) fn execute(
    workspace: &Workspace,
    installation: Installation,
    kernels: &[String],
    arguments: &Counted,
) -> Result<ExitCode> {
    let names: Vec<&str> = if kernels.is_empty() {
        TRACKED.to_vec()
    } else {
        kernels.iter().map(String::as_str).collect()
    };
    let lines = names
        .into_iter()
        .map(kernel::line)
        .collect::<Result<Vec<_>>>()?;
    let bench = Bench::prepare(workspace, installation)?;
    let mut tracked = Tracked::read(workspace)?;
    let mut violations = Vec::new();
    for kernel in kernel::ensure(workspace, installation, &lines)? {
        for hooks in arguments.hooks.modes() {
            let key = (kernel.line.to_owned(), (*hooks).to_owned());
            let figures = bench.count(&kernel, &key)?;
            if arguments.write {
                // At once, lest a later VM's failure take it along.
                tracked.0.insert(key, figures);
                tracked.write(workspace)?;
            } else {
                violations.extend(tracked.violations(&key, &figures));
            }
        }
    }
    for violation in &violations {
        eprintln!("error: {violation}");
    }
    Ok(ExitCode::from(u8::from(!violations.is_empty())))
}

/// Counts on one kernel line in one hook mode, and gives everything that costs more than is tracked, a sentence
/// each. Needs the emulator ([`vm::ensure_emulator`]).
pub(crate) fn check(
    workspace: &Workspace,
    installation: Installation,
    line: &'static Line,
    hooks: &str,
) -> Result<Vec<String>> {
    let key = (line.name.to_owned(), hooks.to_owned());
    let kernels = kernel::ensure(workspace, installation, &[line])?;
    let kernel = kernels.first().context("no kernel came of its line")?;
    let figures = Bench::prepare(workspace, installation)?.count(kernel, &key)?;
    Ok(Tracked::read(workspace)?.violations(&key, &figures))
}

/// What all the VMs are made of.
struct Bench<'a> {
    workspace: &'a Workspace,
    programs: Programs,
}

impl<'a> Bench<'a> {
    fn prepare(workspace: &'a Workspace, installation: Installation) -> Result<Self> {
        vm::ensure_emulator(installation)?;
        let program = |name| build::test_binary(workspace, installation, name, Profile::Dev);
        let conntracer = build::conntracer(workspace, installation, Profile::Release)?;
        Ok(Self {
            workspace,
            programs: Programs {
                init: program("conntracer-vm-init")?,
                bin: vec![
                    ("conntracer", conntracer),
                    ("conntracer-workload", program("conntracer-workload")?),
                ],
                libraries: Vec::new(),
            },
        })
    }

    /// Counts in one VM, and prints the figures as the file has them.
    fn count(&self, kernel: &Kernel, key: &Key) -> Result<Figures> {
        let (_, hooks) = key;
        let name = format!("cost-{hooks}");
        let run = Run::prepare(self.workspace, kernel, &self.programs, &name)?;
        let path = run.directory.join(format!("{name}.log"));
        let mut log = Log::create(path.clone())?;
        let mut rounds = Rounds::default();
        let verdict = machine::boot_with(
            Clock::Instructions,
            kernel,
            &run.initramfs,
            &format!("conntracer.run=cost conntracer.hooks={hooks}"),
            TIMEOUT,
            |line| {
                log.line(line)?;
                rounds.line(line)
            },
        )?;
        let place = || format!("Linux {} ({hooks})", kernel.release);
        if let Some(reason) = vm::verdict_failure(&verdict) {
            print_failure(&place(), &reason, &path)?;
            bail!("{}: {reason}: {}", place(), path.display());
        }
        let figures = Figures {
            release: kernel.release.clone(),
            loads: rounds.loads().with_context(place)?,
        };
        print!("{}", cost::lines(key, &figures));
        Ok(figures)
    }
}
