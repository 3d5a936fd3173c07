//! The recordings of `tests/data`, made on a live kernel by `cargo xtask record-data`: what is found
//! in each, the same again, and as much of it as a file that was cut short still holds.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use conntracer::{
    config::Config,
    finding::{Finding, Status},
    pipeline::{Output, Pipeline},
    recording::{Reader, RecordingError},
};
use conntracer_common::record::{Checkpoint, Header, kind};
use serde_json::Value;
use zerocopy::IntoBytes;

use crate::{run, stderr, stdout, text};

/// Places at which each recording is cut: in its head, in lengths, in records and between them.
const CUTS: usize = 500;

fn recordings() -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let mut recordings: Vec<_> = fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "ctrec"))
        .collect();
    recordings.sort();
    recordings
}

/// The thresholds a scenario was recorded with, where they are not the defaults.
fn config(recording: &Path) -> Option<PathBuf> {
    let stem = recording.file_stem()?.to_str()?;
    let (scenario, _) = stem.rsplit_once('_')?;
    Some(recording.with_file_name(format!("{scenario}.toml"))).filter(|path| path.exists())
}

fn replay(recording: &Path) -> String {
    let config = config(recording);
    let mut arguments = vec!["replay", text(recording), "--format", "json"];
    if let Some(config) = &config {
        arguments.extend(["--config", text(config)]);
    }
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    stdout(&output).to_owned()
}

/// One row a finding: the last that was said of it.
fn table(lines: &str) -> String {
    let mut last: Vec<Value> = Vec::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["kind"] != "finding" {
            continue;
        }
        match last.iter_mut().find(|earlier| earlier["id"] == line["id"]) {
            Some(earlier) => *earlier = line,
            None => last.push(line),
        }
    }
    let mut table = String::new();
    for finding in &last {
        let stage = finding["stage"].as_str().unwrap_or("-");
        let keys = ["finding", "cause", "status", "certainty"];
        for word in keys.map(|key| finding[key].as_str().unwrap()) {
            write!(table, "{word} ").unwrap();
        }
        let (scope, count) = (finding["subject"]["scope"].as_str(), &finding["count"]);
        writeln!(table, "{stage} {} {count}", scope.unwrap()).unwrap();
    }
    table
}

#[test]
fn each_scenario_gives_its_findings() {
    let recordings = recordings();
    let rows: Vec<String> = recordings
        .iter()
        .map(|recording| {
            let name = recording.file_stem().and_then(|stem| stem.to_str());
            format!("{}:\n{}", name.unwrap(), table(&replay(recording)))
        })
        .collect();
    insta::assert_snapshot!(rows.join("\n"));
}

#[test]
fn a_second_replay_is_the_same_byte_for_byte() {
    for recording in recordings() {
        assert_eq!(
            replay(&recording),
            replay(&recording),
            "{}",
            text(&recording)
        );
    }
}

/// What a recording says, as far as it goes, and how it ended.
fn judged(bytes: &[u8], config: &Config) -> (Vec<String>, Result<(), RecordingError>) {
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut pipeline = Pipeline::new(config.detect.clone(), Arc::new(reader.host().clone()));
    let mut said = Vec::new();
    loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                pipeline.feed(record, &mut |output| {
                    if let Output::Finding(finding) = output {
                        said.push(format!("{finding:?}"));
                    }
                });
            }
            Ok(None) => break (said, Ok(())),
            Err(error) => break (said, Err(error)),
        }
    }
}

#[test]
fn a_recording_cut_anywhere_says_so_and_what_came_before() {
    for recording in recordings() {
        let bytes = fs::read(&recording).unwrap();
        let config = config(&recording).map_or_else(Config::default, |path| {
            Config::load(Some(&path)).expect("a config that conntracer was recorded with")
        });
        let (whole, end) = judged(&bytes, &config);
        end.expect("a whole recording");
        let mut refused = 0;
        for cut in (0..CUTS).map(|cut| cut * bytes.len() / CUTS) {
            let place = format!("{} cut at {cut}", text(&recording));
            let (said, end) = judged(&bytes[..cut], &config);
            assert!(whole.starts_with(&said), "{place}: {said:#?}");
            match end {
                Ok(()) => {}
                Err(
                    RecordingError::Magic
                    | RecordingError::Head { .. }
                    | RecordingError::Truncated { .. },
                ) => refused += 1,
                Err(error) => panic!("{place}: {error}"),
            }
        }
        assert!(refused > 0, "{}: no cut within a record", text(&recording));
    }
}

#[test]
fn nothing_names_the_machine_that_recorded() {
    for recording in recordings() {
        let bytes = fs::read(&recording).unwrap();
        let reader = Reader::new(&*bytes).unwrap();
        let host = reader.host();
        assert_eq!(host.hostname, "recorded", "{}", text(&recording));
        let version = |character: char| character.is_ascii_digit() || character == '.';
        assert!(host.kernel.chars().all(version), "{}", host.kernel);
    }
}

/// Asked after every record, conntracer says what is open, all of it and once each, and nothing of what it finds is
/// another for that.
#[test]
fn a_checkpoint_says_every_open_finding_and_changes_none() {
    let mut said_open = 0;
    for recording in recordings() {
        let whole = fs::read(&recording).unwrap();
        let thresholds = Config::load(config(&recording).as_deref()).unwrap().detect;
        let mut reader = Reader::new(&*whole).unwrap();
        let host = Arc::new(reader.host().clone());
        let mut undisturbed = Pipeline::new(thresholds.clone(), Arc::clone(&host));
        let mut asked = Pipeline::new(thresholds, host);
        let (mut expected, mut said) = (Vec::new(), Vec::new());
        let mut open = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            let news = feed(&mut undisturbed, record);
            expected.extend(news.into_iter().filter(|finding| !is_update(finding)));
            for finding in feed(&mut asked, record) {
                match finding.status {
                    Status::Open => open.push(finding.id),
                    Status::Update => {}
                    Status::Resolved => open.retain(|id| *id != finding.id),
                }
                said.extend((!is_update(&finding)).then_some(finding));
            }
            let checkpoint = checkpoint(asked.now().0);
            let (early, told): (Vec<_>, Vec<_>) = feed(&mut asked, &checkpoint)
                .into_iter()
                .partition(|finding| finding.status == Status::Open);
            assert!(early.is_empty(), "{early:#?}");
            assert!(told.iter().all(is_update), "{told:#?}");
            assert!(told.iter().all(|finding| finding.at == asked.now()));
            let mut ids: Vec<u64> = told.iter().map(|finding| finding.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, open, "{}", recording.display());
            said_open += ids.len();
        }
        assert_eq!(said, expected, "{}", recording.display());
    }
    assert!(said_open > 100, "{said_open} findings were open when asked");
}

fn is_update(finding: &Finding) -> bool {
    finding.status == Status::Update
}

fn feed(pipeline: &mut Pipeline, record: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    pipeline.feed(record, &mut |output| {
        if let Output::Finding(finding) = output {
            findings.push(finding.clone());
        }
    });
    findings
}

fn checkpoint(ktime_ns: u64) -> Vec<u8> {
    let size = u16::try_from(size_of::<Checkpoint>()).unwrap();
    let header = Header {
        ktime_ns,
        kind: kind::CHECKPOINT,
        size,
        cpu: u32::MAX,
    };
    Checkpoint { header }.as_bytes().to_vec()
}
