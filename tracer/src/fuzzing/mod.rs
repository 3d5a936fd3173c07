//! What the fuzz targets of `tests/fuzz` do with their inputs: any bytes go into a parser, or through the
//! whole pipeline, and what comes out is held against the laws.
//!
//! Compiled for tests, which run the corpus (`tests/data/fuzz`), and for `cargo fuzz`, which sets
//! `cfg(fuzzing)`; no part of the tracer. A target fails by panicking.

mod pipeline;
mod plain;
mod script;

use std::{io::Cursor, path::Path, sync::Arc};

use clap::Parser as _;
use conntracer_common::filter::Plain;

use self::pipeline::{Heard, Judge};
#[cfg(test)]
pub(crate) use self::script::KINDS;
use crate::{
    cli::{self, Arguments, conditions, duration},
    config::Config,
    decode::decode,
    detect::{self, Thresholds},
    emit::Emits,
    filter::EventFilter,
    kernel,
    owner::{figures, path, process, standing},
    recording::{Reader, RecordingError},
    sink::Line,
    view::report::{self, Report},
};

/// Panics where it finds something.
type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("btf", btf),
    ("config", config),
    ("pipeline", pipeline::run),
    ("proc", proc),
    ("recording", recording),
    ("ring", ring),
];

/// Runs the target of that name.
///
/// # Panics
///
/// Where there is none, and where the target finds something.
pub fn run(target: &str, data: &[u8]) {
    let (_, run) = TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .unwrap_or_else(|| panic!("there is no target {target}"));
    run(data);
}

/// One record as a ring hands it out: whatever looks at its bytes, and what is printed of its event.
fn ring(data: &[u8]) {
    kernel::fuzzing::ring(data);
    let mut heard = Heard::new(&pipeline::host(0));
    if let Ok(event) = decode(data) {
        let _passes = pipeline::filtered().passes(&event);
        heard.line(&Line::Event(event));
    }
}

/// A file that is named to `replay` and `report`: a recording, or lines of output.
fn recording(data: &[u8]) {
    let mut reader = match Reader::new(Cursor::new(data)) {
        Ok(reader) => reader,
        Err(RecordingError::Magic) => {
            let mut report = Report::default();
            for line in data.split_inclusive(|byte| *byte == b'\n') {
                report.add(line);
            }
            let _printed = report::text(&report);
            return;
        }
        Err(error) => {
            let _said = error.to_string();
            return;
        }
    };
    let host = Arc::new(detect::with_coverage(reader.host().clone()));
    let mut judge = Judge::new(
        Thresholds::default(),
        &host,
        Emits::default(),
        EventFilter::all(),
    );
    while let Ok(Some(record)) = reader.next_record() {
        judge.feed(record);
    }
    judge.finish();
    judge.account();
}

/// The kernel's BTF, or what is given for it.
fn btf(data: &[u8]) {
    kernel::fuzzing::btf(data);
}

/// The config file, and what is typed after `conntracer`, a word a line.
fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(words) = text.strip_prefix('$') {
        command_line(words);
        return;
    }
    let Ok(config) = Config::parse(&text, Path::new("fuzzed.toml")) else {
        return;
    };
    let printed = config.annotated().expect("what was read can be written");
    let again = Config::parse(&printed, Path::new("printed.toml"));
    assert_eq!(again.ok(), Some(config.clone()), "{printed}");
    pipeline::once(&config.detect);
}

fn command_line(words: &str) {
    for word in words.lines() {
        let _typed = duration::parse(word);
        cli::fuzz(word);
    }
    // No name that is looked up: what a file system holds is not the input's to choose.
    let is_name = |word: &str| word.starts_with("--netns");
    if words.lines().any(is_name) {
        return;
    }
    let typed = std::iter::once("conntracer").chain(words.lines());
    if let Ok(arguments) = Arguments::try_parse_from(typed)
        && let Ok(asked) = conditions::resolve(&arguments.run.filter, &conditions::Roots::default())
    {
        let _passes = asked
            .sockets
            .matches::<Plain>(&conntracer_common::record::Socket::default());
        let _wants = asked.owners.matches_group(words);
    }
}

/// Text of /proc and paths of control groups.
fn proc(data: &[u8]) {
    kernel::fuzzing::proc(data);
    process::fuzz(data);
    standing::fuzz(data);
    figures::fuzz(data);
    let group = String::from_utf8_lossy(data);
    if let Some((runtime, id)) = path::container(&group) {
        assert!(!runtime.is_empty() && group.contains(id));
    }
    if let Some(unit) = path::unit(&group) {
        assert!(group.contains(unit));
    }
}

/// The corpus of a target, by the names of its files.
#[cfg(test)]
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/fuzz");
    let mut inputs: Vec<_> = std::fs::read_dir(Path::new(corpus).join(target))
        .expect("the corpus is there")
        .map(|entry| {
            let entry = entry.expect("a readable directory");
            let data = std::fs::read(entry.path()).expect("a readable file");
            (entry.file_name().to_string_lossy().into_owned(), data)
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty());
    inputs
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Law 7: every input that a fuzzer or a defect left behind.
    #[rstest]
    fn the_corpus_passes(
        #[values("btf", "config", "pipeline", "proc", "recording", "ring")] target: &str,
    ) {
        for (name, data) in inputs(target) {
            // The last one printed is the one that fails.
            println!("{name}");
            run(target, &data);
        }
    }

    #[test]
    fn every_target_has_a_case_above() {
        let named = ["btf", "config", "pipeline", "proc", "recording", "ring"];
        assert_eq!(TARGETS.map(|(name, _)| name), named);
    }
}
