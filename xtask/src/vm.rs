//! `vm`: the live tests, or the demo, on every kernel line, each in a VM of its own.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    build::{self, Profile},
    kernel::{self, Kernel, LINES, Line},
    libtest::{Counts, Report},
    machine::{self, Log, Programs, Verdict},
    packages::{self, Installation, Need},
    process, ss,
    workspace::Workspace,
};

/// Run the live kernel tests in VMs, one per kernel line
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Kernel lines, of 5.10, 6.1, 6.12, 6.18 and 7.x; all when none is given.
    kernels: Vec<String>,
    /// Which rung of the hook ladder conntracer uses.
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
    fn modes(self) -> &'static [&'static str] {
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

/// One VM's run of the tests.
pub(crate) struct Outcome {
    pub(crate) release: String,
    pub(crate) hooks: &'static str,
    pub(crate) counts: Counts,
    /// Why the run as a whole is a failure; None when it is a success.
    pub(crate) failure: Option<String>,
    /// Why tests did not run, and which passed only when they were run again.
    remarks: String,
    pub(crate) elapsed: Duration,
    pub(crate) log: PathBuf,
}

impl Outcome {
    /// What a table says of it beyond its numbers.
    pub(crate) fn note(&self) -> &str {
        self.failure.as_deref().unwrap_or(&self.remarks)
    }
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

/// Where the files of all VMs are, in a directory for each kernel line.
fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target().join("vm")
}

/// Removes the initramfs files, a fifth of a gigabyte each, that interrupted runs left below `directory`.
fn sweep(directory: &Path) -> Result<()> {
    let entries = |directory: &Path| -> Result<Vec<PathBuf>> {
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .with_context(|| format!("reading {}", directory.display()))
    };
    for line in entries(directory)? {
        for path in entries(&line)? {
            if let Some(pid) = maker(&path)
                && !Path::new("/proc").join(pid.to_string()).exists()
            {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// The process that made an initramfs, by its name; none of one that is kept.
fn maker(initramfs: &Path) -> Option<u32> {
    let name = initramfs.file_name()?.to_str()?;
    let (_, pid) = name.strip_suffix(".cpio")?.rsplit_once('-')?;
    pid.parse().ok()
}

/// The files of one VM, below cargo's build directory. Its initramfs goes with it, unless it is kept.
struct Run {
    directory: PathBuf,
    initramfs: PathBuf,
}

impl Run {
    fn prepare(
        workspace: &Workspace,
        kernel: &Kernel,
        programs: &Programs,
        name: &str,
    ) -> Result<Self> {
        let directory = directory(workspace).join(kernel.line);
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        // The process id keeps two runs of xtask from overwriting what the other boots.
        let initramfs = directory.join(format!("{name}-{}.cpio", std::process::id()));
        let run = Self {
            directory,
            initramfs,
        };
        machine::write_initramfs(&run.initramfs, kernel, programs)?;
        Ok(run)
    }

    /// Keeps the initramfs as `name`, which no sweep takes for a dead run's.
    fn keep(self, name: &str) -> Result<()> {
        let kept = self.directory.join(format!("{name}.cpio"));
        fs::rename(&self.initramfs, &kept)
            .with_context(|| format!("keeping {}", self.initramfs.display()))?;
        eprintln!("kept {}", kept.display());
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It is gone where it is kept, or was never written; what cannot be removed, the next run sweeps.
        let _ = fs::remove_file(&self.initramfs);
    }
}

fn test_one(
    workspace: &Workspace,
    plan: &Plan<'_>,
    kernel: &Kernel,
    programs: &Programs,
    hooks: &'static str,
    filter: &str,
) -> Result<Outcome> {
    let run = Run::prepare(workspace, kernel, programs, hooks)?;
    let start = Instant::now();
    let mut trial = try_tests(plan, kernel, &run, hooks, filter, hooks)?;
    let mut remarks: Vec<String> = trial
        .report
        .skip_reasons()
        .into_iter()
        .map(str::to_owned)
        .collect();
    if let Some(tests) = trial.doubtful() {
        let filter = exactly(&tests)?;
        eprintln!(
            "Linux {} ({hooks}): failed: {}; running that again ({} has the first time)",
            kernel.release,
            tests.join(", "),
            trial.log.display()
        );
        let again = try_tests(
            plan,
            kernel,
            &run,
            hooks,
            &filter,
            &format!("{hooks}-again"),
        )?;
        trial.settle(&again, &mut remarks);
    }
    let elapsed = start.elapsed();
    if plan.keep {
        run.keep(hooks)?;
    }
    let failure = trial.failure();
    eprintln!(
        "Linux {} ({hooks}): {} in {} s",
        kernel.release,
        failure.as_deref().unwrap_or("passed"),
        elapsed.as_secs()
    );
    let mut counts = trial.report.counts();
    if failure.is_some() && counts.failed == 0 {
        // The VM itself failed, which must show in the sum.
        counts.failed = 1;
    }
    Ok(Outcome {
        release: kernel.release.clone(),
        hooks,
        counts,
        failure,
        remarks: remarks.join("; "),
        elapsed,
        log: trial.log,
    })
}

/// The tests in one boot of a VM.
struct Trial {
    report: Report,
    verdict: Verdict,
    log: PathBuf,
}

/// Tests that may fail and be run again. Emulated, a kernel skips runs of BPF programs that no CPU of today
/// would: a test that this hits finds a count one short, and passes when less runs beside it. What is
/// broken fails twice, and a change that breaks more than a few is not worth the time.
pub(crate) const DOUBTFUL: usize = 3;

impl Trial {
    /// The failed tests, where only running them again can tell whether they are broken.
    fn doubtful(&self) -> Option<Vec<String>> {
        let failed = &self.report.failures;
        let few = (1..=DOUBTFUL).contains(&failed.len());
        // A console line that a kernel message garbled names no test.
        let all_are_named = failed.len() as u64 == self.report.counts().failed;
        (few && all_are_named && self.verdict == Verdict::Failure).then(|| failed.clone())
    }

    /// Takes what became of the failed tests in `again` for what they are, and says so.
    fn settle(&mut self, again: &Self, remarks: &mut Vec<String>) {
        let all = self.report.failures.len();
        if again.failure().is_some() || again.report.counts().passed != all as u64 {
            return;
        }
        let tests = self.report.failures.join(", ");
        remarks.push(format!("passed when run again: {tests}"));
        self.report.forgive();
        self.verdict = Verdict::Success;
    }

    fn failure(&self) -> Option<String> {
        failure(&self.verdict, &self.report)
    }
}

/// The init's filter parameter for these tests and no others.
fn exactly(tests: &[String]) -> Result<String> {
    let filters: Vec<String> = std::iter::once("--exact".to_owned())
        .chain(tests.iter().cloned())
        .collect();
    filter_argument(&filters)
}

fn try_tests(
    plan: &Plan<'_>,
    kernel: &Kernel,
    run: &Run,
    hooks: &str,
    filter: &str,
    name: &str,
) -> Result<Trial> {
    let log_path = run.directory.join(format!("{name}.log"));
    let mut report = Report::default();
    let mut boots_left = BOOTS;
    let verdict = loop {
        boots_left -= 1;
        let mut log = Log::create(log_path.clone())?;
        let mut testing = false;
        let verdict = machine::boot(
            kernel,
            &run.initramfs,
            &format!("conntracer.run=tests conntracer.hooks={hooks} {filter}"),
            plan.timeout,
            |line| {
                testing |= line.starts_with("running ");
                report.line(line);
                log.line(line)
            },
        )?;
        match &verdict {
            Verdict::Crash(message) if !testing && boots_left > 0 => {
                eprintln!(
                    "Linux {} ({hooks}): crashed before any test began ({message}), which says \
                     nothing of conntracer; booting it again",
                    kernel.release
                );
            }
            _ => break verdict,
        }
    };
    Ok(Trial {
        report,
        verdict,
        log: log_path,
    })
}

/// Boots of one VM at most. QEMU emulates a kernel's self-modifying code on two CPUs imperfectly, and a
/// kernel may die of it (int3 at a jump label) within its first two seconds.
const BOOTS: u32 = 3;

/// Why a run is no success. A verdict without a single test behind it is none.
fn failure(verdict: &Verdict, report: &Report) -> Option<String> {
    if !report.failures.is_empty() {
        return Some(format!("failed: {}", report.failures.join(", ")));
    }
    verdict_failure(verdict).or_else(|| {
        (report.summaries == 0 || report.counts().failed > 0)
            .then(|| "the init said success, the test harness did not".to_owned())
    })
}

fn verdict_failure(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Success => None,
        Verdict::Failure => Some("the init said failure".to_owned()),
        Verdict::Crash(message) => Some(format!("the kernel crashed: {message}")),
        Verdict::Contradiction => Some("the init gave more than one verdict".to_owned()),
        Verdict::Silence => Some("the VM ended without a verdict".to_owned()),
        Verdict::Timeout(after) => Some(format!("killed after {} s", after.as_secs())),
    }
}

/// Prints what the failed VMs said about their failures.
pub(crate) fn print_failures(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        if let Some(reason) = &outcome.failure {
            let Outcome {
                release,
                hooks,
                log,
                ..
            } = outcome;
            println!("\nLinux {release} ({hooks}): {reason}; {}", log.display());
            println!("{}", excerpt(&read_log(log)?));
        }
    }
    Ok(())
}

fn read_log(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The part of a console log that explains a failure: what the harness prints about failed tests,
/// or else the end. The log has it all.
fn excerpt(log: &str) -> String {
    const MAX_LINES: usize = 100;
    let lines: Vec<&str> = log.lines().collect();
    let end = lines.len();
    let start = match lines.iter().position(|line| line.trim() == "failures:") {
        Some(start) => start,
        None => end.saturating_sub(MAX_LINES),
    };
    if end - start <= MAX_LINES {
        return lines[start..].join("\n");
    }
    // The first failure's message, and the end with the list of all of them.
    let half = MAX_LINES / 2;
    let (first, last) = (start + half, end - half);
    format!(
        "{}\n[{} lines left out]\n{}",
        lines[start..first].join("\n"),
        last - first,
        lines[last..].join("\n")
    )
}

/// Prints a row for each VM.
pub(crate) fn print_table(outcomes: &[Outcome]) {
    println!(
        "\n{:<30} {:<11} {:>7} {:>7} {:>8} {:>8}",
        "kernel", "hooks", "passed", "failed", "skipped", "seconds"
    );
    for outcome in outcomes {
        let row = format!(
            "{:<30} {:<11} {:>7} {:>7} {:>8} {:>8}  {}",
            outcome.release,
            outcome.hooks,
            outcome.counts.passed,
            outcome.counts.failed,
            outcome.counts.skipped,
            outcome.elapsed.as_secs(),
            outcome.note()
        );
        println!("{}", row.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    const PASSED: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered \
                          out; finished in 0.01s";

    #[test]
    fn success_needs_verdict_and_tests() {
        assert_eq!(failure(&Verdict::Success, &report(PASSED)), None);
        assert!(failure(&Verdict::Success, &report("")).is_some());
        assert!(failure(&Verdict::Silence, &report(PASSED)).is_some());
        let failed = report("test a::b ... FAILED");
        assert_eq!(
            failure(&Verdict::Failure, &failed).as_deref(),
            Some("failed: a::b")
        );
    }

    #[test]
    fn what_a_dead_run_left_is_swept_and_nothing_else() {
        let vms = tempfile::tempdir().unwrap();
        let line = vms.path().join("7.x");
        fs::create_dir(&line).unwrap();
        // Above PID_MAX_LIMIT (include/linux/threads.h): nobody's.
        let left = line.join("auto-again-4194305.cpio");
        let others = [
            format!("auto-{}.cpio", std::process::id()),
            "demo-auto.cpio".to_owned(),
            "auto-4194305.log".to_owned(),
        ]
        .map(|name| line.join(name));
        for path in others.iter().chain([&left]) {
            fs::write(path, "").unwrap();
        }
        sweep(vms.path()).unwrap();
        assert!(!left.exists());
        assert!(others.iter().all(|path| path.exists()), "{others:?}");
        sweep(&vms.path().join("never-made")).unwrap();
    }

    #[test]
    fn an_initramfs_goes_with_its_run_unless_it_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let run = || {
            let initramfs = directory.path().join("auto-1.cpio");
            fs::write(&initramfs, "").unwrap();
            Run {
                directory: directory.path().to_owned(),
                initramfs,
            }
        };
        let names = || -> Vec<_> {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        drop(run());
        assert!(names().is_empty(), "{:?}", names());
        run().keep("auto").unwrap();
        assert_eq!(names(), ["auto.cpio"]);
    }

    fn trial(verdict: Verdict, text: &str) -> Trial {
        Trial {
            report: report(text),
            verdict,
            log: PathBuf::new(),
        }
    }

    const ONE_FAILED: &str = "test a::b ... FAILED\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 \
                              measured; 0 filtered out; finished in 0.01s";
    const ALONE: &str = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; \
                         finished in 0.01s";

    #[test]
    fn a_few_failed_tests_are_run_again_and_a_crash_is_not() {
        let failed = trial(Verdict::Failure, ONE_FAILED);
        assert_eq!(failed.doubtful(), Some(vec!["a::b".to_owned()]));
        assert_eq!(
            exactly(&failed.doubtful().unwrap()).unwrap(),
            "conntracer.filter=--exact,a::b"
        );
        assert_eq!(trial(Verdict::Success, PASSED).doubtful(), None);
        let crash = Verdict::Crash("BUG:".to_owned());
        assert_eq!(trial(crash, ONE_FAILED).doubtful(), None);
        let summary = "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; \
                       finished in 0.01s";
        let many = "test a ... FAILED\n".repeat(DOUBTFUL + 1) + summary;
        assert_eq!(trial(Verdict::Failure, &many).doubtful(), None);
        // One of two failures stands in a line that cannot be read, and would be forgiven unseen.
        let garbled = ONE_FAILED.replace("1 failed", "2 failed");
        assert_eq!(trial(Verdict::Failure, &garbled).doubtful(), None);
    }

    #[test]
    fn what_passes_the_second_time_is_said_and_what_fails_twice_is_a_failure() {
        let mut remarks = Vec::new();
        let mut failed = trial(Verdict::Failure, ONE_FAILED);
        failed.settle(&trial(Verdict::Failure, ONE_FAILED), &mut remarks);
        // Skipped is not passed.
        failed.settle(
            &trial(Verdict::Success, &format!("test-skipped a::b: no\n{ALONE}")),
            &mut remarks,
        );
        assert_eq!(failed.failure().as_deref(), Some("failed: a::b"));
        assert_eq!(failed.report.counts().failed, 1);
        assert!(remarks.is_empty());
        failed.settle(&trial(Verdict::Success, ALONE), &mut remarks);
        assert_eq!(failed.failure(), None);
        assert_eq!(failed.report.counts().passed, 3);
        assert_eq!(remarks, ["passed when run again: a::b"]);
    }

    #[test]
    fn excerpt_is_what_explains_the_failure() {
        assert_eq!(
            excerpt("boot\nfailures:\n\n---- a ----"),
            "failures:\n\n---- a ----"
        );
        let silent = vec!["x"; 150].join("\n");
        assert_eq!(excerpt(&silent).lines().count(), 100);
        let long = format!("boot\nfailures:\n{silent}\nlast");
        let excerpt = excerpt(&long);
        assert!(excerpt.starts_with("failures:\n"), "{excerpt}");
        assert!(excerpt.contains("[52 lines left out]"), "{excerpt}");
        assert!(excerpt.ends_with("\nlast"), "{excerpt}");
    }

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
