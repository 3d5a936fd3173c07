//! The commands: one function each, and the way from their results to an exit status.

mod now;
mod prepare;
mod replay;
mod trace;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, anyhow};
use clap::{CommandFactory, Parser};
use conntracer_common::filter::Filter;

use self::prepare::{Outcome, options, prepare};
use crate::{
    cli::{
        Arguments, Command, ConfigArguments, DoctorArguments, ReportArguments, ReportFormat,
        settings,
    },
    conditions::{Conditions, Owners},
    config::Config,
    detect,
    kernel::{self, CannotTrace},
    outlet, privileges,
    sink::{Format, destination::standard_output, escape::Escaped},
    telemetry,
    view::{doctor, explain, report},
};

/// Exit statuses beyond 0: findings with `--fail-on-finding`, wrong usage or config (or input and
/// output that fail), and a kernel that cannot be traced.
const FOUND: u8 = 1;
const WRONG: u8 = 2;
const CANNOT_TRACE: u8 = 3;

/// Runs the process's command line.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match dispatch(arguments) {
        Ok(Outcome { failed: false }) => ExitCode::SUCCESS,
        Ok(Outcome { failed: true }) => FOUND.into(),
        Err(error) => complain(&error),
    }
}

/// clap's message as one sentence; help and version are no error.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to be told when this cannot be printed.
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    let rendered = error.render().to_string();
    // What follows is the usage line, which `--help` shows better.
    let lines = rendered
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let mut message = String::new();
    for line in lines {
        // A tip stands for itself; any other line goes on with the one before.
        let (separator, line) = match line.strip_prefix("tip: ") {
            Some(tip) => ("; ", tip),
            None => (" ", line),
        };
        if !message.is_empty() {
            message.push_str(separator);
        }
        message.push_str(line);
    }
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    say(&format!(
        "{message}; `conntracer --help` lists what there is"
    ));
    WRONG.into()
}

/// One line on stderr. Nobody is left to be told when it cannot be printed.
fn say(sentence: &str) {
    drop(writeln!(io::stderr(), "conntracer: {}", Escaped(sentence)));
}

/// An error and its causes as one sentence. Errors that quote their cause do not have it repeated.
fn sentence(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !said.contains(&cause) {
            if !said.is_empty() {
                said.push_str(": ");
            }
            said.push_str(&cause);
        }
    }
    said
}

fn complain(error: &anyhow::Error) -> ExitCode {
    let broken_pipe = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    });
    if broken_pipe {
        return ExitCode::SUCCESS;
    }
    say(&sentence(error));
    if error.is::<CannotTrace>() {
        CANNOT_TRACE.into()
    } else {
        WRONG.into()
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<Outcome> {
    let done = |()| Outcome { failed: false };
    match arguments.command.unwrap_or(Command::Run(arguments.run)) {
        Command::Run(run) => trace::run(&run, None),
        Command::Now(typed) => now::now(&typed),
        Command::Record(record) => trace::run(&record.run, Some(&record.file)),
        Command::Replay(replay) => replay::replay(&replay),
        Command::Doctor(typed) => diagnose(&typed).map(done),
        Command::Report(typed) => summarise(&typed).map(done),
        Command::Explain { word } => explain_word(word.as_deref()).map(done),
        Command::Config(typed) => show_config(&typed).map(done),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "conntracer", &mut script);
            print_bytes(&script).map(done)
        }
        Command::Outlet { to } => {
            telemetry::install(0);
            outlet::outlet(&to).map(|served| Outcome { failed: !served })
        }
    }
}

fn diagnose(typed: &DoctorArguments) -> anyhow::Result<()> {
    let config = prepare(&typed.common)?;
    let trace = settings::trace(&typed.kernel, &config);
    privileges::check()?;
    let everything = Conditions {
        sockets: Filter::NONE,
        owners: Owners::default(),
    };
    let host = kernel::survey(&options(trace, everything, false))?;
    let host = Arc::new(detect::with_coverage(host));
    match typed.format.settled(io::stdout().is_terminal()) {
        Format::Json => {
            let mut json = serde_json::to_vec(&doctor::Json::new(&host))
                .context("writing the host's facts as JSON")?;
            json.push(b'\n');
            print_bytes(&json)
        }
        Format::Auto | Format::Text | Format::Brief => print(&doctor::text(&host)),
    }
}

fn summarise(typed: &ReportArguments) -> anyhow::Result<()> {
    // A name that is taken is said before a long file is read.
    let page = typed
        .html
        .as_deref()
        .map(settings::create_new)
        .transpose()?;
    let (lines, end) = replay::report(typed)?;
    match (page, typed.format) {
        (Some(mut page), _) => page
            .write_all(report::html(&lines).as_bytes())
            .context("writing the page")?,
        (None, ReportFormat::Text) => print(&report::text(&lines))?,
        (None, ReportFormat::Json) => {
            print(&report::json(&lines).context("writing the report as JSON")?)?;
        }
    }
    end
}

fn explain_word(word: Option<&str>) -> anyhow::Result<()> {
    let Some(word) = word else {
        return print(&explain::words());
    };
    let text = explain::text(word).ok_or_else(|| {
        let near = explain::near(word).map_or_else(String::new, |near| {
            format!("; did you mean `conntracer explain {near}`?")
        });
        anyhow!(
            "nothing is called `{word}`: `conntracer explain` lists what can be explained{near}"
        )
    })?;
    print(&text)
}

fn show_config(typed: &ConfigArguments) -> anyhow::Result<()> {
    telemetry::install(typed.common.verbose);
    if let Some(path) = &typed.check {
        Config::load(Some(path))?;
        return print(&format!("{} is right\n", path.display()));
    }
    let config = Config::load(typed.common.config.as_deref())?;
    print(&config.annotated().context("writing the config")?)
}

fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut output = standard_output().context("opening standard output")?;
    output
        .write_all(bytes)
        .context("writing to standard output")
}
