//! Bounds of the queue: what is refused, what is kept, and that a stuck reader holds nothing up.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind},
    sync::Arc,
    time::Duration,
};

use super::{
    Line, Renderer,
    json::Json,
    queue::{Refused, Sink, WhenFull},
};
use crate::{
    event::{Body, Event},
    testing,
    time::Ktime,
};

/// More events than the queue and a pipe together can hold.
const FLOOD: u64 = 100_000;

fn event() -> Line {
    Line::Event(Event {
        time: Ktime(1),
        cpu: 0,
        body: Body::Tick,
    })
}

fn gap() -> Line {
    Line::Gap {
        time: Ktime(1),
        hook: "syn",
        lost: 1,
    }
}

fn sink(when_full: WhenFull) -> (BufReader<File>, Sink) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let renderer = Renderer::Json(Json::new(Arc::new(testing::host())));
    let sink = Sink::spawn(writer.into(), renderer, when_full).unwrap();
    (BufReader::new(reader.into()), sink)
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
    let (reader, mut sink) = sink(WhenFull::Refuse);
    // Twice, since the writer takes one whole queue before it is stuck.
    for _ in 0..2 * FLOOD {
        sink.push(event());
    }
    sink.push(gap());
    sink.flush();
    let Refused { events, others } = sink.refused();
    assert!(events > 0);
    assert_eq!(others, 0);
    let lines = std::thread::spawn(move || {
        reader
            .lines()
            .map(Result::unwrap)
            .filter(|line| line.contains("\"gap\""))
            .count()
    });
    sink.close(None).unwrap();
    assert_eq!(lines.join().unwrap(), 1);
}

#[test]
fn nothing_is_refused_where_there_is_time() {
    let (reader, mut sink) = sink(WhenFull::Wait);
    let lines = std::thread::spawn(move || reader.lines().map(Result::unwrap).count());
    for _ in 0..2 * FLOOD {
        sink.push(event());
    }
    assert_eq!(sink.refused(), Refused::default());
    sink.close(None).unwrap();
    assert_eq!(lines.join().unwrap() as u64, 2 * FLOOD);
}

#[test]
fn a_stuck_reader_does_not_keep_conntracer_from_ending() {
    let (reader, mut sink) = sink(WhenFull::Refuse);
    for _ in 0..FLOOD {
        sink.push(event());
    }
    let error = sink.close(Some(Duration::from_millis(1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    drop(reader);
}

#[test]
fn a_reader_that_left_is_noticed_without_writing() {
    let (reader, sink) = sink(WhenFull::Refuse);
    assert!(!sink.reader_is_gone());
    drop(reader);
    assert!(sink.reader_is_gone());
}

#[test]
fn writing_to_nobody_is_a_broken_pipe() {
    let (reader, mut sink) = sink(WhenFull::Refuse);
    drop(reader);
    sink.push(gap());
    assert_eq!(sink.close(None).unwrap_err().kind(), ErrorKind::BrokenPipe);
}
