//! `replay` and `report`: a recording judged again, or what a run has said, summed up.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, bail};
use conntracer_common::record::Header;
use zerocopy::FromBytes;

use super::prepare::{Outcome, prepare};
use crate::{
    cli::{
        ReplayArguments, ReportArguments,
        conditions::{Roots, resolve},
        settings,
    },
    detect::{self, Thresholds},
    emit::{Emit, Emits},
    filter::EventFilter,
    recording::{Reader, RecordingError},
    sink::{Line, Lines as _, Reason, Sinks, WhenFull, json::Json},
    time::Ktime,
    view::report::Report,
    watch::Watch,
};

/// A line of conntracer's own output is a few kB; longer ones are something else.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Within so many bytes of a report's input there is a line of conntracer's, or it is something else.
const MAX_SEARCHED: usize = 8 << 20;

/// Feeds a recording to the pipeline as the run that made it was fed.
pub(super) fn replay(typed: &ReplayArguments) -> anyhow::Result<Outcome> {
    let config = prepare(&typed.output.common)?;
    let conditions = resolve(&typed.filter, &Roots::default())?;
    let output = settings::output(&typed.output, &config);
    let emits = output.selection.emits;
    let file = open(&typed.file)?;
    let mut reader = Reader::new(BufReader::new(&file)).with_context(|| said(&typed.file))?;
    let output = output.open()?;
    if let Some(written) = output.file()
        && is_same(&file, written).with_context(|| said(&typed.file))?
    {
        bail!(
            "the output would be appended to the recording itself, {}: name another file",
            typed.file.display()
        );
    }

    let host = Arc::new(detect::with_coverage(reader.host().clone()));
    let mut sinks = Sinks::spawn(vec![output], &host, WhenFull::Wait)
        .context("starting the output's thread")?;
    let filter = EventFilter::recorded(conditions);
    let mut watch = Watch::new(config.detect, host, emits, filter);
    let end = feed(&mut reader, &mut watch, &mut |line| {
        sinks.push(line);
    });
    sinks.close(None)?;
    end.with_context(|| said(&typed.file))?;
    Ok(Outcome {
        failed: typed.output.fail_on_finding && watch.found(),
    })
}

/// The lines of a whole replay, from `start` to `stop`. A recording that ends badly still gets its
/// `stop`, before the error.
fn feed<R: Read>(
    reader: &mut Reader<R>,
    watch: &mut Watch,
    lines: &mut dyn FnMut(Line),
) -> Result<(), RecordingError> {
    let mut started = false;
    let end = loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                if !started {
                    started = true;
                    lines(Line::Start {
                        time: ktime(record),
                    });
                }
                watch.feed(record, lines);
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if !started {
        lines(Line::Start { time: Ktime(0) });
    }
    watch.finish(lines);
    let account = Box::new(watch.account(Vec::new(), Vec::new(), 0, false));
    lines(Line::Stop {
        reason: Reason::EndOfInput,
        account,
    });
    end
}

fn ktime(record: &[u8]) -> Ktime {
    Ktime(Header::read_from_prefix(record).map_or(0, |(header, _)| header.ktime_ns))
}

/// Sums up a recording or NDJSON output, whichever it is, and says how it ended: what a recording that ends
/// badly held is told all the same. A recording is judged as the configuration says.
pub(super) fn report(typed: &ReportArguments) -> anyhow::Result<(Report, anyhow::Result<()>)> {
    let config = prepare(&typed.common)?;
    let path = &typed.file;
    let mut file = open(path)?;
    match Reader::new(BufReader::new(&file)) {
        Ok(reader) => {
            let (report, end) = summarise_recording(reader, config.detect);
            Ok((report, end.with_context(|| said(path))))
        }
        Err(RecordingError::Magic) => {
            file.rewind().with_context(|| said(path))?;
            let report = summarise_lines(BufReader::new(file)).with_context(|| said(path))?;
            Ok((report, Ok(())))
        }
        Err(error) => Err(error).with_context(|| said(path)),
    }
}

fn summarise_recording<R: Read>(
    mut reader: Reader<R>,
    thresholds: Thresholds,
) -> (Report, Result<(), RecordingError>) {
    let host = Arc::new(detect::with_coverage(reader.host().clone()));
    let mut json = Json::new(Arc::clone(&host));
    let mut watch = Watch::new(
        thresholds,
        host,
        Emits::of(&[Emit::All]),
        EventFilter::all(),
    );
    let mut report = Report::default();
    let mut bytes = Vec::new();
    let end = feed(&mut reader, &mut watch, &mut |line| {
        bytes.clear();
        json.render(&line, &mut bytes);
        report.add(&bytes);
    });
    (report, end)
}

fn summarise_lines(mut input: impl BufRead) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut line = Vec::new();
    let mut searched = 0_usize;
    loop {
        line.clear();
        let read = input
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        report.add(&line);
        searched = searched.saturating_add(read);
        if report.lines() == 0 && searched > MAX_SEARCHED {
            break;
        }
    }
    if report.lines() == 0 {
        bail!(
            "neither a recording nor JSON output of conntracer: make one with `conntracer record FILE`"
        );
    }
    Ok(report)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("opening {}: name a recording", path.display()))
}

/// Whether both are one file, by whatever names.
fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok(one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn said(path: &Path) -> String {
    path.display().to_string()
}
