//! Bounds of the queue: what is dropped, what is kept, and that a stuck reader holds nothing up. And several sinks,
//! each with its own lines and its own end.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use conntracer_tests::wait::{self, SOON};

use super::{
    Format, Line, Lines as _, Output, Reason, Selection, Sinks, To, WhenFull,
    destination::{Destination, Stream},
    json::Json,
    sinks::Opened,
};
use crate::{
    emit::{Emit, Emits},
    event::{Body, Event},
    finding::FindingKind,
    testing::{self, Run, listener},
    time::Ktime,
};

/// More events than the queue and a pipe together can hold.
const FLOOD: u64 = 100_000;

fn event() -> Line {
    Line::Event(Event {
        time: Ktime(1),
        cpu: 0,
        body: connect(),
    })
}

fn connect() -> Body {
    static CONNECT: std::sync::LazyLock<Body> = std::sync::LazyLock::new(|| {
        let mut run = Run::new();
        run.closed(testing::socket("10.0.0.1:80", "10.0.0.2:4000"), |_| {});
        crate::decode::decode(&run.fed[0]).unwrap().body
    });
    *CONNECT
}

fn gap() -> Line {
    Line::Gap {
        time: Ktime(1),
        hook: "syn",
        lost: 1,
    }
}

fn finding() -> Line {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[conntracer_common::record::syn_outcome::ACCEPT_QUEUE_FULL] = 1;
    });
    Line::Finding(Box::new(run.only().clone()))
}

/// A sink with everything, as standard output or as a file.
fn to(path: Option<&Path>, destination: Box<dyn Destination>) -> Opened {
    Opened {
        output: Output {
            to: To::file(path),
            format: Format::Json,
            selection: Selection {
                emits: Emits::of(&[Emit::All]),
                findings: Vec::new(),
            },
            verbose: false,
        },
        destination,
    }
}

fn pipe() -> (BufReader<File>, Box<dyn Destination>) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let stream = Stream::new(writer.into());
    (BufReader::new(reader.into()), Box::new(stream))
}

fn spawn(outputs: Vec<Opened>, when_full: WhenFull) -> Sinks {
    Sinks::spawn(outputs, &Arc::new(testing::host()), when_full).unwrap()
}

/// One sink, in the format that costs least.
fn sink(when_full: WhenFull) -> (BufReader<File>, Sinks) {
    let (reader, stream) = pipe();
    let mut output = to(None, stream);
    output.output.format = Format::Text;
    (reader, spawn(vec![output], when_full))
}

fn kind_of(error: &anyhow::Error) -> ErrorKind {
    error.downcast_ref::<io::Error>().unwrap().kind()
}

#[test]
fn lines_after_a_clock_that_was_set_have_its_time() {
    let mut json = Json::new(Arc::new(testing::host()));
    let mut printed = Vec::new();
    for line in [
        gap(),
        Line::Clock {
            realtime_offset_ns: 3_600_000_000_000,
        },
        gap(),
    ] {
        json.render(&line, &mut printed);
    }
    let printed = String::from_utf8(printed).unwrap();
    let times: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.split('"').find(|word| word.starts_with("1970")))
        .collect();
    assert_eq!(
        times,
        [
            "1970-01-01T00:00:00.000000001Z",
            "1970-01-01T01:00:00.000000001Z"
        ]
    );
}

#[test]
fn a_stuck_reader_costs_events_before_findings() {
    let (reader, mut sinks) = sink(WhenFull::Drop);
    // Twice, since the writer takes one whole queue before it is stuck.
    for _ in 0..2 * FLOOD {
        sinks.push(event());
    }
    sinks.push(gap());
    sinks.flush();
    let account = &sinks.accounts()[0];
    assert!(account.events_lost > 0);
    assert_eq!(account.lines_lost, 0);
    let lines = std::thread::spawn(move || {
        reader
            .lines()
            .map(Result::unwrap)
            .filter(|line| line.contains("GAP"))
            .collect::<Vec<_>>()
    });
    sinks.close(None).unwrap();
    let [of_hook, of_sink] = &lines.join().unwrap()[..] else {
        panic!("two gaps: the hook's, and the output's own");
    };
    assert!(of_hook.contains("of the syn hook"), "{of_hook}");
    let lost = format!("{} lines of this output were lost", account.events_lost);
    assert!(of_sink.contains(&lost), "{of_sink}");
}

/// The end, which even a full queue takes.
fn stop() -> Line {
    Line::Stop {
        reason: Reason::Signal,
        account: Box::default(),
    }
}

/// Of so many troubles, each told so often that the queue has room for none of the last: a reader who pauses.
#[test]
fn what_a_reader_missed_stands_in_its_stream_and_the_last_of_each_finding_follows() {
    const FINDINGS: u64 = 1_000;
    let Line::Finding(finding) = finding() else {
        unreachable!()
    };
    let (reader, stream) = pipe();
    let mut sinks = spawn(vec![to(None, stream)], WhenFull::Drop);
    let mut pushed = 0;
    let mut push = |sinks: &mut Sinks, line: Line| {
        sinks.push(line);
        pushed += 1;
    };
    for count in 1..=2 * FLOOD / FINDINGS {
        for id in 1..=FINDINGS {
            let mut finding = finding.clone();
            (finding.id, finding.count, finding.at) = (id, count, Ktime(count));
            push(&mut sinks, Line::Finding(finding));
        }
        push(&mut sinks, event());
    }
    push(&mut sinks, stop());
    sinks.flush();
    let account = sinks.accounts().remove(0);
    assert!(account.lines_lost > FINDINGS, "{account:?}");
    let read = std::thread::spawn(move || {
        let line = |line: io::Result<String>| -> serde_json::Value {
            serde_json::from_str(&line.unwrap()).unwrap()
        };
        reader.lines().map(line).collect::<Vec<_>>()
    });
    sinks.close(None).unwrap();
    let read = read.join().unwrap();

    let at = read.iter().position(|line| line["kind"] == "gap").unwrap();
    let (before, [gap, behind @ ..]) = read.split_at(at) else {
        unreachable!()
    };
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    assert_eq!(
        before.len() as u64 + number(&gap["lost"]) + 1,
        pushed,
        "the end is one more"
    );
    assert_eq!(number(&gap["kinds"]["finding"]), account.lines_lost);
    assert_eq!(number(&gap["kinds"]["state"]), account.events_lost);
    assert_eq!(
        (gap["sink"].as_str(), gap["cause"].as_str()),
        (Some("stdout"), Some("reader"))
    );
    assert!(gap["since"].as_str() < gap["time"].as_str(), "{gap}");
    assert_eq!(number(&gap["said_again"]), FINDINGS);
    let (end, again) = behind.split_last().unwrap();
    assert_eq!(end["kind"], "stop", "the last line of all");
    let ids: Vec<u64> = again.iter().map(|line| number(&line["id"])).collect();
    assert_eq!(ids, (1..=FINDINGS).collect::<Vec<_>>());
    assert!(
        again
            .iter()
            .all(|line| number(&line["count"]) == 2 * FLOOD / FINDINGS)
    );
}

#[test]
fn nothing_is_dropped_where_there_is_time() {
    let (reader, mut sinks) = sink(WhenFull::Wait);
    let lines = std::thread::spawn(move || reader.lines().map(Result::unwrap).count());
    for _ in 0..2 * FLOOD {
        sinks.push(event());
    }
    assert_eq!(sinks.accounts()[0].events_lost, 0);
    sinks.close(None).unwrap();
    assert_eq!(lines.join().unwrap() as u64, 2 * FLOOD);
}

#[test]
fn a_stuck_reader_does_not_keep_conntracer_from_ending() {
    let (reader, mut sinks) = sink(WhenFull::Drop);
    for _ in 0..FLOOD {
        sinks.push(event());
    }
    let error = sinks.close(Some(Duration::from_millis(1))).unwrap_err();
    assert_eq!(kind_of(&error), ErrorKind::TimedOut);
    drop(reader);
}

/// A destination that takes a line now and then.
#[derive(Debug)]
struct Slow;

impl Destination for Slow {
    fn write(&mut self, _line: &Line, _rendered: &[u8]) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_reader_gets_all_of_it() {
    let mut sinks = spawn(vec![to(None, Box::new(Slow))], WhenFull::Drop);
    for _ in 0..20 {
        sinks.push(event());
    }
    // All of it takes twice as long.
    sinks.close(Some(Duration::from_millis(500))).unwrap();
}

#[test]
fn a_reader_that_left_is_noticed_without_writing() {
    let (reader, mut sinks) = sink(WhenFull::Drop);
    assert!(!sinks.are_over());
    drop(reader);
    are_over_soon(&mut sinks);
}

/// Not at once: whoever looks at this process's descriptors in /proc (a monitor, another conntracer) holds what a closed one
/// was of for a moment longer.
fn are_over_soon(sinks: &mut Sinks) {
    wait::until("the reader that left to be noticed", SOON, || {
        Ok(sinks.are_over().then_some(()))
    })
    .unwrap();
}

#[test]
fn writing_to_nobody_is_a_broken_pipe() {
    let (reader, mut sinks) = sink(WhenFull::Drop);
    drop(reader);
    sinks.push(gap());
    let error = sinks.close(None).unwrap_err();
    assert_eq!(kind_of(&error), ErrorKind::BrokenPipe);
}

/// A disk that is full.
#[derive(Debug)]
struct Full;

impl Destination for Full {
    fn write(&mut self, _line: &Line, _rendered: &[u8]) -> io::Result<()> {
        Err(ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until a destination has failed.
fn failed(sinks: &Sinks) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(sinks.failed());
}

#[test]
fn one_of_several_that_fails_is_told_and_the_others_go_on() {
    let (mut reader, stream) = pipe();
    let full = to(Some(Path::new("/full")), Box::new(Full));
    let mut sinks = spawn(vec![full, to(None, stream)], WhenFull::Drop);
    sinks.push(gap());
    sinks.flush();
    failed(&sinks);
    assert!(!sinks.are_over());
    sinks.push(gap());
    sinks.flush();
    let accounts = sinks.accounts();
    assert_eq!(accounts[0].sink, "file:/full");
    assert_eq!((accounts[0].lines_lost, accounts[1].lines_lost), (2, 0));
    assert!(accounts[0].failed.as_ref().unwrap().contains("storage"));
    assert_eq!(accounts[1].failed, None);
    let error = sinks.close(None).unwrap_err();
    assert_eq!(kind_of(&error), ErrorKind::StorageFull);
    assert!(error.to_string().ends_with("to file:/full"), "{error}");
    let mut lines = String::new();
    reader.read_to_string(&mut lines).unwrap();
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn when_all_have_failed_nothing_goes_on() {
    let full = |path| to(Some(Path::new(path)), Box::new(Full));
    let mut sinks = spawn(vec![full("/a"), full("/b")], WhenFull::Drop);
    sinks.push(gap());
    sinks.flush();
    failed(&sinks);
    while !sinks.are_over() {
        failed(&sinks);
    }
}

#[test]
fn of_several_only_the_reader_of_standard_output_ends_all_by_leaving() {
    let ((reader, stdout), (other_reader, other)) = (pipe(), pipe());
    let other = to(Some(Path::new("/fifo")), other);
    let mut sinks = spawn(vec![to(None, stdout), other], WhenFull::Drop);
    drop(other_reader);
    sinks.push(gap());
    sinks.flush();
    failed(&sinks);
    assert!(!sinks.are_over());
    drop(reader);
    are_over_soon(&mut sinks);
}

#[test]
fn each_of_several_has_its_lines() {
    let ((everything, all), (storms, few)) = (pipe(), pipe());
    let mut few = to(Some(Path::new("/few")), few);
    few.output.selection = Selection {
        emits: Emits::default(),
        findings: vec![FindingKind::new(0, "another")],
    };
    let mut sinks = spawn(vec![few, to(None, all)], WhenFull::Wait);
    for line in [event(), finding(), gap()] {
        sinks.push(line);
    }
    sinks.close(None).unwrap();
    let kinds = |lines: BufReader<File>| -> Vec<String> {
        let kind = |line: io::Result<String>| {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            line["kind"].as_str().unwrap().to_owned()
        };
        lines.lines().map(kind).collect()
    };
    assert_eq!(kinds(everything), ["state", "finding", "gap"]);
    assert_eq!(kinds(storms), ["gap"]);
}

#[test]
fn one_patience_is_for_all() {
    let ((reader, one), (other_reader, other)) = (pipe(), pipe());
    let other = to(Some(Path::new("/fifo")), other);
    let mut sinks = spawn(vec![to(None, one), other], WhenFull::Drop);
    for _ in 0..FLOOD {
        sinks.push(event());
    }
    let error = sinks.close(Some(Duration::from_millis(1))).unwrap_err();
    assert_eq!(kind_of(&error), ErrorKind::TimedOut);
    drop((reader, other_reader));
}
