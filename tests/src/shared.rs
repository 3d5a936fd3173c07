//! Three conntracers that all tests of a process share, over all network namespaces: one as most people run it, one that
//! streams every event, and one whose times are short. A test opens a [`Watch`] on its own namespace and is given the lines
//! of that one.
//!
//! `conntracer-live` starts them before the tests and judges them as a whole afterwards; the environment says where they
//! are. Without it the first test that needs one starts it, and it ends with the process.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Sender, channel},
    },
    thread,
};

use anyhow::{Context, Result};
use rustix::process::Pid;
use tempfile::NamedTempFile;

use crate::{
    line::{Line, Start},
    netns::NetNs,
    output::{Before, Lines},
    process::Process,
    raw::{is_checkpoint, kind_of, netns_of, of_namespaces},
    tail::Tail,
    tracer::{Binary, NotStarted, first_of},
    watch::{Asker, Watch},
};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Findings only.
    Plain,
    /// Every event besides.
    Streaming,
    /// Findings by [`QUICK`], and retransmissions.
    Quick,
}

/// What lasts is a finding soon, and what has ended is over soon; storms are those of connections and remotes, as one of
/// the whole host would be of all tests together.
pub const QUICK: &str = "\
[detect.half_open]
half_closed_after_s = 2
[detect.receive_stall]
unread_s = 1
[detect.retransmit_storm]
host_per_s = 1000000.0
[detect.syn_drop]
quiet_s = 1
[detect.connect_failure]
quiet_s = 2
[detect.bind_failure]
patience_s = 1
[detect.connection_drop]
quiet_s = 2
";

impl Kind {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Streaming, Self::Quick];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Streaming => "streaming",
            Self::Quick => "quick",
        }
    }

    #[must_use]
    pub const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Streaming => &["--emit", "all"],
            Self::Quick => &["--emit", "retransmit"],
        }
    }

    /// It, of all namespaces, with JSON for its output; and the configuration, which it reads at its start.
    pub fn command(self, binary: &Binary) -> Result<(Command, Option<NamedTempFile>)> {
        let mut command = binary.run_everywhere();
        command.args(self.arguments()).args(["--format", "json"]);
        if self != Self::Quick {
            return Ok((command, None));
        }
        let config = NamedTempFile::new().context("making a temporary file")?;
        fs::write(config.path(), QUICK).context("writing a configuration")?;
        command.arg("--config").arg(config.path());
        Ok((command, Some(config)))
    }

    /// The environment's word for where it is: process id, colon, and the file that it writes.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Plain => "CONNTRACER_PLAIN",
            Self::Streaming => "CONNTRACER_STREAMING",
            Self::Quick => "CONNTRACER_QUICK",
        }
    }

    /// The one of this process, started where it is not running.
    pub fn of_this_process(self, binary: &Binary) -> Result<&'static Shared, &'static NotStarted> {
        static SHARED: [OnceLock<Result<Shared, NotStarted>>; Kind::ALL.len()] =
            [const { OnceLock::new() }; Kind::ALL.len()];
        SHARED[self as usize]
            .get_or_init(|| {
                match env::var_os(self.variable()) {
                    Some(place) => Shared::find(&place),
                    None => Shared::start(binary, self),
                }
                .and_then(Shared::begun)
            })
            .as_ref()
    }
}

/// One of them, running.
#[derive(Debug)]
pub struct Shared {
    start: Arc<Start>,
    asker: Arc<Asker>,
    readers: Arc<Mutex<Readers>>,
}

impl Shared {
    /// The one that `conntracer-live` has started.
    fn find(place: &OsString) -> Result<Self, NotStarted> {
        let (pid, path) = parse(place)?;
        let tail = Tail::open(&path).with_context(|| format!("reading {}", path.display()))?;
        let asker = Arc::new(Asker::new(pid));
        let readers = Arc::new(Mutex::new(Readers::default()));
        let (sender, starts) = channel();
        let (theirs, all) = (Arc::clone(&asker), Arc::clone(&readers));
        thread::spawn(move || share(tail, &theirs, &all, &sender));
        match starts.recv() {
            Ok(Ok(Line::Start(start))) => Ok(Self::new(start, asker, readers)),
            Ok(Err(error)) => Err(error.into()),
            _ => Err(anyhow::anyhow!("{} begins with no start line", path.display()).into()),
        }
    }

    fn start(binary: &Binary, kind: Kind) -> Result<Self, NotStarted> {
        let (mut command, config) = kind.command(binary)?;
        let readers = Arc::new(Mutex::new(Readers::default()));
        let all = Arc::clone(&readers);
        let (sender, started) = channel();
        // It ends with the thread that has started it, which is to be none of a test.
        thread::spawn(move || {
            let (lines, starts) = channel();
            let started = Process::spawn(&mut command).and_then(|mut process| {
                let stdout = process.stdout()?;
                Ok((process, stdout))
            });
            let (mut process, stdout) = match started {
                Ok(started) => started,
                Err(error) => return drop(sender.send(Err(error.into()))),
            };
            let asker = Arc::new(Asker::new(process.pid()));
            let theirs = Arc::clone(&asker);
            let readers = Arc::clone(&all);
            let reader = thread::spawn(move || share(stdout, &theirs, &all, &lines));
            let start = first_of(&mut process, &starts);
            drop(config);
            drop(sender.send(start.map(|start| Self::new(start, asker, readers))));
            // With the pipe, which ends with conntracer.
            let _ended = reader.join();
        });
        started
            .recv()
            .map_err(|_| anyhow::anyhow!("the thread that starts conntracer has ended"))?
    }

    fn new(start: Start, asker: Arc<Asker>, readers: Arc<Mutex<Readers>>) -> Self {
        Self {
            start: Arc::new(start),
            asker,
            readers,
        }
    }

    /// The same with what the first readers need to know of the time before.
    fn begun(self) -> Result<Self, NotStarted> {
        self.watch_inode(0, &[]).checkpoint()?;
        Ok(self)
    }

    /// What is said of a namespace from now on, with the events of `kinds`.
    #[must_use]
    pub fn watch(&self, netns: &NetNs, kinds: &[&str]) -> Watch {
        self.watch_inode(netns.inode(), kinds)
    }

    fn watch_inode(&self, netns: u32, kinds: &[&str]) -> Watch {
        let (sender, lines) = channel();
        let mut readers = lock(&self.readers);
        readers.all.push(Reader {
            netns,
            kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(),
            lines: sender,
        });
        Watch {
            start: Arc::clone(&self.start),
            lines: Lines::new(lines),
            asker: Arc::clone(&self.asker),
            before: readers.before.clone(),
            own: None,
        }
    }
}

fn parse(place: &OsString) -> Result<(Pid, PathBuf)> {
    let place = place.to_str().context("not a place of UTF-8")?;
    let parsed = place.split_once(':').and_then(|(pid, path)| {
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        Some((pid, PathBuf::from(path)))
    });
    parsed.with_context(|| format!("{place:?} is no process id and file"))
}

/// Who is given lines.
#[derive(Debug, Default)]
struct Readers {
    all: Vec<Reader>,
    /// Whoever reads from now on: what gaps and the last checkpoint told.
    before: Before,
}

#[derive(Debug)]
struct Reader {
    netns: u32,
    /// Of the events.
    kinds: Vec<String>,
    lines: Sender<Result<Line>>,
}

impl Reader {
    fn wants(&self, kind: &str, netns: u32) -> bool {
        self.netns == netns && (kind == "finding" || self.kinds.iter().any(|of| of == kind))
    }
}

fn lock(readers: &Mutex<Readers>) -> MutexGuard<'_, Readers> {
    // Lines are pushed and removed one at a time.
    readers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a conntracer's lines to their end, and gives each to whom it concerns: its first to `start`, those about a
/// namespace to who watches that, gaps and checkpoints to all. Only what somebody is given is parsed.
fn share(output: impl Read, asker: &Asker, readers: &Mutex<Readers>, start: &Sender<Result<Line>>) {
    for line in BufReader::new(output).lines() {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                let error = anyhow::Error::new(error).context("reading from conntracer");
                give(&mut lock(readers), |_| true, || Err(error));
                break;
            }
        };
        match kind_of(&line) {
            "start" => drop(start.send(Line::parse(&line))),
            "gap" => {
                let line = Line::parse(&line);
                let mut readers = lock(readers);
                if let Ok(Line::Gap(gap)) = &line {
                    *readers.before.lost.entry(gap.hook.clone()).or_default() += gap.lost;
                }
                give(&mut readers, |_| true, || line);
            }
            "stats" if is_checkpoint(&line) => {
                let mut readers = lock(readers);
                let watched: Vec<u32> = readers.all.iter().map(|reader| reader.netns).collect();
                let line = answer(&of_namespaces(&line, &watched), asker);
                if let Ok(Line::Checkpoint(totals)) = &line {
                    // What happened between question and answer makes it less than it is; it never shrinks.
                    for (hook, [then, _]) in &totals.ahead {
                        let ahead = readers.before.ahead.entry(hook).or_insert(*then);
                        *ahead = (*ahead).max(*then);
                    }
                }
                give(&mut readers, |_| true, || line);
            }
            kind => {
                if let Some(netns) = netns_of(&line) {
                    let wants = |reader: &Reader| reader.wants(kind, netns);
                    give(&mut lock(readers), wants, || Line::parse(&line));
                }
            }
        }
    }
    // Who waits for more learns that there is none.
    lock(readers).all.clear();
}

fn answer(line: &str, asker: &Asker) -> Result<Line> {
    let mut line = Line::parse(line)?;
    if let Line::Checkpoint(totals) = &mut line {
        asker.answered(totals)?;
    }
    Ok(line)
}

/// Gives a line to the readers that want it, where any does, and forgets those that have gone.
fn give(
    readers: &mut Readers,
    wants: impl Fn(&Reader) -> bool,
    line: impl FnOnce() -> Result<Line>,
) {
    if !readers.all.iter().any(&wants) {
        return;
    }
    let line = line();
    readers.all.retain(|reader| {
        let copy = match &line {
            Ok(line) => Ok(line.clone()),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        !wants(reader) || reader.lines.send(copy).is_ok()
    });
}
