//! `fuzz`: the targets below `tests/fuzz`, built with `cargo fuzz` and run with the corpus below
//! `tests/data/fuzz`. What a target learns is kept below cargo's build directory, and where it is asked for
//! in the corpus.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    packages::{self, Installation, Missing, Need},
    process,
    workspace::Workspace,
};

/// Fuzz the parsers and the pipeline
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Targets, as below tests/fuzz/fuzz_targets [default: all].
    targets: Vec<String>,
    /// Executions of each target.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    runs: Option<u64>,
    /// Minutes for each target [default: 1].
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Afterwards, add what reached new code to tests/data/fuzz.
    #[arg(long)]
    keep: bool,
}

/// How long a target runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Runs(u64),
    Time(Duration),
}

/// What a campaign of one target came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) target: String,
    pub(crate) executions: u64,
    pub(crate) seconds: f64,
    /// The file with the input that was found, or how the target ended otherwise. A target ends at the first.
    pub(crate) finding: Option<String>,
}

const VERSION: &str = "0.13.2";

/// Bytes of the longest input: none of these needs more to reach all there is, and each byte costs time.
const LONGEST: [(&str, u32); 6] = [
    ("btf", 6144),
    ("config", 4096),
    ("pipeline", 512),
    ("proc", 1024),
    ("recording", 8192),
    ("ring", 576),
];

/// The one target that no byte from outside reaches but by way of `decode`, which `ring` covers, and that has
/// the most to do: AddressSanitizer would make it four times slower, and there is no unsafe code in what it runs.
const UNSANITIZED: &str = "pipeline";

/// Seconds that one input may take: a thousand times what most do.
const TIMEOUT_S: u32 = 10;

/// Megabytes of one allocation: more than any bounded table begins with.
const MALLOC_MB: u32 = 64;

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> Result<ExitCode> {
    let all = targets(workspace)?;
    let chosen = if arguments.targets.is_empty() {
        all
    } else {
        if let Some(unknown) = arguments.targets.iter().find(|name| !all.contains(name)) {
            bail!(
                "there is no target {unknown}: name some of {}",
                all.join(", ")
            );
        }
        arguments.targets.clone()
    };
    let bound = match arguments.runs {
        Some(runs) => Bound::Runs(runs),
        None => Bound::Time(Duration::from_mins(arguments.minutes.unwrap_or(1))),
    };
    let outcomes = campaign(workspace, installation, &chosen, bound)?;
    if arguments.keep {
        for target in &chosen {
            Campaign::of(workspace, target)?.keep()?;
        }
    }
    print!("\n{}", table(&outcomes));
    let found = outcomes.iter().any(|outcome| outcome.finding.is_some());
    Ok(ExitCode::from(u8::from(found)))
}

/// Every target there is.
pub(crate) fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let directory = directory(workspace).join("fuzz_targets");
    let entries = fs::read_dir(&directory)
        .with_context(|| format!("listing the targets in {}", directory.display()))?;
    let mut targets = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()?
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect::<Vec<String>>();
    targets.sort();
    Ok(targets)
}

/// Builds `targets` and runs one after the other.
pub(crate) fn campaign(
    workspace: &Workspace,
    installation: Installation,
    targets: &[String],
    bound: Bound,
) -> Result<Vec<Outcome>> {
    ensure_compiler(installation)?;
    let cargo_fuzz = ensure_cargo_fuzz(workspace, installation)?;
    let mut outcomes = Vec::new();
    for target in targets {
        let campaign = Campaign::of(workspace, target)?;
        campaign.build(&cargo_fuzz)?;
        outcomes.push(campaign.run(bound)?);
    }
    Ok(outcomes)
}

/// The rows of the closing table, in the order of `outcomes`.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:<12} {:>12} {:>9} {:>14} {:>9}\n",
        "target", "executions", "seconds", "executions/s", "findings"
    );
    for outcome in outcomes {
        let row = format!(
            "{:<12} {:>12} {:>9.0} {:>14.0} {:>9}  {}",
            outcome.target,
            outcome.executions,
            outcome.seconds,
            outcome.executions as f64 / outcome.seconds.max(f64::MIN_POSITIVE),
            u8::from(outcome.finding.is_some()),
            outcome.finding.as_deref().unwrap_or_default(),
        );
        table.push_str(row.trim_end());
        table.push('\n');
    }
    table
}

/// One target and where its files are.
struct Campaign<'a> {
    workspace: &'a Workspace,
    target: &'a str,
    sanitizer: &'static str,
    triple: String,
    /// What was learned, what is kept with the source, and where findings go.
    learned: PathBuf,
    kept: PathBuf,
    found: PathBuf,
}

impl<'a> Campaign<'a> {
    fn of(workspace: &'a Workspace, target: &'a str) -> Result<Self> {
        let below = |what: &str| workspace.target().join("fuzz").join(what).join(target);
        let sanitizer = if target == UNSANITIZED {
            "none"
        } else {
            "address"
        };
        Ok(Self {
            workspace,
            target,
            sanitizer,
            triple: build::host_triple()?,
            learned: below("corpus"),
            kept: workspace.root().join("tests/data/fuzz").join(target),
            found: below("findings"),
        })
    }

    /// One directory for each kind of build: flags of the other would build everything anew.
    fn build_directory(&self) -> PathBuf {
        self.workspace.target().join("fuzz").join(self.sanitizer)
    }

    fn build(&self, cargo_fuzz: &Path) -> Result<()> {
        process::run(
            Command::new(cargo_fuzz)
                .args(["fuzz", "build", "--target", &self.triple])
                .args(["--sanitizer", self.sanitizer])
                // What comparisons would teach is in the corpus, and the targets run twice as fast.
                .arg("--no-trace-compares")
                .arg("--fuzz-dir")
                .arg(directory(self.workspace))
                .arg("--target-dir")
                .arg(self.build_directory())
                .arg(self.target)
                .env("CARGO", self.workspace.cargo())
                // Stable Rust takes the flags of instrumented code only so.
                .env("RUSTC_BOOTSTRAP", "1")
                .env_remove("RUSTFLAGS")
                .current_dir(self.workspace.root()),
        )
        .with_context(|| format!("building the fuzz target {}", self.target))
    }

    /// The built target with what every run of it is given.
    fn command(&self) -> Command {
        let program = self
            .build_directory()
            .join(&self.triple)
            .join("release")
            .join(self.target);
        let longest = LONGEST.iter().find(|(target, _)| *target == self.target);
        let mut command = Command::new(program);
        command
            // The stack of each allocation costs more than most inputs do.
            .env("ASAN_OPTIONS", "malloc_context_size=1")
            .arg(format!(
                "-max_len={}",
                longest.map_or(4096, |(_, bytes)| *bytes)
            ))
            // The statistics by which inputs would be weighed take up to half the time.
            .arg("-entropic=0")
            .arg(format!("-timeout={TIMEOUT_S}"))
            .arg(format!("-malloc_limit_mb={MALLOC_MB}"))
            .arg(format!("-artifact_prefix={}/", self.found.display()));
        command
    }

    fn run(&self, bound: Bound) -> Result<Outcome> {
        println!("\n== fuzz {}", self.target);
        for directory in [&self.learned, &self.found] {
            fs::create_dir_all(directory)
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        let mut command = self.command();
        match bound {
            Bound::Runs(runs) => command.arg(format!("-runs={runs}")),
            Bound::Time(time) => command.arg(format!("-max_total_time={}", time.as_secs())),
        };
        command
            .arg("-print_final_stats=1")
            .args([&self.learned, &self.kept])
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| process::line(&command))?;
        let stderr = child.stderr.take().context("the target has no stderr")?;
        let mut said = Said::default();
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.with_context(|| process::line(&command))?;
            said.line(&String::from_utf8_lossy(&line));
        }
        let status = child.wait()?;
        let ended = || format!("ended with {status}");
        Ok(Outcome {
            target: self.target.to_owned(),
            executions: said.executions,
            seconds: began.elapsed().as_secs_f64(),
            finding: (!status.success()).then(|| said.finding.unwrap_or_else(ended)),
        })
    }

    /// Adds the smallest inputs that reach what the kept ones do not.
    fn keep(&self) -> Result<()> {
        fs::create_dir_all(&self.kept)
            .with_context(|| format!("creating {}", self.kept.display()))?;
        // Which code, not how often: that would be thousands of files.
        process::run(
            self.command()
                .args(["-set_cover_merge=1", "-use_counters=0"])
                .args([&self.kept, &self.learned]),
        )
    }
}

/// What a target said, line by line.
#[derive(Default)]
struct Said {
    executions: u64,
    finding: Option<String>,
}

impl Said {
    fn line(&mut self, line: &str) {
        const EXECUTIONS: &str = "stat::number_of_executed_units:";
        const FINDING: &str = "Test unit written to ";
        if let Some(number) = line.strip_prefix(EXECUTIONS) {
            self.executions = number.trim().parse().unwrap_or_default();
        } else if let Some((_, path)) = line.split_once(FINDING) {
            self.finding = Some(path.trim().to_owned());
        }
        // Each input that is new has a line.
        if !["NEW", "REDUCE"].iter().any(|news| line.contains(news)) {
            println!("{line}");
        }
    }
}

fn directory(workspace: &Workspace) -> PathBuf {
    workspace.root().join("tests/fuzz")
}

/// libFuzzer comes as source, in C++.
fn ensure_compiler(installation: Installation) -> Result<()> {
    if process::which("c++").is_some() {
        return Ok(());
    }
    packages::ensure(
        &[Need {
            package: "g++",
            reason: "the C++ compiler for libFuzzer",
        }],
        installation,
    )
}

fn ensure_cargo_fuzz(workspace: &Workspace, installation: Installation) -> Result<PathBuf> {
    let root = workspace.tools().join(format!("cargo-fuzz-{VERSION}"));
    let built = root.join("bin/cargo-fuzz");
    if built.is_file() {
        return Ok(built);
    }
    let mut install = Command::new(workspace.cargo());
    install
        .args(["install", "cargo-fuzz", "--version", VERSION, "--locked"])
        .arg("--root")
        .arg(&root)
        // Its own: the caller's may be a workspace's, and flags meant for that.
        .env("CARGO_TARGET_DIR", root.join("build"))
        .env_remove("RUSTFLAGS")
        .current_dir("/");
    if installation == Installation::Forbidden {
        return Err(packages::missing_error(&[Missing {
            what: format!("cargo-fuzz {VERSION} (builds the fuzz targets)"),
            remedy: process::line(&install),
        }]));
    }
    eprintln!(
        "installing cargo-fuzz {VERSION} below {}: builds the fuzz targets",
        root.display()
    );
    process::run(&mut install)?;
    fs::remove_dir_all(root.join("build")).context("removing cargo-fuzz's build directory")?;
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_executed_and_found_is_read_from_what_a_target_says() {
        let mut said = Said::default();
        for line in [
            "#8192\tpulse  cov: 612 ft: 2401 corp: 310/22Kb",
            "artifact_prefix='f/'; Test unit written to f/crash-da39",
            "stat::number_of_executed_units: 9182",
        ] {
            said.line(line);
        }
        assert_eq!(said.executions, 9182);
        assert_eq!(said.finding.as_deref(), Some("f/crash-da39"));
    }

    #[test]
    fn a_row_says_how_much_and_what() {
        let outcome = |finding: Option<&str>| Outcome {
            target: "ring".to_owned(),
            executions: 1000,
            seconds: 4.0,
            finding: finding.map(str::to_owned),
        };
        let table = table(&[outcome(None), outcome(Some("f/crash-1"))]);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|row| row.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1], ["ring", "1000", "4", "250", "0"]);
        assert_eq!(rows[2], ["ring", "1000", "4", "250", "1", "f/crash-1"]);
    }
}
