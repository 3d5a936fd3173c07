//! Runs the live tests beside the conntracers that all of them share (`conntracer_tests::shared`), and judges those as a
//! whole when the tests are over: they stop, account for every event, and agree with the kernel's counters in every
//! namespace that there was. That is told as the harness tells of its tests, so that it counts.
//!
//! Tests that change what is the whole machine's are in the module `alone`, and run when no others do.
//!
//! The first argument is the harness, the others are its own. A harness without this program starts what it needs.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it speaks as a test harness does"
)]

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};
use conntracer_tests::{
    compared,
    line::{Line, Start, Totals},
    process::Process,
    shared::Kind,
    tracer::{Binary, CANNOT_TRACE, STARTING, STARTS, STOPPING},
    wait,
    witness::{self, Hits},
};
use rustix::{param::clock_ticks_per_second, process::Signal};
use tempfile::{NamedTempFile, TempDir};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(harness) = arguments.next() else {
        eprintln!("usage: conntracer-live HARNESS [ARGUMENT]...");
        return ExitCode::from(2);
    };
    match run(&harness, arguments.collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conntracer-live: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything passed.
fn run(harness: &OsString, arguments: Vec<OsString>) -> Result<bool> {
    let directory = tempfile::tempdir().context("making a temporary directory")?;
    let starts = directory.path().join("starts");
    // Before anything else is started, by this process or a later one.
    // SAFETY: there is one thread yet.
    unsafe { env::set_var(STARTS, &starts) };
    let hits = witness::hits();
    let listed = list(harness, &arguments)?;
    // Few tests need the quick one, and those start it themselves where they are the only ones that are asked for.
    let is_whole = listed.len() == list(harness, &[])?.len();
    let kinds = Kind::ALL
        .into_iter()
        .filter(|kind| is_whole || *kind != Kind::Quick);
    let shared = match Binary::from_env() {
        Some(binary) => start_all(&binary, kinds, &directory)?,
        None => Vec::new(),
    };
    let alone: Vec<_> = listed
        .into_iter()
        .filter(|name| name.starts_with(ALONE))
        .collect();
    let run = |arguments: &[OsString], beside: &[Shared]| -> Result<bool> {
        let mut command = Command::new(harness);
        command.args(arguments);
        for one in beside {
            command.env(one.kind.variable(), one.place());
        }
        let status = command
            .status()
            .with_context(|| format!("starting {}", harness.display()))?;
        Ok(status.success())
    };
    let skip = alone
        .iter()
        .flat_map(|name| [OsString::from("--skip"), name.into()]);
    let arguments: Vec<_> = arguments.into_iter().chain(skip).collect();
    let mut passed = run(&arguments, &shared)?;
    if !alone.is_empty() {
        let one_at_a_time = ["--exact", "--test-threads=1"].map(OsString::from);
        let names = alone.iter().map(OsString::from);
        let arguments: Vec<_> = one_at_a_time.into_iter().chain(names).collect();
        passed &= run(&arguments, &[])?;
    }
    say_cpu(&shared);
    let sound = judge_all(shared, &hits);
    say_starts(&fs::read_to_string(&starts).unwrap_or_default());
    Ok(sound && passed)
}

/// What took the time of a slow machine: the tests themselves with what they started, and each of the shared conntracers.
fn say_cpu(shared: &[Shared]) {
    let ticks = clock_ticks_per_second();
    let seconds = |fields: &[u64]| fields.iter().sum::<u64>() / ticks;
    // proc_pid_stat(5): utime, stime, cutime and cstime are the 14th to the 17th.
    let of = |pid: &str, fields: std::ops::Range<usize>| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let fields = behind
            .split_whitespace()
            .skip(fields.start - 3)
            .take(fields.len());
        seconds(
            &fields
                .filter_map(|field| field.parse().ok())
                .collect::<Vec<_>>(),
        )
    };
    let each = shared.iter().map(|one| {
        let pid = one.process.pid().as_raw_nonzero().to_string();
        format!("{} {} s", one.kind.name(), of(&pid, 14..16))
    });
    let each: Vec<_> = each.collect();
    println!("CPU: tests {} s, {}", of("self", 16..18), each.join(", "));
}

/// How often conntracer was started, and by which modules of the tests: each costs a slow machine seconds.
fn say_starts(names: &str) {
    let mut modules: BTreeMap<&str, u32> = BTreeMap::new();
    for name in names.lines() {
        let module = name.split_once("::").map_or(name, |(module, _)| module);
        *modules.entry(module).or_default() += 1;
    }
    println!("conntracer-starts: {}", names.lines().count());
    let each = modules
        .iter()
        .map(|(module, starts)| format!("{module} {starts}"));
    println!("started by: {}", each.collect::<Vec<_>>().join(", "));
}

/// How the names of tests begin that run alone.
const ALONE: &str = "alone::";

/// The tests that the arguments ask for.
fn list(harness: &OsString, arguments: &[OsString]) -> Result<Vec<String>> {
    let output = Command::new(harness)
        .args(arguments)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("starting {}", harness.display()))?;
    ensure!(
        output.status.success(),
        "the harness does not list its tests: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let list = String::from_utf8(output.stdout).context("the harness's list of tests")?;
    Ok(list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect())
}

/// A conntracer that writes to a file.
struct Shared {
    kind: Kind,
    process: Process,
    path: PathBuf,
    #[expect(dead_code, reason = "it is read when the process has begun")]
    config: Option<NamedTempFile>,
}

impl Shared {
    fn start(binary: &Binary, kind: Kind, directory: &Path) -> Result<Self> {
        let path = directory.join(kind.name());
        let output =
            File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        let (mut command, config) = kind.command(binary)?;
        let process = Process::spawn(command.stdout(output))?;
        Ok(Self {
            kind,
            process,
            path,
            config,
        })
    }

    /// Waits until its hooks are attached; `None` where it says that it cannot trace here.
    fn attached(mut self) -> Result<Option<Self>> {
        let ended = wait::until("the first line of conntracer", STARTING, || {
            if first_line(&self.path)?.is_some() {
                return Ok(Some(None));
            }
            Ok(self.process.ended()?.map(Some))
        })?;
        match ended {
            None => Ok(Some(self)),
            Some(status) if status.code() == Some(CANNOT_TRACE) => Ok(None),
            Some(status) => bail!("conntracer ended with {status}"),
        }
    }

    fn place(&self) -> OsString {
        let pid = self.process.pid().as_raw_nonzero();
        let mut place = OsString::from(format!("{pid}:"));
        place.push(&self.path);
        place
    }

    /// Ends it; its plan and its accounts.
    fn stop(mut self) -> Result<(Start, Totals)> {
        self.process.signal(Signal::INT)?;
        let (status, stderr) = self.process.wait(STOPPING)?;
        ensure!(status.success(), "it ended with {status}: {stderr}");
        let first = first_line(&self.path)?.context("it printed nothing")?;
        let Line::Start(start) = Line::parse(&first)? else {
            bail!("its first line is no start: {first}");
        };
        let last = last_line(&self.path)?;
        let Line::Stop(totals) = Line::parse(&last)? else {
            bail!("its last line is no stop: {last}");
        };
        ensure!(totals.reason == "signal", "why it ended: {}", totals.reason);
        Ok((start, totals))
    }
}

/// None where this machine cannot be traced, which is for the tests to say.
fn start_all(
    binary: &Binary,
    kinds: impl Iterator<Item = Kind>,
    directory: &TempDir,
) -> Result<Vec<Shared>> {
    // At the same time: the verifier takes its time on an emulated CPU.
    let starting: Vec<_> = kinds
        .map(|kind| Shared::start(binary, kind, directory.path()))
        .collect();
    let mut shared = Vec::new();
    for one in starting {
        shared.extend(one?.attached()?);
    }
    Ok(shared)
}

fn first_line(path: &Path) -> Result<Option<String>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut line = String::new();
    BufReader::new(file)
        .read_line(&mut line)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

fn last_line(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut last = String::new();
    for line in BufReader::new(file).lines() {
        last = line.with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(last)
}

/// Whether all of them were sound, said test by test. `hits` is what a second witness had counted before they began.
fn judge_all(shared: Vec<Shared>, hits: &Hits) -> bool {
    if shared.is_empty() {
        return true;
    }
    let mut verdicts: Vec<(String, Vec<String>)> = Vec::new();
    for one in shared {
        let kind = one.kind.name();
        let (stops, accounts, residues) = match one.stop() {
            Ok((start, totals)) => (
                Vec::new(),
                compared::unaccounted(&start, &totals),
                compared::unexplained(&totals, &witness::unseen(&start, &totals, hits)),
            ),
            Err(error) => {
                let unknown = vec!["there are no accounts".to_owned()];
                (vec![format!("{error:?}")], unknown.clone(), unknown)
            }
        };
        verdicts.push((format!("shared::{kind}::stops"), stops));
        verdicts.push((
            format!("shared::{kind}::accounts_for_every_event"),
            accounts,
        ));
        verdicts.push((format!("shared::{kind}::agrees_with_the_kernel"), residues));
    }
    println!("\nrunning {} tests", verdicts.len());
    for (name, violations) in &verdicts {
        let verdict = if violations.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        println!("test {name} ... {verdict}");
    }
    let failed: Vec<_> = verdicts
        .iter()
        .filter(|(_, violations)| !violations.is_empty())
        .collect();
    if !failed.is_empty() {
        println!("\nfailures:");
        for (name, violations) in &failed {
            println!("\n---- {name} ----\n{}", violations.join("\n"));
        }
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        verdicts.len() - failed.len(),
        failed.len(),
    );
    failed.is_empty()
}
