//! `test`: every check there is. VMs take longest, and begin as soon as there is something to boot; what only compiles or
//! computes runs beside them, and the live tests on this machine afterwards. What cannot run here is skipped with its
//! reason and counted, by the number of tests it would have been.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    again, bench,
    build::{self, Profile},
    check_object,
    fuzz::{self, Bound},
    kernel,
    libtest::Report,
    packages::Installation,
    process::{self, Niceness},
    programs, ss,
    table::{self, Row},
    vm::{self, Plan, Setup},
    workspace::Workspace,
};

/// Run every test: unit, command line, live kernel, VM matrix, and the checks on the code
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the live tests also with a conntracer for each, on every kernel in every hook mode: for hours.
    #[arg(long)]
    full: bool,
}

/// The test target that needs root and a kernel to trace.
const LIVE_TESTS: &str = "kernel";

/// More than twice what one emulated CPU of today takes for all live tests.
const VM_TIMEOUT: Duration = Duration::from_mins(40);

/// The same where each of them loads its own programs.
const UNSHARED_VM_TIMEOUT: Duration = Duration::from_mins(150);

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The kernel line and hook mode whose instructions are counted in each run: the newest of long support, by its best
/// hooks.
const COUNTED: (&str, &str) = ("6.12", "auto");

/// How long each fuzz target runs.
const FUZZING: Duration = Duration::from_mins(2);

/// `cargo` with these arguments.
const FMT: [&str; 4] = ["fmt", "--all", "--", "--check"];
const CLIPPY: [&str; 7] = [
    "clippy",
    "--workspace",
    // Its target has no clippy driver: that would need the compiler's own build of it.
    "--exclude=conntracer-ebpf",
    "--all-targets",
    "--quiet",
    "--",
    "--deny=warnings",
];

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> ExitCode {
    let mut rows = vec![stage("fmt", || {
        Ok(cargo_component(workspace, "rustfmt", &FMT))
    })];
    rows.extend(beside_vms(
        workspace,
        installation,
        vm::ordinary(),
        VM_TIMEOUT,
        || {
            vec![
                stage("unit", || unit(workspace, installation)),
                stage("check-object", || check_object(workspace, installation)),
                stage("clippy", || {
                    Ok(cargo_component(workspace, "clippy", &CLIPPY))
                }),
            ]
        },
    ));
    // By themselves: what they measure and wait for is this machine's.
    rows.push(stage("live", || live(workspace, installation, false)));
    rows.push(stage("cost", || cost(workspace, installation)));
    if arguments.full {
        rows.extend(beside_vms(
            workspace,
            installation,
            Ok(vm::unshared()),
            UNSHARED_VM_TIMEOUT,
            || {
                vec![
                    stage("live unshared", || live(workspace, installation, true)),
                    stage("fuzz", || fuzz(workspace, installation)),
                ]
            },
        ));
    }
    ExitCode::from(u8::from(table::print(&rows).failed > 0))
}

/// Runs a check under its heading, and times it.
fn stage(name: &str, check: impl FnOnce() -> Result<Row>) -> Row {
    println!("\n== {name}");
    let start = Instant::now();
    let row = check().unwrap_or_else(|error| Row::failed(format!("{error:#}")));
    Row {
        stage: name.to_owned(),
        elapsed: start.elapsed(),
        ..row
    }
}

/// A check by a component of the Rust toolchain, which a minimal one lacks.
fn cargo_component(workspace: &Workspace, component: &str, arguments: &[&str]) -> Row {
    let probe = process::output(Command::new(workspace.cargo()).args([arguments[0], "--version"]));
    if !probe.is_ok_and(|output| output.status.success()) {
        let note = format!("not installed: rustup component add {component}");
        return Row::skipped(1, note);
    }
    let check = process::run(compiling(
        Command::new(workspace.cargo())
            .args(arguments)
            .current_dir(workspace.root()),
    ));
    match check {
        Ok(()) => Row::passed(),
        Err(error) => Row::failed(format!("{error:#}")),
    }
}

/// A command that compiles beside VMs.
fn compiling(command: &mut Command) -> &mut Command {
    process::yielding(command, Niceness::Compiler)
}

/// Tests that need no kernel to trace: unit tests, and the command line's. Those of the live tests' harness are not
/// among what a bare `cargo test` runs. They share their dependencies with what the VMs run, where that can be built.
fn unit(workspace: &Workspace, installation: Installation) -> Result<Row> {
    let cargo = |arguments: &[&str]| {
        let mut command = build::static_cargo(workspace, installation).unwrap_or_else(|_| {
            let mut command = Command::new(workspace.cargo());
            command.current_dir(workspace.root());
            command
        });
        compiling(command.args(arguments));
        command
    };
    harnesses(&mut [
        cargo(&["test"]),
        cargo(&["test", "--package", "conntracer-tests", "--lib", "--bins"]),
    ])
}

fn check_object(workspace: &Workspace, installation: Installation) -> Result<Row> {
    Ok(judged(&check_object::check(workspace, installation)?))
}

/// What tracing costs, counted in instructions and held against what is tracked.
fn cost(workspace: &Workspace, installation: Installation) -> Result<Row> {
    if let Err(error) = vm::ensure_emulator(installation) {
        return Ok(Row::skipped(1, format!("{error:#}")));
    }
    let (line, hooks) = COUNTED;
    let violations = bench::vm::check(workspace, installation, kernel::line(line)?, hooks)?;
    Ok(judged(&violations))
}

/// Every fuzz target for a while.
fn fuzz(workspace: &Workspace, installation: Installation) -> Result<Row> {
    let targets = fuzz::targets(workspace)?;
    let outcomes = fuzz::campaign(workspace, installation, &targets, Bound::Time(FUZZING))?;
    print!("{}", fuzz::table(&outcomes));
    let found = outcomes.iter().filter_map(|outcome| {
        let finding = outcome.finding.as_ref()?;
        Some(format!("{}: {finding}", outcome.target))
    });
    Ok(judged(&found.collect::<Vec<_>>()))
}

fn judged(violations: &[String]) -> Row {
    for violation in violations {
        println!("{violation}");
    }
    if violations.is_empty() {
        Row::passed()
    } else {
        Row::failed(violations.join("; "))
    }
}

/// Live tests at a time: they wait for timers of the kernel most of the time.
const LIVE_THREADS: &str = "6";

/// The live tests on this host's kernel.
fn live(workspace: &Workspace, installation: Installation, is_unshared: bool) -> Result<Row> {
    let conntracer = build::conntracer(workspace, installation, Profile::Release)?;
    let tests = build::test_target(workspace, installation, LIVE_TESTS)?;
    let runner = build::test_binary(workspace, installation, "conntracer-live", Profile::Dev)?;
    if let Some(reason) = cannot_trace() {
        println!("skipped: {reason}");
        return Ok(Row::skipped(count_tests(&tests)?, reason));
    }
    let mut command = Command::new(runner);
    command
        .arg(tests)
        .args(["--test-threads", LIVE_THREADS])
        .env("CONNTRACER_BIN", conntracer)
        .current_dir(workspace.root());
    if is_unshared {
        command.env("CONNTRACER_UNSHARED", "1");
    }
    programs::tell(&mut command, workspace, installation);
    match ss::ensure(installation) {
        Ok(ss) => {
            command.env("CONNTRACER_SS", ss);
        }
        Err(error) => println!("the test with ss is skipped: {error:#}"),
    }
    let (mut report, failure) = watched(&mut command)?;
    let Some(tests) = again::doubtful(&report) else {
        return Ok(Row::reported(&report, failure));
    };
    println!("running that again: {}", tests.join(", "));
    command.arg("--exact").args(tests);
    let (second, failed) = watched(&mut command)?;
    if failed.is_none() {
        again::settle(&mut report, &second);
    }
    let failure = failure.filter(|_| !report.failures.is_empty());
    Ok(Row::reported(&report, failure))
}

/// Why the live tests cannot run on this host.
fn cannot_trace() -> Option<String> {
    if !process::is_root() {
        return Some("not root".to_owned());
    }
    if !Path::new(BTF).exists() {
        return Some(format!("this kernel has no BTF ({BTF})"));
    }
    None
}

/// How many tests an executable holds.
fn count_tests(executable: &Path) -> Result<u64> {
    let list = process::text(Command::new(executable).args(["--list", "--format", "terse"]))?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count() as u64)
}

/// The live tests in these VMs, and other checks beside them as soon as the VMs have all that they need.
fn beside_vms(
    workspace: &Workspace,
    installation: Installation,
    setups: Result<Vec<Setup>>,
    timeout: Duration,
    others: impl FnOnce() -> Vec<Row>,
) -> Vec<Row> {
    let failed = |error: &anyhow::Error| {
        vec![Row {
            stage: "vm".to_owned(),
            ..Row::failed(format!("{error:#}"))
        }]
    };
    let plan = setups.map(|setups| Plan {
        setups,
        jobs: vm::default_jobs(),
        timeout,
        keep: false,
    });
    let mut parts = None;
    let build = stage("build", || {
        parts = Some(parts_of(workspace, installation, plan.as_ref().ok())?);
        Ok(Row::passed())
    });
    let mut rows = vec![build];
    let vms = thread::scope(|scope| {
        let vms = scope.spawn(|| match (&plan, &parts) {
            (Ok(plan), Some(Ok(parts))) => {
                println!("\n== vm, beside what follows");
                matrix(workspace, plan, parts).unwrap_or_else(|error| failed(&error))
            }
            (Ok(plan), Some(Err(skipped))) => {
                let skipped = |setup: &Setup| Row {
                    stage: format!("vm {} {}", setup.line.name, setup.name()),
                    ..skipped.clone()
                };
                plan.setups.iter().map(skipped).collect()
            }
            (Err(error), _) => failed(error),
            // The stage has failed that was to build them.
            (Ok(_), None) => Vec::new(),
        });
        rows.extend(others());
        vms.join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    });
    rows.extend(vms);
    rows
}

/// What the VMs are made of; or, where there is no emulator, what is skipped for want of it.
fn parts_of(
    workspace: &Workspace,
    installation: Installation,
    plan: Option<&Plan>,
) -> Result<Result<vm::Parts, Row>> {
    let Some(plan) = plan else {
        anyhow::bail!("there is no plan of VMs");
    };
    if let Err(error) = vm::ensure_emulator(installation) {
        let tests = count_tests(&build::test_target(workspace, installation, LIVE_TESTS)?)?;
        let note = format!("{error:#}");
        println!("skipped: {note}");
        return Ok(Err(Row::skipped(tests, note)));
    }
    vm::Parts::get(workspace, installation, plan).map(Ok)
}

fn matrix(workspace: &Workspace, plan: &Plan, parts: &vm::Parts) -> Result<Vec<Row>> {
    let outcomes = vm::test(workspace, plan, parts)?;
    vm::print_failures(&outcomes)?;
    Ok(outcomes.into_iter().map(|outcome| outcome.row).collect())
}

/// Runs test harnesses with their output shown, and sums up what they say.
fn harnesses(commands: &mut [Command]) -> Result<Row> {
    let mut report = Report::default();
    let mut failures = Vec::new();
    for command in commands {
        failures.extend(watch(command, &mut report)?);
    }
    Ok(Row::reported(&report, named(&report, failures.pop())))
}

/// The same of one, with what it said.
fn watched(command: &mut Command) -> Result<(Report, Option<String>)> {
    let mut report = Report::default();
    let failure = watch(command, &mut report)?;
    let failure = named(&report, failure);
    Ok((report, failure))
}

/// The names of tests say more than that a command has failed.
fn named(report: &Report, failure: Option<String>) -> Option<String> {
    if report.failures.is_empty() {
        failure
    } else {
        Some(format!("failed: {}", report.failures.join(", ")))
    }
}

/// Runs a test harness with its output shown, which `report` takes in; why it has failed as a whole.
fn watch(command: &mut Command, report: &mut Report) -> Result<Option<String>> {
    let summaries = report.summaries;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| process::line(command))?;
    let stdout = child.stdout.take().context("the harness has no stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.with_context(|| process::line(command))?;
        println!("{line}");
        report.line(&line);
    }
    let status = child.wait()?;
    Ok(if report.summaries == summaries {
        Some(format!(
            "{}: {status}, and no test ran",
            process::line(command)
        ))
    } else if status.success() {
        None
    } else {
        Some(format!("{}: {status}", process::line(command)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harness(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const PASSED: &str = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
                          finished in 0.01s'; echo 'conntracer-starts: 3'";

    #[test]
    fn harnesses_are_summed_up() {
        let row = harnesses(&mut [harness(PASSED), harness(PASSED)]).unwrap();
        assert_eq!(
            (row.counts.passed, row.counts.failed, row.starts),
            (4, 0, 6)
        );
        assert_eq!(row.note, "");
    }

    #[test]
    fn a_harness_that_runs_nothing_or_fails_has_failed() {
        let silent = harnesses(&mut [harness(PASSED), harness("exit 0")]).unwrap();
        assert_eq!(silent.counts.failed, 1);
        assert!(silent.note.contains("no test ran"), "{}", silent.note);
        let late =
            harnesses(&mut [harness(&format!("{PASSED}; exit 3")), harness(PASSED)]).unwrap();
        assert_eq!((late.counts.passed, late.counts.failed), (4, 1));
        assert!(late.note.contains("exit status: 3"), "{}", late.note);
    }

    #[test]
    fn a_check_that_cannot_be_made_has_failed() {
        let row = stage("unit", || anyhow::bail!("no cargo"));
        assert_eq!((row.stage.as_str(), row.counts.failed), ("unit", 1));
        assert_eq!(row.note, "no cargo");
    }
}
