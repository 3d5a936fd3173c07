//! What tracing costs a host under load, as ratios within one run.
//!
//! The load is healthy loopback connections in a network namespace of its own (`conntracer-workload`). Each
//! traced run stands between two untraced ones and is compared with their mean, because the speed of a
//! machine drifts. Nothing is judged: figures are for people, and no test depends on them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::spread::spread;
use crate::{
    build::{self, Profile},
    packages::Installation,
    process,
    workspace::Workspace,
};

/// How the paired runs go.
#[derive(clap::Args)]
pub(super) struct Paired {
    /// Traced runs, each between two untraced ones.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Connections of each run.
    #[arg(long, default_value_t = 100_000)]
    connections: u32,
    /// More arguments for `conntracer run`.
    #[arg(last = true, value_name = "ARGUMENTS")]
    of_run: Vec<String>,
}

pub(super) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Paired,
) -> Result<ExitCode> {
    ensure!(
        process::is_root(),
        "making network namespaces and tracing them needs root: run `sudo cargo xtask bench`"
    );
    let bench = Bench {
        workload: build::test_binary(
            workspace,
            installation,
            "conntracer-workload",
            Profile::Release,
        )?,
        conntracer: build::conntracer(workspace, installation, Profile::Release)?,
        arguments,
    };
    let mut rounds = Vec::new();
    let mut before = bench.untraced()?;
    println!(
        "{:>5} {:>9} {:>10} {:>6} {:>6} {:>9} {:>11} {:>8}",
        "round", "untraced", "traced", "rate", "CPU", "records", "wake-ups/s", "RSS kB"
    );
    for round in 1..=arguments.rounds {
        let traced = bench.traced()?;
        let after = bench.untraced()?;
        let compared = Round::new(&before, &traced, &after);
        println!(
            "{round:>5} {:>7.0}/s {:>8.0}/s {:>6.3} {:>6.3} {:>9} {:>11.1} {:>8}",
            after.rate,
            traced.load.rate,
            compared.rate,
            compared.cpu,
            traced.records,
            traced.wake_ups as f64 / traced.load.seconds,
            traced.resident_kb,
        );
        rounds.push(compared);
        before = after;
    }
    for (name, of) in [
        ("rate", (|round| round.rate) as fn(&Round) -> f64),
        ("CPU", |round| round.cpu),
    ] {
        let [least, median, most] = spread(rounds.iter().map(of).collect());
        println!("{name}: median {median:.3} of the untraced runs ({least:.3} to {most:.3})");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is run, and how.
struct Bench<'a> {
    workload: PathBuf,
    conntracer: PathBuf,
    arguments: &'a Paired,
}

/// What one run of the load came to.
struct Load {
    /// Connections a second.
    rate: f64,
    seconds: f64,
    cpu_seconds: f64,
}

/// A load under conntracer.
struct Traced {
    load: Load,
    /// CPU seconds of conntracer while the load ran.
    cpu_seconds: f64,
    /// Records that crossed the rings.
    records: u64,
    /// Times that conntracer went to sleep, which are its wake-ups.
    wake_ups: u64,
    resident_kb: u64,
}

/// A traced run against the mean of its neighbours.
struct Round {
    rate: f64,
    /// The load's CPU time and the tracer's together: the work that a loopback packet causes is charged to
    /// whoever runs the softirq.
    cpu: f64,
}

impl Round {
    fn new(before: &Load, traced: &Traced, after: &Load) -> Self {
        let mean = |of: fn(&Load) -> f64| f64::midpoint(of(before), of(after));
        Self {
            rate: traced.load.rate / mean(|load| load.rate),
            cpu: (traced.load.cpu_seconds + traced.cpu_seconds) / mean(|load| load.cpu_seconds),
        }
    }
}

impl Bench<'_> {
    fn untraced(&self) -> Result<Load> {
        Workload::prepare(self)?.run()
    }

    fn traced(&self) -> Result<Traced> {
        let workload = Workload::prepare(self)?;
        let mut command = Command::new(&self.conntracer);
        command
            .args(["run", "--format", "json", "--netns", &workload.netns])
            .args(&self.arguments.of_run)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut tracer = Running(command.spawn().with_context(|| process::line(&command))?);
        let stdout = tracer.0.stdout.take().context("a tracer without stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        // The hooks are attached.
        lines
            .next()
            .context("conntracer ended before it started; its reason is above")?
            .context("reading conntracer's first line")?;
        // Whatever it prints from here on must be read while it runs, or it would wait.
        let reader = std::thread::spawn(move || lines.last());
        let pid = tracer.0.id();
        let before = Usage::of(pid)?;
        let load = workload.run()?;
        let after = Usage::of(pid)?;
        kill_process(Pid::from_child(&tracer.0), Signal::INT).context("stopping conntracer")?;
        let last = reader
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            .context("conntracer printed no last line")?
            .context("reading conntracer's last line")?;
        let status = tracer.0.wait().context("waiting for conntracer")?;
        ensure!(status.success(), "conntracer: {status}");
        Ok(Traced {
            load,
            cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            records: emitted(&last)?,
            wake_ups: after.sleeps - before.sleeps,
            resident_kb: after.resident_kb,
        })
    }
}

/// A load that waits to be let go.
struct Workload {
    child: Running,
    go: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
    /// Inode of its network namespace.
    netns: String,
}

impl Workload {
    fn prepare(bench: &Bench<'_>) -> Result<Self> {
        let mut command = Command::new(&bench.workload);
        command
            .arg("--announce")
            .args(["--connections", &bench.arguments.connections.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = Running(command.spawn().with_context(|| process::line(&command))?);
        let go = child.0.stdin.take().context("a load without stdin")?;
        let stdout = child.0.stdout.take().context("a load without stdout")?;
        let mut output = BufReader::new(stdout);
        let mut netns = String::new();
        output
            .read_line(&mut netns)
            .context("reading the load's network namespace")?;
        Ok(Self {
            child,
            go,
            output,
            netns: netns.trim().to_owned(),
        })
    }

    fn run(mut self) -> Result<Load> {
        drop(self.go);
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("reading what the load came to")?;
        let status = self.child.0.wait().context("waiting for the load")?;
        ensure!(status.success(), "the load: {status}");
        let result: Value = serde_json::from_str(&line).context("what the load came to")?;
        let number = |key: &str| {
            result[key]
                .as_f64()
                .with_context(|| format!("the load says nothing of {key}"))
        };
        Ok(Load {
            rate: number("connections_per_second")?,
            seconds: number("seconds")?,
            cpu_seconds: number("cpu_seconds")?,
        })
    }
}

/// A child that does not outlive a failure here.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone where all went well.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// What a process has used so far, all of its threads together.
#[derive(Default)]
struct Usage {
    cpu_seconds: f64,
    sleeps: u64,
    resident_kb: u64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        let mut usage = Self::default();
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        for task in fs::read_dir(&tasks).with_context(|| format!("reading {}", tasks.display()))? {
            let task = task
                .with_context(|| format!("reading {}", tasks.display()))?
                .path();
            let schedstat = read(&task.join("schedstat"))?;
            // Nanoseconds on a CPU come first (Documentation/scheduler/sched-stats.rst).
            let ns: f64 = schedstat
                .split_whitespace()
                .next()
                .and_then(|word| word.parse().ok())
                .with_context(|| format!("{schedstat:?} is no schedstat"))?;
            usage.cpu_seconds += ns / 1e9;
            let status = read(&task.join("status"))?;
            usage.sleeps += field(&status, "voluntary_ctxt_switches:")?;
            usage.resident_kb = field(&status, "VmRSS:")?;
        }
        Ok(usage)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The number behind a name in /proc/PID/status.
fn field(status: &str, name: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("no {name} in a process's status"))
}

/// Records that all hooks wrote to the rings, by the `stop` line.
fn emitted(line: &str) -> Result<u64> {
    let stop: Value = serde_json::from_str(line).context("conntracer's last line")?;
    let hooks = stop["hooks"]
        .as_object()
        .context("conntracer's last line gives no accounts")?;
    Ok(hooks
        .values()
        .filter_map(|account| account["emitted"].as_u64())
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: f64, cpu_seconds: f64) -> Load {
        Load {
            rate,
            seconds: 1.0,
            cpu_seconds,
        }
    }

    #[test]
    fn a_round_is_compared_with_the_mean_of_its_neighbours() {
        let traced = Traced {
            load: load(90.0, 2.0),
            cpu_seconds: 0.2,
            records: 0,
            wake_ups: 0,
            resident_kb: 0,
        };
        let round = Round::new(&load(80.0, 1.5), &traced, &load(120.0, 2.5));
        assert_eq!(format!("{:.2} {:.2}", round.rate, round.cpu), "0.90 1.10");
    }

    #[test]
    fn records_of_all_hooks_are_added() {
        let line = r#"{"kind":"stop","hooks":{"syn":{"emitted":2},"state":{"emitted":3}}}"#;
        assert_eq!(emitted(line).unwrap(), 5);
        assert!(emitted("{}").is_err());
    }

    #[test]
    fn a_status_field_is_found_by_its_whole_name() {
        let status = "VmRSS:\t  12 kB\nvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field(status, "VmRSS:").unwrap(), 12);
        assert_eq!(field(status, "voluntary_ctxt_switches:").unwrap(), 7);
        assert!(field(status, "VmHWM:").is_err());
    }
}
