//! A running conntracer, scoped to one network namespace, and what it printed.

use std::{
    env,
    ffi::OsString,
    fs::{self, Permissions},
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    line::{Account, Detector, Finding, Line, Start, Stop},
    netns::NetNs,
};

/// Exit status by which conntracer says that it cannot trace here.
pub const CANNOT_TRACE: i32 = 3;

/// Longest wait for the hooks to be attached: the verifier is slow on an emulated CPU.
const STARTING: Duration = Duration::from_mins(2);

/// Longest wait for the totals after SIGINT.
const STOPPING: Duration = Duration::from_mins(1);

/// The conntracer to test, as the environment names it.
#[derive(Clone, Debug)]
pub struct Binary {
    path: PathBuf,
    hooks: String,
}

impl Binary {
    /// From `CONNTRACER_BIN` and `CONNTRACER_HOOKS` (default `auto`); `None` without the former.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let path = PathBuf::from(env::var_os("CONNTRACER_BIN")?);
        let hooks = env::var("CONNTRACER_HOOKS").unwrap_or_else(|_| "auto".to_owned());
        Some(Self { path, hooks })
    }

    /// A command without arguments, whose output is for the caller.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A copy that any user may run, wherever the original lies; it goes with the directory.
    pub fn copy_for_everybody(&self) -> Result<(Self, TempDir)> {
        let directory = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .context("making a temporary directory")?;
        let path = directory.path().join("conntracer");
        fs::copy(&self.path, &path)
            .and_then(|_| fs::set_permissions(&path, Permissions::from_mode(0o755)))
            .with_context(|| format!("copying {}", self.path.display()))?;
        Ok((
            Self {
                path,
                hooks: self.hooks.clone(),
            },
            directory,
        ))
    }

    /// The hook mode asked for.
    #[must_use]
    pub fn hooks(&self) -> &str {
        &self.hooks
    }

    /// `run`, limited to `netns`, with the hooks the environment asks for.
    #[must_use]
    pub fn run(&self, netns: &NetNs) -> Command {
        let mut command = self.command();
        command.arg("run");
        self.scope(&mut command, netns);
        command
    }

    /// The same as [`Binary::run`], keeping every record in `file`.
    #[must_use]
    pub fn record(&self, netns: &NetNs, file: &Path) -> Command {
        let mut command = self.command();
        command.arg("record").arg(file);
        self.scope(&mut command, netns);
        command
    }

    fn scope(&self, command: &mut Command, netns: &NetNs) {
        command
            .args(["--hooks", &self.hooks])
            .args(["--netns", &netns.inode().to_string()]);
    }
}

/// Why no [`Tracer`] came of a command.
#[derive(Debug)]
pub enum NotStarted {
    /// It exited with [`CANNOT_TRACE`]; its reason.
    CannotTrace(String),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for NotStarted {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// A conntracer that has attached its hooks. Killed when dropped.
#[derive(Debug)]
pub struct Tracer {
    process: Process,
    lines: Receiver<Result<Line>>,
    reader: JoinHandle<()>,
    start: Start,
    seen: Vec<Line>,
}

impl Tracer {
    /// Starts conntracer in `netns` with `arguments` more, and waits until its hooks are attached.
    pub fn start(
        binary: &Binary,
        netns: &NetNs,
        arguments: &[OsString],
    ) -> Result<Self, NotStarted> {
        Self::of(binary.run(netns).args(arguments))
    }

    /// Starts a `run` or `record` of a [`Binary`], and waits until its hooks are attached.
    pub fn of(command: &mut Command) -> Result<Self, NotStarted> {
        let mut process = Process::spawn(command.args(["--format", "json"]))?;
        let stdout = process.stdout()?;
        let (sender, lines) = channel();
        let reader = std::thread::spawn(move || read_lines(stdout, &sender));
        match lines.recv_timeout(STARTING) {
            Ok(Ok(Line::Start(start))) => Ok(Self {
                process,
                lines,
                reader,
                start,
                seen: Vec::new(),
            }),
            Ok(Ok(line)) => Err(anyhow::anyhow!("the first line is not `start`: {line:?}").into()),
            Ok(Err(error)) => Err(error.into()),
            Err(RecvTimeoutError::Timeout) => {
                Err(anyhow::anyhow!("no line in {} s", STARTING.as_secs()).into())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let (status, stderr) = process.wait(STOPPING)?;
                Err(match status.code() {
                    Some(CANNOT_TRACE) => NotStarted::CannotTrace(stderr.trim().to_owned()),
                    _ => anyhow::anyhow!("no start line, {status}: {stderr}").into(),
                })
            }
        }
    }

    /// Process id of conntracer.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.process.pid
    }

    /// The hook plan, as said at start.
    #[must_use]
    pub fn plan(&self) -> &Start {
        &self.start
    }

    /// How well one detector says it can see.
    pub fn coverage(&self, detector: &str) -> Result<&Detector> {
        self.start
            .plan
            .detectors
            .iter()
            .find(|plan| plan.detector == detector)
            .with_context(|| format!("the plan does not speak of {detector}"))
    }

    /// Whether a hook is attached.
    #[must_use]
    pub fn has_hook(&self, hook: &str) -> bool {
        self.start
            .plan
            .hooks
            .iter()
            .any(|plan| plan.hook == hook && plan.hook_type != "off")
    }

    /// Waits for a finding, among those printed already and those to come.
    pub fn wait_for(
        &mut self,
        what: &str,
        limit: Duration,
        matches: impl Fn(&Finding) -> bool,
    ) -> Result<Finding> {
        self.wait_for_line(what, limit, |line| match line {
            Line::Finding(finding) if matches(finding) => Some(Finding::clone(finding)),
            _ => None,
        })
    }

    /// Waits for an event of `kind`, among those printed already and those to come.
    pub fn wait_for_event(
        &mut self,
        what: &str,
        limit: Duration,
        kind: &str,
        matches: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.wait_for_line(what, limit, |line| match line {
            Line::Event(of, event) if of == kind && matches(event) => Some(event.clone()),
            _ => None,
        })
    }

    /// Waits until `count` events of the kinds asked for by `--emit` have been printed.
    pub fn wait_for_events(&mut self, count: usize, limit: Duration) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let mut seen = 0;
        self.wait_for_line(&format!("{count} events"), limit, |line| {
            seen += usize::from(matches!(line, Line::Event(..)));
            (seen >= count).then_some(())
        })
    }

    fn wait_for_line<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut next = 0;
        loop {
            while let Some(line) = self.seen.get(next) {
                next += 1;
                if let Some(found) = find(line) {
                    return Ok(found);
                }
            }
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.seen.push(line?),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "waited {} s for {what}; so far: {:#?}",
                    limit.as_secs(),
                    self.seen
                ),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "conntracer ended while waiting for {what}: {:#?}",
                        self.seen
                    )
                }
            }
        }
    }

    /// Asks it to stop and collects everything it ever printed.
    pub fn stop(self) -> Result<Run> {
        self.stop_with(Signal::INT)
    }

    /// The same with another signal.
    pub fn stop_with(self, signal: Signal) -> Result<Run> {
        self.process.signal(signal)?;
        self.finish()
    }

    /// Waits until it ends by itself and collects everything it ever printed.
    pub fn finish(mut self) -> Result<Run> {
        let (status, stderr) = self.process.wait(STOPPING)?;
        // Ends with the pipe, which ended with the process.
        self.reader
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        for line in self.lines.try_iter() {
            self.seen.push(line?);
        }
        ensure!(status.success(), "conntracer ended with {status}: {stderr}");
        let Some(Line::Stop(stop)) = self.seen.pop() else {
            bail!("the last line is not `stop`: {stderr}");
        };
        Ok(Run {
            start: self.start,
            lines: self.seen,
            stop,
        })
    }

    /// Kills it the hard way and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(STOPPING)?;
        Ok(())
    }
}

/// Everything one conntracer printed from start to stop.
#[derive(Clone, Debug)]
pub struct Run {
    pub start: Start,
    pub lines: Vec<Line>,
    pub stop: Stop,
}

impl Run {
    /// The findings in the order printed, each status of each.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.lines.iter().filter_map(|line| match line {
            Line::Finding(finding) => Some(&**finding),
            _ => None,
        })
    }

    /// The events that `--emit` brought, in the order printed: kind and fields.
    pub fn events(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.lines.iter().filter_map(|line| match line {
            Line::Event(kind, fields) => Some((kind.as_str(), fields)),
            _ => None,
        })
    }

    /// The last that was said of every finding that `matches`.
    #[must_use]
    pub fn last_of(&self, matches: impl Fn(&Finding) -> bool) -> Vec<&Finding> {
        let mut last: Vec<&Finding> = Vec::new();
        for finding in self.findings().filter(|finding| matches(finding)) {
            match last.iter_mut().find(|earlier| earlier.id == finding.id) {
                Some(earlier) => *earlier = finding,
                None => last.push(finding),
            }
        }
        last
    }

    /// Sum of the final counts of the findings of `kind` with one of `causes`.
    #[must_use]
    pub fn total(&self, kind: &str, causes: &[&str]) -> u64 {
        self.last_of(|finding| finding.finding == kind && causes.contains(&finding.cause.as_str()))
            .iter()
            .map(|finding| finding.count)
            .sum()
    }

    /// Hooks whose events are not all accounted for.
    #[must_use]
    pub fn unbalanced(&self) -> Vec<(&str, Account)> {
        self.stop
            .hooks
            .iter()
            .filter(|(_, account)| !account.balances())
            .map(|(hook, account)| (hook.as_str(), *account))
            .collect()
    }
}

/// A child process that does not outlive its value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
    stderr: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts it. It is told to end should the calling thread end first, `kill -9` included.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::TERM,
                ))?)
            });
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let pid = Pid::from_child(&child);
        let stderr = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                // What was read before an error is still worth showing.
                let _ = stderr.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        Ok(Self { child, pid, stderr })
    }

    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its output, for the one who asks first.
    pub fn stdout(&mut self) -> Result<ChildStdout> {
        self.child
            .stdout
            .take()
            .context("standard output is not piped, or was taken")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.pid, signal)
            .with_context(|| format!("sending {signal:?} to conntracer"))
    }

    /// Waits until it ends; its status and everything it wrote to standard error.
    pub fn wait(&mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let status = crate::wait::until("conntracer to end", limit, || {
            self.child.try_wait().context("waiting for conntracer")
        })?;
        let stderr = self.stderr.take().map_or_else(String::new, |thread| {
            thread
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        });
        Ok((status, stderr))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(stdout: ChildStdout, sender: &Sender<Result<Line>>) {
    for line in BufReader::new(stdout).lines() {
        let line = line
            .context("reading from conntracer")
            .and_then(|line| Line::parse(&line));
        if sender.send(line).is_err() {
            return;
        }
    }
}
