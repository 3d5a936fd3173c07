//! `test`: every check there is, in the order of what they cost. What cannot run here is skipped
//! with its reason and counted, by the number of tests it would have been.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Profile},
    check_object, kernel,
    libtest::{Counts, Report},
    nginx,
    packages::Installation,
    process, ss,
    vm::{self, Hooks, Plan},
    workspace::Workspace,
};

/// Run every test: unit, command line, live kernel, VM matrix, and the checks on the code
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Hook modes that the VMs run.
    #[arg(long, value_enum, default_value_t = Hooks::Auto)]
    hooks: Hooks,
}

/// The test target that needs root and a kernel to trace.
const LIVE_TESTS: &str = "kernel";

/// More than twice what one emulated CPU of today takes for all live tests.
const VM_TIMEOUT: Duration = Duration::from_mins(40);

/// On the kernels between the oldest and the newest, whose hooks are those of their neighbours, the
/// tests of IPv6 are left to `cargo xtask vm`: they would take half an hour more.
const IPV4_ONLY: [&str; 2] = ["--skip", "_v6"];

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A row of the closing table.
struct Row {
    stage: String,
    counts: Counts,
    /// What failed, or why it was skipped.
    note: String,
    /// Names of the failed tests.
    failures: Vec<String>,
}

impl Row {
    fn passed(stage: &str) -> Self {
        Self {
            stage: stage.to_owned(),
            counts: Counts {
                passed: 1,
                ..Counts::default()
            },
            note: String::new(),
            failures: Vec::new(),
        }
    }

    fn failed(stage: &str, note: String) -> Self {
        Self {
            stage: stage.to_owned(),
            counts: Counts {
                failed: 1,
                ..Counts::default()
            },
            note,
            failures: Vec::new(),
        }
    }

    fn skipped(stage: &str, tests: u64, note: String) -> Self {
        Self {
            stage: stage.to_owned(),
            counts: Counts {
                skipped: tests,
                ..Counts::default()
            },
            note,
            failures: Vec::new(),
        }
    }

    /// What it comes to when its failed tests came to `again`: what is broken fails twice.
    fn settled(mut self, again: &Self) -> Self {
        let all = self.failures.len() as u64;
        if again.counts.failed == 0 && again.counts.passed == all {
            self.counts.passed += all;
            self.counts.failed -= all;
            self.note = format!("passed when run again: {}", self.failures.join(", "));
            self.failures.clear();
        }
        self
    }
}

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> ExitCode {
    let mut rows = vec![
        cargo_component(
            workspace,
            "fmt",
            "rustfmt",
            &["fmt", "--all", "--", "--check"],
        ),
        rows_or_failure("unit", unit(workspace)),
        rows_or_failure("check-object", check_object(workspace, installation)),
        cargo_component(
            workspace,
            "clippy",
            "clippy",
            &[
                "clippy",
                "--workspace",
                // Its target has no clippy driver: that would need the compiler's own build of it.
                "--exclude=conntracer-ebpf",
                "--all-targets",
                "--quiet",
                "--",
                "--deny=warnings",
            ],
        ),
    ];
    match live(workspace, installation) {
        Ok(row) => rows.push(row),
        Err(error) => rows.push(Row::failed("live", format!("{error:#}"))),
    }
    match matrix(workspace, installation, arguments.hooks) {
        Ok(outcomes) => rows.extend(outcomes),
        Err(error) => rows.push(Row::failed("vm", format!("{error:#}"))),
    }
    ExitCode::from(u8::from(print_table(&rows).failed > 0))
}

fn rows_or_failure(stage: &str, row: Result<Row>) -> Row {
    row.unwrap_or_else(|error| Row::failed(stage, format!("{error:#}")))
}

fn heading(stage: &str) {
    println!("\n== {stage}");
}

/// A check by a component of the Rust toolchain, which a minimal one lacks.
fn cargo_component(workspace: &Workspace, stage: &str, component: &str, arguments: &[&str]) -> Row {
    heading(stage);
    let probe = process::output(Command::new(workspace.cargo()).args([stage, "--version"]));
    if !probe.is_ok_and(|output| output.status.success()) {
        let note = format!("not installed: rustup component add {component}");
        return Row::skipped(stage, 1, note);
    }
    let check = process::run(
        Command::new(workspace.cargo())
            .args(arguments)
            .current_dir(workspace.root()),
    );
    match check {
        Ok(()) => Row::passed(stage),
        Err(error) => Row::failed(stage, format!("{error:#}")),
    }
}

/// Tests that need neither root nor a kernel: unit tests, and the command line's.
fn unit(workspace: &Workspace) -> Result<Row> {
    heading("unit");
    let mut command = Command::new(workspace.cargo());
    command.arg("test").current_dir(workspace.root());
    harness_row("unit", &mut command)
}

fn check_object(workspace: &Workspace, installation: Installation) -> Result<Row> {
    heading("check-object");
    let violations = check_object::check(workspace, installation)?;
    for violation in &violations {
        println!("{violation}");
    }
    Ok(if violations.is_empty() {
        Row::passed("check-object")
    } else {
        Row::failed("check-object", violations.join("; "))
    })
}

/// The live tests on this host's kernel.
fn live(workspace: &Workspace, installation: Installation) -> Result<Row> {
    heading("live");
    let conntracer = build::conntracer(workspace, installation, Profile::Release)?;
    let tests = build::test_target(workspace, installation, LIVE_TESTS)?;
    let runner = build::test_binary(workspace, installation, "conntracer-live", Profile::Dev)?;
    if let Some(reason) = cannot_trace() {
        println!("skipped: {reason}");
        return Ok(Row::skipped("live", count_tests(&tests)?, reason));
    }
    let mut command = Command::new(runner);
    command
        .arg(tests)
        .env("CONNTRACER_BIN", conntracer)
        .current_dir(workspace.root());
    match nginx::ensure(workspace, installation) {
        Ok(programs) => {
            command
                .env("CONNTRACER_NGINX", programs.nginx)
                .env("CONNTRACER_AB", programs.ab);
        }
        Err(error) => println!("the test with nginx is skipped: {error:#}"),
    }
    match ss::ensure(installation) {
        Ok(ss) => {
            command.env("CONNTRACER_SS", ss);
        }
        Err(error) => println!("the test with ss is skipped: {error:#}"),
    }
    let row = harness_row("live", &mut command)?;
    if !(1..=vm::DOUBTFUL).contains(&row.failures.len()) {
        return Ok(row);
    }
    // As in the VMs: what else runs on the host may make an event come late, or be skipped.
    println!("running that again: {}", row.failures.join(", "));
    command.arg("--exact").args(&row.failures);
    let again = harness_row("live", &mut command)?;
    Ok(row.settled(&again))
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

/// The live tests on every kernel line.
fn matrix(workspace: &Workspace, installation: Installation, hooks: Hooks) -> Result<Vec<Row>> {
    heading("vm");
    if let Err(error) = vm::ensure_emulator(installation) {
        let tests = count_tests(&build::test_target(workspace, installation, LIVE_TESTS)?)?;
        let note = format!("{error:#}");
        println!("skipped: {note}");
        return Ok(kernel::LINES
            .iter()
            .map(|line| Row::skipped(&format!("vm {}", line.name), tests, note.clone()))
            .collect());
    }
    let ipv4_only = IPV4_ONLY.map(str::to_owned);
    let plan = Plan {
        lines: kernel::LINES.iter().collect(),
        hooks,
        filters: &[],
        filters_between: Some(&ipv4_only),
        jobs: vm::default_jobs(),
        timeout: VM_TIMEOUT,
        keep: false,
    };
    let outcomes = vm::test(workspace, installation, &plan)?;
    vm::print_failures(&outcomes)?;
    Ok(outcomes
        .into_iter()
        .map(|outcome| Row {
            stage: format!("vm {} {}", outcome.release, outcome.hooks),
            counts: outcome.counts,
            note: outcome.note().to_owned(),
            failures: Vec::new(),
        })
        .collect())
}

/// Runs a test harness with its output shown, and sums up what it says.
fn harness_row(stage: &str, command: &mut Command) -> Result<Row> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| process::line(command))?;
    let stdout = child.stdout.take().context("the harness has no stdout")?;
    let mut report = Report::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.with_context(|| process::line(command))?;
        println!("{line}");
        report.line(&line);
    }
    let status = child.wait()?;
    if report.summaries == 0 {
        bail!("{}: {status}, and no test ran", process::line(command));
    }
    let mut counts = report.counts();
    let mut note = [report.failures.join(", "), report.skip_reasons().join("; ")]
        .join(" ")
        .trim()
        .to_owned();
    if !status.success() && counts.failed == 0 {
        counts.failed = 1;
        note = format!("{}: {status}", process::line(command));
    }
    Ok(Row {
        stage: stage.to_owned(),
        counts,
        note,
        failures: report.failures,
    })
}

/// Prints the table and the line of sums; gives the sums.
fn print_table(rows: &[Row]) -> Counts {
    println!(
        "\n{:<44} {:>7} {:>7} {:>8}",
        "stage", "passed", "failed", "skipped"
    );
    let mut total = Counts::default();
    for Row {
        stage,
        counts,
        note,
        ..
    } in rows
    {
        total += *counts;
        let row = format!(
            "{stage:<44} {:>7} {:>7} {:>8}  {note}",
            counts.passed, counts.failed, counts.skipped
        );
        println!("{}", row.trim_end());
    }
    println!(
        "\n{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(passed: u64, failures: &[&str]) -> Row {
        Row {
            counts: Counts {
                passed,
                failed: failures.len() as u64,
                skipped: 0,
            },
            failures: failures.iter().map(|&name| name.to_owned()).collect(),
            ..Row::failed("live", failures.join(", "))
        }
    }

    #[test]
    fn what_fails_twice_is_a_failure_and_what_passes_then_is_said() {
        let twice = row(7, &["a", "b"]).settled(&row(1, &["b"]));
        assert_eq!((twice.counts.passed, twice.counts.failed), (7, 2));
        let skipped = row(7, &["a", "b"]).settled(&row(1, &[]));
        assert_eq!(skipped.counts.failed, 2);
        let once = row(7, &["a", "b"]).settled(&row(2, &[]));
        assert_eq!((once.counts.passed, once.counts.failed), (9, 0));
        assert_eq!(once.note, "passed when run again: a, b");
    }
}
