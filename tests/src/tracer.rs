//! A conntracer that is started, stopped or killed by its one reader, scoped to a network namespace.

use std::{
    env,
    fs::{self, File, Permissions},
    io::{self, BufRead, BufReader, Write},
    ops::{Deref, DerefMut},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::{
    line::{Line, Start},
    netns::NetNs,
    output::{Before, Lines, Run},
    process::Process,
    wait::{self, EVENTUALLY},
    watch::{Asker, Watch, ahead},
    witness,
};

/// Exit status by which conntracer says that it cannot trace here.
pub const CANNOT_TRACE: i32 = 3;

/// Longest wait for the hooks to be attached: the verifier is slow on an emulated CPU, and may have little of it.
pub const STARTING: Duration = Duration::from_mins(5);

/// Longest wait for the totals after SIGINT.
pub const STOPPING: Duration = Duration::from_mins(5);

/// The variable that names a file to which each start of conntracer adds a line: the name of the test.
pub const STARTS: &str = "CONNTRACER_STARTS";

/// Waits until nobody has a file open for writing: a process that another thread forked while it was written has, until it
/// executes, and the file cannot be executed before (`ETXTBSY`). A read lease tells (`check_conflicting_open`, fs/locks.c).
fn wait_unwritten(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    wait::until("the writers of a file to close it", EVENTUALLY, || {
        // SAFETY: F_SETLEASE takes a descriptor, which is open, and a number.
        let leased = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        if leased == 0 {
            return Ok(Some(()));
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock {
            return Ok(None);
        }
        Err(error).context("asking for a read lease")
    })
}

/// The conntracer to test, as the environment names it.
#[derive(Clone, Debug)]
pub struct Binary {
    path: PathBuf,
    hooks: String,
    transport: String,
}

impl Binary {
    /// From `CONNTRACER_BIN`, `CONNTRACER_HOOKS` (default `auto`) and `CONNTRACER_TRANSPORT` (default `ringbuf`); `None`
    /// without the first.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let path = PathBuf::from(env::var_os("CONNTRACER_BIN")?);
        let hooks = env::var("CONNTRACER_HOOKS").unwrap_or_else(|_| "auto".to_owned());
        let transport = env::var("CONNTRACER_TRANSPORT").unwrap_or_else(|_| "ringbuf".to_owned());
        Some(Self {
            path,
            hooks,
            transport,
        })
    }

    /// The same with the transport that the environment does not ask for.
    #[must_use]
    pub fn by_the_other_transport(self) -> Self {
        let other = match self.transport() {
            "perf" => "ringbuf",
            _ => "perf",
        };
        self.by(other)
    }

    /// The same with another transport.
    #[must_use]
    pub fn by(self, transport: &str) -> Self {
        Self {
            transport: transport.to_owned(),
            ..self
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command without arguments, whose output is for the caller.
    #[must_use]
    pub fn command(&self) -> Command {
        if let Some(starts) = env::var_os(STARTS) {
            let current = thread::current();
            let line = format!("{}\n", current.name().unwrap_or("main"));
            // A figure for people, which nothing depends on.
            let _untold = File::options()
                .create(true)
                .append(true)
                .open(starts)
                .and_then(|mut file| file.write_all(line.as_bytes()));
        }
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
        wait_unwritten(&path)?;
        Ok((
            Self {
                path,
                ..self.clone()
            },
            directory,
        ))
    }

    /// The hook mode asked for.
    #[must_use]
    pub fn hooks(&self) -> &str {
        &self.hooks
    }

    /// How records leave the kernel.
    #[must_use]
    pub fn transport(&self) -> &str {
        &self.transport
    }

    /// `run`, of all namespaces, with the hooks and the transport that the environment asks for.
    #[must_use]
    pub fn run_everywhere(&self) -> Command {
        let mut command = self.command();
        command.arg("run");
        self.attach(&mut command);
        command
    }

    /// `now` of several namespaces, as JSON.
    #[must_use]
    pub fn now_within(&self, namespaces: &[&NetNs]) -> Command {
        let mut command = self.command();
        command.args(["now", "--format", "json"]);
        self.attach(&mut command);
        for netns in namespaces {
            scope(&mut command, netns);
        }
        command
    }

    /// The same, limited to `netns`.
    #[must_use]
    pub fn run(&self, netns: &NetNs) -> Command {
        self.run_within(&[netns])
    }

    /// The same, limited to several namespaces, at most eight.
    #[must_use]
    pub fn run_within(&self, namespaces: &[&NetNs]) -> Command {
        let mut command = self.run_everywhere();
        for netns in namespaces {
            scope(&mut command, netns);
        }
        command
    }

    /// The same as [`Binary::run`], keeping every record in `file`.
    #[must_use]
    pub fn record(&self, netns: &NetNs, file: &Path) -> Command {
        let mut command = self.command();
        command.arg("record").arg(file);
        self.attach(&mut command);
        scope(&mut command, netns);
        command
    }

    fn attach(&self, command: &mut Command) {
        command
            .args(["--hooks", &self.hooks])
            .args(["--transport", &self.transport]);
    }
}

fn scope(command: &mut Command, netns: &NetNs) {
    command.args(["--netns", &netns.inode().to_string()]);
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
    watch: Watch,
    process: Process,
    reader: JoinHandle<()>,
}

impl Deref for Tracer {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl DerefMut for Tracer {
    fn deref_mut(&mut self) -> &mut Watch {
        &mut self.watch
    }
}

impl Tracer {
    /// Starts a `run` or `record` of a [`Binary`], and waits until its hooks are attached.
    pub fn of(command: &mut Command) -> Result<Self, NotStarted> {
        // One at a time: on an emulated CPU, several at once take each other's time, and that of all tests.
        static STARTS: Mutex<()> = Mutex::new(());
        let _start = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
        let hits = witness::hits();
        let mut process = Process::spawn(command.args(["--format", "json"]))?;
        let stdout = process.stdout()?;
        let asker = Arc::new(Asker::new(process.pid()));
        let (sender, lines) = channel();
        let theirs = Arc::clone(&asker);
        let reader = thread::spawn(move || read_lines(stdout, &theirs, &sender));
        let start = first_of(&mut process, &lines)?;
        Ok(Self {
            watch: Watch {
                start: Arc::new(start),
                lines: Lines::new(lines),
                asker,
                // It has seen nothing yet.
                before: Before {
                    ahead: hits
                        .into_iter()
                        .map(|(hook, hits)| (hook, hits.cast_signed()))
                        .collect(),
                    ..Before::default()
                },
                own: None,
            },
            process,
            reader,
        })
    }

    /// Process id of conntracer.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// For a reader that only looks on.
    #[must_use]
    pub fn into_watch(self) -> Watch {
        Watch {
            own: Some(self.process),
            ..self.watch
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
        ensure!(status.success(), "conntracer ended with {status}: {stderr}");
        let Watch {
            start,
            lines,
            before,
            ..
        } = self.watch;
        let (lines, totals) = lines.into_whole().with_context(|| stderr)?;
        Ok(Run {
            start,
            lines,
            totals,
            before,
        })
    }

    /// Kills it the hard way and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(STOPPING)?;
        Ok(())
    }
}

/// Waits for the line that says that the hooks are attached.
pub(crate) fn first_of(
    process: &mut Process,
    lines: &Receiver<Result<Line>>,
) -> Result<Start, NotStarted> {
    match lines.recv_timeout(STARTING) {
        Ok(Ok(Line::Start(start))) => Ok(start),
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

fn read_lines(stdout: ChildStdout, asker: &Asker, sender: &Sender<Result<Line>>) {
    for line in BufReader::new(stdout).lines() {
        let line = line
            .context("reading from conntracer")
            .and_then(|line| Line::parse(&line))
            .and_then(|mut line| {
                match &mut line {
                    Line::Checkpoint(totals) => asker.answered(totals)?,
                    Line::Stop(totals) => totals.ahead = ahead(totals, &witness::hits()),
                    _ => {}
                }
                Ok(line)
            });
        if sender.send(line).is_err() {
            return;
        }
    }
}
